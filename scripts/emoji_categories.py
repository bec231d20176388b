"""Sort the pictures of an emoji shard into a folder for each CLDR category, with names to classify them by.

    python scripts/emoji_categories.py recipes/emoji/data/eval_held_out-twemoji-*.tar --output build/emoji_categories
    altclip evaluate zero-shot build/emoji_categories/pictures --classes build/emoji_categories/classes.json

What is in no category is left out.
"""

from __future__ import annotations

import argparse
import json
import tarfile
from pathlib import Path

CATEGORIES = Path(__file__).parents[1] / "recipes" / "emoji" / "data" / "categories.json"


def main() -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", nargs="+", type=Path, metavar="TAR")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER")
    options = parser.parse_args()
    categories = json.loads(CATEGORIES.read_text(encoding="utf-8"))
    category_of = {concept: name for name, entry in categories.items() for concept in entry["concepts"]}
    count = 0
    for shard in options.shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                file = Path(member.name)
                data = tar.extractfile(member)
                if file.suffix == ".json" or data is None or file.stem not in category_of:
                    continue
                folder = options.output / "pictures" / category_of[file.stem]
                folder.mkdir(parents=True, exist_ok=True)
                (folder / file.name).write_bytes(data.read())
                count += 1
    names = {name: entry["labels"] for name, entry in categories.items()}
    (options.output / "classes.json").write_text(json.dumps(names, ensure_ascii=False, indent=1), encoding="utf-8")
    print(f"{options.output}: {count} pictures of {len(categories)} categories")


if __name__ == "__main__":
    main()
