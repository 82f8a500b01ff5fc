"""Preference tuning: the pairs, the trainer, its DeepSpeed configurations and the export of its result."""
