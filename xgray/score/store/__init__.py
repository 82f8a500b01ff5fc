"""The score store: every answer of every scorer, kept by text, language, scorer and version."""
