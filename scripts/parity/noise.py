"""Measures by how much embeddings differ that should be the same, on the devices that jax finds here.

    python -m scripts.parity.noise [--model FOLDER]

Everything is compared with one computation: float32, matrix products at precision "highest", all texts and pictures
in one batch each, texts padded to the longest. The table has the largest difference of any number of a unit embedding.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from altclip_jax import AltCLIPModel, AltCLIPProcessor
from altclip_jax.assets import PICTURES, default_checkpoint
from altclip_jax.model.two_towers import normalize

Encode = Callable[[str, dict[str, Any]], np.ndarray]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--model", default=str(default_checkpoint()), metavar="FOLDER", help="default: the embedded one"
    )
    source = parser.parse_args().model
    processor = AltCLIPProcessor.from_pretrained(source)
    names = json.loads((PICTURES / "names.json").read_text(encoding="utf-8"))
    texts = [name[language] for name in names.values() for language in ("en", "zh", "de", "ru")]
    given = {
        "text": processor(text=texts, padding=True),
        "image": processor(images=[PICTURES / f"{key}_noto.png" for key in names]),
    }
    longest = min(processor.tokenizer.model_max_length, 64)
    padded = processor(text=texts, padding="max_length", max_length=longest)
    exact = {kind: encoder(source)(kind, inputs) for kind, inputs in given.items()}
    device = jax.devices()[0]
    print(f"{len(texts)} texts and {len(names)} pictures on {device.platform} ({device.device_kind}), {source}")
    print(f"{'largest difference of unit embeddings':52}{'texts':>10}{'pictures':>10}")
    for name, encode, changed in variants(source):
        found = []
        for kind, inputs in given.items():
            inputs = padded if changed and kind == "text" else inputs
            found.append(np.abs(encode(kind, inputs) - exact[kind]).max())
        print(f"{name:52}" + "".join(f"{value:10.1e}" for value in found))


def variants(source: str) -> Iterator[tuple[str, Encode, bool]]:
    """Gives a name, how it encodes, and whether texts are padded further."""
    plain = encoder(source)
    yield "the same, not compiled as one program", encoder(source, compiled=False), False
    yield "the same, each row alone", lambda kind, inputs: one_by_one(plain, kind, inputs), False
    yield "texts padded to the model's length, at most 64", plain, True
    for precision in ("high", "default"):
        yield f"matrix products at precision {precision!r}", encoder(source, precision), False
    for dtype in ("bfloat16", "float16"):
        yield f"computed in {dtype}, parameters float32", encoder(source, dtype=dtype), False
        yield f"computed and stored in {dtype}", encoder(source, dtype=dtype, param_dtype=dtype), False


def encoder(source: str, precision: str = "highest", *, compiled: bool = True, **dtypes: str) -> Encode:
    """Returns a function from a kind and its inputs to unit embeddings."""
    model, params = AltCLIPModel.from_pretrained(source, **dtypes)  # type: ignore[arg-type]

    def unit(kind: str, params: Any, inputs: dict[str, Any]) -> Any:
        return normalize(model.apply({"params": params}, **inputs, method=f"get_{kind}_features"))

    function = jax.jit(unit, static_argnums=0) if compiled else unit

    def encode(kind: str, inputs: dict[str, Any]) -> np.ndarray:
        with jax.default_matmul_precision(precision):
            return np.asarray(function(kind, params, dict(inputs)))

    return encode


def one_by_one(encode: Encode, kind: str, inputs: dict[str, Any]) -> np.ndarray:
    """Encodes each row in a batch of its own."""
    rows = len(next(iter(inputs.values())))
    return np.concatenate(
        [encode(kind, {name: value[row : row + 1] for name, value in inputs.items()}) for row in range(rows)]
    )


if __name__ == "__main__":
    main()
