"""One file for each stage: what its results depend on (``payload``), what it refuses early (``check``), and ``run``."""
