"""Measure weights in 8 and 4 bits, and write the tables of docs/quantization.md.

    python -m scripts.benchmark.quantization --data build/emoji
    python -m scripts.benchmark.quantization --data build/emoji --full FOLDER

Three parts, each kept in docs/quantization.json until it is measured again: our codes against those of torchao, where
it is installed; the embedded model, on the pictures and names of scripts/emoji/dataset.py; and with --full a checkpoint
of the full size, such as scripts/parity/check.py makes, in a process for each way of loading it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from altclip_jax import AltCLIP, checkpoints
from altclip_jax.assets import default_checkpoint
from altclip_jax.evaluation.retrieval import recall
from altclip_jax.evaluation.zero_shot import classify
from altclip_jax.files.json_file import read_json_object, write_bytes, write_json
from altclip_jax.quantization.rules import quantization_rules
from altclip_jax.sweep import embed_texts
from altclip_jax.weights.convert import flatten
from scripts.benchmark.quantization_codes import compare_codes, is_installed
from scripts.emoji.measuring import TestSet, on_white
from scripts.emoji.report import LANGUAGES

ROOT = Path(__file__).parents[2]
JSON, PAGE = ROOT / "docs" / "quantization.json", ROOT / "docs" / "quantization.md"
# how the weights are written; they are loaded, and computed with, in the same dtype
WAYS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantize": "int8", "dtype": "float32"},
    "int4": {"quantize": "int4", "dtype": "float32"},
    "int4, bfloat16": {"quantize": "int4", "dtype": "bfloat16"},
}
SMALL = {**WAYS, "int4, groups of 32": {"quantize": quantization_rules("int4", 32), "dtype": "float32"}}
_MARK = "<!-- measured by scripts/benchmark/quantization.py -->"


def main() -> None:
    """Measure what was asked for, write the JSON file and the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="of scripts/emoji/dataset.py: measure the embedded model on it")
    parser.add_argument("--full", type=Path, help="a folder with a checkpoint of the full size")
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "tests/data/xlmr", help="of --full")
    parser.add_argument("--only", nargs="+", default=list(WAYS), help="of --full: these ways; float32 is always one")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the tables")
    options = parser.parse_args()
    result = read_json_object(JSON) if JSON.exists() else {}
    if "int4_codes" not in result or (is_installed() and not options.tables):
        result |= compare_codes()
    if options.data:
        result["embedded"] = embedded(options.data)
    if options.full:
        result["full"] = result.get("full", {}) | full_size(options.full, options.tokenizer, {"float32", *options.only})
    write_json(JSON, result)
    text = PAGE.read_text(encoding="utf-8")
    kept = text.split(_MARK)[0].rstrip()
    write_bytes(PAGE, f"{kept}\n\n{_MARK}\n\n{tables(result)}\n".encode())


def embedded(data: Path) -> dict[str, Any]:
    """Return bytes, cosines to float32 and accuracies of the embedded model, by the way it is stored."""
    test = TestSet(data)
    found: dict[str, Any] = {}
    floats: dict[str, np.ndarray] = {}
    for name, how in SMALL.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            checkpoints.convert(default_checkpoint(), folder, **how)
            clip = AltCLIP.from_pretrained(folder, dtype=how["dtype"], param_dtype=how["dtype"])
            rows = embeddings(clip, test)
            floats = floats or rows
            found[name] = {
                "on_disk": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
                "resident": sum(leaf.nbytes for leaf in flatten(clip.params).values()),
                "cosine": {kind: cosine(rows, floats, kind) for kind in ("images", "texts")},
                **accuracies(rows, test),
            }
    return found


def embeddings(clip: AltCLIP, test: TestSet) -> dict[str, np.ndarray]:
    """Return the rows of all pictures, and by language of all names and categories."""
    pictures = [on_white(path) for path in test.pictures([*test.seen, *test.held])]
    rows = {"images": clip.encode_images(pictures)}
    for language in LANGUAGES:
        labels = [category["labels"][language] for category in test.categories.values()]
        rows[f"texts {language}"] = embed_texts(clip, test.names(language))
        rows[f"labels {language}"] = embed_texts(clip, labels)
    return rows


def cosine(rows: dict[str, np.ndarray], floats: dict[str, np.ndarray], kind: str) -> dict[str, float]:
    """Return the mean and the smallest cosine of rows with those of float32."""
    names = [name for name in rows if name.split()[0] == kind]
    cosines = np.concatenate([np.sum(rows[name] * floats[name], axis=1) for name in names])
    return {"mean": float(cosines.mean()), "smallest": float(cosines.min())}


def accuracies(rows: dict[str, np.ndarray], test: TestSet) -> dict[str, float]:
    """Return zero-shot and retrieval accuracies, the means over languages."""
    seen, own = len(test.seen), np.arange(len(test.seen))
    images = rows["images"]
    places, right = test.category_pictures()
    found: dict[str, list[float]] = {"categories": [], "named": [], "text_to_image": []}
    for language in LANGUAGES:
        texts, labels = rows[f"texts {language}"], rows[f"labels {language}"]
        found["categories"].append(classify(images[places], np.array(right), labels, 1.0).top(1))
        found["named"].append(recall(images[:seen], texts, own, (1,))[1])
        found["text_to_image"].append(recall(texts[:seen], images[:seen], own, (1,))[1])
    return {name: float(np.mean(values)) for name, values in found.items()}


def full_size(folder: Path, tokenizer: Path, wanted: set[str]) -> dict[str, Any]:
    """Return memory, bytes, cosines and agreement of a checkpoint of the full size, by the way it is stored."""
    found: dict[str, Any] = {}
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, how in WAYS.items():
            if name not in wanted:
                continue
            print(f"measuring {name}", file=sys.stderr, flush=True)
            loaded = {**how, "param_dtype": how["dtype"]}
            given = {
                "folder": str(folder.resolve()),
                "tokenizer": str(tokenizer.resolve()),
                "how": loaded,
                "rows": f"{temporary}/rows.npz",
            }
            command = [sys.executable, "-m", "scripts.benchmark.quantization_child", json.dumps(given)]
            found[name] = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
            with np.load(given["rows"]) as stored:
                own = dict(stored)
            rows = rows or own
            found[name]["cosine"] = {kind: cosine(own, rows, kind) for kind in ("images", "texts")}
            found[name]["agreeing"] = agreement(own, rows)
    return found


def agreement(own: dict[str, np.ndarray], rows: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return in how many of both directions the best answer is that of float32."""
    ours, theirs = (part["images"] @ part["texts"].T for part in (own, rows))
    same = [(ours.argmax(axis) == theirs.argmax(axis)).tolist() for axis in (0, 1)]
    answers = [answer for direction in same for answer in direction]
    return {"answers": len(answers), "same": sum(answers)}


def tables(result: dict[str, Any]) -> str:
    """Return the report in Markdown."""
    parts = ["## Measured"]
    if "int4_codes" in result:
        parts.append(codes_tables(result))
    if "embedded" in result:
        parts.append(embedded_table(result["embedded"]))
    if "full" in result:
        parts.append(full_table(result["full"]))
    return re.sub(r"\n{3,}", "\n\n", "\n\n".join(parts))


def codes_tables(result: dict[str, Any]) -> str:
    """Return the comparison with torchao."""
    lines = [
        "### Codes, against torchao's quantization primitives",
        "",
        f"torchao {result['torchao']}; the error is the norm of what is lost over that of the matrix.",
        "",
        "| matrix | | equal codes | scales, largest difference | zero points | torchao | min-max | search |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for scheme in ("int8", "int4"):
        for row in result[f"{scheme}_codes"]:
            theirs = row.get("torchao", {})
            cells = [
                row["matrix"],
                row["scheme"],
                f"{theirs['equal_codes']:.3%}" if theirs else "",
                f"{theirs['scales']:.1e}" if theirs else "",
                f"{theirs['zero_points']:.1e}" if "zero_points" in theirs else "",
                f"{theirs['error']:.5f}" if theirs else "",
                f"{row['min_max']:.5f}",
                f"{row['search']:.5f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def embedded_table(found: dict[str, Any]) -> str:
    """Return what the embedded model loses."""
    base = found["float32"]
    lines = [
        "### The embedded model",
        "",
        "Pictures of seen and held-out concepts in the test design, names in eleven languages (means over them).",
        "",
        "| stored | bytes on disk | resident | cosine to float32, images | texts | category, top-1 | name of a picture,"
        " top-1 | picture of a name, top-1 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, own in order(found):
        shares = [f"{own[key]:,} ({own[key] / base[key]:.3f})" for key in ("on_disk", "resident")]
        change = [
            f"{100 * own[key]:.2f} % ({100 * (own[key] - base[key]):+.2f})"
            for key in ("categories", "named", "text_to_image")
        ]
        lines.append("| " + " | ".join([name, *shares, *cosines(own), *change]) + " |")
    return "\n".join(
        [*lines, "", "Cosines are mean / smallest; in brackets the share of, and the points from, float32."]
    )


def full_table(found: dict[str, Any]) -> str:
    """Return what a checkpoint of the full size takes and loses."""
    base = found["float32"]
    lines = [
        "### Full size",
        "",
        f"{base['parameters']:,} parameters, every tensor random, float32 in the file; {base['pictures']} photographs"
        f" and {base['texts']} captions. Each row is a process of its own on {base['cores']} cores.",
        "",
        "| stored | on disk, MB | resident, MB | peak growth while loading, MB | loading, s | temporary, texts /"
        " images, MB | captions / photographs, s | cosine to float32, images | texts | same best answer |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, own in order(found):
        cells = [
            name,
            *(f"{own[key] / 1e6:,.0f} ({own[key] / base[key]:.3f})" for key in ("on_disk", "resident")),
            f"{own['peak_growth'] / 1e6:,.0f}",
            f"{own['loading_s']:.1f}",
            " / ".join(f"{own['temporary'][kind] / 1e6:,.0f}" for kind in ("texts", "images")),
            " / ".join(f"{own['seconds'][kind]:.2f}" for kind in ("texts", "images")),
            *cosines(own),
            f"{own['agreeing']['same']} of {own['agreeing']['answers']}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def order(found: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return what was measured in the order of `SMALL`."""
    return [(name, found[name]) for name in SMALL if name in found]


def cosines(own: dict[str, Any]) -> list[str]:
    """Return the cells of the cosines."""
    return [
        f"{own['cosine'][kind]['mean']:.5f} / {own['cosine'][kind]['smallest']:.5f}" for kind in ("images", "texts")
    ]


if __name__ == "__main__":
    main()
