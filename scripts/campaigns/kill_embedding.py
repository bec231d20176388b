"""Kill `altclip embed` at random moments, go on, and compare the end with that of a run that nobody touched.

    python -m scripts.campaigns.kill_embedding --kills 20 --output docs/kill_embedding.json

Each run is a process of `altclip embed --resume` on a list of pictures with captions, some of them damaged, in small
parts; it is ended by SIGKILL after a random time, and started again until it is done. Then every file of the store must
equal the undisturbed one's bit for bit, and its rows must be all items that can be read, each once and in order. With
--processes the parts are shared by several, of which one is killed at a time. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from altclip_jax.assets import PICTURES

DAMAGED = 97  # each item whose number this divides


def main() -> int:
    """Run the campaign and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--items", type=int, default=6000, help="of the corpus")
    parser.add_argument("--part-items", type=int, default=50)
    parser.add_argument("--processes", type=int, default=1, help="that share the parts")
    parser.add_argument("--output", type=Path, help="also write the result as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = Campaign(Path(scratch), options).run()
    print(json.dumps(result, indent=2))
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 1 if result["differences"] else 0


class Campaign:
    """Runs in one folder."""

    def __init__(self, folder: Path, options: argparse.Namespace):
        self.folder, self.options = folder, options
        pictures = sorted(PICTURES.glob("*.png"))
        with (folder / "list.jsonl").open("w", encoding="utf-8") as file:
            for number in range(options.items):
                image = "missing.png" if number % DAMAGED == 0 else str(pictures[number % len(pictures)])
                file.write(json.dumps({"image": image, "caption": f"number {number} 第{number}"}) + "\n")

    def run(self) -> dict[str, Any]:
        """Return how often a run was killed, where, and what differed."""
        start = time.perf_counter()
        self.finish("undisturbed")
        seconds = time.perf_counter() - start
        expected = contents(self.folder / "undisturbed")
        differences = self.wrong_rows(self.folder / "undisturbed")
        moments, killed_at, runs = random.Random(self.options.seed), [], 0
        while len(killed_at) < self.options.kills:
            runs += 1
            name = f"killed_{runs}"
            while len(killed_at) < self.options.kills:
                processes = self.start(name)
                victim = moments.choice(processes)
                try:
                    victim.wait(timeout=moments.uniform(0, 0.9 * seconds))
                except subprocess.TimeoutExpired:
                    victim.kill()
                    self.wait(process for process in processes if process is not victim)
                    victim.wait()
                    killed_at.append(len(list((self.folder / name).glob("part-*.json"))))
                    print(f"kill {len(killed_at)} of {self.options.kills}: {killed_at[-1]} parts are there", flush=True)
                else:
                    self.wait(processes)
                    break
            self.finish(name)
            found = contents(self.folder / name)
            differences += [
                f"{name}: {file}" for file in expected.keys() | found.keys() if not same(expected, found, file)
            ]
            differences += self.wrong_rows(self.folder / name)
            shutil.rmtree(self.folder / name)
        return {
            "kills": len(killed_at),
            "runs": runs,
            "processes": self.options.processes,
            "items": self.options.items,
            "parts": -(-self.options.items // self.options.part_items),
            "seconds_undisturbed": round(seconds, 1),
            "parts_there_after_kill": killed_at,
            "files_compared": len(expected),
            "differences": differences,
        }

    def start(self, name: str) -> list[subprocess.Popen[bytes]]:
        """Start the processes of a run, or go on with it."""
        command = [sys.executable, "-m", "altclip_jax", "embed", "list.jsonl", "--output", name, "--resume"]
        command += ["--part-items", str(self.options.part_items), "--batch-size", "8", "--tokens", "256"]
        count = self.options.processes
        own = [["--processes", str(count), "--process", str(number)] if count > 1 else [] for number in range(count)]
        environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        with (self.folder / "stderr").open("ab") as errors:
            return [
                subprocess.Popen(
                    [*command, *more], cwd=self.folder, env=environment, stdout=subprocess.DEVNULL, stderr=errors
                )
                for more in own
            ]

    def finish(self, name: str) -> None:
        """Let a run go on to its end."""
        self.wait(self.start(name))

    def wait(self, processes: Any) -> None:
        """Wait for processes that nobody kills."""
        if sum(process.wait() != 0 for process in processes):
            raise SystemExit(f"a run failed by itself: {(self.folder / 'stderr').read_text()}")

    def wrong_rows(self, store: Path) -> list[str]:
        """Return what is wrong with the rows of a store: not all items that can be read, once and in order."""
        good = [number for number in range(self.options.items) if number % DAMAGED]
        wanted = {"images": good, "texts": list(range(self.options.items))}
        wrong = []
        for kind, numbers in wanted.items():
            lists = [path.read_text(encoding="utf-8") for path in sorted(store.glob(f"part-*.{kind}.jsonl"))]
            found = [json.loads(line)["item"] for lines in lists for line in lines.splitlines()]
            rows = sum(len(np.load(path)) for path in store.glob(f"part-*.{kind}.npy"))
            wrong += [] if found == numbers and rows == len(numbers) else [f"{store.name}: {kind} rows"]
        return wrong


def contents(store: Path) -> dict[str, bytes]:
    """Return every file of a store by its name."""
    return {path.name: path.read_bytes() for path in store.iterdir()}


def same(expected: dict[str, bytes], found: dict[str, bytes], file: str) -> bool:
    """Tell whether both have a file, with the same content."""
    return file in expected and file in found and expected[file] == found[file]


if __name__ == "__main__":
    sys.exit(main())
