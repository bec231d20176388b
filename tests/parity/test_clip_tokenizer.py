"""Ids equal to those of transformers' CLIPTokenizerFast, whichever files they come from; the slow ones on request."""

import json
import random
import re
import shutil
import unicodedata

import pytest
from transformers import AutoTokenizer, CLIPTokenizer, CLIPTokenizerFast

import altclip_jax
from altclip_jax.processing.tokenizer import load_tokenizer

TEXTS = [
    "",
    " ",
    "Hello World!",
    "a photo of a cat",
    "A PHOTO OF THE CAT'S WHISKERS, THEY'LL SAY I'M HERE'D'VE",
    "rock 'n' roll '90s don't 'tis can't've",
    "it'ſ a long ſ and a KELVIN \u212aelvin",
    "in 2021 there were 3,141,592 ½ ² ⅷ",
    "snake_case camelCase kebab-case a/b\\c #tag @you $5.00 100%",
    "一张猫的照片",
    "猫の写真、カタカナ",
    "고양이 사진",
    unicodedata.normalize("NFD", "고양이 사진 é ñ Å"),
    "una foto di un gatto",
    "une photo d'un chat à côté",
    "ein Foto einer Katze, größer STRASSE ẞ",
    "ảnh một con mèo",
    "фотография кошки ЁЖ",
    "φωτογραφία γάτας ΟΔΟΣ ΣΑΣ Σ",
    "İstanbul ıI DİYARBAKIR",
    "صورة قطة لِقِطّ",
    "תמונה של חתול שָׁלוֹם",
    "बिल्ली की तस्वीर",
    "รูปถ่ายของแมว",
    "კატის ფოტო ᲙᲐᲢᲐ",
    "կատվի լուսանկար",
    "ፎቶ",
    "বিড়ালের ছবি",
    "பூனையின் புகைப்படம்",
    "పిల్లి రూపం",
    "ຮູບແມວ",
    "ဓာတ်ပုံ",
    "រូបថតឆ្មា",
    "ᏣᎳᎩ Ꮳꮳ 𐐔𐐯𐑅 𝓬𝓪𝓽",
    "🐱 👩‍🚀 🏳️‍🌈 ❤️ 1️⃣ 🇩🇪",
    "ﬁﬂ ① ﾊﾝｶｸ Ｆｕｌｌ ㌔ 豈 \U0002f800 \U00020000",
    "tab\tnew\nline\r\n  many   spaces \u00a0\u2003\u3000x\u2028y\u2029z\x1cw\x85v",
    "zero\u200bwidth\u200dand\u200e marks\ufeff soft\u00adhyphen",
    "\x00\x01 control \x7f \ufffd \ue000 \U000e0041 \u0378",
    "<|startoftext|>a<|endoftext|> b <|STARTOFTEXT|>c!<|EndOfText|>",
    "< |startoftext|> <|start|> |endoftext|",
    "!!! ... ?!?! --- ''' \"\" ``",
    "x" * 400,
    "ab " * 200,
]


@pytest.fixture(scope="module")
def fast(clip_bpe):
    return CLIPTokenizerFast.from_pretrained(clip_bpe)


@pytest.fixture(scope="module")
def ours(clip_bpe):
    return altclip_jax.CLIPTokenizer.from_pretrained(clip_bpe, model_max_length=10_000)


def random_texts(count):
    rng = random.Random(0)
    blocks = [(0, 0x7F), (0, 0x7F), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x6FF), (0x900, 0xEFF), (0x1100, 0x11FF)]
    blocks += [(0x2000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xF900, 0xFFEF), (0x1F300, 0x1FAFF), (0, 0x2FFFF)]
    special = ["<|startoftext|>", "<|endoftext|>", "<|ENDOFTEXT|>", "'s", "'LL", "'ſ", " ", "  ", "\n", "<", "|>"]

    def piece():
        if rng.random() < 0.15:
            return rng.choice(special)
        character = chr(rng.randint(*rng.choice(blocks)))
        if unicodedata.category(character) == "Cs":
            character = "?"
        return character if rng.random() < 0.8 else unicodedata.normalize("NFD", character)

    return ["".join(piece() for _ in range(rng.randint(0, 14))) for _ in range(count)]


def test_ids_on_many_scripts_and_edge_cases(fast, ours):
    for text in [*TEXTS, *random_texts(3000)]:
        assert ours(text)["input_ids"] == fast(text)["input_ids"], repr(text)
        assert ours.tokenize(text) == fast.tokenize(text), repr(text)


def test_special_strings_as_plain_text(fast, ours):
    for text in [*TEXTS, *random_texts(300)]:
        expected = fast(text, split_special_tokens=True)["input_ids"]
        assert ours(text, split_special_tokens=True)["input_ids"] == expected, repr(text)


def test_every_character_alone(fast, ours):
    """All of Unicode but the surrogates, by hundreds, each between two letters."""
    assigned = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) not in ("Cs", "Cn", "Co")]
    for start in range(0, len(assigned), 997):
        text = " ".join(f"a{character}1" for character in assigned[start : start + 997 : 3])
        assert ours.tokenize(text) == fast.tokenize(text), start


def test_decoding(fast, ours):
    for text in [*TEXTS, *random_texts(200)]:
        ids = ours(text)["input_ids"]
        for skip in (False, True):
            assert ours.decode(ids, skip_special_tokens=skip) == fast.decode(ids, skip_special_tokens=skip), repr(text)
    rng = random.Random(1)
    for _ in range(300):
        ids = [rng.randrange(49408) for _ in range(8)]
        assert ours.decode(ids) == fast.decode(ids)
        assert ours.convert_ids_to_tokens(ids) == fast.convert_ids_to_tokens(ids)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": True},
        {"padding": "max_length", "max_length": 77, "truncation": True},
        {"padding": True, "pad_to_multiple_of": 8},
        {"padding": True, "truncation": True, "max_length": 6},
        {"padding": True, "padding_side": "left"},
        {"padding": True, "add_special_tokens": False},
    ],
)
@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_padding_and_truncation(clip_bpe, options, pad):
    fast = CLIPTokenizerFast.from_pretrained(clip_bpe, pad_token=pad)
    ours = altclip_jax.CLIPTokenizer.from_pretrained(clip_bpe, pad_token=pad, model_max_length=10_000)
    texts = [text for text in TEXTS[:40] if text]
    mine, theirs = ours(texts, return_tensors="np", **options), fast(texts, return_tensors="np", **options)
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert mine[name].dtype == theirs[name].dtype
        assert (mine[name] == theirs[name]).all()


def test_pairs_and_their_truncation(fast, ours):
    first, second = "one two three four five six", "eins zwei drei vier fünf sechs sieben"
    for limit in (14, 15, 17, 100):
        mine = ours(first, second, truncation=True, max_length=limit)["input_ids"]
        assert mine == fast(first, second, truncation=True, max_length=limit)["input_ids"]


def test_settings_and_added_tokens_of_published_folders(clip_bpe, tmp_path):
    """The layouts of openai/clip-vit-base-patch32 (before 4.34) and of a folder with tokens of its own."""
    token = {"__type": "AddedToken", "single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    old = {
        "tokenizer_config.json": {
            **{name: {"content": "<|endoftext|>", **token} for name in ("unk_token", "eos_token")},
            "bos_token": {"content": "<|startoftext|>", **token},
            "pad_token": "!",
            "add_prefix_space": False,
            "errors": "replace",
            "do_lower_case": True,
            "model_max_length": 77,
            "tokenizer_class": "CLIPTokenizer",
        },
        "special_tokens_map.json": {"pad_token": "!", "bos_token": {"content": "<|startoftext|>", **token}},
        "added_tokens.json": {"<cat-toy>": 49408, "<Style>": 49409},
    }
    shutil.copytree(clip_bpe, tmp_path, dirs_exist_ok=True)
    for name, values in old.items():
        (tmp_path / name).write_text(json.dumps(values))
    fast, ours = CLIPTokenizerFast.from_pretrained(tmp_path), altclip_jax.CLIPTokenizer.from_pretrained(tmp_path)
    assert (ours.model_max_length, len(ours), ours.pad_token_id) == (77, len(fast), fast.pad_token_id)
    for text in ["A <cat-toy> in <Style> <style>! wow!", "a!b <cat-toy>", *TEXTS[:40]]:
        assert ours(text)["input_ids"] == fast(text)["input_ids"], text
        assert ours.decode(ours(text)["input_ids"]) == fast.decode(fast(text)["input_ids"]), text


def test_vocabularies_of_other_sizes(clip_bpe, fast, tmp_path):
    """A small one with unknown pieces, and one with more merges than are read."""
    small = {"a": 0, "b": 1, "ab": 2, "ab</w>": 3, "b</w>": 4, "!": 5, "!</w>": 6, "Ã": 7, "<|endoftext|>": 8}
    whole = json.loads((clip_bpe / "vocab.json").read_text(encoding="utf-8"))
    merges = (clip_bpe / "merges.txt").read_text(encoding="utf-8")
    more = "".join(f"{' '.join(fast.tokenize(word)[:2])}\n" for word in ("qzxvqz", "photocats"))
    cases = {
        "small": (small, "version\na b\na b</w>"),
        "large": (whole, merges + more),
    }
    for name, (vocabulary, merges) in cases.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "vocab.json").write_text(json.dumps(vocabulary))
        (tmp_path / name / "merges.txt").write_text(merges, encoding="utf-8")
        fast = CLIPTokenizerFast.from_pretrained(tmp_path / name)
        ours = altclip_jax.CLIPTokenizer.from_pretrained(tmp_path / name, model_max_length=10_000)
        assert len(ours) == len(fast)
        for text in ["aabb ab!! aba AB", "é b", "qzxvqz photocats", *random_texts(300)]:
            assert ours(text)["input_ids"] == fast(text)["input_ids"], (name, text)


def test_a_tokenizer_json_gives_the_ids_of_the_fast_reference(clip_bpe, fast, ours, tmp_path):
    fast.save_pretrained(tmp_path)
    loaded, reference = load_tokenizer(tmp_path, model_max_length=10_000), AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is altclip_jax.CLIPTokenizer
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).unlink(missing_ok=True)
    alone = load_tokenizer(tmp_path, model_max_length=10_000)
    for text in [*TEXTS, *random_texts(500)]:
        ids = reference(text)["input_ids"]
        assert loaded(text)["input_ids"] == alone(text)["input_ids"] == ids, repr(text)
        assert alone.decode(ids, skip_special_tokens=True) == reference.decode(ids, skip_special_tokens=True)


def test_the_slow_ids_where_they_are_asked_for(clip_bpe, fast):
    """They are what 0.1.0 gave; special strings in capitals beside signs are the one thing that is left."""
    slow = CLIPTokenizer.from_pretrained(clip_bpe)
    ours = altclip_jax.CLIPTokenizer.from_pretrained(clip_bpe, use_fast=False, model_max_length=10_000)
    for text in [*TEXTS, *random_texts(3000)]:
        if not re.search(r"<\|[A-Z]", text):
            assert ours(text)["input_ids"] == slow(text)["input_ids"], repr(text)
    chinese = "一张猫的照片"
    assert fast(chinese)["input_ids"] != ours(chinese)["input_ids"]


def test_the_reference_reads_what_is_saved(ours, fast, tmp_path):
    ours.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(again, CLIPTokenizerFast)
    assert [again(text)["input_ids"] for text in TEXTS] == [fast(text)["input_ids"] for text in TEXTS]
