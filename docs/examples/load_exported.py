"""Runs what `altclip export --format stablehlo` wrote, where altclip_jax, Flax and PyTorch need not be installed.

    pip install jax flatbuffers numpy safetensors tokenizers pillow
    python load_exported.py programs --texts "a cat" 一只猫 --pictures cat.png

prints the cosine of each picture with each text. In a program of your own:

    model = ExportedModel("programs")
    texts = model.encode_texts(["a cat", "一只猫"])  # (texts, width) float32
    pictures = model.encode_pictures(["cat.png"])  # paths, bytes or PIL images

Copy it with exported_manifest.py and prepare_inputs.py: they import nothing of altclip_jax.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
from exported_manifest import ExportError, check_inputs, checked_file, described_program, fingerprint, read_manifest
from PIL import Image
from prepare_inputs import PicturePreparer, TextPreparer
from safetensors.numpy import load_file


class ExportedModel:
    """The programs of a folder with their weights, on one device; may be shared between threads.

    It is that of `jax.default_device` where the folder is opened; executables are for the first device.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        executables: bool = False,
        verify: bool = True,
        most_rows: int = 32,
        most_pixels: int = 100_000_000,
    ):
        """Opens a folder.

        Args:
            folder: What the export wrote.
            executables: Run what was compiled for this very machine, and compile nothing. To load such a file is to
                run code in it: do so only with what you exported yourself.
            verify: Compare each file with its checksum.
            most_rows: That go through a program at once; fewer are filled up to a power of two.
            most_pixels: Larger pictures are refused.

        Raises:
            ExportError: the folder is damaged, or made for another version, platform or machine.
        """
        self.folder, self._verify, self._most_rows = Path(folder), verify, most_rows
        self.manifest = read_manifest(self.folder)
        # an executable is for the device that it was compiled on, which is the first
        self._device = jax.local_devices()[0] if executables else next(iter(jax.device_put(0).devices()))
        self._lock = threading.Lock()
        self._loaded: dict[Any, Any] = {}
        self._compiled: dict[Any, Any] | None = self._find_executables() if executables else None
        self._weights = self._read_weights()
        self._text_preparer: TextPreparer | None = None
        self._prepare = PicturePreparer(self.folder, self.manifest["pictures"] == "uint8", most_pixels)

    def run(self, program: str, **inputs: Any) -> dict[str, np.ndarray]:
        """Runs a program on arrays, and returns its outputs by name.

        Raises:
            ExportError: there is no such program, or an input has another shape or dtype than it takes.
        """
        described = described_program(self.manifest, program)
        arrays, sizes = check_inputs(self.manifest, program, inputs)
        weights = {name: self._weights[name] for name in described["weights"]}
        outputs = self._callable(program, sizes)(weights, *arrays)
        names = [output["name"] for output in described["outputs"]]
        return {name: np.asarray(value) for name, value in zip(names, outputs, strict=True)}

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Returns an embedding (texts, width) of each text; what is longer than the model takes is cut."""
        with self._lock:
            if self._text_preparer is None:
                self._text_preparer = TextPreparer(self.folder, self.manifest["texts"])
        rows = [self._text_preparer.ids(text) for text in texts]
        found = [
            self._first("text", self._text_preparer.batch(rows[part], count, length))[: part.stop - part.start]
            for part, count, length in self._batches("text", [len(row) for row in rows])
        ]
        return np.concatenate([self._nothing("text"), *found])

    def encode_pictures(self, pictures: Sequence[str | os.PathLike[str] | bytes | Image.Image]) -> np.ndarray:
        """Returns an embedding (pictures, width) of each picture."""
        found = [self._nothing("image")]
        name = described_program(self.manifest, "image")["inputs"][0]["name"]
        for part, count, _ in self._batches("image", [0] * len(pictures)):
            prepared = [self._prepare(picture) for picture in pictures[part]]
            filled = np.stack([*prepared, *[prepared[-1]] * (count - len(prepared))])
            found.append(self._first("image", {name: filled})[: len(prepared)])
        return np.concatenate(found)

    def _batches(self, program: str, lengths: Sequence[int]) -> Iterator[tuple[slice, int, int]]:
        """Cuts rows into batches, and gives for each how many rows and how many tokens it is filled up to."""
        sizes = [tuple(key[1:]) for key in self._compiled or {} if key[0] == program]
        if self._compiled is not None and not sizes:
            raise ExportError(f"{self.folder} has no executable of the program {program!r}.")
        most = max((size[0] for size in sizes), default=self._most_rows)
        for start in range(0, len(lengths), most):
            part = slice(start, min(start + most, len(lengths)))
            rows, longest = part.stop - part.start, max(lengths[part])
            if self._compiled is None:
                padded = self.manifest["texts"]["padded_to"]
                yield part, 1 << (rows - 1).bit_length(), next((each for each in padded if each >= longest), longest)
                continue
            fitting = [size for size in sizes if size[0] >= rows and (*size, 0)[1] >= longest]
            if not fitting:
                raise ExportError(f"No executable takes {rows} rows of {longest} tokens; there are {sorted(sizes)}.")
            yield part, *(*min(fitting, key=lambda size: (np.prod(size), size)), 0)[:2]

    def _first(self, program: str, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        return next(iter(self.run(program, **inputs).values()))

    def _nothing(self, program: str) -> np.ndarray:
        return np.zeros((0, described_program(self.manifest, program)["outputs"][0]["shape"][1]), np.float32)

    def _callable(self, program: str, sizes: Mapping[str, int]) -> Any:
        key = program if self._compiled is None else (program, *sizes.values())
        with self._lock:
            if key not in self._loaded:
                self._loaded[key] = self._open(program) if self._compiled is None else self._open_executable(key)
            return self._loaded[key]

    def _open(self, program: str) -> Any:
        path = checked_file(self.folder, described_program(self.manifest, program), self._verify)
        try:
            return jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
        except Exception as error:
            raise ExportError(f"{path} is no program that jax {jax.__version__} can read ({error}).") from None

    def _open_executable(self, key: tuple[Any, ...]) -> Any:
        from jax.experimental.serialize_executable import deserialize_and_load

        if key not in self._compiled:
            there = ", ".join(map(str, self._compiled)) or "none"
            raise ExportError(f"{self.folder} has no executable for {key}; there are {there}.")
        described, path = (
            described_program(self.manifest, key[0]),
            checked_file(self.folder, self._compiled[key], self._verify),
        )
        inputs = (dict.fromkeys(described["weights"], 0), *(0 for _ in described["inputs"]))
        trees = jax.tree.structure((inputs, {})), jax.tree.structure(tuple(0 for _ in described["outputs"]))
        try:
            return deserialize_and_load(path.read_bytes(), *trees, execution_devices=[self._device])
        except Exception as error:
            raise ExportError(f"{path} cannot be loaded ({error}): export it again on this machine.") from None

    def _find_executables(self) -> dict[tuple[Any, ...], Any]:
        compiled = self.manifest["executables"]
        if compiled is None:
            raise ExportError(f"{self.folder} has no executables: export with `--executable 8x64 8`, for example.")
        here = fingerprint()
        other = [
            f"{name} is {here[name]!r}, not {was!r}" for name, was in compiled["machine"].items() if here[name] != was
        ]
        if other:
            raise ExportError(
                f"The executables in {self.folder} are for another machine or jax: {'; '.join(other)}. Open the folder"
                " with executables=False, or export it here."
            )
        return {(file["program"], *file["sizes"].values()): file for file in compiled["files"]}

    def _read_weights(self) -> dict[str, Any]:
        if self.manifest["weights"] is None:
            return {}
        path = checked_file(self.folder, self.manifest["weights"], self._verify)
        try:
            found = load_file(path)
        except Exception as error:
            raise ExportError(f"{path} is no file of weights that can be read ({error}).") from None
        return {name: jax.device_put(value, self._device) for name, value in found.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the cosine of each picture with each text, and returns the exit code."""
    parser = argparse.ArgumentParser(description="Compare pictures with texts by exported programs.")
    parser.add_argument("folder")
    parser.add_argument("--texts", nargs="+", required=True)
    parser.add_argument("--pictures", nargs="+", required=True)
    parser.add_argument("--executables", action="store_true", help="run what was compiled for this machine")
    options = parser.parse_args(arguments)
    try:
        model = ExportedModel(options.folder, executables=options.executables)
        texts, pictures = model.encode_texts(options.texts), model.encode_pictures(options.pictures)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    texts, pictures = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (texts, pictures))
    for name, row in zip(options.pictures, pictures @ texts.T, strict=True):
        print(name)
        for text, cosine in zip(options.texts, row, strict=True):
            print(f"  {cosine:7.4f}  {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
