"""The score store: every answer of every scorer, by text, language, scorer and version."""
