"""Training: the loop, losses, optimizers, checkpoints and validation."""
