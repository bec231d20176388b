"""Special tokens, added tokens, longest text, sides: what a folder's JSON files say, and a family takes for granted.

Source: from_pretrained of tokenization_utils_base.py in transformers 4.56.2, whose precedence this is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from altclip_jax.files.json_file import read_json_object

NO_LIMIT = int(1e30)  # as the reference writes it
ROLE_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class TokenizerFamily:
    """The tokenizers of one kind of text tower.

    Attributes:
        slow_class: The reference's class, as tokenizer_config.json names it; with "Fast" behind it reads a
            tokenizer.json.
        own_files: The vocabulary that the class reads, all of them needed.
        roles: The tokens of the roles that the family has.
        max_length: Of a text, in tokens with the special ones.
        normalized: Its tokens are looked for in the normalised text, so in capitals too; None: if not special.
    """

    slow_class: str
    own_files: tuple[str, ...]
    roles: Mapping[str, str]
    max_length: int = NO_LIMIT
    normalized: bool | None = None

    def claims(self, tokenizer_class: str | None) -> bool:
        """Tells whether a tokenizer_config.json with this class is the family's; one that is silent may be."""
        return tokenizer_class in (None, self.slow_class, f"{self.slow_class}Fast")


XLM_ROBERTA = TokenizerFamily(
    "XLMRobertaTokenizer",
    ("sentencepiece.bpe.model",),
    {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "cls_token": "<s>",
        "mask_token": "<mask>",
    },
)
CLIP = TokenizerFamily(
    "CLIPTokenizer",
    ("vocab.json", "merges.txt"),
    {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    },
    max_length=77,
    normalized=True,
)
CONFIG_FILE, MAP_FILE, ADDED_FILE = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"


@dataclass(frozen=True)
class SpecialToken:
    """A string that is one token wherever it stands in a text."""

    content: str
    id: int | None = None  # None: the vocabulary knows, or gives it the next free one
    lstrip: bool = False  # the white space before it belongs to it
    rstrip: bool = False
    single_word: bool = False  # only where spaces surround it
    normalized: bool | None = None  # looked for in the normalised text (tokenizer.json only); None: if not special
    special: bool = False
    declared: bool = True  # a file says how it behaves; else this is assumed, and yields to what a vocabulary says


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """The settings of a tokenizer.

    Attributes:
        family: Whose tokenizer it is.
        roles: The token of each role that it has.
        additional: Further special tokens.
        tokens: Everything that is one token wherever it stands: added tokens, roles and additional ones.
        model_max_length: In tokens, with the special ones.
        config: tokenizer_config.json as it was.
        written: The special tokens as files wrote them, strings or objects.
        added_file: added_tokens.json as it was; empty if there was none.
    """

    family: TokenizerFamily = XLM_ROBERTA
    roles: Mapping[str, str] = field(default_factory=lambda: dict(XLM_ROBERTA.roles))
    additional: Sequence[str] = ()
    tokens: Sequence[SpecialToken] = ()
    model_max_length: int = NO_LIMIT
    padding_side: str = "right"
    truncation_side: str = "right"
    split_special_tokens: bool = False
    clean_up_tokenization_spaces: bool = False
    tokenizer_class: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    written: Mapping[str, Any] = field(default_factory=dict)
    added_file: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        folder: Path,
        overrides: Mapping[str, Any],
        json_tokens: Callable[[], Sequence[Mapping[str, Any]]] = tuple,
        family: TokenizerFamily = XLM_ROBERTA,
    ) -> Self:
        """Reads the files of a folder, none of which need exist; `overrides` win over them, `family` yields to them.

        If tokenizer_config.json lists the added tokens, it alone is read, as in the reference. Otherwise (before
        transformers 4.34) special_tokens_map.json wins over it, and added_tokens.json and the added tokens of a
        tokenizer.json, which `json_tokens` returns, count too.

        Raises:
            ValueError: values that make no sense; the message names the file and all of them.
        """
        config = _read(folder / CONFIG_FILE)
        given = _parse(config, str(folder / CONFIG_FILE))
        written = {name: value for name, value in config.items() if name in _TOKEN_NAMES and value is not None}
        added: list[SpecialToken] = given.pop("added_tokens_decoder", [])
        added_file = {} if "added_tokens_decoder" in config else _read(folder / ADDED_FILE)
        if "added_tokens_decoder" not in config:
            special_map = {name: value for name, value in _read(folder / MAP_FILE).items() if name in _TOKEN_NAMES}
            mapped = _parse(special_map, str(folder / MAP_FILE))
            mapped["additional_special_tokens"] = _join(given, mapped)
            given |= mapped
            written |= {name: value for name, value in special_map.items() if value is not None}
            added = [
                *_parse_added(added_file, folder / ADDED_FILE),
                *_parse_list(json_tokens(), str(folder / "tokenizer.json")),
            ]
        given = {"model_max_length": family.max_length, **given, **_parse(overrides, "The overrides")}
        assumed = {
            name: SpecialToken(content, declared=False, normalized=family.normalized)
            for name, content in family.roles.items()
        }
        roles = {name: given.pop(name, assumed.get(name)) for name in ROLE_NAMES if name in given or name in assumed}
        additional = [*given.pop("additional_special_tokens", []), *given.pop("extra_special_tokens", [])]
        return cls(
            family=family,
            roles={name: token.content for name, token in roles.items()},
            additional=[token.content for token in additional],
            tokens=_merge(added, roles, additional),
            config=config,
            written=written,
            added_file=added_file,
            **given,
        )

    @property
    def special_contents(self) -> frozenset[str]:
        """What `skip_special_tokens` leaves out."""
        return frozenset([*self.roles.values(), *self.additional])

    def files(self) -> dict[str, dict[str, Any]]:
        """Returns the content of the files by name, as transformers reads them."""
        tokens: dict[str, Any] = {
            name: self.written[name] if _content(self.written.get(name)) == content else content
            for name, content in self.roles.items()
        }
        config: dict[str, Any] = {"tokenizer_class": self.family.slow_class, **self.config, **tokens}
        for name in ("model_max_length", "padding_side", "truncation_side", "split_special_tokens"):
            config[name] = getattr(self, name)
        config["clean_up_tokenization_spaces"] = self.clean_up_tokenization_spaces
        if self.additional:
            flags = {token.content: token for token in self.tokens}
            tokens["additional_special_tokens"] = [_object(flags[content]) for content in self.additional]
            config["additional_special_tokens"] = list(self.additional)
        files = {CONFIG_FILE: config, MAP_FILE: tokens}
        return {**files, ADDED_FILE: dict(self.added_file)} if self.added_file else files


def _merge(
    added: Sequence[SpecialToken], roles: Mapping[str, SpecialToken], additional: Sequence[SpecialToken]
) -> list[SpecialToken]:
    """Returns one token per string, in the order in which those without an id get theirs."""
    tokens: dict[str, SpecialToken] = {}
    for token in added:
        if token.content not in tokens or token.declared:
            tokens[token.content] = token
    listed = {token.content for token in added if token.declared}
    for name, token in [*roles.items(), *(("", token) for token in additional)]:
        if token.content in listed:
            continue
        if name == "mask_token" and not token.declared:
            token = replace(token, lstrip=True)  # like a word, it takes the space before it
        known = tokens.get(token.content)
        if known is None or token.declared or token.lstrip:
            tokens[token.content] = replace(token, id=known.id if known else None)
    return list(tokens.values())


def _join(*sources: Mapping[str, Any]) -> list[SpecialToken]:
    tokens = [token for source in sources for token in source.get("additional_special_tokens", [])]
    return list({token.content: token for token in tokens}.values())


def _read(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _parse_added(values: Mapping[str, Any], path: Path) -> list[SpecialToken]:
    """Returns the tokens of added_tokens.json, which says their ids and no more."""
    try:
        return [SpecialToken(text, _index(value), declared=False) for text, value in values.items() if text]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} must give each token a whole number: {error}.") from None


def _parse_list(tokens: Sequence[Mapping[str, Any]], source: str) -> list[SpecialToken]:
    try:
        return [replace(_token(token), id=_index(token["id"])) for token in tokens]
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{source} has an added token that cannot be read ({error}).") from None


def _parse(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Returns those of `values` that are settings, checked; None counts as not given."""
    parsed, problems = {}, []
    for name, (parse, expected) in _CHECKS.items():
        value = values.get(name)
        if value is None:
            continue
        try:
            parsed[name] = parse(value)
        except (TypeError, ValueError, KeyError, AttributeError):
            problems.append(f"{name} must be {expected}, got {str(value)[:60]!r}")
    if problems:
        raise ValueError(f"{source}: {'; '.join(problems)}.")
    return parsed


def _token(value: Any) -> SpecialToken:
    if isinstance(value, str) and value:
        return SpecialToken(value, declared=False)
    if not isinstance(value, Mapping) or not isinstance(value["content"], str) or not value["content"]:
        raise TypeError(value)
    flags = {name: bool(value[name]) for name in _FLAGS if value.get(name) is not None}
    return SpecialToken(value["content"], **flags)


def _tokens(value: Any) -> list[SpecialToken]:
    if isinstance(value, str):
        raise TypeError(value)
    return [_token(item) for item in (value.values() if isinstance(value, Mapping) else value)]


def _decoder(value: Any) -> list[SpecialToken]:
    if not all(isinstance(item, Mapping) for item in value.values()):
        raise TypeError(value)
    tokens = sorted(((int(index), _token(item)) for index, item in value.items()), key=lambda pair: pair[0])
    return [replace(token, id=_index(index)) for index, token in tokens]


def _index(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError(f"{value!r} is not an id")
    return value


def _limit(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 1:
        raise TypeError(value)
    return int(min(value, NO_LIMIT))


def _side(value: Any) -> str:
    if value not in ("right", "left"):
        raise ValueError(value)
    return str(value)


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(value)
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _content(value: Any) -> Any:
    return value.get("content") if isinstance(value, Mapping) else value


def _object(token: SpecialToken) -> dict[str, Any]:
    flags = {name: getattr(token, name) for name in _FLAGS if name != "special"}
    return {"content": token.content, **flags, "normalized": bool(token.normalized)}


_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
_TOKEN_EXPECTED = "a string, or an object whose content is one"
_TOKEN_NAMES = (*ROLE_NAMES, "additional_special_tokens")
_CHECKS: dict[str, tuple[Callable[[Any], Any], str]] = {
    **dict.fromkeys(ROLE_NAMES, (_token, _TOKEN_EXPECTED)),
    "additional_special_tokens": (_tokens, f"a list, each of it {_TOKEN_EXPECTED}"),
    "extra_special_tokens": (_tokens, f"an object or list, each of it {_TOKEN_EXPECTED}"),
    "added_tokens_decoder": (_decoder, "an object from ids to objects with a content"),
    "model_max_length": (_limit, "a number of tokens, at least 1"),
    "padding_side": (_side, "'right' or 'left'"),
    "truncation_side": (_side, "'right' or 'left'"),
    "split_special_tokens": (_boolean, "true or false"),
    "clean_up_tokenization_spaces": (_boolean, "true or false"),
    "tokenizer_class": (_name, "a string"),
}
OVERRIDES = tuple(sorted(set(_CHECKS) - {"added_tokens_decoder", "extra_special_tokens", "tokenizer_class"}))
