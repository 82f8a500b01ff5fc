"""The report of a run: its tables and figures in one HTML page, made from the run's files alone."""
