"""Everything that runs on Ray: which process computes what, and where. Only this package imports Ray."""
