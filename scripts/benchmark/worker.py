"""One side of `scripts.benchmark infer`, in its own process: reads a task a line, as JSON, and answers with a number.

    python -m scripts.benchmark.worker {ours|transformers} FOLDER {cpu|cuda} [eager|sdpa]

Each task is [method, arguments...] of the side. What takes time is measured here, without the pipe. This file imports
nothing that is not in both environments until the side is known.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ["TOKENIZERS_PARALLELISM"] = "true"

import numpy as np
from PIL import Image

from scripts.benchmark.process import forget_peak, held, serve

SIDE = 224


def pixel_values(rows: int) -> np.ndarray:
    """Return prepared pictures of noise."""
    return np.random.default_rng(rows).standard_normal((rows, 3, SIDE, SIDE), dtype=np.float32)


def seconds(call: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


class Side:
    """What both sides answer."""

    def resident(self) -> float:
        """Return the memory that is held now, in GiB, where the next peak begins."""
        forget_peak()
        return held("VmRSS") / 2**30

    def peak(self) -> float:
        """Return the peak of memory since then, in GiB."""
        return held("VmHWM") / 2**30

    def numpy_product(self, size: int) -> float:
        """Return the seconds of a float32 product of two squares."""
        rng = np.random.default_rng(0)
        left, right = (rng.standard_normal((size, size), dtype=np.float32) for _ in range(2))
        return seconds(lambda: left @ right)


class Ours(Side):
    """This library, as its users call it."""

    def __init__(self, folder: Path, device: str, _: str):
        """Note where the model is."""
        import jax

        self._folder, self._device = folder, device
        self._jax: Any = jax
        self._clip: Any = None

    def about(self) -> str:
        """Return what this is."""
        return f"altclip_jax, jax {self._jax.__version__}, {self._jax.devices()[0].device_kind}"

    def load(self, number: str) -> float:
        """Load the model; return seconds."""
        from altclip_jax import AltCLIP

        self._jax.config.update("jax_default_matmul_precision", {"tf32": "tensorfloat32"}.get(number, "highest"))
        self._clip = None
        self._jax.clear_caches()
        dtype = "bfloat16" if number == "bfloat16" else "float32"

        def load() -> None:
            self._clip = AltCLIP.from_pretrained(self._folder, dtype=dtype, param_dtype=dtype)

        return seconds(load)

    def images(self, rows: int) -> float:
        """Return the seconds of a batch of prepared pictures."""
        values = pixel_values(rows)
        return seconds(lambda: self._clip.encoder.embed_prepared([values], rows))

    def captions(self, texts: list[str], batch: int) -> float:
        """Return the seconds of texts that come `batch` at a time, 0 for all at once."""
        step = batch or len(texts)
        return seconds(
            lambda: [self._clip.encode_text(texts[at : at + step]) for at in range(0, len(texts), step)],
        )

    def files(self, paths: list[str], texts: list[str], batch: int) -> float:
        """Return the seconds from picture files and strings to embeddings."""

        def all_of_it() -> None:
            self._clip.encode_images(paths, batch_size=batch)
            self._clip.encode_text(texts)

        return seconds(all_of_it)

    def preprocess(self, paths: list[str], threads: int) -> float:
        """Return the seconds to prepare decoded pictures, with so many threads; 0: as it decides itself."""
        pictures = decoded(paths)
        return seconds(lambda: self._clip.processor.image_processor(pictures, threads=threads or None))

    def product(self, size: int) -> float:
        """Return the seconds of a float32 product of two squares."""
        jax = self._jax
        left, right = (jax.random.normal(jax.random.key(place), (size, size)) for place in range(2))
        multiply = jax.jit(lambda a, b: jax.numpy.matmul(a, b, precision="highest"))
        multiply(left, right).block_until_ready()
        return seconds(lambda: multiply(left, right).block_until_ready())


class Theirs(Side):
    """transformers, of whatever version this Python has."""

    def __init__(self, folder: Path, device: str, attention: str):
        """Note where the model is."""
        import torch

        torch.set_grad_enabled(False)
        self._folder, self._device, self._attention = folder, device, attention
        self._torch: Any = torch
        self._model: Any = None

    def about(self) -> str:
        """Return what this is."""
        import transformers

        name = self._torch.cuda.get_device_name() if self._device == "cuda" else "cpu"
        return f"transformers {transformers.__version__}, {self._attention}, torch {self._torch.__version__}, {name}"

    def load(self, number: str) -> float:
        """Load the model; return seconds."""
        import transformers

        torch, library = self._torch, cast(Any, transformers)
        for backend in (torch.backends.cuda.matmul, torch.backends.cudnn):
            backend.allow_tf32 = number == "tf32"
        dtype = torch.bfloat16 if number == "bfloat16" else torch.float32
        self._dtype, self._model = dtype, None

        def load() -> None:
            model = library.AltCLIPModel.from_pretrained(
                self._folder, torch_dtype=dtype, attn_implementation=self._attention
            )
            self._model = model.eval().to(self._device)
            sum(parameter.sum().item() for parameter in model.parameters())  # a mapped file is read when it is touched

        took = seconds(load)
        self._tokenizer = library.AutoTokenizer.from_pretrained(self._folder)
        self._processor = library.CLIPImageProcessor.from_pretrained(self._folder)
        return took

    def _image_embeddings(self, values: Any) -> np.ndarray:
        return self._unit(self._model.get_image_features(values.to(self._device, self._dtype)))

    def _text_embeddings(self, texts: list[str]) -> np.ndarray:
        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
        tokens = tokens.to(self._device)
        return self._unit(self._model.get_text_features(tokens["input_ids"], tokens["attention_mask"]))

    def _unit(self, found: Any) -> np.ndarray:
        found = getattr(found, "pooler_output", found).float()  # version 5 returns an output
        unit: np.ndarray = (found / found.norm(dim=-1, keepdim=True)).cpu().numpy()
        return unit

    def images(self, rows: int) -> float:
        """Return the seconds of a batch of prepared pictures."""
        values = self._torch.from_numpy(pixel_values(rows))
        return seconds(lambda: self._image_embeddings(values))

    def captions(self, texts: list[str], batch: int) -> float:
        """Return the seconds of texts that come `batch` at a time; for a list of them, in batches of 32."""
        step = batch or 32
        return seconds(lambda: [self._text_embeddings(texts[at : at + step]) for at in range(0, len(texts), step)])

    def files(self, paths: list[str], texts: list[str], batch: int) -> float:
        """Return the seconds from picture files and strings to embeddings."""

        def all_of_it() -> None:
            for start in range(0, len(paths), batch):
                pictures = [Image.open(path) for path in paths[start : start + batch]]
                self._image_embeddings(self._processor(pictures, return_tensors="pt")["pixel_values"])
            for start in range(0, len(texts), 32):
                self._text_embeddings(texts[start : start + 32])

        return seconds(all_of_it)

    def preprocess(self, paths: list[str], _: int) -> float:
        """Return the seconds to prepare decoded pictures."""
        pictures = decoded(paths)
        return seconds(lambda: self._processor(pictures, return_tensors="np"))

    def product(self, size: int) -> float:
        """Return the seconds of a float32 product of two squares."""
        torch = self._torch
        left, right = (torch.randn(size, size, device=self._device) for _ in range(2))

        def multiply() -> None:
            (left @ right)[0, 0].item()

        multiply()
        return seconds(multiply)


def decoded(paths: list[str]) -> list[Any]:
    """Return pictures in memory."""
    pictures = [Image.open(path) for path in paths]
    for picture in pictures:
        picture.load()
    return pictures


def main() -> None:
    """Answer tasks until there are no more."""
    kind, folder, device, attention = (*sys.argv[1:], "")[:4]
    side = {"ours": Ours, "transformers": Theirs}[kind](Path(folder), device, attention)
    serve(lambda method, *arguments: getattr(side, method)(*arguments))


if __name__ == "__main__":
    main()
