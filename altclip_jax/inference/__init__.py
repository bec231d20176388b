"""Embeddings and answers out of a model."""
