"""Public benchmarks in the layouts in which they are published, and the numbers that were published for them."""
