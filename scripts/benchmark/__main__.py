"""Time this library against transformers 4.56.2: one run, interleaved, the same inputs, ratios beside the numbers.

    python -m scripts.benchmark core --output docs/benchmark_core.json
    python -m scripts.benchmark train --output docs/benchmark_train.json
    python -m scripts.benchmark layers
    python -m scripts.benchmark search --output docs/benchmark_search.json
    python -m scripts.benchmark infer --peer NEWER/bin/python --output docs/benchmark_infer.json

A ratio above 1 says that this library is faster, or takes less, by that factor. "layers" compares two ways of this
library: the loop over layers that it has, and a scan over them; above 1 the loop takes less. "infer" has each side in a
process of its own: this library, the transformers of this environment (eager), and those of other environments, made
for example by `python -m venv NEWER; NEWER/bin/pip install torch==2.13.0 transformers pillow protobuf sentencepiece`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from scripts.benchmark import core, infer, layers, search, train


def main() -> None:
    """Run a benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what",
        choices=["core", "train", "layers", "infer", "search"],
        help="core: towers, preprocessing, loading; train: a contrastive step; layers: a loop against a scan; infer:"
        " both towers end to end, against old and new transformers; search: an index against faiss",
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64, help="rows of a training step")
    parser.add_argument("--rows", type=int, default=1_000_000, help="search: of 768 numbers")
    parser.add_argument("--exact", action="store_true", help="search: no approximate index, which takes long to make")
    parser.add_argument("--tokenizer", type=Path, default=Path("tests/data/xlmr"))
    parser.add_argument("--peer", action="append", default=[], metavar="PYTHON", help="infer: with newer transformers")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="infer: of all sides")
    parser.add_argument("--numbers", nargs="+", default=["float32", "bfloat16"], help="infer: float32, tf32, bfloat16")
    parser.add_argument("--without-eager", action="store_true", help="infer: only the peers")
    parser.add_argument("--tiny", action="store_true", help="infer: a model of no size, to try the benchmark out")
    parser.add_argument("--output", type=Path, help="also write JSON here")
    options = parser.parse_args()
    if options.what == "search":
        report = search.run(options.repeats, options.rows, 768, approximate=not options.exact)
        write(options.output, report)
        return
    if options.what == "infer":
        peers = [] if options.without_eager else [(sys.executable, "eager")]
        peers += [(python, "sdpa") for python in options.peer]
        write(
            options.output,
            infer.run(options.repeats, options.tokenizer, peers, options.device, options.numbers, tiny=options.tiny),
        )
        return
    if options.what == "core":
        rows = core.rows(options.repeats, options.tokenizer)
    elif options.what == "train":
        rows = train.rows(options.repeats, options.batch)
    else:
        rows = layers.rows(options.repeats)
    left, right = ("loop", "scan") if options.what == "layers" else ("ours", "transformers")
    print(f"{'':78} {left:>10} {right:>12}")
    for line in rows:
        numbers = f"{line[left]:10.3f} {line[right]:12.3f} {line['unit']:3} ratio {line['ratio']:6.2f}"
        print(f"{line['name']:78} {numbers}")
    write(options.output, {"rows": rows})


def write(output: Path | None, report: dict[str, Any]) -> None:
    """Write a report and what it was measured on, if anywhere."""
    if output is not None:
        hardware = f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}"
        report = {"hardware": hardware, "python": platform.python_version(), **report}
        output.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
