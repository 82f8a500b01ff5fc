"""Mathematics inside the network: MLP neurons, the probe, value vectors, activations, edits and retrieval."""
