"""Text to ids and mask: XLM-RoBERTa's tokenizer, with padding and truncation stated.

Arguments and results are those of transformers' tokenizers. Its slow XLMRobertaTokenizer is the reference.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from altclip_jax.json_file import read_json_object, write_bytes, write_json
from altclip_jax.processing.vocabularies import JsonVocabulary, SentencePieceVocabulary, SpecialToken, Vocabulary

_MODEL, _JSON = "sentencepiece.bpe.model", "tokenizer.json"
_CONFIG, _MAP, _ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_ROLES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
_TRUNCATIONS = ("longest_first", "only_first", "only_second")


class AltCLIPTokenizer:
    """Turns texts into ids. Made by `from_pretrained`; may be pickled and shared between threads."""

    bos_token: str
    eos_token: str
    sep_token: str
    cls_token: str
    unk_token: str
    pad_token: str
    mask_token: str

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        model_max_length: int | None = None,
        roles: Mapping[str, str] | None = None,
        clean_up_tokenization_spaces: bool = False,
        files: Mapping[str, bytes] | None = None,
    ):
        """Joins a vocabulary with its settings.

        Args:
            vocabulary: One of `vocabularies`.
            model_max_length: The longest text, in tokens with the special ones; None for no limit.
            roles: Which token is bos_token, pad_token, ...
            clean_up_tokenization_spaces: Default of `decode`.
            files: The files that `save_pretrained` writes again, by name.
        """
        self._vocabulary = vocabulary
        self.model_max_length = int(1e30) if model_max_length is None else int(model_max_length)
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self._files = dict(files or {})
        for role, token in {**_ROLES, **(roles or {})}.items():
            setattr(self, role, token)
        index = vocabulary.index(self.pad_token)
        if index is None:
            raise ValueError(f"The vocabulary has no pad token {self.pad_token!r}.")
        self.pad_token_id = index

    def __getattr__(self, name: str) -> Any:
        if name.endswith("_token_id") and name.removesuffix("_id") in _ROLES:
            return self._vocabulary.index(getattr(self, name.removesuffix("_id")))
        raise AttributeError(f"AltCLIPTokenizer has no attribute {name!r}")

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], **overrides: Any) -> Self:
        """Reads a tokenizer's folder.

        With sentencepiece.bpe.model in it, that model is used, since it is the reference; else tokenizer.json.
        `overrides` may set model_max_length, clean_up_tokenization_spaces and the special tokens.

        Raises:
            FileNotFoundError: the folder has neither file.
            ValueError: a file is damaged; the message names it.
            TypeError: an override that does not exist.
        """
        folder = Path(folder)
        names = [name for name in (_MODEL, _JSON, _CONFIG, _MAP, _ADDED) if (folder / name).is_file()]
        if not {_MODEL, _JSON} & set(names):
            raise FileNotFoundError(f"{folder} has neither {_MODEL} nor {_JSON}: is this the folder of a tokenizer?")
        settings = read_json_object(folder / _CONFIG) if _CONFIG in names else {}
        special_map = read_json_object(folder / _MAP) if _MAP in names else {}
        allowed = {"model_max_length", "clean_up_tokenization_spaces", *_ROLES}
        if unknown := sorted(set(overrides) - allowed):
            raise TypeError(
                f"AltCLIPTokenizer has no setting {', '.join(unknown)}; it has {', '.join(sorted(allowed))}."
            )
        settings = {**settings, **overrides}
        roles = {role: _content(value) for role in _ROLES if (value := settings.get(role, special_map.get(role)))}
        vocabulary: Vocabulary
        if _MODEL in names:
            vocabulary = SentencePieceVocabulary(folder / _MODEL, _added_tokens(settings, folder, names))
        else:
            vocabulary = JsonVocabulary(folder / _JSON)
        limit = settings.get("model_max_length")
        return cls(
            vocabulary,
            model_max_length=None if limit is None else min(int(limit), int(1e30)),
            roles=roles,
            clean_up_tokenization_spaces=bool(settings.get("clean_up_tokenization_spaces", False)),
            files={name: (folder / name).read_bytes() for name in names},
        )

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes the files this tokenizer was read from, and its settings, each whole or not at all."""
        folder = Path(folder)
        for name, data in self._files.items():
            if name != _CONFIG:
                write_bytes(folder / name, data)
        import json

        settings = json.loads(self._files.get(_CONFIG, b"{}"))
        roles = {role: getattr(self, role) for role in _ROLES if _content(settings.get(role)) != getattr(self, role)}
        write_json(
            folder / _CONFIG,
            {
                "tokenizer_class": "XLMRobertaTokenizer",
                **settings,
                **roles,
                "model_max_length": self.model_max_length,
                "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            },
        )

    def __call__(
        self,
        text: str | Sequence[str],
        text_pair: str | Sequence[str] | None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str | Sequence[int] = False,
        truncation: bool | str = False,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str = "right",
        return_tensors: str | None = None,
        split_special_tokens: bool = False,
    ) -> dict[str, Any]:
        """Returns input_ids and attention_mask.

        Args:
            text: A string, or a list of them.
            text_pair: Second strings, joined to the first ones.
            add_special_tokens: Put <s> and </s> around them.
            padding: True or "longest"; "max_length"; or lengths such as (16, 32, 64), of which the smallest that
                holds the batch is taken, so that jit sees few shapes.
            truncation: True or "longest_first", "only_first", "only_second": cut to `max_length`.
            max_length: Of the result, in tokens; default `model_max_length`.
            pad_to_multiple_of: Pad on to a multiple of this.
            padding_side: "right" or "left".
            return_tensors: "np" (int64), "jax", or None for lists. Texts of unequal length without padding are lists
                in any case.
            split_special_tokens: Treat strings such as "</s>" within a text as plain text.

        Raises:
            ValueError: a text is longer than `model_max_length` and is not to be cut; an argument is out of range.
        """
        if return_tensors not in (None, "np", "jax"):
            raise ValueError(
                f"return_tensors={return_tensors!r} is not one of 'np', 'jax' and None: this library makes no tensors"
                " of other frameworks; convert the numpy arrays, for example with torch.from_numpy."
            )
        single = isinstance(text, str)
        firsts, seconds = _texts("text", text), None if text_pair is None else _texts("text_pair", text_pair)
        if seconds is not None and len(seconds) != len(firsts):
            raise ValueError(f"text holds {len(firsts)} strings and text_pair {len(seconds)}: they go in pairs.")
        rows = self._rows(firsts, seconds, add_special_tokens, truncation, max_length, split_special_tokens)
        length = _padded_length(rows, padding, self._limit(max_length), pad_to_multiple_of)
        if padding_side not in ("right", "left"):
            raise ValueError(f"padding_side={padding_side!r} is neither 'right' nor 'left'.")
        masks = [[1] * len(row) for row in rows]
        if length is not None:
            rows = [_padded(row, length, self.pad_token_id, padding_side) for row in rows]
            masks = [_padded(mask, length, 0, padding_side) for mask in masks]
        batch: dict[str, Any] = {"input_ids": rows, "attention_mask": masks}
        if return_tensors is None or len({len(row) for row in rows}) > 1:
            return {name: values[0] for name, values in batch.items()} if single and return_tensors is None else batch
        arrays: dict[str, Any] = {name: np.asarray(values, np.int64) for name, values in batch.items()}
        if return_tensors == "jax":
            import jax.numpy as jnp

            arrays = {name: jnp.asarray(values.astype(np.int32)) for name, values in arrays.items()}
        return arrays

    def _limit(self, max_length: int | None) -> int | None:
        if max_length is not None:
            return max_length
        return self.model_max_length if self.model_max_length < int(1e29) else None

    def _rows(
        self,
        firsts: list[str],
        seconds: list[str] | None,
        add_special_tokens: bool,
        truncation: bool | str,
        max_length: int | None,
        split_special_tokens: bool,
    ) -> list[list[int]]:
        strategy = "longest_first" if truncation is True else truncation
        if strategy and strategy != "do_not_truncate" and strategy not in _TRUNCATIONS:
            raise ValueError(f"truncation={truncation!r} is not True, False or one of {', '.join(_TRUNCATIONS)}.")
        first_ids = self._vocabulary.encode(firsts, split_special_tokens)
        second_ids = None if seconds is None else self._vocabulary.encode(seconds, split_special_tokens)
        template, limit = self._vocabulary.template, self._limit(max_length)
        rows = []
        for place, first in enumerate(first_ids):
            second = None if second_ids is None else second_ids[place]
            extra = 0
            if add_special_tokens:
                ends = template.suffix if second is None else template.middle + template.pair_suffix
                extra = len(template.prefix) + len(ends)
            if strategy and strategy != "do_not_truncate" and limit is not None:
                first, second = _cut(first, second, limit - extra, strategy)
            elif len(first) + len(second or ()) + extra > self.model_max_length:
                raise ValueError(
                    f"Text {place} is {len(first) + len(second or ()) + extra} tokens long and this model takes"
                    f" {self.model_max_length}: pass truncation=True to cut it, or split it."
                )
            rows.append(self._joined(first, second) if add_special_tokens else [*first, *(second or ())])
        return rows

    def _joined(self, first: list[int], second: list[int] | None) -> list[int]:
        template = self._vocabulary.template
        if second is None:
            return [*template.prefix, *first, *template.suffix]
        return [*template.prefix, *first, *template.middle, *second, *template.pair_suffix]

    def tokenize(self, text: str, *, split_special_tokens: bool = False) -> list[str]:
        """Returns the tokens of a text as strings, those without an entry in the vocabulary as the unknown token."""
        return self.convert_ids_to_tokens(self._vocabulary.encode(_texts("text", text), split_special_tokens)[0])

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Returns the token of each id.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        tokens = [self._vocabulary.token(int(index)) for index in ids]
        if None in tokens:
            wrong = [int(index) for index, token in zip(ids, tokens, strict=True) if token is None]
            raise ValueError(f"The ids {wrong} are outside the vocabulary of {len(self)} tokens.")
        return [token for token in tokens if token is not None]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int]:
        """Returns the id of a token, or of each of a list; that of the unknown token for what is not there."""
        if isinstance(tokens, str):
            index = self._vocabulary.index(tokens)
            return int(self.unk_token_id) if index is None else index
        return [self.convert_tokens_to_ids(token) for token in tokens]  # type: ignore[misc]

    def decode(
        self, ids: Any, *, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> str:
        """Returns the text of a row of ids."""
        special = {getattr(self, role) for role in _ROLES}
        tokens = self.convert_ids_to_tokens(np.asarray(ids).reshape(-1).tolist())
        kept = [token for token in tokens if not (skip_special_tokens and token in special)]
        text = "".join(kept).replace("\N{LOWER ONE EIGHTH BLOCK}", " ").strip()
        clean = (
            self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        )
        return _cleaned(text) if clean else text

    def batch_decode(self, rows: Any, **options: Any) -> list[str]:
        """Returns the text of each row of ids."""
        return [self.decode(row, **options) for row in rows]

    @property
    def vocab_size(self) -> int:
        """The number of ids."""
        return len(self._vocabulary)

    def __len__(self) -> int:
        return len(self._vocabulary)


def _texts(name: str, text: str | Sequence[str]) -> list[str]:
    texts = [text] if isinstance(text, str) else list(text)
    for place, value in enumerate(texts):
        if not isinstance(value, str):
            raise TypeError(f"{name}[{place}] is a {type(value).__name__}: expected a string.")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{name}[{place}] holds half of a surrogate pair at {error.start}, which is no text."
            ) from None
    return texts


def _cut(first: list[int], second: list[int] | None, room: int, strategy: str) -> tuple[list[int], list[int] | None]:
    """Cuts a text or pair to `room` tokens from the end; of a pair the longer is cut, one token at a time."""
    if room < 0:
        raise ValueError(f"max_length leaves no room: the special tokens alone are {-room} too many.")
    surplus = len(first) + len(second or ()) - room
    if surplus <= 0:
        return first, second
    if second is None or strategy == "only_first":
        if surplus > len(first):
            raise ValueError("truncation='only_first' cannot make the pair short enough: the second text is too long.")
        return first[: len(first) - surplus], second
    if strategy == "only_second":
        if surplus > len(second):
            raise ValueError("truncation='only_second' cannot make the pair short enough: the first text is too long.")
        return first, second[: len(second) - surplus]
    left, right = len(first), len(second)
    for _ in range(surplus):
        if left > right:
            left -= 1
        else:
            right -= 1
    return first[:left], second[:right]


def _padded_length(
    rows: list[list[int]], padding: bool | str | Sequence[int], limit: int | None, multiple: int | None
) -> int | None:
    longest = max((len(row) for row in rows), default=0)
    if padding is False or padding == "do_not_pad":
        return None
    if padding is True or padding == "longest":
        length = longest
    elif padding == "max_length":
        if limit is None:
            raise ValueError("padding='max_length' needs max_length: this tokenizer has no limit of its own.")
        length = max(limit, longest)
    elif isinstance(padding, str):
        raise ValueError(f"padding={padding!r} is not True, False, 'longest', 'max_length' or a sequence of lengths.")
    else:
        fitting = [bucket for bucket in sorted(padding) if bucket >= longest]
        if not fitting:
            raise ValueError(f"The longest text has {longest} tokens and the largest padding length is {max(padding)}.")
        length = fitting[0]
    return length if not multiple else -(-length // multiple) * multiple


def _padded(row: list[int], length: int, fill: int, side: str) -> list[int]:
    padding = [fill] * (length - len(row))
    return row + padding if side == "right" else padding + row


def _cleaned(text: str) -> str:
    """Undoes the spaces that English tokenizers leave before punctuation and contractions."""
    for ending in (".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(f" {ending}", ending)
    return text.replace(" ' ", "'")


def _content(value: Any) -> Any:
    return value.get("content") if isinstance(value, Mapping) else value


def _added_tokens(settings: Mapping[str, Any], folder: Path, names: Sequence[str]) -> list[SpecialToken]:
    """The special strings that a folder adds to the vocabulary, or whose white space it decides."""
    tokens = []
    for index, value in (settings.get("added_tokens_decoder") or {}).items():
        strips = {"lstrip": bool(value.get("lstrip")), "rstrip": bool(value.get("rstrip"))}
        tokens.append(SpecialToken(str(value["content"]), int(index), **strips))
    if not tokens and _ADDED in names:
        found = read_json_object(folder / _ADDED)
        tokens = [SpecialToken(token, int(index), lstrip=token == "<mask>") for token, index in found.items()]
    return tokens
