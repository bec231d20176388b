"""The processor: routing, order, what is refused; text and pictures without torch or transformers."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from altclip_jax import AltCLIPImageProcessor, AltCLIPProcessor, AltCLIPTokenizer, ImageError
from altclip_jax.assets import PICTURES, default_checkpoint

XLMR = Path(__file__).parents[1] / "data" / "xlmr"


@pytest.fixture(scope="module")
def processor():
    return AltCLIPProcessor.from_pretrained(default_checkpoint())


@pytest.fixture(scope="module")
def xlmr():
    return AltCLIPTokenizer.from_pretrained(XLMR)


def test_both_parts_in_the_models_order(processor):
    batch = processor(PICTURES / "cat_noto.png", ["a cat", "猫 と 犬"], padding=True)
    assert list(batch) == ["input_ids", "attention_mask", "pixel_values"]
    assert batch["input_ids"].dtype == np.int64
    assert batch["pixel_values"].shape == (1, 3, 32, 32)
    assert batch["pixel_values"].dtype == np.float32
    assert list(processor(text="a")) == ["input_ids", "attention_mask"]
    assert list(processor(images=[PICTURES / "cat_noto.png"])) == ["pixel_values"]


def test_arguments_go_to_the_part_that_has_them(processor):
    picture = PICTURES / "cat_noto.png"
    batch = processor(picture, "a cat", padding="max_length", max_length=20, size=40, crop_size=40)
    assert batch["input_ids"].shape == (1, 20)
    assert batch["pixel_values"].shape == (1, 3, 40, 40)
    nested = processor(picture, "a cat", text_kwargs={"padding": (30,)}, images_kwargs={"do_normalize": False})
    assert nested["input_ids"].shape == (1, 30)
    assert nested["pixel_values"].min() >= 0
    with pytest.raises(TypeError, match="no argument paddding"):
        processor(text="a", paddding=True)


def test_what_is_refused(processor):
    with pytest.raises(ValueError, match="You must specify either text or images"):
        processor()
    with pytest.raises(ValueError, match="return_tensors='pt'"):
        processor(text="a", return_tensors="pt")
    with pytest.raises(ValueError, match="return_tensors='pt'"):
        processor(images=PICTURES / "cat_noto.png", return_tensors="pt")
    with pytest.raises(TypeError, match="tokenizer must be an AltCLIPTokenizer or CLIPTokenizer, got NoneType"):
        AltCLIPProcessor(processor.image_processor, None)


def test_unequal_texts_without_padding_are_lists(processor):
    batch = processor(text=["a", "a b c d"])
    assert isinstance(batch["input_ids"], list)
    assert [len(row) for row in batch["input_ids"]] == [len(row) for row in batch["attention_mask"]]


def test_saved_and_read_back(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    again = AltCLIPProcessor.from_pretrained(tmp_path, size=48, crop_size=48, model_max_length=9)
    assert again.tokenizer.model_max_length == 9
    assert again.image_processor.size == {"shortest_edge": 48}
    assert again(text="red apple")["input_ids"].tolist() == processor(text="red apple")["input_ids"].tolist()
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    with pytest.raises(FileNotFoundError, match="no folder"):
        AltCLIPProcessor.from_pretrained(tmp_path / "not" / "here")


def test_published_ids_of_the_real_vocabulary(xlmr):
    assert xlmr("Hello World!")["input_ids"] == [0, 35378, 6661, 38, 2]
    assert xlmr("")["input_ids"] == [0, 2]
    assert xlmr("a", "b")["input_ids"] == [0, 10, 2, 2, 876, 2]
    assert (xlmr.pad_token_id, xlmr.mask_token_id, len(xlmr)) == (1, 250001, 250002)
    assert xlmr("a<mask>")["input_ids"] == xlmr("a <mask>")["input_ids"]
    assert 250001 not in xlmr("a<mask>", split_special_tokens=True)["input_ids"]


def test_padding_to_buckets_and_sides(xlmr):
    texts = ["a", "a b c d e f g"]
    assert xlmr(texts, padding=(4, 12, 32), return_tensors="np")["input_ids"].shape == (2, 12)
    left = xlmr(texts, padding=True, padding_side="left", return_tensors="np")
    assert left["attention_mask"][0].tolist() == [0] * 6 + [1] * 3
    assert (left["input_ids"][0, :6] == 1).all()
    with pytest.raises(ValueError, match="largest padding length is 4"):
        xlmr(texts, padding=(4,))


def test_too_long_a_text_is_refused_with_its_length():
    tokenizer = AltCLIPTokenizer.from_pretrained(XLMR, model_max_length=12)
    with pytest.raises(ValueError, match="Text 1 is 52 tokens long and this model takes 12"):
        tokenizer(["a", "a " * 50])
    cut = tokenizer("a " * 50, truncation=True)["input_ids"]
    assert len(cut) == 12
    assert cut[-1] == 2


def test_texts_that_are_none(xlmr):
    with pytest.raises(TypeError, match=r"text\[1\] is a int"):
        xlmr(["a", 3])
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        xlmr("\ud800")


def test_damaged_and_missing_tokenizer_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither"):
        AltCLIPTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        AltCLIPTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"\x00garbage")
    with pytest.raises(ValueError, match="not a sentencepiece model"):
        AltCLIPTokenizer.from_pretrained(tmp_path)


def test_both_forms_survive_pickling(xlmr, processor):
    for tokenizer in (xlmr, processor.tokenizer):
        assert pickle.loads(pickle.dumps(tokenizer))("red 红")["input_ids"] == tokenizer("red 红")["input_ids"]


def test_no_jax_is_imported():
    program = (
        "import sys; from altclip_jax.processing.processor import AltCLIPProcessor; import altclip_jax.cli;"
        "assert not {'jax', 'flax', 'orbax', 'optax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_published_layouts_of_the_image_processor(tmp_path):
    old = {"size": 224, "crop_size": 224, "feature_extractor_type": "CLIPFeatureExtractor", "mine": 1}
    processor = AltCLIPImageProcessor.from_dict(old)
    assert processor == AltCLIPImageProcessor(extra=processor.extra)
    processor.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert written["size"] == {"shortest_edge": 224}
    assert written["mine"] == 1
    assert "feature_extractor_type" not in written
    assert AltCLIPImageProcessor.from_pretrained(tmp_path) == processor


@pytest.mark.parametrize(
    "fields",
    [
        {"size": 0},
        {"size": {"longest_edge": 3}},
        {"image_std": [0, 1, 1]},
        {"resample": 9},
        {"max_pixels": 0},
        {"background": (300, 0, 0)},
    ],
)
def test_impossible_settings(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        AltCLIPImageProcessor(**fields)


def test_transparency_and_orientation_are_options():
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    plain = AltCLIPImageProcessor(size=8, crop_size=8, do_normalize=False)
    assert plain(clear)["pixel_values"].max() == 0
    assert plain(clear, background=(255, 255, 255))["pixel_values"].min() == 1
    turned = Image.new("RGB", (8, 4))
    exif = turned.getexif()
    exif[0x0112] = 6
    import io

    file = io.BytesIO()
    turned.save(file, "png", exif=exif)
    raw = AltCLIPImageProcessor(do_resize=False, do_center_crop=False)
    assert raw(file.getvalue(), apply_exif_orientation=False)["pixel_values"].shape == (1, 3, 4, 8)
    assert raw(file.getvalue())["pixel_values"].shape == (1, 3, 8, 4)


def test_an_extreme_shape_costs_no_memory_and_is_right():
    column = Image.new("RGB", (1, 10000), (10, 20, 30))
    picture = AltCLIPImageProcessor().resize_and_crop(column)
    assert picture.shape == (224, 224, 3)
    assert (picture == (10, 20, 30)).all()


def test_the_window_equals_the_middle_of_the_whole(monkeypatch):
    rng = np.random.default_rng(0)
    processor = AltCLIPImageProcessor()
    for size in ((30, 2000), (2000, 30), (9, 1777)):
        image = Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), np.uint8))
        whole = processor.resize_and_crop(image)
        monkeypatch.setattr("altclip_jax.processing.image._WINDOW_PIXELS", 1)
        window = processor.resize_and_crop(image)
        monkeypatch.undo()
        assert np.abs(whole.astype(int) - window).max() <= 2


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"", "not a picture"),
        (b"GIF89a", "cannot be read|not a picture"),
        (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
        (np.zeros((4, 4), np.uint8), "expected"),
        (np.zeros((4, 4, 7), np.uint8), "no axis of 1 or 3"),
        (np.full((4, 4, 3), np.nan), "not finite"),
        (np.full((4, 4, 3), -3), "whole numbers from -3"),
        (np.full((4, 4, 3), 2.5), "fractions"),
        ([], "at least one picture"),
    ],
)
def test_pictures_that_are_none(image, words):
    with pytest.raises(ImageError, match=words):
        AltCLIPImageProcessor()(image)


def test_bad_files_are_named(tmp_path):
    whole = (PICTURES / "cat_noto.png").read_bytes()
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=r"cut\.png is damaged"):
        AltCLIPImageProcessor()(cut)
    with pytest.raises(ImageError, match=r"128x128 pixels, more than max_pixels=100"):
        AltCLIPImageProcessor(max_pixels=100)(PICTURES / "cat_noto.png")
    with pytest.raises(FileNotFoundError):
        AltCLIPImageProcessor()(tmp_path / "none.png")
    with pytest.raises(TypeError, match=r"images\[1\] is a int"):
        AltCLIPImageProcessor()([PICTURES / "cat_noto.png", 3])
