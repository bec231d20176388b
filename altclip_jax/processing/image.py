"""Resize, crop, rescale, normalise: bit-equal to CLIPImageProcessor (slow) of transformers 4.56.2.

Two steps, which may run in different places: `resize_and_crop` gives uint8 pictures of the final size, `normalize`
makes float32 of them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Float32
from PIL import Image

from altclip_jax.json_file import read_json_object, write_json
from altclip_jax.processing.image_files import ImageError, flatten_images, open_image, to_rgb

__all__ = ["AltCLIPImageProcessor", "ImageError"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# A resized picture of more pixels than this is made only where the centre crop will be.
_WINDOW_PIXELS = 16_000_000
_FILE = "preprocessor_config.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AltCLIPImageProcessor:
    """Prepares pictures for the image tower.

    The fields are those of preprocessor_config.json, and three that the reference does not have:

    Attributes:
        apply_exif_orientation: Turn a picture as its camera says. Off, as in the reference.
        background: Colour under the transparent parts. None drops the alpha channel, as in the reference.
        max_pixels: Larger pictures are refused.
    """

    do_resize: bool = True
    size: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"shortest_edge": 224}, hash=False)
    resample: int = 3  # PIL's number: 3 is bicubic
    do_center_crop: bool = True
    crop_size: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"height": 224, "width": 224}, hash=False)
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: Sequence[float] = CLIP_MEAN
    image_std: Sequence[float] = CLIP_STD
    do_convert_rgb: bool = True
    apply_exif_orientation: bool = False
    background: tuple[int, int, int] | None = None
    max_pixels: int = 178_956_970  # where Pillow itself would raise, too
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)  # unknown keys, written back

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _size("size", self.size, square=False))
        object.__setattr__(self, "crop_size", _size("crop_size", self.crop_size, square=True))
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            numbers = (value,) * 3 if isinstance(value, (int, float)) else tuple(value)
            if len(numbers) != 3 or not all(isinstance(number, (int, float)) for number in numbers):
                raise ValueError(f"{name} must be three numbers, one per channel, got {value!r}.")
            object.__setattr__(self, name, numbers)
        if not all(math.isfinite(number) and number != 0 for number in self.image_std):
            raise ValueError(f"image_std must be finite and not 0, got {self.image_std}.")
        if self.background is not None:
            object.__setattr__(self, "background", _colour(self.background))
        if self.resample not in [int(filter_) for filter_ in Image.Resampling]:
            raise ValueError(f"resample={self.resample!r} is not a number of PIL.Image.Resampling (bicubic is 3).")
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels={self.max_pixels} must be positive.")

    @classmethod
    def field_names(cls) -> list[str]:
        """Returns the names of the fields, which are also the overrides that a call takes."""
        return [field.name for field in dataclasses.fields(cls) if field.name != "extra"]

    @classmethod
    def call_arguments(cls) -> list[str]:
        """Returns the names of a call's arguments beside the pictures."""
        return [*cls.field_names(), "return_tensors", "data_format", "input_data_format"]

    def __call__(
        self,
        images: Any,
        *,
        return_tensors: str | None = "np",
        data_format: str = "channels_first",
        input_data_format: str | None = None,
        **overrides: Any,
    ) -> dict[str, Any]:
        """Returns {"pixel_values": float32 (images, 3, height, width)}.

        Args:
            images: Paths, bytes, binary files, PIL images, or arrays (height, width, 3) or (3, height, width), uint8 or
                floats in [0, 1]; one, a list, or an array with a batch axis.
            return_tensors: "np", "jax", or None for a list of arrays (needed when their sizes differ).
            data_format: "channels_first", which the model takes, or "channels_last".
            input_data_format: Where the channels of array pictures are, where it cannot be told from the shape.
            **overrides: Any field, for this call alone.

        Raises:
            ImageError: a picture cannot be used; the message names it.
            ValueError: an unknown `return_tensors` or format; pictures of different sizes cannot be stacked.
        """
        if return_tensors not in (None, "np", "jax"):
            raise ValueError(
                f"return_tensors={return_tensors!r} is not one of 'np', 'jax' and None: this library makes no tensors"
                " of other frameworks; convert the numpy arrays, for example with torch.from_numpy."
            )
        if data_format not in ("channels_first", "channels_last"):
            raise ValueError(f"data_format={data_format!r} is neither 'channels_first' nor 'channels_last'.")
        processor = self.replace(**overrides) if overrides else self
        pictures = []
        for index, image in enumerate(flatten_images(images)):
            name = str(image) if isinstance(image, (str, os.PathLike)) else f"images[{index}]"
            prepared = processor.normalize(processor.resize_and_crop(image, name, input_data_format))
            pictures.append(prepared if data_format == "channels_last" else prepared.transpose(2, 0, 1))
        if return_tensors is None:
            return {"pixel_values": [np.ascontiguousarray(picture) for picture in pictures]}
        if len({picture.shape for picture in pictures}) > 1:
            shapes = sorted({picture.shape for picture in pictures})
            raise ValueError(
                f"The pictures have different shapes after preparation {shapes} and make no array: leave do_resize and"
                " do_center_crop on, or pass return_tensors=None for a list."
            )
        stacked: Any = np.stack(pictures)
        if return_tensors == "jax":
            import jax.numpy as jnp

            stacked = jnp.asarray(stacked)
        return {"pixel_values": stacked}

    def resize_and_crop(self, image: Any, name: str = "the image", input_data_format: str | None = None) -> np.ndarray:
        """Returns the picture in its final size, (height, width, channels), uint8.

        A float array stays float where it is not resized, and is in [0, 1] where it is.

        Raises:
            ImageError: the picture cannot be used.
        """
        opened = open_image(image, name, self.max_pixels)
        if isinstance(opened, Image.Image):
            if self.do_convert_rgb:
                opened = to_rgb(opened, name, self.background, self.apply_exif_orientation)
            pixels: np.ndarray | Image.Image = opened
            if opened.mode not in ("RGB", "RGBA"):
                pixels = _channels_last(np.asarray(opened), name, input_data_format)
        else:
            pixels = _channels_last(opened, name, input_data_format)
        if self.do_resize:
            pixels = self._resize(pixels, name)
        array = np.asarray(pixels)
        return _center_crop(array, self.crop_size["height"], self.crop_size["width"]) if self.do_center_crop else array

    def normalize(self, picture: np.ndarray) -> Float32[np.ndarray, "height width channels"]:
        """Returns the picture rescaled and normalised, as the two do_ fields say; (height, width, channels).

        For uint8 pictures each channel has 256 results, which are looked up: the same numbers, several times faster.
        """
        if picture.dtype != np.uint8 or picture.shape[-1] != 3:
            return self._normalize_plain(picture)
        table = _lookup_table(
            self.rescale_factor if self.do_rescale else None,
            (tuple(self.image_mean), tuple(self.image_std)) if self.do_normalize else None,
        )
        out = np.empty(picture.shape, table.dtype)
        for channel in range(3):
            np.take(table[channel], picture[..., channel], out=out[..., channel])
        return out

    def _normalize_plain(self, picture: np.ndarray) -> np.ndarray:
        if self.do_rescale:
            picture = (picture.astype(np.float64) * self.rescale_factor).astype(np.float32)
        if self.do_normalize:
            if picture.shape[-1] != 3:
                raise ImageError(f"A picture of {picture.shape[-1]} channels cannot be normalised with three means.")
            if not np.issubdtype(picture.dtype, np.floating):
                picture = picture.astype(np.float32)
            mean, std = np.array(self.image_mean, picture.dtype), np.array(self.image_std, picture.dtype)
            picture = (picture - mean) / std
        return picture

    def replace(self, **overrides: Any) -> Self:
        """Returns a copy with some fields changed.

        Raises:
            TypeError: there is no such field.
        """
        unknown = sorted(set(overrides) - set(self.field_names()))
        if unknown:
            raise TypeError(f"{type(self).__name__} has no field {', '.join(unknown)}.")
        # for the reference None means the field's own value; only for a background it is a value itself
        given = {key: value for key, value in overrides.items() if value is not None or key == "background"}
        return dataclasses.replace(self, **given)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> Self:
        """Reads the content of a preprocessor_config.json; unknown keys are kept and written back."""
        names = set(cls.field_names())
        known = {key: value for key, value in values.items() if key in names and value is not None}
        own = names | {"image_processor_type", "processor_class", "feature_extractor_type"}
        return cls(**{**known, **overrides}, extra={key: value for key, value in values.items() if key not in own})

    def to_dict(self) -> dict[str, Any]:
        """Returns what transformers' CLIPImageProcessor reads back equal."""
        ours = ("apply_exif_orientation", "background", "max_pixels")
        defaults = type(self)()
        fields = {
            name: _plain(getattr(self, name))
            for name in self.field_names()
            if name not in ours or getattr(self, name) != getattr(defaults, name)
        }
        return {
            **self.extra,
            **fields,
            "image_processor_type": "CLIPImageProcessor",
            "processor_class": "AltCLIPProcessor",
        }

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], **overrides: Any) -> Self:
        """Reads `folder`/preprocessor_config.json; `overrides` replace its fields."""
        path = Path(folder) / _FILE
        values = read_json_object(path)
        try:
            return cls.from_dict(values, **overrides)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from None

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes `folder`/preprocessor_config.json, whole or not at all."""
        write_json(Path(folder) / _FILE, self.to_dict())

    def _resize(self, pixels: np.ndarray | Image.Image, name: str) -> np.ndarray | Image.Image:
        is_float = isinstance(pixels, np.ndarray) and _is_zero_to_one_float(pixels, name)
        image = pixels if isinstance(pixels, Image.Image) else _to_pil(pixels, is_float, name)
        target = _target_size(image.size, self.size)
        filter_ = Image.Resampling(self.resample)
        crop = (self.crop_size["width"], self.crop_size["height"])
        if target[0] * target[1] > _WINDOW_PIXELS and self.do_center_crop:
            resized = _resize_window(image, target, crop, filter_)
        elif target[0] * target[1] > self.max_pixels:
            raise ImageError(f"{name} would be resized to {target[0]}x{target[1]} pixels, more than max_pixels.")
        else:
            resized = image.resize(target, resample=filter_, reducing_gap=None)
        if not isinstance(pixels, np.ndarray):
            return resized
        array = np.asarray(resized)
        array = array[..., None] if array.ndim == 2 else array
        # the reference's own scaling back to [0, 1]
        return (array.astype(np.float64) * (1 / 255)).astype(np.float32) if is_float else array


def _size(name: str, value: Any, *, square: bool) -> dict[str, int]:
    """Checks and completes a size; old files hold a number: the shortest edge, or the side of the square crop."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = {"height": value, "width": value} if square else {"shortest_edge": value}
    elif isinstance(value, (list, tuple)) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    keys = ({"height", "width"},) if square else ({"height", "width"}, {"shortest_edge"})
    good = isinstance(value, Mapping) and set(value) in keys
    if not good or not all(isinstance(side, int) and side > 0 for side in value.values()):
        wanted = " or ".join("{" + ", ".join(sorted(choice)) + "}" for choice in keys)
        raise ValueError(f"{name} must be a positive integer or a mapping with {wanted}, got {value!r}.")
    return dict(value)


def _colour(value: Any) -> tuple[int, int, int]:
    good = isinstance(value, (list, tuple)) and len(value) == 3
    if not good or not all(isinstance(part, int) and 0 <= part <= 255 for part in value):
        raise ValueError(f"background must be three integers from 0 to 255, or None, got {value!r}.")
    red, green, blue = value
    return red, green, blue


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


@functools.lru_cache(maxsize=16)
def _lookup_table(factor: float | None, statistics: tuple[tuple[float, ...], tuple[float, ...]] | None) -> np.ndarray:
    """The results of `_normalize_plain` for every value of every channel, (3, 256)."""
    values = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    mean, std = statistics or (CLIP_MEAN, CLIP_STD)
    plain = AltCLIPImageProcessor(
        do_rescale=factor is not None,
        rescale_factor=1.0 if factor is None else factor,
        do_normalize=statistics is not None,
        image_mean=mean,
        image_std=std,
    )
    return np.ascontiguousarray(plain._normalize_plain(values).T)


def _channels_last(array: np.ndarray, name: str, input_data_format: str | None) -> np.ndarray:
    """Returns (height, width, channels); channels is the axis of 1 or 3, the first if both are, as in the reference."""
    if array.ndim != 3 or 0 in array.shape:
        raise ImageError(
            f"{name} has shape {array.shape}: expected (height, width, channels) or (channels, height, width) with at"
            " least one pixel."
        )
    if input_data_format is None:
        if array.shape[0] not in (1, 3) and array.shape[-1] not in (1, 3):
            raise ImageError(
                f"{name} has shape {array.shape}, with no axis of 1 or 3 channels: pass input_data_format."
            )
        first = array.shape[0] in (1, 3)
    elif input_data_format in ("channels_first", "channels_last"):
        first = input_data_format == "channels_first"
    else:
        raise ValueError(f"input_data_format={input_data_format!r} is neither 'channels_first' nor 'channels_last'.")
    return array.transpose(1, 2, 0) if first else array


def _is_zero_to_one_float(array: np.ndarray, name: str) -> bool:
    """Tells whether the values are to be scaled by 255 before they can be resized, as the reference decides it."""
    if array.dtype == np.uint8:
        return False
    if not np.isfinite(array).all():
        raise ImageError(f"{name} holds values that are not finite.")
    if np.allclose(array, np.trunc(array)):
        if array.min() < 0 or array.max() > 255:
            raise ImageError(f"{name} holds whole numbers from {array.min()} to {array.max()}: expected 0 to 255.")
        return False  # also an array of nothing but 0.0 and 1.0
    if array.min() < 0 or array.max() > 1:
        raise ImageError(f"{name} holds fractions from {array.min()} to {array.max()}: expected 0 to 1.")
    return True


def _to_pil(array: np.ndarray, is_float: bool, name: str) -> Image.Image:
    if is_float:
        array = array * 255
    array = array.astype(np.uint8)
    if array.shape[-1] == 1:
        return Image.fromarray(array[..., 0])
    if array.shape[-1] not in (3, 4):
        raise ImageError(f"{name} has {array.shape[-1]} channels: expected 1, 3 or 4.")
    return Image.fromarray(array)


def _target_size(size: tuple[int, int], wanted: Mapping[str, int]) -> tuple[int, int]:
    """Returns (width, height) to resize to; the long side is truncated, not rounded, as in the reference."""
    if "height" in wanted:
        return wanted["width"], wanted["height"]
    width, height = size
    short = wanted["shortest_edge"]
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short


def _resize_window(
    image: Image.Image, target: tuple[int, int], crop: tuple[int, int], filter_: Image.Resampling
) -> Image.Image:
    """Resizes only the part that the centre crop keeps, for pictures of extreme shapes.

    Pillow resamples the axes one after the other, so a window of the result needs only a window of the source. It
    takes the window in float32, so the source is cut down first, which keeps the numbers small. On photographs of
    seven shapes five came out equal to the middle of the whole and two within 2 of 255: Pillow chooses the order of
    the axes by the size of what it is given.
    """
    cut, box, size = [], [], []
    for side, wanted, kept in zip(image.size, target, crop, strict=True):
        length = min(kept, wanted)
        start = (wanted - length) // 2
        scale = side / wanted
        margin = math.ceil(4 * max(scale, 1.0))  # no filter reaches further than three source pixels at scale 1
        first = max(0, math.floor(start * scale) - margin)
        last = min(side, math.ceil((start + length) * scale) + margin)
        cut.append((first, last))
        box.append((start * scale - first, (start + length) * scale - first))
        size.append(length)
    window = image.crop((cut[0][0], cut[1][0], cut[0][1], cut[1][1]))
    return window.resize((size[0], size[1]), resample=filter_, box=(box[0][0], box[1][0], box[0][1], box[1][1]))


def _center_crop(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cuts out the middle; a smaller picture is first padded with black, the larger half before it."""
    have_height, have_width = array.shape[:2]
    if have_height < height or have_width < width:
        canvas = np.zeros((max(height, have_height), max(width, have_width), array.shape[2]), array.dtype)
        top = math.ceil((canvas.shape[0] - have_height) / 2)
        left = math.ceil((canvas.shape[1] - have_width) / 2)
        canvas[top : top + have_height, left : left + have_width] = array
        # the reference measures the crop on the original size and shifts it by the padding
        start_y, start_x = (have_height - height) // 2 + top, (have_width - width) // 2 + left
        return canvas[max(0, start_y) : start_y + height, max(0, start_x) : start_x + width]
    start_y, start_x = (have_height - height) // 2, (have_width - width) // 2
    return array[start_y : start_y + height, start_x : start_x + width]
