"""One file for each stage of the mechanism: ``run(plan, one, on_progress)`` reads, spreads the work, and writes."""
