"""Sample completions of prompts with an engine."""
