"""Text to ids and mask: the tokenizers of the student, which is XLM-RoBERTa's, and of the teacher, which is CLIP's.

Arguments and results are those of transformers' tokenizers. Which ids come out depends on the files: from a
sentencepiece.bpe.model those of the slow XLMRobertaTokenizer; from a tokenizer.json, or CLIP's vocab.json and
merges.txt, those of the fast tokenizers, which AutoTokenizer and CLIPProcessor give.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from altclip_jax.files.checkpoint_folder import TOKENIZER_FILES, read_whole
from altclip_jax.files.json_file import json_bytes, parse_json, read_json_object
from altclip_jax.files.whole import replace_files
from altclip_jax.processing.tokenizer_settings import (
    CLIP,
    CONFIG_FILE,
    NO_LIMIT,
    OVERRIDES,
    ROLE_NAMES,
    XLM_ROBERTA,
    TokenizerFamily,
    TokenizerSettings,
)
from altclip_jax.processing.vocabularies import (
    FastVocabulary,
    SentencePieceVocabulary,
    Vocabulary,
    build_clip,
    build_from_json,
    read_clip_files,
)

Padding = bool | str | Sequence[int]
Ids = list[int]
_JSON = "tokenizer.json"
_TRUNCATIONS = ("longest_first", "only_first", "only_second")
_ATTRIBUTES = (
    "model_max_length",
    "padding_side",
    "truncation_side",
    "split_special_tokens",
    "clean_up_tokenization_spaces",
)


class BaseTokenizer:
    """Turns texts into ids; may be pickled and shared between threads.

    Beside the attributes below there are the other roles of the family, and `bos_token_id`, `pad_token_id` and so on.
    """

    bos_token: str
    eos_token: str
    unk_token: str
    pad_token: str
    model_max_length: int
    padding_side: str
    truncation_side: str
    split_special_tokens: bool
    clean_up_tokenization_spaces: bool

    def __init__(
        self, vocabulary: Vocabulary, settings: TokenizerSettings, *, files: Mapping[str, bytes] | None = None
    ):
        """Joins a vocabulary with its settings; `files` are those that `save_pretrained` writes again, by name."""
        self._vocabulary, self._settings, self._files = vocabulary, settings, dict(files or {})
        self.additional_special_tokens = list(settings.additional)
        for name, value in [*settings.roles.items(), *((name, getattr(settings, name)) for name in _ATTRIBUTES)]:
            setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:
        role = name.removesuffix("_id")
        if role in ROLE_NAMES and role != name:
            return self._vocabulary.index(getattr(self, role))
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes the vocabulary as it was read, and the settings, in the place of all that a tokenizer has there."""
        replace_files(folder, self.files(), TOKENIZER_FILES)

    def files(self) -> dict[str, bytes]:
        """Returns the files that `save_pretrained` writes, by name."""
        now = {name: getattr(self, name) for name in _ATTRIBUTES}
        settings = dataclasses.replace(
            self._settings, roles={role: getattr(self, role) for role in self._settings.roles}, **now
        )
        return {**self._files, **{name: json_bytes(content) for name, content in settings.files().items()}}

    def __call__(
        self,
        text: str | Sequence[str],
        text_pair: str | Sequence[str] | None = None,
        *,
        add_special_tokens: bool = True,
        padding: Padding = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        split_special_tokens: bool | None = None,
    ) -> dict[str, Any]:
        """Returns input_ids and attention_mask.

        Args:
            text: A string, or a list of them.
            text_pair: Second strings, joined to the first ones.
            add_special_tokens: Put the special tokens around them, such as <s> and </s>.
            padding: True or "longest"; "max_length"; or lengths such as (16, 32, 64), of which the smallest that
                holds the batch is taken, so that jit sees few shapes.
            truncation: True or "longest_first", "only_first", "only_second": cut to `max_length`. False never cuts;
                None cuts if `max_length` is given and `padding` is not, as in the reference.
            max_length: Of the result, in tokens; default `model_max_length`.
            pad_to_multiple_of: Pad on to a multiple of this.
            padding_side: "right" or "left"; default is the attribute.
            return_tensors: "np" (int64), "jax" (int32), or None for lists. Texts of unequal length without padding are
                lists in any case.
            split_special_tokens: Treat strings such as "</s>" within a text as plain text; default is the attribute.

        Raises:
            ValueError: a result is longer than `model_max_length`; an argument is out of range.
            TypeError: something that is no text.
        """
        if return_tensors not in (None, "np", "jax"):
            raise ValueError(
                f"return_tensors={return_tensors!r} is not one of 'np', 'jax' and None: this library makes no tensors"
                " of other frameworks; convert the numpy arrays, for example with torch.from_numpy."
            )
        side = self.padding_side if padding_side is None else padding_side
        if side not in ("right", "left"):
            raise ValueError(f"padding_side={side!r} is neither 'right' nor 'left'.")
        max_length = positive("max_length", max_length)
        multiple = positive("pad_to_multiple_of", pad_to_multiple_of)
        strategy = _choose_truncation(truncation, max_length, padding)
        limit = max_length or (self.model_max_length if self.model_max_length < NO_LIMIT // 10 else None)
        firsts, seconds = text_lists(text, text_pair)
        split = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        rows = self._rows(firsts, seconds, add_special_tokens, strategy, limit, split)
        length = _choose_length(
            max(map(len, rows), default=0),
            padding,
            limit=limit,
            multiple=multiple,
            cut_to=limit if strategy else None,
        )
        masks = [[1] * len(row) for row in rows]
        if length is not None:
            rows = [_pad(row, length, self.pad_token_id, side) for row in rows]
            masks = [_pad(mask, length, 0, side) for mask in masks]
        single = isinstance(text, str) and return_tensors is None
        batch: dict[str, Any] = {"input_ids": rows, "attention_mask": masks}
        if single:
            return {name: values[0] for name, values in batch.items()}
        if return_tensors is None or len({len(row) for row in rows}) > 1:
            return batch
        return {name: _array(values, length, return_tensors) for name, values in batch.items()}

    def _rows(
        self,
        firsts: list[str],
        seconds: list[str] | None,
        add_special_tokens: bool,
        strategy: str | None,
        limit: int | None,
        split_special_tokens: bool,
    ) -> list[list[int]]:
        """Returns the ids of each text or pair, cut and with special tokens.

        Raises:
            ValueError: some are longer than the model takes; all are named.
        """
        first_ids = self._vocabulary.encode(firsts, split_special_tokens)
        second_ids: Sequence[list[int] | None] = [None] * len(firsts)
        if seconds is not None:
            second_ids = self._vocabulary.encode(seconds, split_special_tokens)
        around = len(self._join([], None if seconds is None else [])) if add_special_tokens else 0
        rows = []
        for first, second in zip(first_ids, second_ids, strict=True):
            if strategy and limit is not None:
                first, second = _cut(
                    first,
                    second,
                    limit - around,
                    strategy,
                    side=self.truncation_side,
                    spare_to_longer=self._vocabulary.spare_to_longer,
                )
            rows.append(self._join(first, second) if add_special_tokens else [*first, *(second or ())])
        longest = self.model_max_length
        long = [f"text {place} is {len(row)} tokens long" for place, row in enumerate(rows) if len(row) > longest]
        if long:
            named = ", ".join(long[:10]) + (f", and {len(long) - 10} more are too long" if len(long) > 10 else "")
            raise ValueError(
                f"{named[0].upper()}{named[1:]} and this model takes {longest}: pass truncation=True"
                f"{f' and a max_length of at most {longest}' if strategy else ' to cut'}, or split what is longer."
            )
        return rows

    def _join(self, first: list[int], second: list[int] | None) -> list[int]:
        template = self._vocabulary.template
        if second is None:
            return [*template.prefix, *first, *template.suffix]
        return [*template.prefix, *first, *template.middle, *second, *template.pair_suffix]

    def tokenize(self, text: str, *, split_special_tokens: bool | None = None) -> list[str]:
        """Returns the tokens of a text as strings, those without an entry in the vocabulary as they stand there."""
        if not isinstance(text, str):
            raise TypeError(f"text is a {type(text).__name__}: expected a string.")
        split = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        return self._vocabulary.tokenize(text_list("text", text)[0], split)

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
        """Returns the text of a row of ids.

        Raises:
            ValueError: an id is outside the vocabulary.
            TypeError: ids that are not whole numbers, or more than one row.
        """
        row = np.asarray(ids)
        if row.ndim > 1 or (row.size and row.dtype.kind not in "iu"):
            raise TypeError(f"ids must be one row of whole numbers, got {row.dtype} of shape {row.shape}.")
        whole: list[int] = row.reshape(-1).astype(np.int64).tolist()
        self.convert_ids_to_tokens(whole)
        text = self._vocabulary.decode(whole, skip_special_tokens)
        clean = clean_up_tokenization_spaces
        return without_spaces(text) if (self.clean_up_tokenization_spaces if clean is None else clean) else text

    def batch_decode(self, rows: Any, **options: Any) -> list[str]:
        """Returns the text of each row of ids; see `decode`."""
        return [self.decode(row, **options) for row in rows]

    @property
    def around(self) -> tuple[list[int], list[int]]:
        """The ids that it puts before and behind a text."""
        return list(self._vocabulary.template.prefix), list(self._vocabulary.template.suffix)

    @property
    def all_special_tokens(self) -> list[str]:
        """The special tokens, each once."""
        roles = [getattr(self, role) for role in self._settings.roles]
        return list(dict.fromkeys([*roles, *self.additional_special_tokens]))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`."""
        ids: Any = self.convert_tokens_to_ids(self.all_special_tokens)
        return list(ids)

    @property
    def vocab_size(self) -> int:
        """The number of ids without added tokens; `len` counts them too."""
        return self._vocabulary.size

    @property
    def highest_id(self) -> int:
        """The highest id that a text can get: an added token's may lie beyond a gap."""
        added = (self._vocabulary.index(token.content) for token in self._settings.tokens)
        return max(len(self) - 1, *(index for index in added if index is not None))

    def __len__(self) -> int:
        return len(self._vocabulary)


def _array(rows: list[list[int]], length: int | None, kind: str) -> Any:
    array = np.asarray(rows, np.int64).reshape(len(rows), length or (len(rows[0]) if rows else 0))
    if kind == "np":
        return array
    import jax.numpy as jnp

    return jnp.asarray(array.astype(np.int32))


class _FolderTokenizer(BaseTokenizer, abc.ABC):
    """A tokenizer that knows the files of its family."""

    family: ClassVar[TokenizerFamily]
    own_is_fast: ClassVar[bool]  # the fast tokenizer reads the family's own files, too

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], *, use_fast: bool | None = None, **overrides: Any) -> Self:
        """Reads a tokenizer's folder.

        Args:
            folder: Holds the family's own vocabulary (sentencepiece.bpe.model, or vocab.json with merges.txt) or a
                tokenizer.json, and tokenizer_config.json, special_tokens_map.json, added_tokens.json if any.
            use_fast: Whose ids. True: those of transformers' fast tokenizer. False: those of the slow one, as far as
                the files allow, which is what version 0.1.0 gave. None: of a sentencepiece.bpe.model the slow one's,
                otherwise the fast one's.
            **overrides: What replaces the files' model_max_length, padding_side, truncation_side,
                split_special_tokens, clean_up_tokenization_spaces, bos_token, ..., additional_special_tokens.

        Raises:
            FileNotFoundError: the folder has neither, or not the one that is wanted.
            ValueError: a file is damaged; the message names it.
            TypeError: an override that does not exist.
        """
        return read_whole(folder, lambda: cls._read(Path(folder), use_fast, overrides))

    @classmethod
    def _read(cls, folder: Path, use_fast: bool | None, overrides: Mapping[str, Any]) -> Self:
        own = cls.family.own_files
        if unknown := sorted(set(overrides) - set(OVERRIDES)):
            raise TypeError(
                f"{cls.__name__} has no setting {', '.join(unknown)}; it has {', '.join(OVERRIDES)}, use_fast."
            )
        files = {name: (folder / name).read_bytes() for name in (*own, _JSON) if (folder / name).is_file()}
        has_own = files.keys() >= set(own)
        if not has_own and _JSON not in files:
            wanted = " with ".join(own)
            raise FileNotFoundError(f"{folder} has neither {wanted} nor {_JSON}: is this the folder of a tokenizer?")
        json_tokens = (lambda: _added_tokens(folder / _JSON, files[_JSON])) if has_own and _JSON in files else tuple
        settings = TokenizerSettings.read(folder, overrides, json_tokens, cls.family)
        fast = cls.own_is_fast if use_fast is None else use_fast
        # The folders of other families may arrange the ids of such files in other ways.
        if has_own and cls.family.claims(settings.tokenizer_class) and (cls.own_is_fast or not fast):
            if not fast or _JSON not in files:
                return cls(cls._own_vocabulary(str(folder), files, settings, fast), settings, files=files)
        elif _JSON not in files:
            raise FileNotFoundError(
                f"{folder} has no {_JSON}, which {'use_fast=True' if use_fast else settings.tokenizer_class}"
                f" needs; {' with '.join(own)} alone is read only for {cls.family.slow_class}."
            )
        build = functools.partial(build_from_json, files[_JSON], slow=use_fast is False)
        # what is saved is read unasked as it was read here: beside tokenizer.json a slow vocabulary would win
        kept = files if has_own and cls.own_is_fast else {_JSON: files[_JSON]}
        return cls(FastVocabulary(str(folder / _JSON), build, settings), settings, files=kept)

    @classmethod
    @abc.abstractmethod
    def _own_vocabulary(
        cls, folder: str, files: Mapping[str, bytes], settings: TokenizerSettings, fast: bool
    ) -> Vocabulary:
        """Opens the files of the family."""


class AltCLIPTokenizer(_FolderTokenizer):
    """The student's: XLM-RoBERTa's sentencepiece vocabulary. Made by `from_pretrained`."""

    family = XLM_ROBERTA
    own_is_fast = False

    sep_token: str
    cls_token: str
    mask_token: str

    @classmethod
    def _own_vocabulary(
        cls, folder: str, files: Mapping[str, bytes], settings: TokenizerSettings, fast: bool
    ) -> Vocabulary:
        (name,) = cls.family.own_files
        return SentencePieceVocabulary(f"{folder}/{name}", files[name], settings)


class CLIPTokenizer(_FolderTokenizer):
    """The teacher's: CLIP's byte-pair encoding in lower case, of at most 77 tokens. Made by `from_pretrained`.

    The padding token is `<|endoftext|>` unless the files name another, such as "!".
    """

    family = CLIP
    own_is_fast = True

    @classmethod
    def _own_vocabulary(
        cls, folder: str, files: Mapping[str, bytes], settings: TokenizerSettings, fast: bool
    ) -> Vocabulary:
        vocabulary, merges = read_clip_files(folder, files)
        build = functools.partial(build_clip, vocabulary, merges, settings.roles, slow=not fast)
        return FastVocabulary(f"{folder}/{' with '.join(cls.family.own_files)}", build, settings)


def load_tokenizer(folder: str | os.PathLike[str], **overrides: Any) -> AltCLIPTokenizer | CLIPTokenizer:
    """Reads the tokenizer of a folder, whichever family's it is; see `AltCLIPTokenizer.from_pretrained`.

    The tokenizer_class in tokenizer_config.json decides. Where there is none, CLIP's has the files or, in its
    tokenizer.json, the token `<|startoftext|>`.
    """
    path = Path(folder)

    def read() -> AltCLIPTokenizer | CLIPTokenizer:
        config = read_json_object(path / CONFIG_FILE) if (path / CONFIG_FILE).is_file() else {}
        named = config.get("tokenizer_class")
        if CLIP.claims(named) if named is not None else _looks_like_clip(path):
            return CLIPTokenizer.from_pretrained(path, **overrides)
        return AltCLIPTokenizer.from_pretrained(path, **overrides)

    return read_whole(path, read)


def _looks_like_clip(folder: Path) -> bool:
    if any((folder / name).is_file() for name in XLM_ROBERTA.own_files):
        return False
    if all((folder / name).is_file() for name in CLIP.own_files):
        return True
    return (folder / _JSON).is_file() and f'"{CLIP.roles["bos_token"]}"'.encode() in (folder / _JSON).read_bytes()


def _added_tokens(path: Path, data: bytes) -> list[Mapping[str, Any]]:
    try:
        return list(parse_json(data)["added_tokens"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a tokenizer.json that can be read ({error}).") from None


def text_lists(text: Any, text_pair: Any) -> tuple[list[str], list[str] | None]:
    """Returns the texts of a call, and what they are paired with, as lists.

    Raises:
        TypeError: something is no string; the message tells its place.
        ValueError: a string is no text, or the lists do not pair.
    """
    firsts = text_list("text", text)
    if text_pair is None:
        return firsts, None
    if isinstance(text, str) != isinstance(text_pair, str):
        raise TypeError("text and text_pair must both be a string or both a list of strings.")
    seconds = text_list("text_pair", text_pair)
    if len(seconds) != len(firsts):
        raise ValueError(f"text holds {len(firsts)} strings and text_pair {len(seconds)}: they go in pairs.")
    return firsts, seconds


def text_list(name: str, text: Any) -> list[str]:
    """Returns the texts of the argument `name` as a list.

    Raises:
        TypeError: something is no string.
        ValueError: a string cannot be written in UTF-8, which sentencepiece and tokenizers read.
    """
    if isinstance(text, (bytes, Mapping)) or not hasattr(text, "__iter__"):
        raise TypeError(f"{name} is a {type(text).__name__}: expected a string or a list of strings.")
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


def without_spaces(text: str) -> str:
    """Undoes the spaces that English tokenizers leave before punctuation and contractions."""
    for ending in (".", "?", "!", ","):
        text = text.replace(f" {ending}", ending)
    text = text.replace(" ' ", "'")
    for ending in ("n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(f" {ending}", ending)
    return text


def _choose_truncation(truncation: bool | str | None, max_length: int | None, padding: Padding) -> str | None:
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


def _cut(
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
        left, right = _share(len(first), len(second), room, spare_to_longer)
        return _keep(first, left, side), _keep(second, right, side)
    named, other = (second, "first") if strategy == "only_second" else (first, "second")
    if named is None:
        raise ValueError("truncation='only_second' needs a text_pair to cut.")
    if surplus > len(named):
        raise ValueError(
            f"truncation={strategy!r} cannot make the pair short enough: the {other} text alone is too long. Pass"
            " truncation='longest_first'."
        )
    kept = _keep(named, len(named) - surplus, side)
    return (first, kept) if strategy == "only_second" else (kept, second)


def _choose_length(
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


def _pad(row: Ids, length: int, fill: int, side: str) -> Ids:
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


def _share(first: int, second: int, room: int, spare_to_longer: bool) -> tuple[int, int]:
    """Returns how much of two lengths, together more than `room`, is kept."""
    half, spare = room // 2, room % 2
    if first <= half:
        return first, room - first
    if second <= half:
        return room - second, second
    return (half, half + spare) if spare_to_longer and second >= first else (half + spare, half)


def _keep(row: Ids, length: int, side: str) -> Ids:
    return row[:length] if side == "right" else row[len(row) - length :]
