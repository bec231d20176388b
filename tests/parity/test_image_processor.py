"""Bit-equality with CLIPImageProcessor (slow) of transformers 4.56.2 on real photographs."""

from pathlib import Path

import numpy as np
import pytest
import skimage
import sklearn
from PIL import Image
from transformers import CLIPImageProcessor
from transformers.image_utils import load_image

from altclip_jax.processing.image import AltCLIPImageProcessor

PHOTOS = Path(skimage.__file__).parent / "data"
OTHER_PHOTOS = Path(sklearn.__file__).parent / "datasets" / "images"
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


def in_mode(mode, image=None):
    image = image or photo(size=(300, 257))
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
    assert_same_bits(ours, theirs)


def assert_same_bits(ours, theirs):
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    assert ours.tobytes() == np.ascontiguousarray(theirs).tobytes()


@pytest.mark.parametrize("size", SIZES)
def test_photographs_of_every_shape(size):
    equal([photo("coffee.png", size), photo("chelsea.png", size)])


@pytest.mark.parametrize("name", ["astronaut.png", "chelsea.png", "rocket.jpg", "hubble_deep_field.jpg"])
def test_whole_photographs(name):
    equal(photo(name))


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_photographs_from_a_path_from_bytes_and_opened(name):
    path = OTHER_PHOTOS / name
    theirs = CLIPImageProcessor()(str(path), return_tensors="np")["pixel_values"]
    for picture in (path, str(path), path.read_bytes(), Image.open(path)):
        assert_same_bits(AltCLIPImageProcessor()(picture)["pixel_values"], theirs)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_what_the_reference_opens_from_a_path_it_turns_and_an_opened_picture_it_does_not(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = str(tmp_path / "photo.jpg")
    photo(size=(300, 200)).save(path, exif=exif)
    theirs = CLIPImageProcessor()(path, return_tensors="np")["pixel_values"]
    assert_same_bits(AltCLIPImageProcessor()(path)["pixel_values"], theirs)
    equal(Image.open(path))
    # its pipelines turn both
    for picture in (path, Image.open(path)):
        seen = CLIPImageProcessor()(load_image(picture), return_tensors="np")["pixel_values"]
        assert_same_bits(AltCLIPImageProcessor().orient("exif")(picture)["pixel_values"], seen)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "La"])
def test_every_mode(mode):
    equal(in_mode(mode))


def test_a_mode_that_the_reference_does_not_take_is_taken_as_its_nearest():
    with pytest.raises(ValueError, match="conversion from La"):
        CLIPImageProcessor()(in_mode("La"))
    expected = CLIPImageProcessor()(in_mode("La").convert("LA"), return_tensors="np")["pixel_values"]
    assert AltCLIPImageProcessor()(in_mode("La"))["pixel_values"].tobytes() == expected.tobytes()


@pytest.mark.parametrize("layout", ["HWC", "CHW"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint64, np.float16, np.float32, np.float64])
def test_arrays_of_every_dtype_and_layout(layout, dtype):
    array = np.asarray(photo(size=(301, 243)))
    array = array.astype(dtype) / 255 if np.issubdtype(dtype, np.floating) else array.astype(dtype)
    array = array.astype(dtype)
    equal(array if layout == "HWC" else array.transpose(2, 0, 1))
    equal(np.stack([array, array[::-1]]))


def test_a_float_array_of_nothing_but_zeros_and_ones():
    equal((np.asarray(photo(size=(50, 40))) > 120).astype(np.float32))
    equal(np.asarray(photo(size=(50, 40))) + np.float32(1e-7))
    equal(np.full((50, 40, 3), 1 - 1e-12))


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


def test_the_layout_of_the_first_array_is_that_of_all():
    equal([np.asarray(photo(size=(50, 40))), np.asarray(photo(size=(50, 3))), np.asarray(photo(size=(50, 1)))])


@pytest.mark.parametrize("size", [(10, 150), (150, 10), (3, 61), (1, 40), (70, 2)])
def test_extreme_shapes_made_by_their_window_alone(monkeypatch, size):
    monkeypatch.setattr("altclip_jax.processing.image._WINDOW_PIXELS", 0)
    image = photo(size=size)
    theirs = CLIPImageProcessor()(image, return_tensors="np", input_data_format="channels_last")["pixel_values"]
    assert_same_bits(AltCLIPImageProcessor()(image)["pixel_values"], theirs)
    equal(np.asarray(image), {"input_data_format": "channels_last"})


def test_an_extreme_shape_beyond_the_threshold():
    image = photo(size=(7, 600))
    equal(image, {"size": 800, "crop_size": 224})  # 800 x 68,571: 55 million pixels


def test_settings_drawn_at_random():
    """Any combination of settings and kinds of picture: the same bits, or an error of both."""
    rng = np.random.default_rng(20221112)
    pixels = np.asarray(photo())
    compared = 0
    for _ in range(600):
        width, height = (int(side) for side in np.exp(rng.uniform(0, np.log(300), 2)))
        left, top = int(rng.integers(0, 600 - width)), int(rng.integers(0, 400 - height))
        picture, is_array = a_picture(pixels[top : top + height, left : left + width], rng)
        call = settings(rng)
        layout = {"input_data_format": "channels_last"}
        if max(width, height) / min(width, height) > 30 and "size" not in call:
            call["size"] = {"height": 70, "width": 90}  # the reference would make all of an extreme shape
        try:
            theirs = CLIPImageProcessor()(picture, return_tensors="np", **layout, **call)["pixel_values"]
        except ValueError:
            with pytest.raises(ValueError, match=r"the image|cannot be resized"):
                AltCLIPImageProcessor()(picture, **layout, **call)
            continue
        ours = AltCLIPImageProcessor()(picture, **(layout if is_array else {}), **call)["pixel_values"]
        assert_same_bits(ours, theirs)
        compared += 1
    assert compared > 500


def a_picture(pixels, rng):
    kind = rng.choice(["image", "mode", "levels", "fractions", "near whole", "bool"])
    if kind == "image":
        return Image.fromarray(pixels), False
    if kind == "mode":
        return in_mode(
            str(rng.choice(["1", "L", "P", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F"])), Image.fromarray(pixels)
        ), False
    if kind == "bool":
        return pixels > 128, True
    if kind == "near whole":
        return pixels + rng.random(pixels.shape) * 1e-9, True
    dtype = rng.choice([np.float16, np.float32, np.float64, np.int16, np.uint32])
    if kind == "fractions":
        return (pixels / 255).astype(rng.choice([np.float16, np.float32, np.float64])), True
    return pixels.astype(dtype), True


def settings(rng):
    call = {name: bool(rng.random() < 0.7) for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize")}
    if rng.random() < 0.5:
        call["size"] = [50, {"shortest_edge": 33}, {"height": 97, "width": 41}, {"height": 20, "width": 300}][
            rng.integers(4)
        ]
    if rng.random() < 0.5:
        call["crop_size"] = {"height": int(rng.integers(1, 300)), "width": int(rng.integers(1, 300))}
    if rng.random() < 0.3:
        call["resample"] = int(rng.integers(6))
    if rng.random() < 0.3:
        call |= {"rescale_factor": float(rng.random()), "image_mean": [0.5, 0.4, 0.3], "image_std": 0.25}
    if rng.random() < 0.2:
        call["data_format"] = "channels_last"
    return call
