"""Time this library against transformers 4.56.2: one run, interleaved, the same inputs, ratios beside the numbers.

    python scripts/benchmark.py core --output docs/benchmark_core.json
    python scripts/benchmark.py train --output docs/benchmark_train.json
    python scripts/benchmark.py layers

A ratio above 1 says that this library is faster, or takes less, by that factor. "layers" compares two ways of this
library: the loop over layers that it has, and a scan over them; above 1 the loop takes less.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path

import benchmark_core
import benchmark_layers
import benchmark_train


def main() -> None:
    """Run a benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what",
        choices=["core", "train", "layers"],
        help="core: towers, preprocessing, loading; train: a contrastive step; layers: a loop against a scan",
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64, help="rows of a training step")
    parser.add_argument("--tokenizer", type=Path, default=Path("tests/data/xlmr"))
    parser.add_argument("--output", type=Path, help="also write JSON here")
    options = parser.parse_args()
    if options.what == "core":
        rows = benchmark_core.rows(options.repeats, options.tokenizer)
    elif options.what == "train":
        rows = benchmark_train.rows(options.repeats, options.batch)
    else:
        rows = benchmark_layers.rows(options.repeats)
    left, right = ("loop", "scan") if options.what == "layers" else ("ours", "transformers")
    print(f"{'':78} {left:>10} {right:>12}")
    for line in rows:
        numbers = f"{line[left]:10.3f} {line[right]:12.3f} {line['unit']:3} ratio {line['ratio']:6.2f}"
        print(f"{line['name']:78} {numbers}")
    if options.output:
        report = {
            "hardware": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
            "python": platform.python_version(),
            "rows": rows,
        }
        options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
