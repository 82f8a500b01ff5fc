"""Fine-tune a sequence classifier on texts with soft targets, in plain PyTorch; one process, or one of several."""
