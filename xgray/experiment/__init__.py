"""Plan an experiment's stages and run those that are not finished."""
