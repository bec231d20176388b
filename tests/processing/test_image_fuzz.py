"""Mutated picture files give a picture or an ImageError, never anything else."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from altclip_jax import AltCLIPImageProcessor, ImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


def encoded(form):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 7, 3), np.uint8)).save(file, form)
    return file.getvalue()


FILES = {form: encoded(form) for form in FORMATS}


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=150, derandomize=True, deadline=None)
@given(data=st.data())
def test_a_picture_or_an_image_error(form, data):
    content = bytearray(FILES[form])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(1, len(content)))]
    try:
        pixels = AltCLIPImageProcessor(size=8, crop_size=8, max_pixels=10**6)(bytes(content))["pixel_values"]
    except ImageError:
        return
    assert pixels.shape == (1, 3, 8, 8)
