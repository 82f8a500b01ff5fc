"""Completions to toxicity scores: the protocol and the scorers behind it."""
