"""How long a row of ids may be and becomes: truncation and padding, as transformers' tokenizers do them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

_TRUNCATIONS = ("longest_first", "only_first", "only_second")
Padding = bool | str | Sequence[int]
Ids = list[int]


def truncation_strategy(truncation: bool | str | None, max_length: int | None, padding: Padding) -> str | None:
    """Returns the name of a strategy, or None for no truncation.

    If it is not said (None), a `max_length` without padding cuts, as in the reference.
    """
    if truncation is None and max_length is not None and padding is False:
        truncation = True
    if truncation is True:
        return "longest_first"
    if truncation is None or truncation is False or truncation == "do_not_truncate":
        if max_length is not None and padding != "max_length":
            warnings.warn(
                f"max_length={max_length} does nothing here: pass truncation=True to cut to it, or"
                " padding='max_length' to pad to it.",
                stacklevel=3,
            )
        return None
    if truncation not in _TRUNCATIONS:
        raise ValueError(f"truncation={truncation!r} is not True, False or one of {', '.join(_TRUNCATIONS)}.")
    return str(truncation)


def positive(name: str, value: Any) -> int | None:
    """Returns a whole number of at least 1, or None as it is."""
    if value is None:
        return None
    try:
        if isinstance(value, bool):
            raise TypeError  # noqa: TRY301
        number: int = value.__index__()
    except (AttributeError, TypeError):
        raise TypeError(f"{name}={value!r} is not a whole number.") from None
    if number < 1:
        raise ValueError(f"{name}={number} must be at least 1.")
    return number


def cut(
    first: Ids, second: Ids | None, room: int, strategy: str, *, side: str, spare_to_longer: bool
) -> tuple[Ids, Ids | None]:
    """Cuts a text or pair to `room` ids; of a pair, longest_first cuts the longer until both are as long.

    If `room` is odd then, the longer text keeps one more with `spare_to_longer`, and otherwise the first.

    Raises:
        ValueError: there is no room, or the text that the strategy names is too short to make it.
    """
    if room < 0:
        raise ValueError(f"max_length leaves no room: the special tokens alone are {-room} too many.")
    surplus = len(first) + len(second or ()) - room
    if surplus <= 0:
        return first, second
    if strategy == "longest_first" and second is not None:
        left, right = _shared(len(first), len(second), room, spare_to_longer)
        return _kept(first, left, side), _kept(second, right, side)
    named, other = (second, "first") if strategy == "only_second" else (first, "second")
    if named is None:
        raise ValueError("truncation='only_second' needs a text_pair to cut.")
    if surplus > len(named):
        raise ValueError(
            f"truncation={strategy!r} cannot make the pair short enough: the {other} text alone is too long. Pass"
            " truncation='longest_first'."
        )
    kept = _kept(named, len(named) - surplus, side)
    return (first, kept) if strategy == "only_second" else (kept, second)


def padded_length(
    longest: int, padding: Padding, *, limit: int | None, multiple: int | None, cut_to: int | None = None
) -> int | None:
    """Returns the length that all rows get, or None if each keeps its own.

    Args:
        longest: Of the rows, in ids.
        padding: As in a tokenizer's call.
        limit: The length of padding="max_length".
        multiple: The result is one of this.
        cut_to: What the rows were cut to, which must then be such a multiple itself.

    Raises:
        ValueError: an unknown padding, or one that the rows do not fit.
        TypeError: lengths that are not whole numbers.
    """
    if padding is False or padding == "do_not_pad":
        return None
    if cut_to is not None and multiple is not None and cut_to % multiple:
        raise ValueError(f"Texts are cut to {cut_to} tokens, which is no multiple of pad_to_multiple_of={multiple}.")
    if padding is True or padding == "longest":
        length = longest
    elif padding == "max_length":
        if limit is None:
            raise ValueError("padding='max_length' needs max_length: this tokenizer has no limit of its own.")
        length = max(limit, longest)
    else:
        length = _bucket(longest, padding)
    return length if multiple is None else -(-length // multiple) * multiple


def padded(row: Ids, length: int, fill: int, side: str) -> Ids:
    """Returns a row filled up to `length`."""
    padding = [fill] * (length - len(row))
    return row + padding if side == "right" else padding + row


def _bucket(longest: int, padding: Any) -> int:
    expected = "True, False, 'longest', 'max_length' or a sequence of whole numbers"
    if isinstance(padding, str):
        raise ValueError(f"padding={padding!r} is not {expected}.")  # noqa: TRY004
    try:
        lengths = sorted(number for value in padding if (number := positive("a padding length", value)) is not None)
    except TypeError:
        raise TypeError(f"padding={padding!r} is not {expected}.") from None
    fitting = [length for length in lengths if length >= longest]
    if not fitting:
        raise ValueError(
            f"The longest text has {longest} tokens and the largest padding length is {max(lengths, default=0)}: add a"
            " larger one, or pass truncation=True and max_length."
        )
    return fitting[0]


def _shared(first: int, second: int, room: int, spare_to_longer: bool) -> tuple[int, int]:
    """Returns how much of two lengths, together more than `room`, is kept."""
    half, spare = room // 2, room % 2
    if first <= half:
        return first, room - first
    if second <= half:
        return room - second, second
    return (half, half + spare) if spare_to_longer and second >= first else (half + spare, half)


def _kept(row: Ids, length: int, side: str) -> Ids:
    return row[:length] if side == "right" else row[len(row) - length :]
