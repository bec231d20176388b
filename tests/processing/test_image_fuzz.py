"""Mutated picture files give a picture of the right shape or an ImageError, never anything else."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from altclip_jax import AltCLIPImageProcessor, ImageError

PROCESSOR = AltCLIPImageProcessor(
    size=8, crop_size=8, max_pixels=10**6, background=(1, 2, 3), apply_exif_orientation=True
)


def encoded(form, mode="RGB", **options):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 7, 3), np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, form, **({"exif": exif} if form in ("PNG", "JPEG", "WEBP") else {}), **options)
    return file.getvalue()


def animated(form):
    frames = [Image.new("RGB", (7, 9), (shade, 0, 0)) for shade in (10, 200)]
    file = io.BytesIO()
    frames[0].save(file, form, save_all=True, append_images=frames[1:])
    return file.getvalue()


FILES = {
    "png": encoded("PNG"),
    "png with a palette and alphas": encoded("PNG", "P", transparency=b"\0\x80"),
    "jpeg": encoded("JPEG"),
    "progressive cmyk jpeg": encoded("JPEG", "CMYK", progressive=True),
    "webp": encoded("WEBP", "RGBA"),
    "gif": animated("GIF"),
    "bmp": encoded("BMP"),
    "tiff": encoded("TIFF"),
    "compressed tiff": encoded("TIFF", "LA", compression="tiff_lzw"),
}


@st.composite
def mutated(draw, data):
    """The file with some bytes overwritten, a piece repeated or left out, and perhaps cut short."""
    content = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content) - 1))
        content[place] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    start, stop = sorted(draw(st.tuples(*[st.integers(0, len(content))] * 2)))
    content[start:stop] = content[start:stop] * draw(st.sampled_from([1, 1, 1, 0, 2]))
    return bytes(content[: draw(st.none() | st.integers(1, len(data)))])


@pytest.mark.parametrize("name", FILES)
def test_the_unharmed_file_is_a_picture(name):
    assert PROCESSOR(FILES[name])["pixel_values"].shape == (1, 3, 8, 8)


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=100)
@given(data=st.data())
def test_a_mutated_file_is_a_picture_or_an_image_error(name, data):
    content = data.draw(mutated(FILES[name]))
    try:
        pixels = PROCESSOR(content)["pixel_values"]
    except ImageError as error:
        assert str(error).startswith("the image ")  # noqa: PT017
        return
    assert pixels.shape == (1, 3, 8, 8)
    assert np.isfinite(pixels).all()
