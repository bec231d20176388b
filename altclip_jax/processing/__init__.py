"""Strings and images in, numpy arrays out; no jax here, so that data workers start fast."""
