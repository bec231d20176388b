"""Files on disk to host batches: the order is a function of (seed, step, row), and no jax here."""
