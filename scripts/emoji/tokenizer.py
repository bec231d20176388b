"""Train the English tokenizer of the emoji teacher: byte-level BPE with the rules of CLIP's, in its two files.

    python -m scripts.emoji.tokenizer --data build/emoji --output recipes/emoji/teacher_tokenizer

Reads the English names and keywords of train.jsonl, nothing of a concept that is kept out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from altclip_jax.files.json_file import write_bytes, write_json

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = (
    r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""  # Radford et al. 2021, as CLIP's tokenizer.json
)
LONGEST = 32


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="what scripts/emoji/dataset.py wrote")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--size", type=int, default=2048, help="of the vocabulary, with its two special tokens")
    options = parser.parse_args()
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2 * options.size,  # of which only the merges are taken
        end_of_word_suffix="</w>",
        initial_alphabet=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator(english(options.data / "train.jsonl"), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    symbols = pre_tokenizers.ByteLevel.alphabet()
    merges = [tuple(pair) for pair in model["merges"]]
    # CLIP's order: every byte, every byte at the end of a word, what is merged, the special tokens
    every = sorted(symbols, key=ord)
    pieces = [*every, *(f"{symbol}</w>" for symbol in every)]
    room = options.size - len(pieces) - 2
    merges = merges[:room]
    pieces += [left + right for left, right in merges]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, START, END])}
    assert len(vocabulary) == len(pieces) + 2
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    write_bytes(options.output / "merges.txt", "\n".join(lines).encode())
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    write_json(options.output / "special_tokens_map.json", special)
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LONGEST, **special}
    write_json(options.output / "tokenizer_config.json", settings)
    print(f"{len(vocabulary)} tokens, {len(merges)} merges in {options.output}")


def english(path: Path) -> Iterator[str]:
    """Yield every English caption."""
    for line in path.read_text(encoding="utf-8").splitlines():
        yield from json.loads(line)["captions"]["en"]


if __name__ == "__main__":
    main()
