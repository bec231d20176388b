"""Bit-equality with CLIPImageProcessor (slow) of transformers 4.56.2 on real photographs."""

from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image
from transformers import CLIPImageProcessor

from altclip_jax.processing.image import AltCLIPImageProcessor

PHOTOS = Path(skimage.__file__).parent / "data"
SIZES = [(640, 480), (333, 500), (500, 333), (225, 226), (7, 5), (1000, 10), (224, 224), (2, 2), (300, 30), (97, 1999)]
MODES = [
    "1",
    "L",
    "LA",
    "P",
    "RGB",
    "RGBA",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
    "I",
    "F",
    "I;16",
    "PA",
    "La",
    "RGBa",
    "RGBX",
]


def photo(name="coffee.png", size=None):
    image = Image.open(PHOTOS / name).convert("RGB")
    return image if size is None else image.resize(size, Image.Resampling.BILINEAR)


def in_mode(mode):
    image = photo(size=(300, 257))
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    if mode in ("La", "RGBa"):
        return image.convert({"La": "LA", "RGBa": "RGBA"}[mode]).convert(mode)
    if mode == "LAB":
        from PIL import ImageCms

        return ImageCms.profileToProfile(
            image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    if mode == "PA":
        return image.convert("P").convert("PA")
    return image.convert(mode)


def equal(images, call=None, **fields):
    ours = AltCLIPImageProcessor(**fields)(images, **(call or {}))["pixel_values"]
    theirs = CLIPImageProcessor(**fields)(images, return_tensors="np", **(call or {}))["pixel_values"]
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    assert ours.tobytes() == np.ascontiguousarray(theirs).tobytes()


@pytest.mark.parametrize("size", SIZES)
def test_photographs_of_every_shape(size):
    equal([photo("coffee.png", size), photo("chelsea.png", size)])


@pytest.mark.parametrize("name", ["astronaut.png", "chelsea.png", "rocket.jpg", "hubble_deep_field.jpg"])
def test_whole_photographs(name):
    equal(photo(name))


@pytest.mark.parametrize("mode", MODES)
def test_every_mode(mode):
    try:
        expected = CLIPImageProcessor()(in_mode(mode), return_tensors="np")["pixel_values"]
    except ValueError:  # Pillow has no conversion of this mode: then neither do we
        with pytest.raises(ValueError, match="conversion"):
            AltCLIPImageProcessor()(in_mode(mode))
        return
    assert AltCLIPImageProcessor()(in_mode(mode))["pixel_values"].tobytes() == expected.tobytes()


@pytest.mark.parametrize("layout", ["HWC", "CHW"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32, np.float64])
def test_arrays_of_every_dtype_and_layout(layout, dtype):
    array = np.asarray(photo(size=(301, 243)))
    array = array.astype(dtype) / 255 if np.issubdtype(dtype, np.floating) else array.astype(dtype)
    array = array.astype(dtype)
    equal(array if layout == "HWC" else array.transpose(2, 0, 1))
    equal(np.stack([array, array[::-1]]))


def test_a_float_array_of_nothing_but_zeros_and_ones():
    equal((np.asarray(photo(size=(50, 40))) > 120).astype(np.float32))
    equal(np.asarray(photo(size=(50, 40))) + np.float32(1e-7))


@pytest.mark.parametrize(
    "call",
    [
        {"do_resize": False},
        {"do_center_crop": False},
        {"do_rescale": False},
        {"do_normalize": False},
        {"do_rescale": False, "do_normalize": False},
        {"do_resize": False, "do_normalize": False},
        {"size": {"shortest_edge": 180}, "crop_size": {"height": 180, "width": 180}},
        {"size": {"height": 50, "width": 90}},
        {"size": 100, "crop_size": 64},
        {"resample": 2},
        {"resample": 0},
        {"rescale_factor": 1 / 127.5},
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]},
        {"crop_size": {"height": 300, "width": 231}},
        {"do_resize": False, "crop_size": {"height": 1000, "width": 5}},
        {"data_format": "channels_last"},
    ],
)
def test_every_override_of_a_call(call):
    equal(photo(size=(313, 237)), call)
    equal(np.asarray(photo(size=(237, 313))), call)


@pytest.mark.parametrize("have", [(5, 7), (8, 2), (224, 100), (9, 9)])
@pytest.mark.parametrize("crop", [(8, 8), (6, 9), (15, 4)])
def test_crops_larger_than_the_picture_are_padded(have, crop):
    equal(photo(size=have), {"do_resize": False, "crop_size": {"height": crop[0], "width": crop[1]}})


def test_saved_configuration_reads_back_equal(tmp_path):
    theirs = CLIPImageProcessor(size={"shortest_edge": 33}, image_mean=[0.1, 0.2, 0.3])
    theirs.save_pretrained(tmp_path / "theirs")
    AltCLIPImageProcessor.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    again = CLIPImageProcessor.from_pretrained(tmp_path / "ours").to_dict()
    assert again.pop("_processor_class") == "AltCLIPProcessor"
    expected = CLIPImageProcessor.from_pretrained(tmp_path / "theirs").to_dict()
    del expected["_processor_class"]
    assert again == expected


@pytest.mark.parametrize("height", [1, 3])
def test_a_pil_image_one_or_three_pixels_high_is_not_taken_for_channels_first(height):
    # the reference guesses the layout of a PIL image from its shape, and here wrongly; told so, it agrees
    image = photo(size=(50, height))
    expected = CLIPImageProcessor()(image, return_tensors="np", input_data_format="channels_last")["pixel_values"]
    assert AltCLIPImageProcessor()(image)["pixel_values"].tobytes() == expected.tobytes()
