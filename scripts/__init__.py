"""Programs around the library, run from the repository's root: `python -m scripts.parity.check`."""
