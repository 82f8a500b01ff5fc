"""Intervals and tests over prompts, the bootstrap, the area under the ROC curve, isotonic regression."""
