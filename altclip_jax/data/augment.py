"""Pictures changed a little each time they are seen, for image towers that are trained from scratch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from altclip_jax.data.order import hash_numbers

Range = tuple[float, float]

_CHANCES = ("flip", "grey", "background")
_STRENGTHS = ("brightness", "contrast", "saturation")
_RANGES = ("crop_scale", "crop_ratio", "scale", "stretch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What may change in a picture; all is off by default.

    Every setting draws its own numbers, so that to change one leaves the others as they were.

    Attributes:
        crop_scale: The share of the area that a random crop keeps, such as (0.5, 1); None: no crop.
        crop_ratio: The width over the height of that crop, within the picture scaled to a square.
        shift: How far the picture moves at most, as a share of its width and height.
        scale: By what it grows, such as (0.9, 1.1).
        stretch: By what it grows in width only.
        rotation: How far it turns at most, in degrees.
        flip: How likely it is mirrored, left to right.
        brightness: By what share it becomes brighter or darker at most; contrast and saturation likewise.
        grey: How likely it loses its colours.
        background: How likely a random colour shows behind the transparent parts of a picture that has some.

    Raises:
        ValueError: settings out of range; all are named.
    """

    crop_scale: Range | None = None
    crop_ratio: Range = (3 / 4, 4 / 3)
    shift: float = 0.0
    scale: Range = (1.0, 1.0)
    stretch: Range = (1.0, 1.0)
    rotation: float = 0.0
    flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    grey: float = 0.0
    background: float = 0.0

    def __post_init__(self) -> None:
        problems = [
            *(f"{name} must be from 0 to 1" for name in _CHANCES if not _within(getattr(self, name), 0, 1)),
            *(f"{name} must be from 0 to 1" for name in _STRENGTHS if not _within(getattr(self, name), 0, 1)),
            *(["shift must be from 0 to 1"] if not _within(self.shift, 0, 1) else []),
            *(["rotation must be from 0 to 180"] if not _within(self.rotation, 0, 180) else []),
        ]
        for name in _RANGES:
            value = getattr(self, name)
            if value is None and name == "crop_scale":
                continue
            high = 1.0 if name == "crop_scale" else 100.0
            if not _is_range(value, high):
                problems.append(f"{name} must be two numbers above 0 and at most {high:g}, the lower first")
            else:
                object.__setattr__(self, name, tuple(map(float, value)))
        if problems:
            given = ", ".join(f"{name}={getattr(self, name)!r}" for name in {p.split()[0]: None for p in problems})
            raise ValueError(f"{'; '.join(problems)} (got {given}).")

    @property
    def is_off(self) -> bool:
        """Whether a picture comes out as it went in."""
        return self == dataclasses.replace(type(self)(), crop_ratio=self.crop_ratio)

    def __call__(
        self,
        image: Image.Image,
        generator: np.random.Generator,
        size: tuple[int, int],
        background: tuple[int, int, int] | None = None,
    ) -> Image.Image:
        """Returns a changed RGB picture.

        Args:
            image: In any mode.
            generator: Where chance comes from; see `generator_for`.
            size: Width and height of the result if `crop_scale` is set; else it keeps its own.
            background: The colour behind transparent parts, where no random one is drawn; None: as Pillow converts.
        """
        draw = iter(generator.random(32).tolist())
        random_colour = tuple(int(256 * next(draw)) for _ in range(3))
        behind = random_colour if next(draw) < self.background else background
        picture = _flatten(image, behind)
        fill = behind if image.has_transparency_data and behind is not None else _corner_colour(picture)
        picture = self._warp(picture, draw, fill)
        picture = self._crop(picture, draw, size)
        if next(draw) < self.flip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return self._colour(picture, draw)

    def _warp(self, image: Image.Image, draw: Any, fill: tuple[int, ...]) -> Image.Image:
        right, down = ((2 * next(draw) - 1) * self.shift for _ in range(2))
        grown, stretched = _between(self.scale, next(draw)), _between(self.stretch, next(draw))
        angle = math.radians((2 * next(draw) - 1) * self.rotation)
        if (right, down, grown, stretched, angle) == (0, 0, 1, 1, 0):
            return image
        width, height = image.size
        cos, sin = math.cos(angle), math.sin(angle)
        # Pillow asks where in the picture each pixel of the result comes from: the way back, about the middle
        matrix = (cos / (grown * stretched), sin / (grown * stretched), -sin / grown, cos / grown)
        x, y = width / 2 * (1 + 2 * right), height / 2 * (1 + 2 * down)
        back = (
            *(matrix[0], matrix[1], width / 2 - matrix[0] * x - matrix[1] * y),
            *(matrix[2], matrix[3], height / 2 - matrix[2] * x - matrix[3] * y),
        )
        return image.transform(
            image.size, Image.Transform.AFFINE, back, resample=Image.Resampling.BICUBIC, fillcolor=fill
        )

    def _crop(self, image: Image.Image, draw: Any, size: tuple[int, int]) -> Image.Image:
        area, shape, left, top = (next(draw) for _ in range(4))
        if self.crop_scale is None:
            return image
        low, high = map(math.log, self.crop_ratio)
        ratio = math.exp(low + shape * (high - low))
        kept = _between(self.crop_scale, area)
        across, along = min(1.0, math.sqrt(kept * ratio)), min(1.0, math.sqrt(kept / ratio))
        width, height = image.size
        box_width, box_height = max(1.0, across * width), max(1.0, along * height)
        x, y = left * (width - box_width), top * (height - box_height)
        return image.resize(size, Image.Resampling.BICUBIC, box=(x, y, x + box_width, y + box_height))

    def _colour(self, image: Image.Image, draw: Any) -> Image.Image:
        changes = (
            (ImageEnhance.Brightness, self.brightness),
            (ImageEnhance.Contrast, self.contrast),
            (ImageEnhance.Color, self.saturation),
        )
        for change, strength in changes:
            factor = 1 + (2 * next(draw) - 1) * strength
            if strength:
                image = change(image).enhance(factor)
        return image.convert("L").convert("RGB") if next(draw) < self.grey else image


def generator_for(seed: int, *numbers: int) -> np.random.Generator:
    """Returns the source of chance that belongs to these numbers, the same on every machine."""
    key = np.array([hash_numbers(seed, *numbers, 0), hash_numbers(seed, *numbers, 1)], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def _flatten(image: Image.Image, behind: tuple[int, ...] | None) -> Image.Image:
    if image.mode == "La":  # the one mode that Pillow converts only in two steps
        image = image.convert("LA")
    if behind is None or not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    under = Image.new("RGBA", image.size, (*behind, 255))
    return Image.alpha_composite(under, image.convert("RGBA")).convert("RGB")


def _corner_colour(image: Image.Image) -> tuple[int, ...]:
    """The mean of the corners: what a picture on a plain background goes on with."""
    pixels = np.asarray(image)[[0, 0, -1, -1], [0, -1, 0, -1]]
    return tuple(int(level) for level in pixels.mean(axis=0))


def _between(limits: Range, draw: float) -> float:
    return limits[0] + draw * (limits[1] - limits[0])


def _within(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _is_range(value: Any, high: float) -> bool:
    numbers = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    return len(numbers) == 2 and all(_within(number, 1e-9, high) for number in numbers) and numbers[0] <= numbers[1]
