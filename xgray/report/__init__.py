"""Tables and figures, made from the run's files only."""
