"""Training: both stages, their steps, the run and its checkpoints."""
