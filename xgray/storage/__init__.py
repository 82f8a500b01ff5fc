"""Files written whole or not at all, on a local disk or behind a URI; checksums and fingerprints."""
