"""Execute the notebooks: write their outputs, or check that the outputs that stand there come out again.

    python -m scripts.documents.run_notebooks                  # all of notebooks/, outputs written into them
    python -m scripts.documents.run_notebooks --check          # copies in memory, compared with what stands there
    python -m scripts.documents.run_notebooks --check --exact 01_quickstart

Each runs in a kernel of its own, on the CPU and without a network. What is written has outputs and no times, paths or
versions. `--check` wants the same text; a decimal number may be off by two units of its last digit, and a picture may
have other bytes as long as it looks the same: another processor rounds otherwise, and another matplotlib draws letters
a little elsewhere. `--exact` allows neither. It needs the extra: pip install 'altclip-jax[notebooks,parity]'.
"""

from __future__ import annotations

import argparse
import base64
import difflib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"
MOST_BYTES = 400_000  # of a file with its outputs
_SECONDS = 600  # for a cell
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
_NUMBER = re.compile(r"-?\d+\.\d+")
_OF_THIS_MACHINE = re.compile(r"(?<![\w./])/(?:home|root|tmp|var|Users)/\S*|\b0x[0-9a-f]{6,}")
_read: Any = nbformat.read  # which have no types
_writes: Any = nbformat.writes
_node: Any = nbformat.from_dict
# Two pictures are compared as thumbnails of so many pixels across, which may differ by so many of 255 levels on average
# and at most. Between matplotlib 3.9 and 3.11, which moved every letter, it was up to 3.7 and 32 of the smaller ones.
_LIMITS, _OTHER_MATPLOTLIB = (96, 2, 48), (24, 6, 48)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; 0 if every notebook ran and, with --check, gave what stands there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="files or names in notebooks/; default: all")
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    parser.add_argument("--exact", action="store_true", help="with --check: compare bytes")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="write the pictures of the outputs there, too")
    options = parser.parse_args(arguments)
    failed = [path.name for path in choose(options.names) if not _run_one(path, options)]
    if failed:
        print(f"not as it should be: {', '.join(failed)}")
    return 1 if failed else 0


def choose(names: Sequence[str]) -> list[Path]:
    """Returns the notebooks that are meant."""
    if not names:
        return sorted(NOTEBOOKS.glob("*.ipynb"))
    return [path if (path := Path(name)).is_file() else NOTEBOOKS / f"{path.stem}.ipynb" for name in names]


def _run_one(path: Path, options: argparse.Namespace) -> bool:
    before = _read(path, as_version=4)
    try:
        after = execute(before, path.parent)
    except CellExecutionError as error:
        print(f"{path.name}: {error}")
        return False
    if options.pictures is not None:
        write_pictures(after, options.pictures, path.stem)
    text = _writes(after) + "\n"
    problems = list(faults(after))
    if len(text.encode()) > MOST_BYTES:
        problems.append(f"{len(text.encode()):,} bytes, more than {MOST_BYTES:,}: draw less, or smaller")
    if options.check:
        problems += differences(before, after, exact=options.exact)
    elif not problems:
        path.write_text(text, encoding="utf-8")
    print(f"{path.name}: " + "\n".join(problems or [f"{len(text.encode()):,} bytes"]), flush=True)
    return not problems


def execute(notebook: Any, folder: Path) -> Any:
    """Returns a copy that ran in a folder, without what differs from one execution to the next.

    Raises:
        CellExecutionError: a cell failed; the message has its text and the traceback.
    """
    copy = _node(notebook)
    with tempfile.TemporaryDirectory() as scratch:
        given = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "JAX_"))}
        environment = {
            **given,
            "JAX_PLATFORMS": "cpu",
            "HF_HUB_OFFLINE": "1",
            "IPYTHONDIR": scratch,
            "TMPDIR": scratch,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        client = NotebookClient(
            copy,
            timeout=_SECONDS,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": str(folder)}},
        )
        manager: Any = client.create_kernel_manager()
        if os.name != "nt":
            # sockets in the scratch folder: kernels side by side cannot take each other's ports
            manager.transport, manager.ip = "ipc", str(Path(scratch) / "kernel")
        client.execute(env=environment)
    return strip(copy)


def strip(notebook: Any) -> Any:
    """Returns a notebook of which only text, code and outputs are left."""
    notebook.metadata = _node(_METADATA)
    for cell in notebook.cells:
        cell.metadata = _node({})
        if cell.cell_type == "code":
            cell.outputs = list(_join(cell.outputs))
    return notebook


def _join(outputs: Sequence[Any]) -> Iterator[Any]:
    """Yields outputs with what was printed as one text, however many pieces it came in."""
    last = None
    for output in outputs:
        if output.output_type == "stream" and last is not None and last.get("name") == output.name:
            last.text += output.text
            continue
        if output.output_type in ("display_data", "execute_result"):
            output.metadata = _node({})
        last = output if output.output_type == "stream" else None
        yield output


def faults(notebook: Any) -> Iterator[str]:
    """Yields what must not stand in outputs: warnings, addresses and paths of this machine."""
    for number, cell in enumerate(notebook.cells, start=1):
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                yield f"cell {number} wrote to standard error:\n{output.text}"
            for kind, text in _texts(output):
                if (found := _OF_THIS_MACHINE.search(text)) is not None:
                    yield f"cell {number} shows what no other machine has, in {kind}: {found[0]}"


def _texts(output: Any) -> Iterator[tuple[str, str]]:
    if output.output_type == "stream":
        yield output.name, output.text
    for kind, data in output.get("data", {}).items():
        if kind.startswith("text/"):
            yield kind, data


def differences(before: Any, after: Any, *, exact: bool) -> list[str]:
    """Returns, readable, in what the outputs of two executions differ."""
    found = []
    for number, (old, new) in enumerate(zip(before.cells, after.cells, strict=True), start=1):
        if old.cell_type != "code":
            continue
        left, right = list(_show(old.outputs)), list(_show(new.outputs))
        if [kind for kind, _ in left] != [kind for kind, _ in right]:
            found.append(f"cell {number} shows {[kind for kind, _ in right]}, was {[kind for kind, _ in left]}")
            continue
        for (kind, was), (_, now) in zip(left, right, strict=True):
            if was == now:
                continue
            if kind == "image/png":
                told = "its bytes" if exact else unlike(was, now)
                if told is not None:
                    found.append(f"cell {number}: the picture is not the same: {told}")
            elif exact or not same_text(was, now):
                lines = difflib.unified_diff(was.splitlines(), now.splitlines(), "was", "is", lineterm="", n=1)
                found.append(f"cell {number}, {kind}:\n" + "\n".join(lines))
    return found


def _show(outputs: Sequence[Any]) -> Iterator[tuple[str, str]]:
    for output in outputs:
        if output.output_type == "stream":
            yield output.name, output.text
        yield from sorted(output.get("data", {}).items())


def same_text(was: str, now: str) -> bool:
    """Tells whether two texts are the same but for the last digits of decimal numbers."""
    if _NUMBER.sub("", was) != _NUMBER.sub("", now):
        return False
    pairs = zip(_NUMBER.findall(was), _NUMBER.findall(now), strict=True)
    return all(
        len(old.partition(".")[2]) == len(new.partition(".")[2])
        and abs(float(old) - float(new)) <= 2.1 * 10.0 ** -len(old.partition(".")[2])
        for old, new in pairs
    )


def unlike(was: str, now: str) -> str | None:
    """Returns in what two pictures, base64 of PNG, do not look the same; None if they do."""
    old, new = (Image.open(io.BytesIO(base64.b64decode(data))) for data in (was, now))
    same_program = old.info.get("Software") == new.info.get("Software")
    across, mean, most = _LIMITS if same_program else _OTHER_MATPLOTLIB
    if any(abs(a - b) > 0.03 * max(a, b) for a, b in zip(old.size, new.size, strict=True)):
        return f"{new.size[0]} x {new.size[1]} pixels, were {old.size[0]} x {old.size[1]}"
    size = across, max(1, round(across * old.height / old.width))
    pictures = (picture.convert("RGB").resize(size, Image.Resampling.BOX) for picture in (old, new))
    left, right = (np.asarray(picture, np.float64) for picture in pictures)
    levels = np.abs(left - right)
    if levels.mean() > mean or levels.max() > most:
        return f"small copies differ by {levels.mean():.1f} of 255 on average, at most by {levels.max():.0f}"
    return None


def write_pictures(notebook: Any, folder: Path, name: str) -> None:
    """Writes the pictures of outputs as files, named by notebook and cell."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(notebook.cells, start=1):
        for place, output in enumerate(cell.get("outputs", [])):
            if data := output.get("data", {}).get("image/png"):
                (folder / f"{name}-{number:02}-{place}.png").write_bytes(base64.b64decode(data))


if __name__ == "__main__":
    sys.exit(main())
