"""Numbers out of embeddings."""
