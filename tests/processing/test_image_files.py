"""Pictures from files, bytes, PIL images and arrays: what is taken, and one clear error for what is not."""

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from altclip_jax import AltCLIPImageProcessor, ImageError
from altclip_jax.processing.image_files import load_picture

RAW = AltCLIPImageProcessor(do_resize=False, do_center_crop=False, do_rescale=False, do_normalize=False)
MODES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"]


def noise(width=8, height=6):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def encoded(image, form="png", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def pixels(picture, **overrides):
    (result,) = RAW(picture, data_format="channels_last", **overrides)["pixel_values"]
    return result


# what is taken ---------------------------------------------------------------------------------------------------


def test_paths_bytes_and_open_files_give_the_same_picture(tmp_path):
    array = noise()
    path = tmp_path / "one.png"
    path.write_bytes(encoded(Image.fromarray(array)))
    with path.open("rb") as file:
        file.read(5)  # a file is read from its start, wherever it stands
        assert np.array_equal(pixels(file), array)
    for picture in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), memoryview(path.read_bytes())):
        assert np.array_equal(pixels(picture), array)
    assert np.array_equal(pixels(Image.open(path)), array)


@pytest.mark.parametrize("mode", MODES)
def test_a_uniform_picture_of_any_mode_becomes_rgb(mode):
    gray = Image.new("L", (4, 3), 255)
    if mode in ("La", "RGBa", "PA"):
        image = gray.convert({"La": "LA", "RGBa": "RGBA", "PA": "P"}[mode]).convert(mode)
    elif mode == "I;16":
        image = Image.fromarray(np.full((3, 4), 255, np.uint16))
    else:
        image = gray.convert("RGB").convert(mode) if mode in ("YCbCr", "HSV", "CMYK", "RGBX") else gray.convert(mode)
    assert image.mode == mode
    assert pixels(image).shape == (3, 4, 3)
    assert (pixels(image) == 255).all()


@pytest.mark.parametrize("mode", ["RGBA", "CMYK", "YCbCr", "HSV"])
def test_without_conversion_the_numbers_of_an_image_count(mode):
    image = Image.fromarray(noise(8, 3)).convert(mode)  # three rows, which are not its channels
    assert np.array_equal(pixels(image, do_convert_rgb=False), np.asarray(image))


def test_gray_of_more_than_8_bits_is_cut_off_and_not_scaled():
    # Pillow's conversion, hence the reference's: to keep the contrast of a 16-bit picture, scale it before
    gray = Image.fromarray(np.array([[0, 7, 255, 256, 65535]], np.uint16))
    assert pixels(gray)[0, :, 0].tolist() == [0, 7, 255, 255, 255]
    assert pixels(encoded(gray))[0, :, 0].tolist() == [0, 7, 255, 255, 255]


def test_alpha_is_dropped_unless_a_background_is_asked_for():
    rgba = np.array([[[10, 20, 30, 0], [10, 20, 30, 255], [0, 0, 0, 51]]], np.uint8)
    image = Image.fromarray(rgba)
    assert np.array_equal(pixels(image), rgba[..., :3])
    shown = pixels(image, background=(255, 105, 5))
    assert shown[0].tolist() == [[255, 105, 5], [10, 20, 30], [204, 84, 4]]


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBa", "P", "RGB"])
def test_a_background_shows_through_every_kind_of_transparency(mode):
    if mode in ("P", "RGB"):  # one value of the file stands for transparent
        options = {"transparency": 0 if mode == "P" else (0, 0, 0)}
        image = Image.open(io.BytesIO(encoded(Image.new(mode, (2, 2)), **options)))
    else:
        image = Image.new({"La": "LA", "RGBa": "RGBA"}.get(mode, mode), (2, 2), 0).convert(mode)
    assert (pixels(image, background=(9, 8, 7)) == (9, 8, 7)).all()
    assert (pixels(Image.new("RGB", (2, 2), (1, 2, 3)), background=(9, 8, 7)) == (1, 2, 3)).all()


@pytest.mark.parametrize("convert", [True, False])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["png", "webp", "jpeg"])
def test_what_is_opened_here_is_turned_as_the_camera_was_held(store_turned, tmp_path, form, orientation, convert):
    options = {"lossless": True} if form == "webp" else {}
    data = store_turned(Image.fromarray(noise()), orientation, form, **options)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    stored = np.asarray(Image.open(io.BytesIO(data)))
    assert upright.shape == (6, 8, 3)
    assert form == "jpeg" or np.array_equal(upright, noise())
    (tmp_path / "photo").write_bytes(data)

    def found(picture, **settings):
        return pixels(picture, do_convert_rgb=convert, **settings)

    with (tmp_path / "photo").open("rb") as file:
        for picture in (data, tmp_path / "photo", str(tmp_path / "photo"), file):
            assert np.array_equal(found(picture), upright)
    assert np.array_equal(found(Image.open(tmp_path / "photo")), stored)
    for picture in (data, tmp_path / "photo", Image.open(tmp_path / "photo")):
        assert np.array_equal(found(picture, apply_exif_orientation=True), upright)
        assert np.array_equal(found(picture, apply_exif_orientation=False), stored)


def test_an_orientation_in_xmp_counts_as_pillow_has_it():
    notes = PngImagePlugin.PngInfo()
    notes.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>')
    data = encoded(Image.fromarray(noise()), pnginfo=notes)
    assert np.array_equal(pixels(data), np.rot90(noise(), k=-1))


def test_a_picture_that_was_turned_is_not_turned_again(store_turned):
    data = store_turned(Image.fromarray(noise()), 6)
    once = load_picture(data, "photo", max_pixels=100)
    assert np.array_equal(pixels(once, apply_exif_orientation=True), noise())


def test_an_explicit_setting_wins_over_what_a_use_would_do():
    for said in (True, False):
        for orientation in ("exif", "stored"):
            processor = AltCLIPImageProcessor(apply_exif_orientation=said)
            assert processor.orient(orientation) == processor
    assert AltCLIPImageProcessor().orient("exif").apply_exif_orientation is True
    assert AltCLIPImageProcessor().orient("stored").apply_exif_orientation is False


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (5, 4), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    for form, options in (("gif", {}), ("webp", {"lossless": True}), ("png", {}), ("tiff", {})):
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
        assert (pixels(data) == (255, 0, 0)).all()


def test_arrays_of_whole_numbers_are_levels_and_fractions_are_parts_of_255():
    once = AltCLIPImageProcessor(size=4, crop_size=4, do_rescale=False, do_normalize=False)
    levels = np.full((4, 4, 3), 100)
    for dtype in (np.uint8, np.int16, np.uint64, np.float16, np.float64):
        result = once.resize_and_crop(levels.astype(dtype))
        assert result.dtype == np.uint8
        assert (result == 100).all()
    for dtype in (np.float32, np.float64):
        result = once.resize_and_crop(np.full((4, 4, 3), 0.5, dtype))
        assert result.dtype == np.float32
        assert (result == np.float32(127 * (1 / 255))).all()  # truncated
    # nearly 255 in double precision is 255 in single, in which it is truncated
    assert (once.resize_and_crop(np.full((4, 4, 3), 1 - 1e-12)) == 1).all()
    assert (once.resize_and_crop(np.ones((4, 4, 3), bool)) == 1).all()
    assert (once.resize_and_crop(np.ones((4, 4, 3), np.float32)) == 1).all()


# what is not -----------------------------------------------------------------------------------------------------


def no_pixels():
    return Image.new("RGB", (0, 5))


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (b"", "is not a picture in a format that Pillow reads"),
        (b"hello, world", "is not a picture in a format that Pillow reads"),
        (io.StringIO("text"), "is damaged, or cannot be read"),
        (no_pixels(), r"has no pixels \(0x5\)"),
        (np.zeros((0, 4, 3), np.uint8), r"has shape \(0, 4, 3\): .* at least one pixel"),
        (np.zeros((4, 4), np.uint8), r"has shape \(4, 4\): expected"),
        (np.zeros((2, 2, 4, 4, 3), np.uint8), r"has shape \(2, 2, 4, 4, 3\): expected"),
        (np.zeros((4, 4, 7), np.uint8), "no axis of 1 or 3 channels .* input_data_format"),
        (np.zeros((4, 4, 1), np.uint8), "has 1 channels: expected 3"),
        (np.full((4, 4, 3), np.nan), "not finite"),
        (np.full((4, 4, 3), -np.inf, np.float32), "not finite"),
        (np.full((4, 4, 3), 1e300), "not finite in float32"),
        (np.full((4, 4, 3), 1e30), "whole numbers from 1e[+]30 to 1e[+]30"),
        (np.full((4, 4, 3), -3), "whole numbers from -3 to -3"),
        (np.full((4, 4, 3), 256), "whole numbers from 256 to 256"),
        (np.full((4, 4, 3), 2.5), "fractions from 2.5 to 2.5"),
        (np.full((4, 4, 3), "a"), "array of <U1"),
        (np.full((4, 4, 3), 1j), "array of complex128"),
        (np.full((4, 4, 3), None), "array of object"),
    ],
)
def test_what_is_no_picture_is_named_by_its_place(picture, words):
    with pytest.raises(ImageError, match=rf"^images\[1\] .*{words}"):
        AltCLIPImageProcessor()([Image.new("RGB", (4, 4)), picture])


@pytest.mark.parametrize("resize", [True, False])
def test_numbers_that_are_not_finite_are_refused_even_where_they_could_pass(resize):
    with pytest.raises(ImageError, match="the image holds values that are not finite"):
        AltCLIPImageProcessor(do_resize=resize)(np.full((300, 300, 3), np.nan))


@pytest.mark.parametrize("images", [[], [[], ()], np.zeros((0, 4, 4, 3), np.uint8)])
def test_no_picture_at_all_is_an_error(images):
    with pytest.raises(ImageError, match="images is empty"):
        AltCLIPImageProcessor()(images)


@pytest.mark.parametrize("thing", [3, None, {"a": 1}, [3.5]])
def test_what_is_nothing_like_a_picture_is_a_type_error(thing):
    with pytest.raises(TypeError, match=r"(the image|images\[0\]) is a (int|NoneType|dict|float): expected a path"):
        AltCLIPImageProcessor()(thing)


def test_every_bad_picture_of_a_list_is_named(tmp_path):
    good, cut = tmp_path / "good.png", tmp_path / "cut.png"
    data = encoded(Image.fromarray(noise(64, 64)))
    good.write_bytes(data)
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError) as caught:
        AltCLIPImageProcessor()([good, cut, [b"junk", good], np.zeros((0, 1, 3))])
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"{cut} is damaged")
    assert lines[1].startswith("images[2][0] is not a picture")
    assert lines[2].startswith("images[3] has shape (0, 1, 3)")


def test_a_pil_image_and_an_open_file_are_named_by_their_file(tmp_path):
    path = tmp_path / "cut.png"
    path.write_bytes(encoded(Image.fromarray(noise(64, 64)))[:2000])
    with path.open("rb") as file, pytest.raises(ImageError, match=r"cut\.png is damaged"):
        AltCLIPImageProcessor()(file)
    with Image.open(path) as image, pytest.raises(ImageError, match=r"cut\.png is damaged"):
        AltCLIPImageProcessor()(image)


def test_the_file_system_s_own_errors_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        AltCLIPImageProcessor()(tmp_path / "none.png")
    with pytest.raises(OSError, match=tmp_path.name) as caught:
        AltCLIPImageProcessor()(str(tmp_path))
    assert isinstance(caught.value, (IsADirectoryError, PermissionError))


@pytest.mark.parametrize("form", ["png", "jpeg", "webp", "gif", "bmp", "tiff"])
def test_a_truncated_file_is_an_error_at_every_length(form):
    data = encoded(Image.fromarray(noise(24, 24)), form)
    whole = pixels(data)
    for length in range(0, len(data), max(1, len(data) // 60)):
        try:
            result = pixels(data[:length])
        except ImageError:
            continue
        # some formats end in bytes that carry nothing of the picture
        assert np.array_equal(result, whole)


def bomb(width, height):
    """A PNG of a few hundred bytes that claims to be this large."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_a_picture_over_the_limit_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(bomb(12_000, 10_000))
    with pytest.raises(
        ImageError, match=r"large\.png has 12000x10000 pixels, more than max_pixels=100,000,000: .*raise"
    ):
        AltCLIPImageProcessor(max_pixels=100_000_000)(path)
    with pytest.raises(ImageError, match=r"large\.png is damaged"):  # within this limit, and Pillow's warning is silent
        AltCLIPImageProcessor(max_pixels=120_000_000)(path)
    with pytest.raises(ImageError, match=r"the image has 40x30 pixels"):
        AltCLIPImageProcessor(max_pixels=1199)(Image.new("RGB", (40, 30)))


def test_where_pillow_s_own_limit_is_met_the_error_says_how_to_raise_it():
    with pytest.raises(ImageError, match=r"400000000 pixels.* raise both PIL\.Image\.MAX_IMAGE_PIXELS and"):
        AltCLIPImageProcessor(max_pixels=10**12)(bomb(20_000, 20_000))


def tiff(entries, order="<", offset=8):
    """EXIF data of one directory: (tag, type, count, value) each."""
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, offset)
    body = b"".join(struct.pack(f"{order}HHII", *entry) for entry in entries)
    return b"Exif\0\0" + head + struct.pack(f"{order}H", len(entries)) + body + bytes(4)


BROKEN = {
    "empty": b"",
    "no header": b"Exif\0\0",
    "another header": b"Exif\0\0" + b"\xff" * 40,
    "cut in the directory": tiff([(0x0112, 3, 1, 6)])[:20],
    "a directory beyond the end": tiff([(0x0112, 3, 1, 6)], offset=0xFFFFFFF0),
    "a count beyond the end": tiff([(0x0112, 3, 0xFFFFFFFF, 6)]),
    "a text": tiff([(0x0112, 2, 4, 0x36)]),
    "a fraction by zero": tiff([(0x0112, 5, 1, 26)]),
    "an unknown type": tiff([(0x0112, 99, 1, 6)]),
    "none": tiff([(0x0112, 3, 1, 0)]),
    "too large": tiff([(0x0112, 3, 1, 65535)]),
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("form", ["jpeg", "png", "webp"])
def test_damaged_exif_leaves_a_picture_as_it_is(what, form):
    exif = BROKEN[what] if form != "png" else BROKEN[what].removeprefix(b"Exif\0\0")
    data = encoded(Image.fromarray(noise()), form, exif=exif, **({"lossless": True} if form == "webp" else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = Image.open(io.BytesIO(data))
    for picture in (data, opened):
        assert pixels(picture, apply_exif_orientation=True).shape == (6, 8, 3)


def test_a_damaged_tag_beside_the_orientation_does_not_hinder():
    exif = tiff([(0x0112, 3, 1, 6), (0x013B, 2, 0xFFFFFF, 0xFFFFFF), (0x8769, 4, 1, 0xFFFFFF)])
    data = encoded(Image.fromarray(noise()), exif=exif.removeprefix(b"Exif\0\0"))
    assert np.array_equal(pixels(data), np.rot90(noise(), k=-1))


SHORT, LONG = st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1)


@settings(deadline=None, max_examples=200)
@given(exif=st.binary(max_size=60), entries=st.lists(st.tuples(SHORT, SHORT, LONG, LONG)))
def test_whatever_exif_says_a_picture_is_read_and_turned_as_pillow_does(exif, entries):
    for hostile in (exif, tiff([(0x0112, 3, 1, 6), *entries]), tiff([(0x0112, *entry[1:]) for entry in entries], ">")):
        data = encoded(Image.fromarray(noise()), exif=hostile.removeprefix(b"Exif\0\0"))
        found = pixels(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
            except Exception:
                assert found.shape in ((6, 8, 3), (8, 6, 3))
            else:
                assert np.array_equal(found, expected)


# warnings --------------------------------------------------------------------------------------------------------


def palette_with_many_alphas():
    image = Image.new("P", (4, 4))
    image.putpalette(bytes(range(48)))
    return encoded(image, transparency=bytes([0, 100, 200]))


def test_no_warning_of_pillow_leaks_and_others_are_kept():
    data = palette_with_many_alphas()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        Image.open(io.BytesIO(data)).convert("RGB")
        assert len(seen) == 1, "Pillow no longer warns here, so this test shows nothing"
        AltCLIPImageProcessor()(data)
        assert len(seen) == 1
        warnings.warn("ours", UserWarning, stacklevel=1)
        assert len(seen) == 2


def test_a_warning_of_the_caller_s_own_file_object_is_not_swallowed():
    class Noisy(io.BytesIO):
        def read(self, size=-1):
            warnings.warn("not Pillow's", UserWarning, stacklevel=1)
            return super().read(size)

    with pytest.warns(UserWarning, match="not Pillow's"):
        AltCLIPImageProcessor()(Noisy(encoded(Image.fromarray(noise()))))


def test_threads_leave_the_warning_filters_as_they_were():
    data = encoded(Image.fromarray(noise(300, 300)))
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(AltCLIPImageProcessor(), [data] * 64))
    assert list(warnings.filters) == before


def test_no_file_is_left_open(tmp_path):
    # an open file that is collected gives a ResourceWarning, which is an error here
    path = tmp_path / "one.gif"
    path.write_bytes(encoded(Image.fromarray(noise()), "gif"))
    AltCLIPImageProcessor()([path, Path(path)])
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ImageError):
        AltCLIPImageProcessor()(path)
