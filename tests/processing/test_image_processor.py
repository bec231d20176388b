"""Geometry, arithmetic and configuration of the image processor, against hand-made expectations."""

import json
import logging
import math

import numpy as np
import pytest
from PIL import Image

from altclip_jax import AltCLIPImageProcessor, ImageError

RAW = AltCLIPImageProcessor(do_resize=False, do_center_crop=False, do_rescale=False, do_normalize=False)


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


# resize ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (640, 480, (224, 298)),
        (333, 500, (336, 224)),
        (500, 333, (224, 336)),
        (225, 226, (224, 224)),  # 224.99 is truncated
        (7, 5, (224, 313)),
        (224, 224, (224, 224)),
    ],
)
def test_the_short_side_is_resized_and_the_long_side_truncated(width, height, expected):
    picture = AltCLIPImageProcessor(do_center_crop=False).resize_and_crop(Image.new("RGB", (width, height)))
    assert picture.shape == (*expected, 3)
    assert picture.dtype == np.uint8


def test_height_and_width_are_taken_as_they_are():
    picture = AltCLIPImageProcessor(size={"height": 5, "width": 9}, do_center_crop=False)(Image.new("RGB", (30, 30)))
    assert picture["pixel_values"].shape == (1, 3, 5, 9)


@pytest.mark.parametrize("window_pixels", [10**9, 0])
def test_bicubic_weights_are_those_of_the_cubic_with_a_half(monkeypatch, window_pixels):
    # distances 1/4 and 5/4 from the outer pixels, 1/4 and 3/4 from the inner: by hand from the formula, a = -1/2
    monkeypatch.setattr("altclip_jax.processing.image._WINDOW_PIXELS", window_pixels)
    step = Image.fromarray(np.array([[[0] * 3, [255] * 3]], np.uint8))
    picture = AltCLIPImageProcessor(
        size={"height": 1, "width": 4}, crop_size={"height": 1, "width": 4}
    ).resize_and_crop(step)
    assert picture[0, :, 0].tolist() == [0, 53, 202, 255]


SHAPES = [(30, 200), (200, 30), (9, 177), (1, 300), (300, 1), (2, 3), (7, 5), (31, 31), (97, 64), (3, 1009)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "crop", [{"height": 224, "width": 224}, {"height": 101, "width": 300}, {"height": 1, "width": 2}]
)
def test_a_window_of_an_enlarged_picture_is_bit_equal_to_the_middle_of_the_whole(monkeypatch, shape, crop):
    processor = AltCLIPImageProcessor(crop_size=crop)
    image = Image.fromarray(noise(*shape))
    monkeypatch.setattr("altclip_jax.processing.image._WINDOW_PIXELS", 10**9)
    whole = processor.resize_and_crop(image)
    monkeypatch.setattr("altclip_jax.processing.image._WINDOW_PIXELS", 0)
    monkeypatch.setattr(Image.Image, "resize", None)  # the window is made without it
    window = processor.resize_and_crop(image)
    assert whole.shape == window.shape == (crop["height"], crop["width"], 3)
    assert whole.tobytes() == window.tobytes()


@pytest.mark.parametrize("size", [{"height": 300, "width": 1000}, {"height": 1000, "width": 300}])
def test_a_window_is_bit_equal_when_the_two_axes_grow_unequally(monkeypatch, size):
    processor = AltCLIPImageProcessor(size=size, crop_size={"height": 90, "width": 120})
    image = Image.fromarray(noise(300, 300))
    whole = processor.resize_and_crop(image)
    monkeypatch.setattr("altclip_jax.processing.image._WINDOW_PIXELS", 0)
    assert whole.tobytes() == processor.resize_and_crop(image).tobytes()


@pytest.mark.parametrize("shape", [(1, 10_000), (10_000, 1), (1, 50_000_000), (50_000_000, 1), (3, 10_007)])
def test_an_extreme_shape_needs_no_picture_of_its_full_size(shape):
    # 224 x 2,240,000 and more: Pillow could not even make most of them
    middle = np.array([10, 200, 30], np.uint8)
    image = Image.new("RGB", shape, tuple(middle.tolist()))
    picture = AltCLIPImageProcessor().resize_and_crop(image)
    assert picture.shape == (224, 224, 3)
    assert (picture == middle).all()


def test_an_extreme_shape_is_cut_from_its_middle():
    column = np.zeros((10_001, 1, 3), np.uint8)
    column[5000] = 255  # the middle pixel, which alone fills the crop: 224 rows per source pixel
    picture = AltCLIPImageProcessor().resize_and_crop(Image.fromarray(column))
    assert picture[112, 112].tolist() == [255, 255, 255]
    assert picture[0].max() < picture[60].min() < 255
    assert (picture == picture[:, :1]).all()


def test_what_cannot_be_windowed_and_is_too_large_is_refused_by_name():
    with pytest.raises(ImageError, match=r"images\[1\] of 1x10000 pixels would be resized to 224x2240000"):
        AltCLIPImageProcessor(resample=0)([Image.new("RGB", (4, 4)), Image.new("RGB", (1, 10_000))])


# crop ------------------------------------------------------------------------------------------------------------


def test_an_odd_crop_leaves_the_smaller_half_before_it():
    numbers = np.arange(7 * 9 * 3, dtype=np.uint8).reshape(7, 9, 3)
    picture = RAW.replace(do_center_crop=True, crop_size={"height": 4, "width": 4}).resize_and_crop(numbers)
    assert (picture == numbers[1:5, 2:6]).all()


def test_a_crop_larger_than_the_picture_is_padded_with_the_larger_half_before():
    picture = RAW.replace(do_center_crop=True, crop_size={"height": 8, "width": 8}).resize_and_crop(
        np.full((5, 7, 3), 9, np.uint8)
    )
    expected = np.zeros((8, 8, 3), np.uint8)
    expected[2:7, 1:8] = 9
    assert (picture == expected).all()


def test_a_crop_pads_one_axis_and_cuts_the_other():
    numbers = np.arange(1, 1 + 3 * 10 * 3, dtype=np.uint8).reshape(3, 10, 3)
    picture = RAW.replace(do_center_crop=True, crop_size={"height": 4, "width": 5}).resize_and_crop(
        Image.fromarray(numbers)
    )
    assert (picture[0] == 0).all()
    assert (picture[1:] == numbers[:, 2:7]).all()


# rescale and normalise -------------------------------------------------------------------------------------------


def test_every_value_of_every_channel_is_rescaled_and_normalised_in_the_stated_precision():
    processor = AltCLIPImageProcessor()
    values = np.arange(256, dtype=np.uint8)
    result = processor.normalize(np.broadcast_to(values[:, None, None], (256, 1, 3)))
    for channel in range(3):
        mean, std = np.float32(processor.image_mean[channel]), np.float32(processor.image_std[channel])
        expected = [(np.float32(int(value) * (1 / 255)) - mean) / std for value in values]
        assert result[channel, :, 0].tolist() == [float(number) for number in expected]


@pytest.mark.parametrize("do_rescale", [True, False])
@pytest.mark.parametrize("do_normalize", [True, False])
def test_looked_up_results_are_those_of_the_plain_arithmetic(do_rescale, do_normalize):
    processor = AltCLIPImageProcessor(do_rescale=do_rescale, do_normalize=do_normalize)
    batch = np.stack([noise(9, 7), noise(9, 7, seed=1)])
    looked_up = processor.normalize(batch)
    plain = processor.normalize(batch.astype(np.int32))  # the table serves uint8 only
    assert looked_up.shape == (2, 3, 7, 9)
    assert np.array_equal(looked_up, plain)
    assert looked_up.dtype == (np.float32 if do_rescale or do_normalize else np.uint8)
    assert np.array_equal(processor.normalize(batch, data_format="channels_last"), looked_up.transpose(0, 2, 3, 1))


def test_the_two_halves_make_the_whole():
    processor = AltCLIPImageProcessor()
    images = [Image.fromarray(noise(300, 240)), Image.fromarray(noise(120, 240))]
    pixels = np.stack([processor.resize_and_crop(image) for image in images])
    assert pixels.dtype == np.uint8
    assert np.array_equal(processor.normalize(pixels), processor(images)["pixel_values"])


def test_normalising_other_than_three_channels_is_refused():
    with pytest.raises(ValueError, match="three channels on the last axis"):
        AltCLIPImageProcessor().normalize(np.zeros((3, 4, 5), np.uint8))


# the call --------------------------------------------------------------------------------------------------------


def test_pictures_come_one_by_one_in_lists_in_lists_of_lists_and_in_batches():
    array = noise(20, 10)
    image = Image.fromarray(array)
    one = AltCLIPImageProcessor()(image)["pixel_values"]
    for images, count in [
        (array, 1),
        (array.transpose(2, 0, 1), 1),
        ([image, array], 2),
        ([[image], (array, image)], 3),
        (np.stack([array] * 4), 4),
        ([np.stack([array] * 2), image], 3),
    ]:
        result = AltCLIPImageProcessor()(images)["pixel_values"]
        assert result.dtype == np.float32
        assert np.array_equal(result, np.repeat(one, count, axis=0))


def test_any_number_of_threads_gives_the_same_pictures_in_their_order():
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (40 + number, 50, 3), np.uint8) for number in range(9)]
    processor = AltCLIPImageProcessor()
    one = processor(pictures, threads=1)["pixel_values"]
    for threads in (None, 2, 20):
        np.testing.assert_array_equal(processor(pictures, threads=threads)["pixel_values"], one)


def test_bad_pictures_are_named_in_their_order_by_several_threads(tmp_path):
    bad = [b"one", np.zeros((8, 8, 3), np.uint8), b"three", b"four", b"five"]
    with pytest.raises(ImageError) as several:
        AltCLIPImageProcessor()(bad, threads=3)
    with pytest.raises(ImageError) as one:
        AltCLIPImageProcessor()(bad, threads=1)
    assert str(several.value) == str(one.value)
    assert len(str(one.value).splitlines()) == 4


def test_one_opened_picture_given_many_times_is_decoded_by_one_thread(tmp_path):
    Image.new("RGB", (300, 300), (200, 10, 10)).save(tmp_path / "red.png")
    for _ in range(5):
        with Image.open(tmp_path / "red.png") as image:
            pixels = AltCLIPImageProcessor()([image] * 16, threads=8)["pixel_values"]
        assert np.ptp(pixels, axis=(0, 2, 3)).max() == 0


def test_no_thread_at_all_is_refused():
    with pytest.raises(ValueError, match="threads=0 must be at least 1"):
        AltCLIPImageProcessor()(np.zeros((8, 8, 3), np.uint8), threads=0)


def test_the_layout_of_the_first_array_is_that_of_all():
    wide = noise(20, 10)
    flat = noise(20, 3)  # by its shape alone it could be channels first
    both = AltCLIPImageProcessor()([wide, flat])["pixel_values"]
    said = AltCLIPImageProcessor()(flat, input_data_format="channels_last")["pixel_values"]
    assert np.array_equal(both[1:], said)
    assert not np.array_equal(AltCLIPImageProcessor()(flat)["pixel_values"], said)


@pytest.mark.parametrize("height", [1, 3])
def test_the_channels_of_a_pil_image_are_known_whatever_its_shape_and_the_argument(height):
    image = Image.fromarray(noise(50, height))
    expected = AltCLIPImageProcessor()(np.asarray(image), input_data_format="channels_last")["pixel_values"]
    for given in (None, "channels_first", "channels_last"):
        assert np.array_equal(AltCLIPImageProcessor()(image, input_data_format=given)["pixel_values"], expected)


def test_an_override_holds_for_one_call_and_none_is_no_override():
    processor = AltCLIPImageProcessor()
    image = Image.fromarray(noise(30, 20))
    assert processor(image, size=40, crop_size=32, do_normalize=None)["pixel_values"].shape == (1, 3, 32, 32)
    assert processor(image)["pixel_values"].shape == (1, 3, 224, 224)
    with pytest.raises(TypeError, match="has no field do_flip, sizes: it has do_resize, size"):
        processor(image, sizes=3, do_flip=True)
    with pytest.raises(ValueError, match=r"size must be .* got -1"):
        processor(image, size=-1)


def test_tensors_are_numpy_jax_or_a_list_of_arrays_and_no_others():
    import jax

    image = Image.fromarray(noise(30, 20))
    processor = AltCLIPImageProcessor()
    array = processor(image, return_tensors="jax")["pixel_values"]
    assert isinstance(array, jax.Array)
    assert np.array_equal(array, processor(image)["pixel_values"])
    assert np.array_equal(processor(jax.numpy.asarray(noise(30, 20)))["pixel_values"], array)
    listed = processor(
        [image, Image.fromarray(noise(9, 9))], do_resize=False, do_center_crop=False, return_tensors=None
    )
    assert [picture.shape for picture in listed["pixel_values"]] == [(3, 20, 30), (3, 9, 9)]
    for framework in ("pt", "tf"):
        with pytest.raises(ValueError, match=r"convert the numpy arrays, for example with torch\.from_numpy"):
            processor(image, return_tensors=framework)


def test_pictures_of_different_sizes_make_no_array():
    images = [Image.new("RGB", (5, 4)), Image.new("RGB", (4, 5))]
    with pytest.raises(ValueError, match=r"different shapes after preparation, \[\(3, 4, 5\), \(3, 5, 4\)\]"):
        AltCLIPImageProcessor(do_resize=False, do_center_crop=False)(images)


@pytest.mark.parametrize("argument", ["data_format", "input_data_format"])
def test_an_unknown_layout_is_refused(argument):
    with pytest.raises(ValueError, match=f"{argument}='HWC' is neither 'channels_first' nor 'channels_last'"):
        AltCLIPImageProcessor()(noise(4, 4), **{argument: "HWC"})


def test_fractions_that_are_rescaled_again_are_reported(caplog):
    fractions = noise(8, 8) / 255
    with caplog.at_level(logging.WARNING):
        AltCLIPImageProcessor()([noise(8, 8), noise(8, 8) * 0])
        AltCLIPImageProcessor()(fractions, do_rescale=False)
    assert not caplog.records
    AltCLIPImageProcessor()(fractions)
    assert "do_rescale=False" in caplog.text


# configuration ---------------------------------------------------------------------------------------------------


def test_sizes_may_be_numbers_or_pairs():
    assert AltCLIPImageProcessor(size=7).size == {"shortest_edge": 7}
    assert AltCLIPImageProcessor(size=(7, 8)).size == {"height": 7, "width": 8}
    assert AltCLIPImageProcessor(crop_size=np.int64(7)).crop_size == {"height": 7, "width": 7}


def test_all_impossible_settings_are_named_at_once():
    with pytest.raises(ValueError, match="size") as caught:
        AltCLIPImageProcessor(
            do_resize="yes",
            size={"longest_edge": 3},
            resample=99,
            crop_size={"shortest_edge": 3},
            rescale_factor=math.nan,
            image_mean=[0.5, 0.5],
            image_std=[1, 0, 1],
            background=(0, 0, 256),
            max_pixels=0,
        )
    for name in (
        "do_resize",
        "size",
        "resample",
        "crop_size",
        "rescale_factor",
        "image_mean",
        "image_std",
        "max_pixels",
    ):
        assert f"{name} must be" in str(caught.value)
    assert "background must be three integers from 0 to 255, or None, got (0, 0, 256)" in str(caught.value)


def test_a_configuration_is_read_written_and_read_back_equal(tmp_path):
    processor = AltCLIPImageProcessor(
        size=50, image_mean=0.5, background=(1, 2, 3), apply_exif_orientation=True, max_pixels=1000, extra={"mine": [1]}
    )
    processor.save_pretrained(tmp_path)
    assert AltCLIPImageProcessor.from_pretrained(tmp_path) == processor
    assert AltCLIPImageProcessor.from_pretrained(tmp_path, size=9).size == {"shortest_edge": 9}
    assert AltCLIPImageProcessor.from_dict(AltCLIPImageProcessor().to_dict()) == AltCLIPImageProcessor()
    assert [path.name for path in tmp_path.iterdir()] == ["preprocessor_config.json"]


def test_options_that_the_reference_lacks_are_written_only_where_they_are_set():
    assert not {"apply_exif_orientation", "background", "max_pixels", "extra"} & set(AltCLIPImageProcessor().to_dict())
    assert AltCLIPImageProcessor(background=(1, 2, 3)).to_dict()["background"] == [1, 2, 3]


def test_a_bad_configuration_file_is_named(tmp_path):
    file = tmp_path / "preprocessor_config.json"
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config\.json"):
        AltCLIPImageProcessor.from_pretrained(tmp_path)
    file.write_text(json.dumps({"crop_size": "large"}))
    with pytest.raises(ValueError, match=r"preprocessor_config\.json: crop_size must be .* got 'large'"):
        AltCLIPImageProcessor.from_pretrained(tmp_path)


def test_a_processor_cannot_be_changed_but_replaced():
    processor = AltCLIPImageProcessor()
    with pytest.raises(AttributeError):
        processor.do_resize = False
    assert processor.replace() is processor
    assert hash(processor.replace(do_resize=False)) != hash(processor)
    assert processor.replace(background=(1, 2, 3)).replace(background=None).background is None
