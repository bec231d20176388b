"""Write the pictures of an emoji shard in the layouts that evaluations read.

    python -m scripts.emoji.layouts recipes/emoji/data/eval_held_out-twemoji-*.tar --output build/emoji
    altclip evaluate zero-shot build/emoji/categories --classes build/emoji/categories.json
    altclip evaluate paper --data build/emoji

categories/ has a folder for each CLDR category, which categories.json names in eleven languages; what is in no category
is left out. flickr30k/ is laid out as Flickr30k and Flickr30k-CN are, with the names as captions.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

CATEGORIES = Path(__file__).parents[2] / "recipes" / "emoji" / "data" / "categories.json"


def main() -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", nargs="+", type=Path, metavar="TAR")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER")
    options = parser.parse_args()
    samples = list(read(options.shards))
    write_categories(samples, options.output)
    write_flickr30k(samples, options.output / "flickr30k")
    print(f"{options.output}: {len(samples)} pictures")


def read(shards: Sequence[Path]) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """Yields (code points, picture, its JSON)."""
    for shard in shards:
        with tarfile.open(shard) as tar:
            files = {Path(member.name): tar.extractfile(member) for member in tar if member.isfile()}
            data = {path: file.read() for path, file in files.items() if file is not None}
        for path in data:
            if path.suffix == ".webp":
                yield path.stem, data[path], json.loads(data[path.with_suffix(".json")])


def write_categories(samples: Sequence[tuple[str, bytes, dict[str, Any]]], folder: Path) -> None:
    """Writes an image folder, and the names of its classes."""
    categories = json.loads(CATEGORIES.read_text(encoding="utf-8"))
    category_of = {concept: name for name, entry in categories.items() for concept in entry["concepts"]}
    for code, picture, _ in samples:
        if code in category_of:
            place = folder / "categories" / category_of[code]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{code}.webp").write_bytes(picture)
    names = {name: entry["labels"] for name, entry in categories.items()}
    (folder / "categories.json").write_text(json.dumps(names, ensure_ascii=False, indent=1), encoding="utf-8")


def write_flickr30k(samples: Sequence[tuple[str, bytes, dict[str, Any]]], folder: Path) -> None:
    """Writes pictures, dataset_flickr30k.json and flickr30k_cn_test.txt."""
    (folder / "flickr30k-images").mkdir(parents=True, exist_ok=True)
    images, chinese = [], []
    for place, (_, picture, values) in enumerate(samples):
        flat = Image.open(io.BytesIO(picture)).convert("RGBA")
        white = Image.new("RGBA", flat.size, "white")
        Image.alpha_composite(white, flat).convert("RGB").save(folder / "flickr30k-images" / f"{place}.jpg", quality=95)
        sentences = [{"raw": name} for name in values["captions"]["en"]]
        images.append({"filename": f"{place}.jpg", "imgid": place, "split": "test", "sentences": sentences})
        chinese += [f"{place}.jpg#zhm#{number} {name}" for number, name in enumerate(values["captions"]["zh"])]
    karpathy = {"images": images, "dataset": "flickr30k"}
    (folder / "dataset_flickr30k.json").write_text(json.dumps(karpathy, ensure_ascii=False), encoding="utf-8")
    (folder / "flickr30k_cn_test.txt").write_text("\n".join([*chinese, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
