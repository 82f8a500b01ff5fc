"""Readers, one file per format; each gives rows, and names file and line of what it cannot read."""
