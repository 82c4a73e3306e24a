"""What runs on devices: the one training loop, the one sampler, scores, checkpoints."""
