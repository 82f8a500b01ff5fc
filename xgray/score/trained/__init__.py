"""Scorers that ``xgray scorer train`` made: their agreement with held-out texts, and their card."""
