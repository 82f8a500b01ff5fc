"""Rows to metrics: toxicity, fluency, diversity, each with an interval."""
