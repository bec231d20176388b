"""Text to ids and mask: the tokenizers of the student, which is XLM-RoBERTa's, and of the teacher, which is CLIP's.

Transformers' slow XLMRobertaTokenizer and CLIPTokenizer are the references.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from altclip_jax.files.json_file import read_json_object
from altclip_jax.processing.base_tokenizer import BaseTokenizer
from altclip_jax.processing.clip_vocabulary import CLIPVocabulary
from altclip_jax.processing.json_vocabulary import JsonVocabulary
from altclip_jax.processing.tokenizer_family import CLIP, XLM_ROBERTA, TokenizerFamily
from altclip_jax.processing.tokenizer_settings import CONFIG_FILE, OVERRIDES, TokenizerSettings
from altclip_jax.processing.xlmr_vocabulary import XLMRVocabulary

_JSON = "tokenizer.json"


class _FolderTokenizer(BaseTokenizer):
    """A tokenizer that knows the files of its family."""

    family: ClassVar[TokenizerFamily]
    slow_vocabulary: ClassVar[type[XLMRVocabulary] | type[CLIPVocabulary]]

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], *, use_fast: bool = False, **overrides: Any) -> Self:
        """Reads a tokenizer's folder.

        Where the family's own vocabulary (sentencepiece.bpe.model, or vocab.json with merges.txt) stands beside
        tokenizer.json, it is used: the slow tokenizers are the reference, and the tokenizers library differs from them
        in places. The folders of other families may arrange the ids of such files in other ways; of them only
        tokenizer.json is used.

        Args:
            folder: Holds one of the two, and tokenizer_config.json, special_tokens_map.json, added_tokens.json if any.
            use_fast: Use tokenizer.json although the other is there.
            **overrides: What replaces the files' model_max_length, padding_side, truncation_side,
                split_special_tokens, clean_up_tokenization_spaces, bos_token, ..., additional_special_tokens.

        Raises:
            FileNotFoundError: the folder has neither, or not the one that is wanted.
            ValueError: a file is damaged; the message names it.
            TypeError: an override that does not exist.
        """
        folder, own = Path(folder), cls.family.slow_files
        if unknown := sorted(set(overrides) - set(OVERRIDES)):
            raise TypeError(
                f"{cls.__name__} has no setting {', '.join(unknown)}; it has {', '.join(OVERRIDES)}, use_fast."
            )
        files = {name: (folder / name).read_bytes() for name in (*own, _JSON) if (folder / name).is_file()}
        slow = files.keys() >= set(own)
        if not slow and _JSON not in files:
            wanted = " with ".join(own)
            raise FileNotFoundError(f"{folder} has neither {wanted} nor {_JSON}: is this the folder of a tokenizer?")
        json_tokens = (lambda: _added_tokens(folder / _JSON, files[_JSON])) if slow and _JSON in files else tuple
        settings = TokenizerSettings.read(folder, overrides, json_tokens, cls.family)
        if use_fast or not cls.family.claims(settings.tokenizer_class):
            slow = False
            if _JSON not in files:
                raise FileNotFoundError(
                    f"{folder} has no {_JSON}, which {'use_fast=True' if use_fast else settings.tokenizer_class}"
                    f" needs; {' with '.join(own)} alone is read only for {cls.family.slow_class}."
                )
        if slow:
            vocabulary = cls.slow_vocabulary(str(folder), {name: files[name] for name in own}, settings)
            return cls(vocabulary, settings, files=files)
        data = files[_JSON]
        return cls(JsonVocabulary(str(folder / _JSON), data, settings), settings, files={_JSON: data})


class AltCLIPTokenizer(_FolderTokenizer):
    """The student's: XLM-RoBERTa's sentencepiece vocabulary. Made by `from_pretrained`."""

    family = XLM_ROBERTA
    slow_vocabulary = XLMRVocabulary

    sep_token: str
    cls_token: str
    mask_token: str


class CLIPTokenizer(_FolderTokenizer):
    """The teacher's: CLIP's byte-pair encoding in lower case, of at most 77 tokens. Made by `from_pretrained`.

    The padding token is `<|endoftext|>` unless the files name another, such as "!". What a tokenizer.json gives differs
    from the reference: see `CLIPVocabulary`.
    """

    family = CLIP
    slow_vocabulary = CLIPVocabulary


def load_tokenizer(folder: str | os.PathLike[str], **overrides: Any) -> AltCLIPTokenizer | CLIPTokenizer:
    """Reads the tokenizer of a folder, whichever family's it is; see `AltCLIPTokenizer.from_pretrained`.

    The tokenizer_class in tokenizer_config.json decides. Where there is none, CLIP's has the files or, in its
    tokenizer.json, the token `<|startoftext|>`.
    """
    folder = Path(folder)
    config = read_json_object(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else {}
    named = config.get("tokenizer_class")
    if CLIP.claims(named) if named is not None else _looks_like_clip(folder):
        return CLIPTokenizer.from_pretrained(folder, **overrides)
    return AltCLIPTokenizer.from_pretrained(folder, **overrides)


def _looks_like_clip(folder: Path) -> bool:
    if any((folder / name).is_file() for name in XLM_ROBERTA.slow_files):
        return False
    if all((folder / name).is_file() for name in CLIP.slow_files):
        return True
    return (folder / _JSON).is_file() and f'"{CLIP.roles["bos_token"]}"'.encode() in (folder / _JSON).read_bytes()


def _added_tokens(path: Path, data: bytes) -> list[Mapping[str, Any]]:
    try:
        return list(json.loads(data)["added_tokens"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a tokenizer.json that can be read ({error}).") from None
