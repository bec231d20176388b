"""Anything that is a picture to an RGB image or an array, with one error for all that can be wrong with it."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from PIL import ExifTags, Image, UnidentifiedImageError

# Of files, and of the members of tar shards, that are taken for pictures.
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")

# What makes a picture upright, by its EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TAGS = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")  # where Pillow keeps it


class ImageError(ValueError):
    """A picture that cannot be used; the message names it and says why."""


# What says of a picture that it is bad. Other errors say of the machine or of the program that they are.
UNREADABLE = (ImageError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def named_pictures(images: Any) -> list[tuple[str, Any]]:
    """Returns the single pictures in `images`, each with its name.

    They are one picture, or lists and iterators of any depth, or arrays with a batch axis.

    The name is the picture's file where it has one, and else its place: images[2].

    Raises:
        ImageError: there is none.
    """
    pictures = list(_name(images, "images"))
    if not pictures:
        raise ImageError("images is empty: expected at least one picture.")
    return pictures


def walk_pictures(images: Any) -> Iterator[tuple[str, Any]]:
    """Yields what `named_pictures` returns, of an iterator one picture at a time; there may be none."""
    return _name(images, "images")


def array_layout(pictures: Sequence[Any]) -> str | None:
    """Tells where the channels of all arrays among pictures are: where the first one has them, as in the reference."""
    shapes = (np.shape(picture) for picture in pictures if is_array(picture))
    return channel_layout(next(shapes, ()))


def load_picture(
    picture: Any,
    name: str,
    *,
    max_pixels: int,
    to_rgb: bool = True,
    upright: bool | None = None,
    background: tuple[int, int, int] | None = None,
) -> Image.Image | np.ndarray:
    """Returns a decoded PIL image, RGB if `to_rgb`, or the array that was given.

    Of an animation it is the first frame.

    Args:
        picture: A path, bytes, a binary file, a PIL image of any mode, or anything with `__array__`.
        name: What errors call it.
        max_pixels: Larger pictures are refused before they are decoded.
        to_rgb: Convert as Pillow does, which is what the reference does: 16-bit, 32-bit and float greys are cut off
            at 255, not scaled, and transparent parts show whatever colour lies under them, often black.
        upright: Turn the picture as its EXIF orientation says. None: what is opened here, and no PIL image, as the
            reference does.
        background: The colour that transparent parts show instead.

    Raises:
        ImageError: the picture is damaged, of no known format, empty, too large, or not finite numbers.
        OSError: the file cannot be opened.
        TypeError: it is nothing of the above.
    """

    def decode(source: Any) -> Image.Image:
        with _pillow_silenced(), _named_errors(name):
            image = source if isinstance(source, Image.Image) else Image.open(source)
            _check_size(image, name, max_pixels)
            image.load()
            if upright if upright is not None else image is not source:
                image = _turn(image)
            return _to_rgb(image, background) if to_rgb else image

    if isinstance(picture, (str, os.PathLike)):
        try:
            file = Path(picture).open("rb")  # noqa: SIM115, it is closed below
        except ValueError as error:  # a NUL in it
            raise ImageError(f"{name!r} is no path ({error}).") from None
        with file:
            return decode(file)
    if isinstance(picture, (bytes, bytearray, memoryview)):
        return decode(io.BytesIO(picture))
    if isinstance(picture, Image.Image) or hasattr(picture, "read"):
        return decode(picture)
    if is_array(picture):
        return _finite_numbers(np.asarray(picture), name)
    raise TypeError(
        f"{name} is a {type(picture).__name__}: expected a path, bytes, a binary file, a PIL image or an array."
    )


def is_array(picture: Any) -> bool:
    """Tells whether a picture is an array, of whatever library; a PIL image is none, though it can become one."""
    return hasattr(picture, "__array__") and not isinstance(picture, Image.Image)


def channel_layout(shape: tuple[int, ...]) -> str | None:
    """Tells where the channels of one picture are: the axis of 1 or 3, the first if both are, as in the reference."""
    if len(shape) == 3 and shape[0] in (1, 3):
        return "channels_first"
    return "channels_last" if len(shape) == 3 and shape[-1] in (1, 3) else None


def channels_last(array: np.ndarray, name: str, layout: str | None) -> Shaped[np.ndarray, "height width channels"]:
    """Returns the picture with its channels last; where they are now is told by its shape if `layout` is None."""
    if array.ndim != 3 or array.size == 0:
        raise ImageError(
            f"{name} has shape {array.shape}: expected (height, width, channels) or (channels, height, width) with at"
            " least one pixel."
        )
    layout = layout or channel_layout(array.shape)
    if layout is None:
        raise ImageError(
            f"{name} has shape {array.shape}, with no axis of 1 or 3 channels at either end: say where they are with"
            " input_data_format='channels_first' or 'channels_last'."
        )
    return array.transpose(1, 2, 0) if layout == "channels_first" else array


def array_to_image(array: Shaped[np.ndarray, "height width channels"], name: str) -> tuple[Image.Image, bool]:
    """Returns an 8-bit image of an array, and whether its values were fractions of 255.

    As in the reference: numbers that are all whole are taken as 0 to 255 whatever their dtype, hence an array of only
    0.0 and 1.0 as nearly black; fractions are multiplied by 255 and truncated.

    Raises:
        ImageError: values out of range, or a number of channels that no image has.
    """
    if array.shape[-1] not in (1, 3, 4):
        raise ImageError(f"{name} has {array.shape[-1]} channels: expected 3 (or 1 or 4, which the model cannot take).")
    fractions = False
    if array.dtype != np.uint8:
        numbers = array.astype(np.float64)
        low, high = numbers.min(), numbers.max()
        fractions = not np.allclose(numbers, np.trunc(numbers))
        if low < 0 or high > (1 if fractions else 255):
            raise ImageError(
                f"{name} holds {'fractions' if fractions else 'whole numbers'} from {low:g} to {high:g}: to be resized"
                " they must be from 0 to 1, or whole from 0 to 255. Rescale them, or pass do_resize=False."
            )
        # by way of float32, as in the reference: it decides some truncations
        array = ((numbers * 255).astype(np.float32) if fractions else numbers).astype(np.uint8)
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array), fractions


def _name(images: Any, place: str) -> Iterator[tuple[str, Any]]:
    is_batch = is_array(images) and np.ndim(images) == 4
    is_iterator = isinstance(images, Iterator) and not hasattr(images, "read")  # an open file is one, too
    if is_batch or is_iterator or isinstance(images, (list, tuple)):
        for index, image in enumerate(np.asarray(images) if is_batch else images):
            yield from _name(image, f"{place}[{index}]")
        return
    # a PIL image knows its file as `filename`, an open file as `name`
    candidates = (images, getattr(images, "filename", None), getattr(images, "name", None))
    files = [str(value) for value in candidates if isinstance(value, (str, os.PathLike)) and str(value)]
    yield files[0] if files else ("the image" if place == "images" else place), images


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels ({width}x{height}).")
    if width * height > max_pixels:
        raise ImageError(
            f"{name} has {width}x{height} pixels, more than max_pixels={max_pixels:,}: make it smaller, or, if you"
            " trust it, raise the limit with AltCLIPImageProcessor(max_pixels=...)."
        )


def _turn(image: Image.Image) -> Image.Image:
    """Returns a picture as its camera was held, where it says so in words that can be read.

    ImageOps.exif_transpose turns alike; but it also writes the other tags anew, and raises where one is damaged.
    """
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # whatever damaged tags lead to: the pixels are none the worse for them
        return image
    if turn is None:
        return image
    turned = image.transpose(turn)
    for name in _TAGS:  # or it would be turned again
        turned.info.pop(name, None)
    return turned


def _to_rgb(image: Image.Image, background: tuple[int, int, int] | None) -> Image.Image:
    if image.mode == "La":  # the one mode that Pillow converts only in two steps
        image = image.convert("LA")
    if background is not None and image.has_transparency_data:
        under = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(under, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _finite_numbers(array: np.ndarray, name: str) -> np.ndarray:
    if not np.can_cast(array.dtype, np.float64, "same_kind"):
        raise ImageError(f"{name} is an array of {array.dtype}: expected whole numbers or floats.")
    # the numbers become float32 at the latest; a comparison with NaN is False
    largest = np.finfo(np.float32).max
    if array.dtype.kind not in "bui" and not np.all((array >= -largest) & (array <= largest)):
        raise ImageError(f"{name} holds values that are not finite in float32: NaN, infinity, or too large.")
    return array


@contextlib.contextmanager
def _named_errors(name: str) -> Iterator[None]:
    """Turns whatever a decoder raises on damaged data, which may be anything, into an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not a picture in a format that Pillow reads.") from None
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name} is larger than Pillow allows ({error}): make it smaller, or, if you trust it, raise both"
            " PIL.Image.MAX_IMAGE_PIXELS and AltCLIPImageProcessor(max_pixels=...)."
        ) from None
    except Exception as error:
        raise ImageError(f"{name} is damaged, or cannot be read ({type(error).__name__}: {error}).") from error


_silence_lock = threading.Lock()
_silence_depth = 0
_silence = warnings.catch_warnings()


@contextlib.contextmanager
def _pillow_silenced() -> Iterator[None]:
    """Ignores the warnings that Pillow itself raises; what they are about is checked here.

    The warning filters belong to the process. Were each thread to save and restore them alone, two that overlap could
    restore them in the wrong order and leave the warnings off for good; so the first to come saves, the last to go
    restores.
    """
    global _silence, _silence_depth
    with _silence_lock:
        if _silence_depth == 0:
            _silence = warnings.catch_warnings()
            _silence.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _silence_depth += 1
    try:
        yield
    finally:
        with _silence_lock:
            _silence_depth -= 1
            if _silence_depth == 0:
                _silence.__exit__(None, None, None)
