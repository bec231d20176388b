"""What a step costs on a mesh that need not exist: compiled, and its program read."""
