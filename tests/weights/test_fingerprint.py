"""A fingerprint is another for every other byte, and the same wherever the same parameters come from and lie."""

import json
import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from altclip_jax import AltCLIP, AltCLIPModel
from altclip_jax.assets import default_checkpoint
from altclip_jax.parallel import make_mesh, param_shardings
from altclip_jax.weights import fingerprint as fingerprints
from altclip_jax.weights import folder as weights_folder
from altclip_jax.weights.convert import flatten
from altclip_jax.weights.fingerprint import fingerprint


def tree(**changes):
    values = {
        "kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
        "large": np.arange(5 * 2**20, dtype=np.float32).reshape(5, 2**20),  # more than a block
        "logit_scale": np.float32(2.5).reshape(()),
    }
    return {"text_model": {**values, **changes}}


def test_it_stays_what_it_is():
    """Stores hold it: another value is another version."""
    assert (
        fingerprint({"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}})
        == "2:a227c6c8b51913e2e9a2046eef6dc032"
    )
    assert fingerprint(tree()) == "2:7b5a39042c72a53c091a169bf7d6a14d"


@pytest.mark.parametrize(
    "changes",
    [
        {"kernel": np.arange(6, dtype=np.float32).reshape(3, 2)},
        {"kernel": np.arange(6, dtype=np.int32).reshape(2, 3).view(np.float32)},
        {"kernel": np.arange(6, dtype=np.float16).reshape(2, 3)},
        {"kernel": np.asarray(jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3))},
        {"kernel": -np.arange(6, dtype=np.float32).reshape(2, 3)},
        {"Kernel": np.arange(6, dtype=np.float32).reshape(2, 3)},
        {"logit_scale": np.float32(2.5000002).reshape(())},
        {"large": -3 * tree()["text_model"]["large"]},
        {"large": np.flip(tree()["text_model"]["large"], 0)},
    ],
    ids=str,
)
def test_everything_counts(changes):
    assert fingerprint(tree(**changes)) != fingerprint(tree())


@pytest.mark.parametrize("place", [0, 2**22 - 1, 2**22, 5 * 2**20 - 1])
def test_every_number_of_a_large_parameter_counts(place):
    large = tree()["text_model"]["large"].copy()
    large.reshape(-1)[place] += 1
    assert fingerprint(tree(large=large)) != fingerprint(tree())


def test_it_does_not_know_where_parameters_lie():
    wanted, mesh = fingerprint(tree()), make_mesh(data=2, fsdp=2, tensor=2)
    cut = jax.NamedSharding(mesh, jax.sharding.PartitionSpec(None, ("fsdp", "tensor")))
    everywhere = jax.NamedSharding(mesh, jax.sharding.PartitionSpec())
    for place in (
        lambda array: np.array(array, order="F"),  # as a transposed tensor of a file lies
        jnp.asarray,
        lambda array: jax.device_put(array, jax.devices()[3]),
        lambda array: jax.device_put(array, cut if array.size > 6 else everywhere),
    ):
        assert fingerprint(jax.tree.map(place, tree())) == wanted


@pytest.fixture(scope="module")
def clip():
    return AltCLIP.from_pretrained()


def test_it_does_not_know_which_files_parameters_came_from(clip, tmp_path):
    model, wanted = clip.model, clip.fingerprint()
    model.save_pretrained(tmp_path / "shards", clip.params, max_shard_bytes=1_000_000)
    weights_folder.save_orbax(model, tmp_path / "orbax", clip.params)
    for name in ("shards", "orbax"):
        assert fingerprint(AltCLIPModel.from_pretrained(tmp_path / name)[1]) == wanted
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    cut = jax.device_put(clip.params, param_shardings(mesh, clip.params))
    assert fingerprint(cut) == wanted
    assert [leaf for leaf in jax.tree.leaves(cut) if leaf._npy_value is not None] == []  # no copy stays in memory


def test_few_bits_are_another_model(clip):
    found = {clip.fingerprint()}
    for dtype in ("float32", "bfloat16"):
        params = AltCLIPModel.from_pretrained(default_checkpoint(), param_dtype=dtype, quantize="int4")[1]
        found |= {
            fingerprint(params),
            fingerprint(AltCLIPModel.from_pretrained(default_checkpoint(), param_dtype=dtype)[1]),
        }
    assert len(found) == 4


def test_that_of_0_1_0_is_as_it_was(clip):
    assert clip.fingerprint(version=1) == "7b5deffb09b1b00e"
    assert AltCLIP.from_pretrained(quantize="int4").fingerprint(version=1) == "7e11fe13da41efbc"
    with pytest.raises(ValueError, match="made by a later altclip_jax"):
        clip.fingerprint(version=3)


@pytest.fixture
def hashed(tmp_path, monkeypatch):
    """Everything is kept, in a cache of this test; gives a list that grows with every array that is hashed."""
    plain, seen = fingerprints._hash, []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprints, "_KEPT_FROM", 0)
    monkeypatch.setattr(fingerprints, "_SETTLED", 0)
    monkeypatch.setattr(fingerprints, "_hash", lambda array, threads: (seen.append(1), plain(array, threads))[1])
    return seen


def test_unchanged_files_are_hashed_once(clip, tmp_path, hashed):
    model = tmp_path / "model"
    clip.model.save_pretrained(model, clip.params)
    clip.processor.save_pretrained(model)
    wanted, count = clip.fingerprint(), len(flatten(clip.params))
    hashed.clear()
    first = AltCLIP.from_pretrained(model).fingerprint()
    assert (first, len(hashed)) == (wanted, count)
    loaded = AltCLIP.from_pretrained(model)
    assert (loaded.fingerprint(), len(hashed)) == (wanted, count)
    assert pickle.loads(pickle.dumps(loaded._origin))._arrays == {}

    loaded.params = {**loaded.params, "logit_scale": loaded.params["logit_scale"] + 1}  # not what the files hold
    assert (loaded.fingerprint() != wanted, len(hashed)) == (True, 2 * count)
    assert (AltCLIP.from_pretrained(model, param_dtype="bfloat16").fingerprint() != wanted, len(hashed)) == (
        True,
        3 * count,
    )
    entries = {path: json.loads(path.read_text()) for path in (tmp_path / "cache/altclip_jax/fingerprints").iterdir()}
    (kept,) = (path for path, told in entries.items() if told == {"fingerprint": wanted, "of": str(model)})
    kept.write_text("{")
    assert (AltCLIP.from_pretrained(model).fingerprint(), len(hashed)) == (wanted, 4 * count)
    mapped = AltCLIP.from_pretrained(model)
    os.utime(model / "model.safetensors")
    assert (mapped.fingerprint(), len(hashed)) == (wanted, 5 * count)
    assert (AltCLIP.from_pretrained(model).fingerprint(), len(hashed)) == (wanted, 6 * count)


def test_files_that_change_after_they_were_read_are_not_trusted(clip, tmp_path, hashed, monkeypatch):
    model = tmp_path / "model"
    clip.model.save_pretrained(model, clip.params)
    clip.processor.save_pretrained(model)
    loaded = AltCLIP.from_pretrained(model)
    os.utime(model / "model.safetensors")
    loaded.fingerprint()
    monkeypatch.setattr(fingerprints, "_SETTLED", 3600e9)  # of files so young another write may have the same time
    AltCLIP.from_pretrained(model).fingerprint()
    assert not (tmp_path / "cache").exists()


def test_a_home_that_cannot_be_written_is_no_fault(clip, tmp_path, hashed, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    assert AltCLIP.from_pretrained().fingerprint() == clip.fingerprint()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert AltCLIP.from_pretrained().fingerprint() == clip.fingerprint()


def test_small_models_leave_nothing_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    AltCLIP.from_pretrained().fingerprint()
    assert list(tmp_path.iterdir()) == []
