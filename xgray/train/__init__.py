"""Preference tuning with DPO: pairs, reference, trainer, checkpoints and the export of the result."""
