"""Who runs what where: the only place that imports Ray. No number is computed here."""
