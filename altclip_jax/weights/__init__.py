"""Parameters in and out of the pytree; knows paths and shapes, not the model classes."""
