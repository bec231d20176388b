"""What a family of tokenizers takes for granted where its files are silent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NO_LIMIT = int(1e30)  # as the reference writes it
ROLE_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class TokenizerFamily:
    """The tokenizers of one kind of text tower.

    Attributes:
        slow_class: The reference's class, as tokenizer_config.json names it; with "Fast" behind it reads a
            tokenizer.json.
        slow_files: The vocabulary that the class reads, all of them needed.
        roles: The tokens of the roles that the family has.
        max_length: Of a text, in tokens with the special ones.
    """

    slow_class: str
    slow_files: tuple[str, ...]
    roles: Mapping[str, str]
    max_length: int = NO_LIMIT

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
)
