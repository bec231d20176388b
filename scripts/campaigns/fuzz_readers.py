"""Damage files by the thousand and see that the readers end in arrays or in a clean error.

Each case damages small, sound files with its own seed, opens them and reads everything. Clean is a
CheckpointError, an ImageError or an OSError. Anything else that is raised, arrays unlike those that the
safetensors library reads, a dead process, too much memory or time is reported with the command that repeats
it, and the exit status is 1.

    python -m scripts.campaigns.fuzz_readers --count 10000 --targets safetensors,bin,index
"""

import argparse
import collections
import dataclasses
import io
import json
import multiprocessing
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from altclip_jax.weights.readers import open_checkpoint
from scripts.campaigns import fuzz_mutations as mutations

SAMPLES = Path(__file__).parents[2] / "tests" / "data" / "checkpoint_files"
SECONDS_PER_CASE = 20
CLEAN_ERRORS = {"CheckpointError", "ImageError"}
Files = dict[str, bytes]  # name -> content
Found = dict[str, tuple[Any, ...]]  # name -> shape, dtype, bytes


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of files, how to damage them and how to read them from a folder."""

    make: Callable[[], list[Files]]  # sound files to begin with, one of which is damaged in each case
    damage: Callable[[Files, random.Random], Files]
    read: Callable[[Path], Found]
    mebibytes: int  # that a case may need


def main() -> int:
    """Run the cases, print how they ended, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=10_000, help="cases of each target")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first case; the next has the next number")
    parser.add_argument("--targets", default="safetensors,bin,index", help=f"some of {','.join(TARGETS)}")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    targets = arguments.targets.split(",")
    if unknown := set(targets) - TARGETS.keys():
        parser.error(f"unknown targets {', '.join(sorted(unknown))}; known are {', '.join(TARGETS)}")
    report = {target: run_target(target, arguments.seed, arguments.count) for target in targets}
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        for target, result in report.items():
            print(f"{target}: {arguments.count} cases in {result['seconds']} s")
            for outcome, count in sorted(result["outcomes"].items(), key=lambda item: -item[1]):
                print(f"  {count:7d} {outcome}")
            for case in result["unclean"]:
                print(f"  UNCLEAN {case['what']}\n    repeat: {case['repeat']}")
    return int(any(result["unclean"] for result in report.values()))


def run_target(target: str, seed: int, count: int) -> dict[str, Any]:
    """Run the cases of a target in a process of their own, and in a new one after each case that kills it."""
    outcomes: collections.Counter[str] = collections.Counter()
    unclean: list[tuple[int, str]] = []
    started = time.monotonic()
    context = multiprocessing.get_context("spawn")
    following, end = seed, seed + count
    while following < end:
        receiver, sender = context.Pipe(duplex=False)
        worker = context.Process(target=run_cases, args=(target, following, end, sender))
        worker.start()
        sender.close()
        try:
            while True:
                case, outcome, clean = receiver.recv()
                following = case + 1
                outcomes[outcome if clean else "UNCLEAN"] += 1
                if not clean:
                    unclean.append((case, outcome))
        except EOFError:
            worker.join()
        if following < end:
            outcomes["UNCLEAN"] += 1
            unclean.append((following, f"the process died with exit code {worker.exitcode}"))
            following += 1
    command = f"python -m scripts.campaigns.fuzz_readers --targets {target} --count 1 --seed"
    return {
        "seconds": round(time.monotonic() - started, 1),
        "outcomes": dict(outcomes),
        "unclean": [{"what": what, "repeat": f"{command} {case}"} for case, what in unclean],
    }


def run_cases(name: str, begin: int, end: int, sender: Connection) -> None:
    """Run the cases with seeds from begin to end, and send how each of them ended."""
    warnings.simplefilter("ignore")
    target = TARGETS[name]
    bases = target.make()
    expected = [_read_from_folder(target, base) for base in bases]
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (target.mebibytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGALRM, _out_of_time)
    for seed in range(begin, end):
        rng = random.Random(seed)
        number = rng.randrange(len(bases))
        files = target.damage(bases[number], rng)
        clean = True
        signal.setitimer(signal.ITIMER_REAL, SECONDS_PER_CASE)
        try:
            found = _read_from_folder(target, files)
            outcome = "read, content as before" if found == expected[number] else "read, content changed"
        except OSError as error:
            outcome = f"refused, {type(error).__name__}"
        except BaseException as error:  # whatever it is, it is what we look for
            kind = type(error).__name__
            clean = kind in CLEAN_ERRORS and isinstance(error, ValueError)
            outcome = f"refused, {kind}" if clean else f"{kind}: {str(error)[:300]!r}"
        signal.setitimer(signal.ITIMER_REAL, 0)
        sender.send((seed, outcome, clean))


class OutOfTime(BaseException):
    """A case took too long."""


def _out_of_time(*_: object) -> None:
    raise OutOfTime(f"more than {SECONDS_PER_CASE} s")


def _read_from_folder(target: Target, files: Files) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        return target.read(Path(folder))


def _read_checkpoint(folder: Path) -> Found:
    with open_checkpoint(folder) as checkpoint:
        arrays = {name: checkpoint.read(name) for name in checkpoint.infos}
    return {name: (array.shape, array.dtype.name, array.tobytes()) for name, array in arrays.items()}


def _read_and_compare(folder: Path) -> Found:
    found = _read_checkpoint(folder)
    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
    theirs = {name: (array.shape, array.dtype.name, array.tobytes()) for name, array in arrays.items()}
    if found != theirs:
        raise AssertionError("the safetensors library reads other arrays")
    return found


def _sound_safetensors() -> list[Files]:
    arrays = {
        "text.weight": np.arange(24, dtype=np.float32).reshape(4, 6),
        "text.bias": np.arange(6, dtype=np.float16),
        "scale": np.array(2.5, np.float32),
        "ids": np.arange(8).reshape(1, 8),
        "empty": np.zeros((0, 3), np.float32),
        "half": np.ones((2, 3), ml_dtypes.bfloat16),
    }
    return [{"model.safetensors": safetensors.numpy.save(arrays, {"format": "pt"})}]


def _sound_archives() -> list[Files]:
    return [{"pytorch_model.bin": (SAMPLES / name).read_bytes()} for name in ("state.bin", "wrapped_protocol_5.bin")]


def _sound_shards() -> list[Files]:
    shards = {
        f"model-0000{number}-of-00002.safetensors": {f"{number}.{name}": np.ones(3, np.float32) for name in "abc"}
        for number in (1, 2)
    }
    weight_map = {name: shard for shard, arrays in shards.items() for name in arrays}
    index = json.dumps({"metadata": {"total_size": 72}, "weight_map": weight_map}).encode()
    return [{"model.safetensors.index.json": index} | {s: safetensors.numpy.save(a) for s, a in shards.items()}]


def _sound_images() -> list[Files]:
    from PIL import Image

    ramp = np.random.default_rng(0).integers(0, 256, (40, 31, 4), dtype=np.uint8)
    files: list[Files] = []
    for kind, modes in {
        "PNG": "RGBA RGB L P 1 I;16",
        "JPEG": "RGB L CMYK",
        "GIF": "P",
        "WEBP": "RGBA",
        "BMP": "RGB",
        "TIFF": "RGB",
    }.items():
        for mode in modes.split():
            image = Image.fromarray(ramp).convert("I" if mode == "I;16" else mode)
            if mode == "I;16":
                image = Image.fromarray(np.asarray(image).astype(np.uint16))
            packed = io.BytesIO()
            image.save(packed, kind)
            files.append({"image": packed.getvalue()})
    return files


def _read_image(folder: Path) -> Found:
    from altclip_jax.processing.image import AltCLIPImageProcessor

    pixels = np.asarray(AltCLIPImageProcessor()((folder / "image").read_bytes())["pixel_values"])
    if not np.isfinite(pixels).all():
        raise AssertionError("the pixels are not finite")
    return {"pixel_values": (pixels.shape, pixels.dtype.name, pixels.tobytes())}


def _damage_only(damage: Callable[[bytes, random.Random], bytes]) -> Callable[[Files, random.Random], Files]:
    return lambda files, rng: {name: damage(content, rng) for name, content in files.items()}


def _damage_shards(files: Files, rng: random.Random) -> Files:
    index, *shards = files
    changed = dict(files)
    match rng.randrange(6):
        case 0:
            changed[index] = mutations.damage_bytes(files[index], rng)
        case 1:
            shard = rng.choice(shards)
            changed[shard] = mutations.damage_safetensors(files[shard], rng)
        case 2:
            del changed[rng.choice(shards)]
        case 3:
            changed[shards[0]] = files[rng.choice(shards)]
            changed[index] = mutations.damage_json(files[index], rng)
        case _:
            changed[index] = mutations.damage_json(files[index], rng)
    return changed


TARGETS = {
    "safetensors": Target(
        _sound_safetensors, _damage_only(mutations.damage_safetensors), _read_and_compare, mebibytes=256
    ),
    "bin": Target(_sound_archives, _damage_only(mutations.damage_archive), _read_checkpoint, mebibytes=256),
    "index": Target(_sound_shards, _damage_shards, _read_checkpoint, mebibytes=256),
    "image": Target(_sound_images, _damage_only(mutations.damage_image), _read_image, mebibytes=1536),
}

if __name__ == "__main__":
    sys.exit(main())
