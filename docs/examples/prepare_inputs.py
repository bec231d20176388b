"""Texts to ids and pictures to arrays, as the files beside exported programs say."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from tokenizers import Tokenizer

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


class InputError(ValueError):
    """A text or picture that cannot be used; the message says why."""


def parse_json(data: str | bytes) -> Any:
    """Returns what JSON says.

    Raises:
        ValueError: it is none, or nested too deep for Python.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("its brackets are nested too deep") from None


class TextPreparer:
    """Texts to rows of ids; may be shared between threads."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        """Opens the tokenizer; `settings` is what the manifest says under "texts"."""
        if settings["tokenizer"] is None:
            raise InputError(
                f"{folder} has no tokenizer.json, since the model had none, and no texts can be given: give ids to"
                " `run`, or export again with a tokenizer.json beside the model's own vocabulary."
            )
        self._settings = settings
        self._tokenizer = Tokenizer.from_file(str(folder / settings["tokenizer"]))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def ids(self, text: str) -> list[int]:
        """Returns the ids of a text, cut to what the model takes."""
        if not isinstance(text, str):
            raise InputError(f"A text is a string, got {type(text).__name__}.")
        settings = self._settings
        own = self._tokenizer.encode(text, add_special_tokens=False).ids
        room = settings["max_length"] - len(settings["prefix"]) - len(settings["suffix"])
        kept = own[:room] if settings["truncation_side"] == "right" else own[max(len(own) - room, 0) :]
        return [*settings["prefix"], *kept, *settings["suffix"]]

    def batch(self, rows: list[list[int]], count: int, length: int) -> dict[str, np.ndarray]:
        """Returns ids and mask (count, length); rows beyond the last repeat it."""
        ids = np.full((count, length), self._settings["padding"], np.int32)
        mask = np.zeros((count, length), np.int32)
        right = self._settings["padding_side"] == "right"
        for place in range(count):
            row = rows[min(place, len(rows) - 1)]
            where = slice(0, len(row)) if right else slice(length - len(row), length)
            ids[place, where], mask[place, where] = row, 1
        return {"input_ids": ids, "attention_mask": mask}


class PicturePreparer:
    """Pictures to arrays, resized, cropped and, for programs that take float32, normalised."""

    def __init__(self, folder: Path, as_bytes: bool, most_pixels: int):
        """Reads preprocessor_config.json; `as_bytes` leaves rescaling and normalising to the program.

        Raises:
            InputError: it is not JSON.
        """
        path = folder / "preprocessor_config.json"
        try:
            self._settings = parse_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is not valid JSON ({error}).") from None
        self._most_pixels = most_pixels
        self._table = None if as_bytes else _normalized(self._settings)

    def __call__(self, picture: str | os.PathLike[str] | bytes | Image.Image) -> np.ndarray:
        """Returns one picture as uint8 (height, width, 3), or as float32 (3, height, width).

        Raises:
            InputError: it is no picture, or too large.
        """
        pixels = self._crop(np.asarray(self._resize(self._open(picture))))
        if self._table is None:
            return pixels
        return np.stack([np.take(self._table[channel], pixels[..., channel]) for channel in range(3)])

    def _open(self, picture: str | os.PathLike[str] | bytes | Image.Image) -> Image.Image:
        source: Any = io.BytesIO(picture) if isinstance(picture, bytes) else picture
        name = "The picture" if isinstance(picture, (bytes, Image.Image)) else str(picture)
        try:
            image = source if isinstance(source, Image.Image) else Image.open(source)
            self._check_size(image.size, name)
            image.load()
            if self._settings.get("apply_exif_orientation"):
                image = _turned(image)
            under = self._settings.get("background")
            if under is not None and image.has_transparency_data:
                whole = Image.new("RGBA", image.size, (*under, 255))
                image = Image.alpha_composite(whole, image.convert("RGBA"))
            return image.convert("RGB")
        except InputError:
            raise
        except FileNotFoundError:
            raise InputError(f"There is no picture {name}.") from None
        except Exception as error:  # a decoder raises anything on damaged data
            raise InputError(f"{name} is no picture that can be read ({error}).") from None

    def _resize(self, image: Image.Image) -> Image.Image:
        if not self._settings["do_resize"]:
            return image
        size = self._settings["size"]
        if "height" in size:
            target = (size["width"], size["height"])
        else:
            short, width, height = size["shortest_edge"], *image.size
            target = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
        self._check_size(target, f"A picture of {image.width}x{image.height} pixels, resized,")
        return image.resize(target, Image.Resampling(self._settings["resample"]))

    def _crop(self, pixels: np.ndarray) -> np.ndarray:
        if not self._settings["do_center_crop"]:
            return pixels
        height, width = self._settings["crop_size"]["height"], self._settings["crop_size"]["width"]
        missing = [max(0, wanted - have) for wanted, have in zip((height, width), pixels.shape, strict=False)]
        if any(missing):  # black around it, the larger half above and on the left
            around = [((gap + 1) // 2, gap // 2) for gap in missing]
            pixels = np.pad(pixels, [*around, (0, 0)])
        top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
        return pixels[top : top + height, left : left + width]

    def _check_size(self, size: tuple[int, int], name: str) -> None:
        if size[0] * size[1] > self._most_pixels:
            raise InputError(f"{name} has {size[0]}x{size[1]} pixels, more than the {self._most_pixels:,} allowed.")


def _turned(image: Image.Image) -> Image.Image:
    """Returns a picture as its camera was held, or as it is where its EXIF data are damaged."""
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # whatever damaged data lead to
        return image
    return image if turn is None else image.transpose(turn)


def _normalized(settings: Mapping[str, Any]) -> np.ndarray:
    """Returns what each of the 256 values of each channel becomes, (3, 256) float32."""
    values = np.repeat(np.arange(256, dtype=np.float32)[:, None], 3, axis=1)
    if settings["do_rescale"]:
        values = (values.astype(np.float64) * settings["rescale_factor"]).astype(np.float32)
    if settings["do_normalize"]:
        mean, std = (np.array(settings[name], np.float32) for name in ("image_mean", "image_std"))
        values = (values - mean) / std
    return np.ascontiguousarray(values.T)
