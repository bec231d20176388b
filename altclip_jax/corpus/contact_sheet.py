"""The pictures of hits on one sheet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from altclip_jax.data.samples import Picture, SampleError
from altclip_jax.data.webdataset import IMAGE, Shards
from altclip_jax.processing.image_files import ImageError, load_picture

_SIDE, _GAP, _LINE, _COLUMNS = 160, 12, 18, 5
_MOST = 178_956_970
_PAPER, _INK, _FRAME = (255, 255, 255), (40, 40, 40), (215, 215, 215)


class Row(NamedTuple):
    """A query, if it is a picture, and its hits with what is written below each."""

    query: Picture | None
    hits: Sequence[tuple[Picture, str]]


def picture_of(name: str) -> Picture:
    """Returns the picture that a row's id names: a file, or SHARD.tar/KEY."""
    path = Path(name)
    if path.is_file():
        return Picture(name, path.read_bytes, path)
    shard = next((parent for parent in path.parents if parent.suffix.lower() == ".tar" and parent.is_file()), None)
    return Picture(name, path.read_bytes if shard is None else partial(_member, shard, name))


def contact_sheet(rows: Sequence[Row]) -> tuple[bytes, list[str]]:
    """Returns a PNG with lines of pictures for each query, and the names of those that cannot be read: crosses."""
    height = _SIDE + _LINE + _GAP
    lines: list[list[tuple[Picture, str] | None]] = []
    missing: list[str] = []
    for row in rows:
        for start in range(0, max(len(row.hits), 1), _COLUMNS):
            first = (row.query, "query") if row.query is not None and start == 0 else None
            lines.append([first, *row.hits[start : start + _COLUMNS]])
    indent = 0 if any(row.query is not None for row in rows) else 1
    columns = _COLUMNS + 1 - indent
    sheet = Image.new("RGB", (columns * (_SIDE + _GAP) + _GAP, len(lines) * height + _GAP), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, line in enumerate(lines):
        for column, shown in enumerate(line[indent:]):
            if shown is None:
                continue
            left, top = _GAP + column * (_SIDE + _GAP), _GAP + number * height
            draw.rectangle((left - 1, top - 1, left + _SIDE, top + _SIDE), outline=_FRAME)
            image = _small(shown[0])
            if image is None:
                missing.append(shown[0].name)
                draw.line((left, top, left + _SIDE, top + _SIDE), fill=_FRAME)
                draw.line((left, top + _SIDE, left + _SIDE, top), fill=_FRAME)
            else:
                sheet.paste(image, (left + (_SIDE - image.width) // 2, top + (_SIDE - image.height) // 2))
            draw.text((left, top + _SIDE + 2), shown[1], fill=_INK, font=font)
    file = io.BytesIO()
    sheet.save(file, "png")
    return file.getvalue(), missing


def _small(picture: Picture) -> Image.Image | None:
    try:
        image = load_picture(picture.read(), picture.name, max_pixels=_MOST, background=_PAPER, upright=True)
    except (ImageError, SampleError, OSError):
        return None
    assert isinstance(image, Image.Image)
    factor = _SIDE / max(image.size)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(size, Image.Resampling.LANCZOS)


def _member(shard: Path, name: str) -> bytes:
    shards = Shards([shard], {})
    index = next((index for index in range(len(shards)) if shards.name(index) == name), None)
    if index is None or not shards.has(index, IMAGE):
        raise SampleError(name, "it is not in its shard any more")
    return shards.read(index, IMAGE)
