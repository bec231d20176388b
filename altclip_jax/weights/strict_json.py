"""JSON that describes tensors, read so that nothing in it is silently dropped."""

from typing import Any

from altclip_jax.files.checkpoint_folder import CheckpointError
from altclip_jax.files.json_file import parse_json


def load_object(data: bytes, subject: str) -> dict[str, Any]:
    """Parse a JSON object in UTF-8.

    Args:
        data: the bytes.
        subject: what they are, for errors.

    Raises:
        CheckpointError: not JSON, not an object, or a key stands twice in an object (the last would win).
    """
    repeated: list[str] = []

    def refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                repeated.append(key)
            found[key] = value
        return found

    try:
        parsed = parse_json(data.decode("utf-8"), refuse_repeats)
    except ValueError as error:
        raise CheckpointError(f"{subject} is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{subject} is not a JSON object but a {type(parsed).__name__}")
    if repeated:
        raise CheckpointError(subject, [f"{key!r} stands twice" for key in sorted(set(repeated))])
    return parsed
