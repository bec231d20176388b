"""Resize, crop, rescale, normalise: bit-equal to CLIPImageProcessor (slow) of transformers 4.56.2.

Two steps, which may run in different places: `resize_and_crop` gives a uint8 picture of the final size, `normalize`
makes float32 of it.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import operator
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Real
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from altclip_jax.files.checkpoint_folder import IMAGE_FILES, IMAGE_FILES_REPLACED, read_whole
from altclip_jax.files.json_file import json_bytes, read_json_object
from altclip_jax.files.whole import replace_files
from altclip_jax.processing.image_files import (
    UNREADABLE,
    ImageError,
    array_layout,
    array_to_image,
    channels_last,
    load_picture,
    named_pictures,
)

__all__ = ["AltCLIPImageProcessor", "ImageError"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

(_FILE,) = IMAGE_FILES
# Keys that say which class reads the file; they are not settings.
_SERVICE_KEYS = frozenset({"feature_extractor_type", "image_processor_type", "processor_class"})
_SWITCHES = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
Orientation = Literal["exif", "stored"]

_LAYOUTS = ("channels_first", "channels_last")

# A picture that would be enlarged to more pixels than this is made only where the centre crop will be.
_WINDOW_PIXELS = 16_000_000

_MeanStd = tuple[float | Sequence[float], float | Sequence[float]]

_WORTH_A_THREAD = 4  # pictures from which threads gain more than it costs to start them
Given = TypeVar("Given")
Made = TypeVar("Made")

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AltCLIPImageProcessor:
    """Prepares pictures for the image tower.

    The fields are those of preprocessor_config.json, where a size may also be a number, and three of our own:

    Attributes:
        apply_exif_orientation: Turn a picture as its camera says. None as in the reference: what is opened here (a
            path, bytes, a file) is turned, and no PIL image; `AltCLIP` turns these, too.
        background: Red, green and blue (0 to 255) under transparent parts. None drops the alpha channel, as in the
            reference: the colour under it appears, often black.
        max_pixels: Larger pictures are refused.
        extra: Further keys of the file, written back as they were.

    Raises:
        ValueError: fields that make no sense; all are named.
    """

    do_resize: bool = True
    size: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"shortest_edge": 224}, hash=False)
    resample: int = 3  # PIL's number: 3 is bicubic
    do_center_crop: bool = True
    crop_size: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"height": 224, "width": 224}, hash=False)
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: float | Sequence[float] = CLIP_MEAN
    image_std: float | Sequence[float] = CLIP_STD
    do_convert_rgb: bool = True
    apply_exif_orientation: bool | None = None
    background: tuple[int, int, int] | None = None
    max_pixels: int = 178_956_970  # where Pillow refuses, too: 700 MB decoded
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        problems = []
        for name, (parse, expected) in _CHECKS.items():
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, parse(value))
            except (TypeError, ValueError):
                problems.append(f"{name} must be {expected}, got {value!r}")
        if problems:
            raise ValueError("; ".join(problems) + ".")

    @classmethod
    def field_names(cls) -> list[str]:
        """Returns the names of the settings, which are also the overrides that a call takes."""
        return [field.name for field in dataclasses.fields(cls) if field.name != "extra"]

    @classmethod
    def call_arguments(cls) -> list[str]:
        """Returns the names of a call's arguments beside the pictures."""
        return [*cls.field_names(), "return_tensors", "data_format", "input_data_format", "threads"]

    def __call__(
        self,
        images: Any,
        *,
        return_tensors: str | None = "np",
        data_format: str = "channels_first",
        input_data_format: str | None = None,
        threads: int | None = None,
        **overrides: Any,
    ) -> dict[str, Any]:
        """Returns {"pixel_values": float32 (images, 3, height, width)}.

        Args:
            images: Paths, bytes, binary files, PIL images, or arrays (height, width, 3) or (3, height, width); one, a
                list of any depth, or an array with a batch axis. Array values are whole numbers from 0 to 255, or
                fractions from 0 to 1, which need do_rescale=False: they are rescaled again otherwise, as in the
                reference.
            return_tensors: "np", "jax", or None for a list of arrays (needed when their sizes differ).
            data_format: "channels_first", which the model takes, or "channels_last".
            input_data_format: The same for array pictures. If None, the first one's shape tells it for all.
            threads: That prepare pictures side by side, with the same result. None: as many as there are cores, and one
                for a few pictures.
            **overrides: Any field, for this call alone. With do_rescale=False the result has the dtype of the
                reference's, which for float arrays is their own, and with do_normalize=False as well for all.

        Raises:
            ImageError: pictures cannot be used; the message names all that can be opened and cannot be used.
            OSError: a file cannot be opened.
            ValueError: an unknown format, or pictures of different sizes that cannot be stacked.
            TypeError: an unknown field, or something that is no picture.
        """
        if return_tensors not in (None, "np", "jax"):
            raise ValueError(
                f"return_tensors={return_tensors!r} is not one of 'np', 'jax' and None: this library makes no tensors"
                " of other frameworks; convert the numpy arrays, for example with torch.from_numpy."
            )
        for argument, value in (("data_format", data_format), ("input_data_format", input_data_format)):
            if value not in _LAYOUTS and (argument, value) != ("input_data_format", None):
                raise ValueError(f"{argument}={value!r} is neither 'channels_first' nor 'channels_last'.")
        if threads is not None and threads < 1:
            raise ValueError(f"threads={threads} must be at least 1.")
        processor = self.replace(**overrides)
        cropped: Any = processor.crop_all(named_pictures(images), input_data_format, threads)
        normalize = functools.partial(processor.normalize, data_format=data_format)
        prepared = _map_in_threads(normalize, cropped, _count_threads(cropped, threads))
        if return_tensors is None:
            return {"pixel_values": prepared}
        shapes = sorted({picture.shape for picture in prepared})
        if len(shapes) > 1:
            raise ValueError(
                f"The pictures have different shapes after preparation, {shapes}, and make no array: leave do_resize"
                " and do_center_crop on, or pass return_tensors=None for a list."
            )
        stacked: Any = np.stack(prepared)
        if return_tensors == "jax":
            import jax.numpy as jnp

            stacked = jnp.asarray(stacked)
        return {"pixel_values": stacked}

    def resize_and_crop(
        self, image: Any, name: str = "the image", input_data_format: str | None = None
    ) -> Shaped[np.ndarray, "height width channels"]:
        """Returns one picture in its final size: uint8 (height, width, 3) for everything but arrays of other dtypes.

        Of those, fractions come back as fractions in float32, whole numbers as uint8 if they are resized, and both as
        they are if they are not.

        Args:
            image: Anything that a call takes, but one.
            name: What errors call it.
            input_data_format: Where the channels of an array are; None: its shape tells.

        Raises:
            ImageError: the picture cannot be used.
            OSError: its file cannot be opened.
        """
        picture = load_picture(
            image,
            name,
            max_pixels=self.max_pixels,
            to_rgb=self.do_convert_rgb,
            upright=self.apply_exif_orientation,
            background=self.background,
        )
        if isinstance(picture, Image.Image) and picture.mode != "RGB":
            # without do_convert_rgb the numbers count, as in the reference, and the channels of an image are known
            picture, input_data_format = np.asarray(picture), "channels_last"
        if isinstance(picture, Image.Image):
            pixels = self._resize(picture, name) if self.do_resize else np.asarray(picture)
        else:
            pixels = channels_last(picture, name, input_data_format)
            if self.do_resize:
                as_image, fractions = array_to_image(pixels, name)
                pixels = self._resize(as_image, name)
                if fractions:
                    pixels = _rescale(pixels, 1 / 255)
        if self.do_normalize and pixels.shape[-1] != 3:
            raise ImageError(
                f"{name} has {pixels.shape[-1]} channels: expected 3. If it is an array of another layout, pass"
                " input_data_format."
            )
        if self.do_center_crop:
            pixels = _center_crop(pixels, self.crop_size["height"], self.crop_size["width"])
        return pixels

    def normalize(
        self, pictures: Shaped[np.ndarray, "*batch height width channels"], *, data_format: str = "channels_first"
    ) -> Shaped[np.ndarray, "*batch _ _ _"]:
        """Returns pictures rescaled and normalised, float32, (*batch, channels, height, width) unless asked.

        A uint8 picture has 256 results per channel, which are looked up: the same numbers, five times faster.

        Raises:
            ValueError: `do_normalize`, and the pictures have not three channels.
        """
        if self.do_normalize and pictures.shape[-1] != 3:
            raise ValueError(f"pictures has shape {pictures.shape}: expected three channels on the last axis.")
        factor = self.rescale_factor if self.do_rescale else None
        mean_std = (self.image_mean, self.image_std) if self.do_normalize else None
        if pictures.dtype == np.uint8 and pictures.shape[-1] == 3:
            table = _lookup_table(factor, mean_std)
            result = np.empty((*pictures.shape[:-3], 3, *pictures.shape[-3:-1]), table.dtype)
            for channel in range(3):
                result[..., channel, :, :] = np.take(table[channel], pictures[..., channel])
        else:
            result = np.ascontiguousarray(np.moveaxis(_rescale_and_normalize(pictures, factor, mean_std), -1, -3))
        return result if data_format == "channels_first" else np.ascontiguousarray(np.moveaxis(result, -3, -1))

    @property
    def output_size(self) -> tuple[int, int] | None:
        """The height and width that every picture gets; None if they depend on the picture."""
        if self.do_center_crop:
            return self.crop_size["height"], self.crop_size["width"]
        return (self.size["height"], self.size["width"]) if self.do_resize and "height" in self.size else None

    def replace(self, **overrides: Any) -> Self:
        """Returns a copy with some fields changed; None leaves a field as it is, but for `background` it is a value.

        Raises:
            TypeError: there is no such field.
        """
        unknown = sorted(set(overrides) - set(self.field_names()))
        if unknown:
            raise TypeError(
                f"{type(self).__name__} has no field {', '.join(unknown)}: it has {', '.join(self.field_names())}."
            )
        given = {key: value for key, value in overrides.items() if value is not None or key == "background"}
        return dataclasses.replace(self, **given) if given else self

    def orient(self, orientation: Orientation) -> Self:
        """Returns a copy that turns every picture as its camera says ("exif"), or none ("stored").

        If `apply_exif_orientation` is set, that is kept.
        """
        own = self.apply_exif_orientation
        return self.replace(apply_exif_orientation=orientation == "exif" if own is None else own)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> Self:
        """Reads the content of a preprocessor_config.json, of whatever age.

        Missing fields have their defaults; unknown keys are kept and written back.
        """
        names = set(cls.field_names())
        known = {key: value for key, value in values.items() if key in names and value is not None}
        extra = {key: value for key, value in values.items() if key not in names | _SERVICE_KEYS}
        return cls(**known, extra=extra).replace(**overrides)

    def to_dict(self) -> dict[str, Any]:
        """Returns what transformers' CLIPImageProcessor reads back equal; our own fields only where they are set."""
        defaults = type(self)()
        ours = ("apply_exif_orientation", "background", "max_pixels")
        fields = {
            name: _plain(getattr(self, name))
            for name in self.field_names()
            if name not in ours or getattr(self, name) != getattr(defaults, name)
        }
        service = {"image_processor_type": "CLIPImageProcessor", "processor_class": "AltCLIPProcessor"}
        return {**self.extra, **fields, **service}

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], **overrides: Any) -> Self:
        """Reads `folder`/preprocessor_config.json; `overrides` replace its fields.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is no JSON object, or its fields make no sense; the message names the file.
        """
        path = Path(folder) / _FILE
        values = read_whole(folder, lambda: read_json_object(path))
        try:
            return cls.from_dict(values, **overrides)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes `folder`/preprocessor_config.json, whole or not at all."""
        replace_files(folder, self.files(), IMAGE_FILES_REPLACED)

    def files(self) -> dict[str, bytes]:
        """Returns the file that `save_pretrained` writes, by its name."""
        return {_FILE: json_bytes(self.to_dict())}

    def crop_all(
        self,
        pictures: Sequence[tuple[str, Any]],
        input_data_format: str | None = None,
        threads: int | None = None,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> list[np.ndarray | Exception]:
        """Returns what `resize_and_crop` makes of each picture; with "skip" the error in the place of a bad one.

        Args:
            pictures: Names and pictures, as `named_pictures` gives them.
            input_data_format: As in a call.
            threads: As in a call.
            on_error: "raise" or "skip".

        Raises:
            ImageError: pictures cannot be used, and none is to be skipped; the message names all.
            OSError: a file cannot be opened, likewise.
        """
        if input_data_format is None:
            input_data_format = array_layout([picture for _, picture in pictures])
        caught = UNREADABLE if on_error == "skip" else (ImageError,)

        def attempt(named: tuple[str, Any]) -> np.ndarray | Exception:
            name, picture = named
            try:
                return self.resize_and_crop(picture, name, input_data_format)
            except caught as error:
                return error

        results = _map_in_threads(attempt, pictures, _count_threads([picture for _, picture in pictures], threads))
        problems = [result for result in results if isinstance(result, Exception)]
        if problems and on_error == "raise":
            raise ImageError("\n".join(map(str, problems))) from problems[0].__cause__
        prepared = (result for result in results if isinstance(result, np.ndarray))
        if self.do_rescale and any(picture.dtype.kind == "f" and picture.max() <= 1 for picture in prepared):
            _logger.warning(
                "Arrays with values up to 1 are rescaled once more, to nearly black: pass do_rescale=False."
            )
        return results

    def _resize(self, image: Image.Image, name: str) -> UInt8[np.ndarray, "height width channels"]:
        width, height = target = _target_size(image.size, self.size)
        enlarged = self.resample == Image.Resampling.BICUBIC and width >= image.width and height >= image.height
        if width * height > _WINDOW_PIXELS and self.do_center_crop and enlarged and image.mode != "RGBA":
            return _enlarge_window(image, target, (self.crop_size["width"], self.crop_size["height"]))
        if width * height > self.max_pixels:
            raise ImageError(
                f"{name} of {image.width}x{image.height} pixels would be resized to {width}x{height}, more than"
                f" max_pixels={self.max_pixels:,}: cut it to a less extreme shape, or raise the limit."
            )
        return _with_channels(image.resize(target, resample=Image.Resampling(self.resample)))


def _sides(value: Any, number_means: tuple[str, ...]) -> dict[str, int]:
    """Checks and completes a size; old files hold a number: the shortest edge, or the side of the square crop."""
    if isinstance(value, (list, tuple)):
        value = dict(zip(("height", "width"), value, strict=True))
    if not isinstance(value, Mapping):
        value = dict.fromkeys(number_means, value)
    if set(value) not in ({"height", "width"}, set(number_means)):
        raise ValueError
    return {key: _positive(side) for key, side in value.items()}


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _positive(value: Any) -> int:
    number = operator.index(value)
    if number < 1 or isinstance(value, bool):
        raise ValueError
    return number


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError
    return float(value)


def _statistics(value: Any, *, zero_allowed: bool = True) -> float | tuple[float, ...]:
    numbers = (_finite(value),) * 3 if isinstance(value, Real) else tuple(_finite(number) for number in value)
    if len(numbers) != 3 or (0 in numbers and not zero_allowed):
        raise ValueError
    return numbers[0] if isinstance(value, Real) else numbers


def _colour(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    colour = tuple(operator.index(level) for level in value)
    if len(colour) != 3 or not all(0 <= level <= 255 for level in colour):
        raise ValueError
    return colour


# For each setting, what makes it uniform or raises, and what the error says it must be.
_CHECKS: dict[str, tuple[Callable[[Any], Any], str]] = {
    **dict.fromkeys(_SWITCHES, (_switch, "true or false")),
    "apply_exif_orientation": (lambda value: None if value is None else _switch(value), "true, false or None"),
    "size": (
        functools.partial(_sides, number_means=("shortest_edge",)),
        "a positive integer, {shortest_edge} or {height, width}",
    ),
    "resample": (lambda value: int(Image.Resampling(value)), "a number of PIL.Image.Resampling (bicubic is 3)"),
    "crop_size": (
        functools.partial(_sides, number_means=("height", "width")),
        "a positive integer or {height, width}",
    ),
    "rescale_factor": (_finite, "a finite number"),
    "image_mean": (_statistics, "a finite number or three, one per channel"),
    "image_std": (functools.partial(_statistics, zero_allowed=False), "a number or three, finite and not 0"),
    "background": (_colour, "three integers from 0 to 255, or None"),
    "max_pixels": (_positive, "a positive integer"),
}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def _rescale(pixels: np.ndarray, factor: float) -> np.ndarray:
    return (pixels.astype(np.float64) * factor).astype(np.float32)


def _rescale_and_normalize(pixels: np.ndarray, factor: float | None, mean_std: _MeanStd | None) -> np.ndarray:
    """The plain arithmetic of the reference, channels last; None leaves a step out."""
    if factor is not None:
        pixels = _rescale(pixels, factor)
    if mean_std is not None:
        if not np.issubdtype(pixels.dtype, np.floating):
            pixels = pixels.astype(np.float32)
        mean, std = (np.array(value, pixels.dtype) for value in mean_std)
        pixels = (pixels - mean) / std
    return pixels


@functools.lru_cache(maxsize=16)
def _lookup_table(factor: float | None, mean_std: _MeanStd | None) -> np.ndarray:
    """The results for every value of every channel, (3, 256)."""
    values = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    return np.ascontiguousarray(_rescale_and_normalize(values, factor, mean_std).T)


def _count_threads(items: Sequence[object], threads: int | None) -> int:
    """Returns how many threads prepare items: those asked for, or the cores that this process may use.

    One alone where an object is there twice: two threads must not decode the same opened picture.
    """
    if len({id(item) for item in items}) < len(items):
        return 1
    if threads is not None:
        return max(1, min(threads, len(items)))
    # Linux alone says how many of the machine's cores are ours
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return 1 if len(items) < _WORTH_A_THREAD else min(cores, len(items))


def _map_in_threads(function: Callable[[Given], Made], items: Sequence[Given], threads: int) -> list[Made]:
    """Returns what a function makes of each item, in order; Pillow and numpy let other threads run meanwhile."""
    if threads == 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads, "altclip-pictures") as pool:
        return list(pool.map(function, items))


def _with_channels(image: Image.Image) -> UInt8[np.ndarray, "height width channels"]:
    """Returns the pixels of an image, grey ones too, with an axis of channels."""
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _target_size(size: tuple[int, int], wanted: Mapping[str, int]) -> tuple[int, int]:
    """Returns (width, height) to resize to; the long side is truncated, not rounded, as in the reference."""
    if "height" in wanted:
        return wanted["width"], wanted["height"]
    width, height = size
    short = wanted["shortest_edge"]
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short


def _center_crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cuts out the middle; a smaller picture gets black around it, the larger half above and on the left."""
    have_height, have_width = pixels.shape[:2]
    if have_height < height or have_width < width:
        top, left = max(0, height - have_height + 1) // 2, max(0, width - have_width + 1) // 2
        canvas = np.zeros((max(height, have_height), max(width, have_width), pixels.shape[2]), pixels.dtype)
        canvas[top : top + have_height, left : left + have_width] = pixels
        pixels = canvas
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def _enlarge_window(
    image: Image.Image, target: tuple[int, int], crop: tuple[int, int]
) -> UInt8[np.ndarray, "height width channels"]:
    """Returns the part of the bicubic enlargement that its centre crop keeps, bit-equal to Pillow's, and makes no more.

    1x10000 pixels with a short side of 224 would be 224x2240000. Pillow's own resize(box=...) takes the box in float32
    and is off by up to 2 of 255. So this repeats Pillow's arithmetic: first along the rows, then along the columns,
    weights of 22 bits, 8 bits between. (Only to enlarge: where the height shrinks Pillow 13 begins with the columns.)

    Source: src/libImaging/Resample.c of Pillow.
    """
    columns, column_weights = _taps(image.width, target[0], crop[0])
    rows, row_weights = _taps(image.height, target[1], crop[1])
    left, top = int(columns.min()), int(rows.min())
    needed = _with_channels(image.crop((left, top, int(columns.max()) + 1, int(rows.max()) + 1)))
    wide = _weighted_sum(needed.swapaxes(0, 1), columns - left, column_weights).swapaxes(0, 1)
    return _weighted_sum(wide, rows - top, row_weights)


def _taps(have: int, target: int, crop: int) -> tuple[np.ndarray, np.ndarray]:
    """Which source pixels make each pixel of the middle `crop` of `target`, and their weights; both (pixels, taps)."""
    kept = min(crop, target)
    centers = ((target - kept) // 2 + np.arange(kept) + 0.5) * (have / target)
    first = np.maximum((centers - 1.5).astype(np.int64), 0)  # two source pixels to either side
    indices = first[:, None] + np.arange(5)
    distance = np.abs(indices - centers[:, None] + 0.5)
    near = (1.5 * distance - 2.5) * distance * distance + 1.0
    far = (((distance - 5.0) * distance + 8.0) * distance - 4.0) * -0.5
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    weights[indices >= have] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    fixed = np.trunc(weights * 2**22 + np.copysign(0.5, weights)).astype(np.int32)
    return np.minimum(indices, have - 1), fixed


def _weighted_sum(pixels: np.ndarray, indices: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Combines the first axis of uint8 pixels (source, other, channels) as `_taps` says, one tap at a time."""
    total = np.full((len(indices), *pixels.shape[1:]), 2**21, np.int32)
    for tap in range(indices.shape[1]):
        total += weights[:, tap, None, None] * pixels[indices[:, tap]]
    levels: np.ndarray = np.clip(total >> 22, 0, 255)
    return levels.astype(np.uint8)
