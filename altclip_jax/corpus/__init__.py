"""A whole corpus: items in, embeddings out in parts that survive a kill, an index, and search."""
