"""Write an image-text data set: pictures with JSONL or in tar shards, parallel text, licences."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from altclip_jax.files.json_file import write_bytes
from scripts.emoji.designs import Design
from scripts.emoji.packages import Concept

Captions = Mapping[str, Mapping[str, Sequence[str]]]  # concept -> language -> name, keywords

LONGEST_SHARD = 1_200_000  # bytes

_MIT = """\
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
_WHERE = {
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "MIT": "the text is below",
}


def encode(picture: Image.Image) -> bytes:
    """Returns a picture as lossless WebP with its transparency; pixels that cannot be seen lose their colour."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=True, quality=100, method=4)  # 6: 2% smaller in nineteen times the time
    return buffer.getvalue()


def write_records(
    folder: Path, name: str, concepts: Iterable[Concept], captions: Captions, images: dict[str, list[str]]
) -> int:
    """Writes NAME.jsonl, a line for each concept that has images; returns how many."""
    lines = [
        _json({"image": images[concept.code], **_fields(concept, captions), "subcategory": concept.subcategory})
        for concept in concepts
        if images.get(concept.code)
    ]
    write_bytes(folder / f"{name}.jsonl", "".join(line + "\n" for line in lines).encode())
    return len(lines)


def write_shards(
    folder: Path, name: str, concepts: Iterable[Concept], captions: Captions, pictures: dict[str, bytes]
) -> int:
    """Writes NAME-00000.tar and so on, a sample for each concept that has a picture; returns how many."""
    samples = [
        (concept.code, pictures[concept.code], _json(_fields(concept, captions)).encode())
        for concept in concepts
        if concept.code in pictures
    ]
    for number, shard in enumerate(_shards(samples)):
        write_bytes(folder / f"{name}-{number:05d}.tar", shard)
    return len(samples)


def write_pairs(path: Path, pairs: Iterable[tuple[str, str, str]]) -> int:
    """Writes a table of source, target and language, without repetitions; returns how many rows."""
    rows = list(dict.fromkeys(pairs))
    broken = [row for row in rows if any(mark in field for field in row for mark in "\t\n\r")]
    if broken:
        raise ValueError(f"{broken[:3]} cannot stand in a table: expected texts without tabs and line breaks.")
    lines = "".join("\t".join(row) + "\n" for row in [("source", "target", "language"), *rows])
    write_bytes(path, lines.encode())
    return len(rows)


def write_notice(path: Path, designs: dict[str, Design], size: int, unicode_licence: str) -> None:
    """Writes whom the data are owed to and under which licences."""
    lines = [
        "The pictures and texts in this folder are the work of others.",
        f"Changes: pictures were drawn or scaled to {size} x {size} pixels and stored as lossless WebP.",
        "",
    ]
    for name, design in designs.items():
        lines += [
            f"{name}: {design.credit}",
            f"  Licence: {design.licence} ({_WHERE[design.licence]})",
            f"  From: {design.link}, by way of the npm package {design.package}",
        ]
    lines += [
        "texts: Unicode CLDR 48 short names and keywords, Copyright Unicode, Inc.",
        "  Licence: Unicode-3.0 (below)",
    ]
    if any(design.licence == "MIT" for design in designs.values()):
        lines += ["", "-- MIT License --", "", _MIT.rstrip()]
    lines += ["", "-- Unicode License v3 --", "", unicode_licence.strip()]
    write_bytes(path, ("\n".join(lines) + "\n").encode())


def _fields(concept: Concept, captions: Captions) -> dict[str, Any]:
    own = captions[concept.code]
    fields = {"captions": own, "concept": concept.code, "category": concept.category}
    if any(len(texts) > 1 for texts in own.values()):  # else the captions are the names
        fields["names"] = {language: texts[0] for language, texts in own.items()}
    return fields


def _json(values: Any) -> str:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def _shards(samples: Sequence[tuple[str, bytes, bytes]]) -> Iterator[bytes]:
    """Yields tar files of about equal size that are the same bytes for the same samples."""
    total = sum(_blocks(picture) + _blocks(text) for _, picture, text in samples)
    limit = total / max(1, -(-total // LONGEST_SHARD))
    done, written = 0, 0
    while done < len(samples):
        buffer = io.BytesIO()
        begun = written
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            while done < len(samples) and written + 1 <= begun + limit:
                code, picture, text = samples[done]
                for ending, data in (("webp", picture), ("json", text)):
                    member = tarfile.TarInfo(f"{code}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                written += _blocks(picture) + _blocks(text)
                done += 1
        yield buffer.getvalue()


def _blocks(data: bytes) -> int:
    return 512 + -(-len(data) // 512) * 512
