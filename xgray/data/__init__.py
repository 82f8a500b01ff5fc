"""Readers of input files, one module per format. Each yields rows, and names file and line of what it cannot read."""
