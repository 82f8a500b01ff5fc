"""Statistics on plain arrays: bootstrap intervals, the AUC, isotonic regression."""
