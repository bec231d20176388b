"""The JSON files beside a vocabulary mean what they mean to transformers' slow XLMRobertaTokenizer."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import XLMRobertaTokenizer

from altclip_jax.processing.tokenizer import AltCLIPTokenizer

XLMR = Path(__file__).parents[1] / "data" / "xlmr"
TEXTS = [
    "one two <new> three",
    "one<new>two<new> <new>three",
    "<left> a <left>b",
    "a <right> b<right>  c",
    "a <word> b<word>c <word>",
    "<s> a </s> <mask> b<mask>",
    "plain words, no token in them",
    "hello world <extra> and </s><extra>",
]
TOKEN = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": False}
ADDED = {
    "added_tokens_decoder": {
        **{str(i): {**TOKEN, "content": c, "special": True} for i, c in enumerate(["<s>", "<pad>", "</s>", "<unk>"])},
        "250001": {**TOKEN, "content": "<mask>", "lstrip": True, "special": True},
        "250002": {**TOKEN, "content": "<new>"},
        "250003": {**TOKEN, "content": "<left>", "lstrip": True},
        "250004": {**TOKEN, "content": "<right>", "rstrip": True},
        "250005": {**TOKEN, "content": "<word>", "single_word": True},
        "250006": {**TOKEN, "content": "<extra>", "special": True},
    },
    "additional_special_tokens": ["<extra>"],
}
# name: (tokenizer_config.json, special_tokens_map.json, added_tokens.json)
FOLDERS = {
    "the model file alone": (None, None, None),
    "added tokens of every kind": (ADDED, None, None),
    "added tokens before 4.34": ({}, {"additional_special_tokens": ["<extra>"]}, {"<new>": 250002, "<extra>": 250003}),
    "a mask that takes no space": (None, {"mask_token": {**TOKEN, "content": "<mask>"}}, None),
    "other roles": ({"sep_token": "<mask>", "cls_token": "<unk>"}, None, None),
    "a limit and the left side": (
        {"model_max_length": 9, "truncation_side": "left", "padding_side": "left"},
        None,
        None,
    ),
    "tidied spaces": ({"clean_up_tokenization_spaces": True}, None, None),
}


@pytest.fixture(params=FOLDERS)
def pair(request, tmp_path):
    shutil.copy(XLMR / "sentencepiece.bpe.model", tmp_path)
    names = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    for name, content in zip(names, FOLDERS[request.param], strict=True):
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content))
    return AltCLIPTokenizer.from_pretrained(tmp_path), XLMRobertaTokenizer.from_pretrained(tmp_path)


def test_ids_tokens_and_decoded_text(pair):
    ours, theirs = pair
    for text in TEXTS:
        ids = theirs(text, truncation=True)["input_ids"]
        assert ours(text, truncation=True)["input_ids"] == ids, text
        assert ours.tokenize(text) == theirs.tokenize(text), text
        for skip in (False, True):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip), text


def test_attributes(pair):
    ours, theirs = pair
    for name in ("bos", "eos", "sep", "cls", "unk", "pad", "mask"):
        assert getattr(ours, f"{name}_token") == getattr(theirs, f"{name}_token")
        assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id")
    for name in ("model_max_length", "padding_side", "truncation_side", "vocab_size", "all_special_tokens"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert len(ours) == len(theirs)


def test_cut_and_padded_as_the_folder_says(pair):
    ours, theirs = pair
    for options in ({"padding": True, "truncation": True, "max_length": 7}, {"padding": "max_length", "max_length": 9}):
        options = {"truncation": True, **options}
        assert ours(TEXTS, **options)["input_ids"] == theirs(TEXTS, **options)["input_ids"]


def test_saved_and_read_again_by_both(pair, tmp_path):
    ours, theirs = pair
    ours.save_pretrained(tmp_path / "again")
    for again in (AltCLIPTokenizer, XLMRobertaTokenizer):
        read = again.from_pretrained(tmp_path / "again")
        for text in TEXTS:
            assert read(text, truncation=True)["input_ids"] == theirs(text, truncation=True)["input_ids"], text
