"""The geometry of a picture: how large it becomes, the middle of it, and the middle of an extreme enlargement."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def with_channels(image: Image.Image) -> UInt8[np.ndarray, "height width channels"]:
    """Returns the pixels of an image, grey ones too, with an axis of channels."""
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def target_size(size: tuple[int, int], wanted: Mapping[str, int]) -> tuple[int, int]:
    """Returns (width, height) to resize to; the long side is truncated, not rounded, as in the reference."""
    if "height" in wanted:
        return wanted["width"], wanted["height"]
    width, height = size
    short = wanted["shortest_edge"]
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short


def center_crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cuts out the middle; a smaller picture gets black around it, the larger half above and on the left."""
    have_height, have_width = pixels.shape[:2]
    if have_height < height or have_width < width:
        top, left = max(0, height - have_height + 1) // 2, max(0, width - have_width + 1) // 2
        canvas = np.zeros((max(height, have_height), max(width, have_width), pixels.shape[2]), pixels.dtype)
        canvas[top : top + have_height, left : left + have_width] = pixels
        pixels = canvas
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def enlarge_window(
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
    needed = with_channels(image.crop((left, top, int(columns.max()) + 1, int(rows.max()) + 1)))
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
