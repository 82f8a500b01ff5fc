"""Inside the network: neurons of any MLP, the probe, value vectors, activations and interventions."""
