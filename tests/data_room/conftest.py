"""A processor, and small data sets of every form."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from altclip_jax import AltCLIPProcessor
from altclip_jax.assets import default_checkpoint
from altclip_jax.data.sources import SourceSpec, open_sources


@pytest.fixture(scope="session")
def processor():
    return AltCLIPProcessor.from_pretrained(default_checkpoint())


@pytest.fixture(scope="session")
def png():
    """Makes the bytes of a picture that no other number has."""

    def make(number, size=(20, 16), mode="RGB"):
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], len(mode)), np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels, mode=None).save(file, "png")
        return file.getvalue()

    return make


@pytest.fixture
def image_set(tmp_path, png):
    """Writes a JSONL of `count` samples with their pictures, and opens it."""

    def make(count, *, name="set", weight=1.0, bad=()):
        folder = tmp_path / name
        folder.mkdir()
        records = []
        for number in range(count):
            (folder / f"{number}.png").write_bytes(b"no picture" if number in bad else png(number))
            records.append({"image": f"{number}.png", "caption": [f"caption {number}", f"another {number}"]})
        (folder / "set.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return SourceSpec(path=str(folder / "set.jsonl"), weight=weight)

    return make


@pytest.fixture
def open_images():
    return lambda *specs: open_sources(specs, "image_text")
