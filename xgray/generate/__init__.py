"""Prompts to completions, as pure functions over an engine."""
