"""Bootstrap intervals and tests, the area under the ROC curve, isotonic regression."""
