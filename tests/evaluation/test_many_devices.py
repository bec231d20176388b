"""Evaluation on a mesh, in several processes, and within a run: the numbers are those of one device."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from altclip_jax import AltCLIP, parallel
from altclip_jax.assets import PICTURES
from altclip_jax.data.bad_samples import BadSamples, TooManyBadSamples
from altclip_jax.data.samples import Picture
from altclip_jax.sweep import embed_pictures, embed_texts

NAMES = json.loads((PICTURES / "names.json").read_text(encoding="utf-8"))
KEYS = sorted(NAMES)


def pictures(*broken):
    files = [PICTURES / f"{key}_{design}.png" for key in KEYS for design in ("noto", "fxemoji")]
    found = [Picture(file.name, file.read_bytes, file) for file in files]
    for place in broken:
        found[place] = Picture(f"broken {place}", lambda: b"no picture")
    return found


@pytest.fixture(scope="module")
def clip():
    return AltCLIP.from_pretrained()


@pytest.fixture(scope="module")
def spread(clip):
    """The same model on a mesh that cuts rows, and parameters in both ways."""
    mesh = parallel.make_mesh(data=2, fsdp=2, tensor=2, devices=jax.devices()[:8])
    return AltCLIP(clip.model, clip.params, clip.processor, mesh=mesh)


def test_a_mesh_gives_the_embeddings_of_one_device_and_names_what_it_cannot_read(clip, spread):
    bad, other = BadSamples(), BadSamples()
    images, kept = embed_pictures(clip, pictures(3, 30), bad, batch_size=8)
    on_mesh, also_kept = embed_pictures(spread, pictures(3, 30), other, batch_size=8)
    assert kept.tolist() == also_kept.tolist() == [place for place in range(36) if place not in (3, 30)]
    assert list(bad.names) == list(other.names) == ["broken 3", "broken 30"]
    np.testing.assert_allclose(on_mesh, images, atol=2e-6)
    texts = [NAMES[key][language] for key in KEYS for language in ("en", "zh")]
    np.testing.assert_allclose(embed_texts(spread, texts), embed_texts(clip, texts), atol=2e-6)


def test_too_many_pictures_that_cannot_be_read_are_an_error_that_names_them(spread):
    with pytest.raises(TooManyBadSamples, match=r"11 of 0 samples cannot be used[\s\S]*broken 10: "):
        embed_pictures(spread, pictures(*range(11)), BadSamples(), batch_size=8)


def test_two_processes_print_once_what_one_does(tmp_path):
    lines = [f"{PICTURES / f'{key}_noto.png'}\t{NAMES[key][lang]}\t{lang}" for key in KEYS for lang in ("en", "zh")]
    lines += [f"{tmp_path / 'absent.png'}\tnothing\ten"]
    (tmp_path / "set.tsv").write_text("\n".join(["image\tcaption\tlanguage", *lines]), encoding="utf-8")
    evaluate = ["evaluate", "retrieval", "set.tsv", "--json", "--batch-size", "8"]
    told = []
    for launch in (["launch", "-n", "2", "--local-devices", "2", "--"], []):
        command = [sys.executable, "-m", "altclip_jax", *launch, *evaluate]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        told.append(json.loads(done.stdout))
    assert told[0]["left_out"] == told[1]["left_out"]
    assert "absent.png" in json.dumps(told[0]["left_out"])
    assert told[0] == told[1]
