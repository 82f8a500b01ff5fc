"""Scorers of toxicity, the store that keeps their scores, and calibration of one scorer onto another."""
