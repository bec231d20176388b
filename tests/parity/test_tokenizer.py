"""Ids equal to transformers' slow XLMRobertaTokenizer; a tokenizer.json equal to the fast one where that is right."""

import random
import shutil
import unicodedata
from pathlib import Path

import pytest
from transformers import AutoTokenizer, XLMRobertaTokenizer, XLMRobertaTokenizerFast

from altclip_jax.assets import default_checkpoint
from altclip_jax.processing.tokenizer import AltCLIPTokenizer

XLMR = Path(__file__).parents[1] / "data" / "xlmr"
TEXTS = [
    "",
    " ",
    "Hello World!",
    "a photo of a cat",
    "一张猫的照片",
    "una foto de un gato",
    "une photo d'un chat à côté",
    "фотография кошки",
    "صورة قطة",
    "猫の写真",
    "고양이 사진",
    unicodedata.normalize("NFD", "고양이 사진"),
    "una foto di un gatto",
    "ein Foto einer Katze, größer",
    "बिल्ली की तस्वीर",
    "รูปถ่ายของแมว",
    "ảnh một con mèo",
    "φωτογραφία γάτας",
    "תמונה של חתול",
    "კატის ფოტო",
    "կատվի լուսանկար",
    "ፎቶ",
    "বিড়ালের ছবি",
    "பூனையின் புகைப்படம்",
    "రూపం",
    "ຮູບແມວ",
    "ဓာတ်ပုံ",
    "🐱 👩‍🚀 🏳️‍🌈",
    "ﬁﬂ ① ﾊﾝｶｸ Ｆｕｌｌ",
    "tab\tnew\nline\r\n  many   spaces  ",
    "zero\u200bwidth\u200dand\u200e marks\ufeff",
    "<s>a</s> b <mask> c<pad>d <unk>",
    "  <mask><mask>  <s>",
    "<S> < s> <mask",
    "\x00\x01 control \x7f",
    "x" * 3000,
]


@pytest.fixture(scope="module")
def slow():
    return XLMRobertaTokenizer.from_pretrained(XLMR)


@pytest.fixture(scope="module")
def ours():
    return AltCLIPTokenizer.from_pretrained(XLMR)


def random_texts(count):
    rng = random.Random(0)
    blocks = [(0, 0x7F), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x6FF), (0x900, 0xEFF), (0x1100, 0x11FF)]
    blocks += [(0x2000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFB00, 0xFFEF), (0x1F300, 0x1FAFF)]
    special = ["<s>", "</s>", "<mask>", "<pad>", "<unk>", " ", "  ", "\n", "<", "s>"]

    def piece():
        if rng.random() < 0.15:
            return rng.choice(special)
        character = chr(rng.randint(*rng.choice(blocks)))
        return character if rng.random() < 0.8 else unicodedata.normalize("NFD", character)

    return ["".join(piece() for _ in range(rng.randint(0, 14))) for _ in range(count)]


def test_ids_on_many_scripts_and_edge_cases(slow, ours):
    for text in [*TEXTS, *random_texts(2000)]:
        assert ours(text)["input_ids"] == slow(text)["input_ids"], repr(text)


def test_special_strings_as_plain_text(slow, ours):
    for text in [*TEXTS, *random_texts(300)]:
        expected = slow(text, split_special_tokens=True)["input_ids"]
        assert ours(text, split_special_tokens=True)["input_ids"] == expected, repr(text)


def test_decoding(slow, ours):
    for text in TEXTS:
        ids = ours(text)["input_ids"]
        for skip in (False, True):
            assert ours.decode(ids, skip_special_tokens=skip) == slow.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": True},
        {"padding": "max_length", "max_length": 40, "truncation": True},
        {"padding": True, "pad_to_multiple_of": 8},
        {"padding": True, "truncation": True, "max_length": 6},
        {"padding": True, "padding_side": "left"},
        {"padding": True, "add_special_tokens": False},
    ],
)
def test_padding_and_truncation(slow, ours, options):
    texts = TEXTS[:30]
    mine, theirs = ours(texts, return_tensors="np", **options), slow(texts, return_tensors="np", **options)
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert mine[name].dtype == theirs[name].dtype
        assert (mine[name] == theirs[name]).all()


@pytest.mark.parametrize("strategy", [True, "only_first", "only_second"])
def test_pairs_and_their_truncation(slow, ours, strategy):
    first, second = "one two three four five six", "eins zwei drei vier fünf sechs sieben"
    for limit in (14, 15, 17, 100):
        mine = ours(first, second, truncation=strategy, max_length=limit)["input_ids"]
        assert mine == slow(first, second, truncation=strategy, max_length=limit)["input_ids"]


@pytest.fixture
def json_alone(tmp_path):
    XLMRobertaTokenizerFast.from_pretrained(XLMR).save_pretrained(tmp_path)
    (tmp_path / "sentencepiece.bpe.model").unlink(missing_ok=True)
    return tmp_path


def test_a_tokenizer_json_alone_gives_the_ids_of_the_fast_reference(json_alone):
    ours, fast = AltCLIPTokenizer.from_pretrained(json_alone), XLMRobertaTokenizerFast.from_pretrained(json_alone)
    for text in [*TEXTS, *random_texts(2000)]:
        ids = fast(text)["input_ids"]
        assert ours(text)["input_ids"] == ids, repr(text)
        assert ours.decode(ids, skip_special_tokens=True) == fast.decode(ids, skip_special_tokens=True), repr(text)


def test_a_tokenizer_json_alone_gives_nearly_the_slow_ids_where_they_are_asked_for(slow, json_alone):
    ours, fast = (
        AltCLIPTokenizer.from_pretrained(json_alone, use_fast=False),
        AltCLIPTokenizer.from_pretrained(json_alone),
    )
    texts = random_texts(2000)
    # what is left is the file's own: how it treats white space beside special strings
    mine = sum(ours(text)["input_ids"] != slow(text)["input_ids"] for text in texts)
    theirs = sum(fast(text)["input_ids"] != slow(text)["input_ids"] for text in texts)
    assert mine <= 10 < 100 < theirs
    decomposed = unicodedata.normalize("NFD", "고양이")
    assert ours(decomposed)["input_ids"] == slow(decomposed)["input_ids"] != fast(decomposed)["input_ids"]


def test_the_vocabulary_that_was_read_is_the_one_that_is_saved(json_alone, tmp_path):
    """A folder has both; the saved one gives the ids of the one it was made of, unasked."""
    shutil.copy(XLMR / "sentencepiece.bpe.model", json_alone)
    decomposed = unicodedata.normalize("NFD", "고양이")
    rows = []
    for use_fast in (False, True):
        ours = AltCLIPTokenizer.from_pretrained(json_alone, use_fast=use_fast)
        ours.save_pretrained(tmp_path / str(use_fast))
        rows.append(ours(decomposed)["input_ids"])
        assert AltCLIPTokenizer.from_pretrained(tmp_path / str(use_fast))(decomposed)["input_ids"] == rows[-1]
    assert rows[0] != rows[1]


def test_the_embedded_models_tokenizer_equals_the_reference():
    ours, theirs = (
        AltCLIPTokenizer.from_pretrained(default_checkpoint()),
        AutoTokenizer.from_pretrained(default_checkpoint()),
    )
    for text in [*TEXTS[:-1], *random_texts(1000)]:
        assert ours(text)["input_ids"] == theirs(text)["input_ids"], repr(text)


def test_the_reference_reads_what_is_saved(ours, slow, tmp_path):
    ours.save_pretrained(tmp_path)
    again = XLMRobertaTokenizer.from_pretrained(tmp_path)
    assert [again(text)["input_ids"] for text in TEXTS] == [slow(text)["input_ids"] for text in TEXTS]
