"""Rows to metrics: toxicity, fluency, diversity, each with a bootstrap interval."""
