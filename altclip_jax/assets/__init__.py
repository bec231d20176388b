"""The embedded default model and a few pictures, as files of the package."""

from pathlib import Path

PICTURES = Path(__file__).parent / "pictures"


def default_checkpoint() -> Path:
    """Returns the folder of the embedded model: a small AltCLIP that knows emoji in eleven languages."""
    return Path(__file__).parent / "default"
