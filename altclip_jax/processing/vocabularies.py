"""What a tokenizer asks of its vocabulary: a sentencepiece model, or what the tokenizers library reads.

The libraries are imported when a vocabulary is opened, which can be pickled into worker processes.
"""

from __future__ import annotations

import base64
import functools
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from altclip_jax.files.json_file import parse_json
from altclip_jax.processing.tokenizer_settings import TokenizerSettings


class Template(NamedTuple):
    """The special ids around one text, and around a pair."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    middle: tuple[int, ...]
    pair_suffix: tuple[int, ...]


class Vocabulary(Protocol):
    """What the tokenizer asks of either. `split_special_tokens` treats special strings as plain text."""

    template: Template
    size: int  # without added tokens
    spare_to_longer: bool  # of a pair cut to an odd room, the longer text keeps one more; else the first

    def encode(self, texts: Sequence[str], split_special_tokens: bool) -> list[list[int]]:
        """Returns the ids of each text, without those of the template."""
        ...

    def tokenize(self, text: str, split_special_tokens: bool) -> list[str]:
        """Returns the pieces that the ids stand for, the unknown ones as they are in the text."""
        ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """Returns the text of ids that are all in the vocabulary."""
        ...

    def token(self, index: int) -> str | None:
        """Returns the token of an id."""
        ...

    def index(self, token: str) -> int | None:
        """Returns the id of a token."""
        ...

    def __len__(self) -> int: ...


class SentencePieceVocabulary:
    """XLM-R's sentencepiece model, with the ids that fairseq gave its pieces: all moved up by one, four in front.

    Texts are cut at the strings that are one token, and sentencepiece gets what is between: equal to transformers'
    slow XLMRobertaTokenizer, special strings within the text included.
    Source: tokenization_xlm_roberta.py and tokenization_utils.py (PreTrainedTokenizer) of transformers 4.56.2.
    """

    spare_to_longer = False
    _FIRST = ("<s>", "<pad>", "</s>", "<unk>")

    def __init__(self, name: str, data: bytes, settings: TokenizerSettings):
        """Opens the content of the model file; `name` is what errors call it.

        Raises:
            ValueError: the file is not a sentencepiece model.
        """
        self._name, self._data = name, data
        self._open()
        self._mask = len(self._model) + 1
        self.size = self._mask + 1
        self._skipped = settings.special_contents
        self._tokens = {token.content: token for token in settings.tokens}
        self._ids = {**dict(zip(self._FIRST, range(4), strict=True)), "<mask>": self._mask}
        self._beyond = 0
        for content, token in self._tokens.items():
            known = self.index(content)
            self._ids[content] = next(index for index in (token.id, known, len(self)) if index is not None)
            self._beyond += known is None
        self._by_id = {index: content for content, index in self._ids.items()}
        # by the reference's habit: decoded with a space on either side
        self._apart = (set(self._tokens) - self._skipped) | {
            content for content in settings.additional if self._ids[content] >= self.size
        }
        self._unknown = self._ids[settings.roles["unk_token"]]
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._splitter = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        begin, end = self._ids[settings.roles["cls_token"]], self._ids[settings.roles["sep_token"]]
        self.template = Template(prefix=(begin,), suffix=(end,), middle=(end, end), pair_suffix=(end,))

    def _open(self) -> None:
        import sentencepiece

        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(self._data)
        except RuntimeError as error:
            raise ValueError(f"{self._name} is not a sentencepiece model ({error}).") from None

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_model"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def encode(self, texts: Sequence[str], split_special_tokens: bool) -> list[list[int]]:
        """Returns the ids of each text, without those of the template."""
        rows = []
        for text in texts:
            pieces = self.tokenize(text, split_special_tokens)
            found = self._model.piece_to_id(pieces)
            # sentencepiece says 0 of what is none of its pieces
            ids = (index + 1 if index else self._unknown for index in found)
            rows.append([self._ids.get(piece, index) for piece, index in zip(pieces, ids, strict=True)])
        return rows

    def tokenize(self, text: str, split_special_tokens: bool) -> list[str]:
        """Returns the pieces that the ids stand for, the unknown ones as they are in the text."""
        pieces: list[str] = []
        for part in [text] if split_special_tokens else self._split(text):
            special = not split_special_tokens and part in self._tokens
            pieces += (part,) if special else self._model.encode(part, out_type=str)
        return pieces

    def _split(self, text: str) -> list[str]:
        """Cuts a text at its special strings, which may take the white space beside them with them."""
        parts = [part for part in self._splitter.split(text) if part]
        for place, part in enumerate(parts):
            token = self._tokens.get(part)
            if token is None:
                continue
            before = parts[place - 1] if place else ""
            after = parts[place + 1] if place + 1 < len(parts) else ""
            if token.rstrip and after:
                parts[place + 1] = after.lstrip()
            if token.lstrip and before:
                parts[place - 1] = before.rstrip()
            if token.single_word and before and before[-1] != " ":
                parts[place - 1], parts[place] = parts[place - 1] + part, ""
            elif token.single_word and after and after[0] != " ":
                parts[place + 1], parts[place] = part + parts[place + 1], ""
        return [part for part in parts if part]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """Returns the text of ids that are all in the vocabulary."""

        def string(pieces: Sequence[str]) -> str:
            return "".join(pieces).replace("\N{LOWER ONE EIGHTH BLOCK}", " ").strip()

        texts: list[str] = []
        run: list[str] = []
        for token in (str(self.token(index)) for index in ids):
            if skip_special_tokens and token in self._skipped:
                continue
            if token in self._apart:
                texts += [*filter(None, [string(run)]), token]
                run = []
            else:
                run.append(token)
        # a last run that is nothing but space still counts there, and leaves a space
        return " ".join([*texts, string(run)] if run else texts)

    def token(self, index: int) -> str | None:
        """Returns the token of an id."""
        if index in self._by_id:
            return self._by_id[index]
        return self._model.id_to_piece(index - 1) if len(self._FIRST) <= index < self._mask else None

    def index(self, token: str) -> int | None:
        """Returns the id of a token."""
        if token in self._ids:
            return self._ids[token]
        index = self._model.piece_to_id(token)
        return index + 1 if index else None

    def __len__(self) -> int:
        return self.size + self._beyond


class FastVocabulary:
    """A vocabulary of the tokenizers library, followed exactly: what transformers' fast tokenizers give."""

    spare_to_longer = True

    def __init__(self, name: str, build: Callable[[], Any], settings: TokenizerSettings):
        """Opens a vocabulary.

        Args:
            name: What errors call it.
            build: Makes the `tokenizers.Tokenizer`; pickled with the vocabulary.
            settings: Its added tokens join those of the file.

        Raises:
            ValueError: the library cannot read it.
        """
        self._name, self._build, self._settings = name, build, settings
        self._open()
        self.size = int(self._plain.get_vocab_size(with_added_tokens=False))

    def _open(self) -> None:
        try:
            self._plain = self._make()
            self.template = _template(self._plain)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{self._name} cannot be read as a tokenizer ({error}).") from None

    def _make(self) -> Any:
        from tokenizers import AddedToken

        tokenizer = self._build()
        self._word_end = getattr(tokenizer.model, "end_of_word_suffix", None)  # of a byte-pair encoding such as CLIP's
        tokenizer.no_padding()
        tokenizer.no_truncation()
        known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        added = []
        for token in self._settings.tokens:
            if token.declared or token.content not in known:
                special = token.special or token.content in self._settings.special_contents
                normalized = not special if token.normalized is None else token.normalized
                flags = {"lstrip": token.lstrip, "rstrip": token.rstrip, "single_word": token.single_word}
                added.append(AddedToken(token.content, **flags, special=special, normalized=normalized))
        tokenizer.add_tokens(added)
        return tokenizer

    @functools.cached_property
    def _splitting(self) -> Any:
        """A second tokenizer, since how special strings are read is a setting of the object that threads share."""
        tokenizer = self._make()
        tokenizer.encode_special_tokens = True
        return tokenizer

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_plain", "_splitting")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def encode(self, texts: Sequence[str], split_special_tokens: bool) -> list[list[int]]:
        """Returns the ids of each text, without those of the template."""
        tokenizer = self._splitting if split_special_tokens else self._plain
        return [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def tokenize(self, text: str, split_special_tokens: bool) -> list[str]:
        """Returns the pieces that the ids stand for, the unknown ones as they are in the text."""
        tokenizer = self._splitting if split_special_tokens else self._plain
        return list(tokenizer.encode(text, add_special_tokens=False).tokens)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """Returns the text of ids that are all in the vocabulary."""
        text = str(self._plain.decode(list(ids), skip_special_tokens=skip_special_tokens))
        return text.replace(self._word_end, " ").strip() if self._word_end else text

    def token(self, index: int) -> str | None:
        """Returns the token of an id."""
        token: str | None = self._plain.id_to_token(index) if index >= 0 else None
        return token

    def index(self, token: str) -> int | None:
        """Returns the id of a token."""
        index: int | None = self._plain.token_to_id(token)
        return index

    def __len__(self) -> int:
        return int(self._plain.get_vocab_size(with_added_tokens=True))


def build_from_json(data: bytes, *, slow: bool = False) -> Any:
    """Returns the Tokenizer that a tokenizer.json describes.

    Args:
        data: Its content.
        slow: Let sentencepiece apply its maps of characters, as the slow reference does and 0.1.0 did. The tokenizers
            library misses what they match across graphemes: decomposed Hangul stays decomposed there
            (huggingface/tokenizers#2116).
    """
    from tokenizers import Tokenizer

    normalizer = parse_json(data).get("normalizer") if slow else None
    tokenizer = Tokenizer.from_buffer(data)
    if normalizer is not None:
        tokenizer.normalizer = _build_normalizer(normalizer)
    return tokenizer


def _build_normalizer(description: Mapping[str, Any]) -> Any:
    from tokenizers import Tokenizer, normalizers

    if description["type"] == "Sequence":
        return normalizers.Sequence([_build_normalizer(step) for step in description["normalizers"]])
    if description["type"] == "Precompiled":
        return normalizers.Normalizer.custom(
            _InPython(_charsmap(base64.b64decode(description["precompiled_charsmap"])))
        )
    model = {"type": "WordLevel", "vocab": {"": 0}, "unk_token": ""}
    return Tokenizer.from_str(json.dumps({"normalizer": description, "model": model})).normalizer


def _charsmap(data: bytes) -> Callable[[str], str]:
    """Returns a map of characters as sentencepiece applies it."""
    import sentencepiece

    def field(number: int, content: bytes) -> bytes:
        length, size = len(content), bytearray()
        while length > 127:
            size.append(length & 127 | 128)
            length >>= 7
        return bytes([number << 3 | 2, *size, length]) + content

    normalizer = sentencepiece.SentencePieceNormalizer(
        model_proto=field(3, field(2, data)),  # ModelProto.normalizer_spec.precompiled_charsmap
        add_dummy_prefix=False,
        escape_whitespaces=False,
        remove_extra_whitespaces=False,
    )
    normalize: Callable[[str], str] = normalizer.normalize
    return normalize


class _InPython:
    """A function from text to text in the form of a normaliser of the tokenizers library."""

    def __init__(self, function: Callable[[str], str]):
        from tokenizers import Regex

        self._whole, self._function = Regex(r"(?m)\A.+\z"), function

    def normalize(self, text: Any) -> None:
        """Replaces the text by what the function makes of it."""
        before = str(text.normalized)
        after = self._function(before)
        if after != before:
            text.replace(self._whole, after)


_MOST_MERGES = 49152 - 256 - 2  # of OpenAI's list, which goes on, the reference reads so many


def read_clip_files(folder: str, files: Mapping[str, bytes]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Returns CLIP's vocabulary and merges from the content of vocab.json and merges.txt.

    Raises:
        ValueError: one of them is damaged; the message names it and where.
    """
    try:
        vocabulary = parse_json(files["vocab.json"])
    except ValueError as error:
        raise ValueError(f"{folder}/vocab.json is not valid JSON ({error}).") from None
    if not isinstance(vocabulary, dict) or any(
        isinstance(index, bool) or not isinstance(index, int) or index < 0 for index in vocabulary.values()
    ):
        raise ValueError(f"{folder}/vocab.json must hold an object that gives each piece a whole number.")
    try:
        lines = files["merges.txt"].decode().strip().split("\n")[1 : 1 + _MOST_MERGES]  # the first says the version
    except UnicodeDecodeError as error:
        raise ValueError(f"{folder}/merges.txt is not UTF-8 text ({error}).") from None
    pairs = [line.split() for line in lines]
    wrong = [place for place, pair in enumerate(pairs, start=2) if len(pair) != 2]
    if wrong:
        listed = ", ".join(map(str, wrong[:10])) + (" and more" if len(wrong) > 10 else "")
        raise ValueError(
            f"{folder}/merges.txt must hold two pieces on each line after the first, and does not on line {listed}."
        )
    return vocabulary, [(first, second) for first, second in pairs]


def build_clip(
    vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], roles: Mapping[str, str], *, slow: bool
) -> Any:
    """Returns CLIP's byte-pair encoding of the UTF-8 bytes of words in lower case.

    Args:
        vocabulary: The id of each piece.
        merges: Pairs of pieces, the most frequent first.
        roles: The tokens that begin and end a text, and stand for what is unknown.
        slow: Drop control characters and set Chinese characters apart, as the slow reference does and 0.1.0 did.

    Source: CLIPConverter in convert_slow_tokenizer.py, and for `slow` BasicTokenizer in tokenization_clip.py, of
    transformers 4.56.2.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    begin, end = roles["bos_token"], roles["eos_token"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=dict(vocabulary),
            merges=list(merges),
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token=roles["unk_token"],
        )
    )
    tokenizer.normalizer = (
        normalizers.Normalizer.custom(_InPython(_clean))
        if slow
        else normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    )
    # blind to case, the slow pattern knows another s, and takes one sign whose capital is a letter for neither
    more, less = ("'ſ|", r"\u0345") if slow else ("", "")
    words = Regex(rf"{more}'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}{less}]+")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not slow)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(words, "removed", invert=True), as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    # a token that no piece stands for is an added one, and gets the next id
    tokenizer.add_special_tokens([token for token in (begin, end, roles["unk_token"]) if token not in vocabulary])
    ids = tokenizer.get_vocab()  # with the added ones
    tokenizer.post_processor = processors.RobertaProcessing(
        (end, ids[end]), (begin, ids[begin]), add_prefix_space=False, trim_offsets=False
    )  # by position: tokenizers 0.23 has another name for the second
    return tokenizer


def _clean(text: str) -> str:
    """What the slow reference does before it looks for words: no controls, Chinese characters apart, lower case."""
    return unicodedata.normalize("NFC", text.translate(_CLEANED)).lower()


class _Cleaned(dict[int, str | None]):
    """A table for str.translate, filled as characters are met."""

    # The blocks of Chinese characters, as BERT's tokenizer lists them.
    _CHINESE = (
        *(range(0x3400, 0x4DC0), range(0x4E00, 0xA000), range(0xF900, 0xFB00), range(0x20000, 0x2A6E0)),
        *(range(0x2A700, 0x2B740), range(0x2B740, 0x2B820), range(0x2B820, 0x2CEB0), range(0x2F800, 0x2FA20)),
    )

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        category = unicodedata.category(character)
        cleaned: str | None = character
        if character in "\t\n\r" or category == "Zs":
            cleaned = " "
        elif code == 0xFFFD or category[0] == "C":
            cleaned = None
        elif any(code in block for block in self._CHINESE):
            cleaned = f" {character} "
        self[code] = cleaned
        return cleaned


_CLEANED = _Cleaned()


def _template(tokenizer: Any) -> Template:
    """Reads off what the tokenizer puts around a text and a pair."""
    single, pair = tokenizer.encode("a"), tokenizer.encode("a", "a")
    mask, pair_mask = single.special_tokens_mask, pair.special_tokens_mask
    if 0 not in mask:
        raise ValueError("it has no token for the letter a")
    first, last = mask.index(0), len(mask) - mask[::-1].index(0)
    length = last - first
    second = next(place for place in range(first + length, len(pair_mask)) if not pair_mask[place])
    return Template(
        prefix=tuple(single.ids[:first]),
        suffix=tuple(single.ids[last:]),
        middle=tuple(pair.ids[first + length : second]),
        pair_suffix=tuple(pair.ids[second + length :]),
    )
