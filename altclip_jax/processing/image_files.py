"""Anything that is a picture to a PIL image or an array, with one error for all that can be wrong with a file."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


class ImageError(ValueError):
    """A picture that cannot be used; the message names it and says why."""


def flatten_images(images: Any) -> list[Any]:
    """Returns the single pictures in `images`: one, a list of any depth, or an array with a batch axis.

    Raises:
        ImageError: there is none.
    """
    flat = list(_single_images(images))
    if not flat:
        raise ImageError("images is empty: expected at least one picture.")
    return flat


def _single_images(images: Any) -> Iterator[Any]:
    if isinstance(images, (list, tuple)):
        for image in images:
            yield from _single_images(image)
    elif hasattr(images, "__array__") and not isinstance(images, Image.Image) and np.ndim(images) == 4:
        yield from np.asarray(images)
    else:
        yield images


def open_image(image: Any, name: str, max_pixels: int) -> Image.Image | np.ndarray:
    """Returns a decoded PIL image, or an array as it is.

    Args:
        image: A path, bytes, a binary file, a PIL image, or anything with `__array__`.
        name: What the error calls the picture if it has no path.
        max_pixels: Larger files are refused before they are decoded.

    Raises:
        ImageError: the picture is damaged, of no known format, empty or too large.
        OSError: the file cannot be opened.
    """
    if isinstance(image, (str, os.PathLike)):
        name = str(image)
        with Path(image).open("rb") as file:
            return _decode(file, name, max_pixels)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(image), name, max_pixels)
    if isinstance(image, Image.Image):
        return _loaded(image, name, max_pixels)
    if hasattr(image, "read"):
        return _decode(image, name, max_pixels)
    if hasattr(image, "__array__"):
        return np.asarray(image)
    raise TypeError(
        f"{name} is a {type(image).__name__}: expected a path, bytes, a PIL image, a numpy array or a binary file."
    )


def _decode(file: Any, name: str, max_pixels: int) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # our own limit is checked instead of Pillow's
        try:
            image = Image.open(file)
        except UnidentifiedImageError:
            raise ImageError(f"{name} is not a picture in a format that Pillow reads.") from None
        except Exception as error:  # decoders raise whatever the damage leads to
            raise ImageError(f"{name} cannot be read as a picture ({type(error).__name__}: {error}).") from None
        return _loaded(image, name, max_pixels)


def _loaded(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels ({width}x{height}).")
    if width * height > max_pixels:
        raise ImageError(
            f"{name} has {width}x{height} pixels, more than max_pixels={max_pixels:,}: make it smaller, or raise the"
            " limit with AltCLIPImageProcessor(max_pixels=...) if you trust it."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image.load()
        except Exception as error:  # as above: the decoders' own
            raise ImageError(f"{name} is damaged ({type(error).__name__}: {error}).") from None
    return image


def to_rgb(image: Image.Image, name: str, background: tuple[int, int, int] | None, upright: bool) -> Image.Image:
    """Returns an RGB image.

    `upright` turns it as its EXIF orientation says. With a `background` transparent parts show that colour; without,
    the alpha channel is dropped, as the reference does it.
    """
    if upright:
        image = ImageOps.exif_transpose(image)
    if background is not None and image.has_transparency_data:
        layer = image.convert("RGBA")
        under = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(under, layer).convert("RGB")
    if image.mode == "RGB":
        return image
    with warnings.catch_warnings():
        # a palette with transparency as bytes: Pillow advises RGBA, which would not be the reference's picture
        warnings.simplefilter("ignore")
        try:
            return image.convert("RGB")
        except ValueError as error:
            raise ImageError(f"{name} has mode {image.mode}, which Pillow does not convert to RGB ({error}).") from None
