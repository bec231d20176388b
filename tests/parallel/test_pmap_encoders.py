"""Encoders under pmap give the embeddings of the plain call, for any number of rows."""

import jax
import numpy as np
import pytest

from altclip_jax import AltCLIP
from altclip_jax.assets import PICTURES
from altclip_jax.inference.encoder import encode_images, encode_text
from altclip_jax.inference.pmapped import pmap_encoders, replicated, single


@pytest.fixture(scope="module")
def clip():
    return AltCLIP.from_pretrained()


@pytest.mark.parametrize("rows", [1, 8, 11])
def test_embeddings_are_those_of_one_device(clip, rows):
    paths = sorted(PICTURES.glob("*.png"))[:rows]
    names = [path.stem.replace("_", " ") for path in paths]
    batch = clip.processor(text=names, images=list(paths), padding=True)
    texts_on_all, images_on_all = pmap_encoders(clip.model)
    copies = replicated(clip.params)
    text = texts_on_all(copies, batch["input_ids"], batch["attention_mask"])
    images = images_on_all(copies, batch["pixel_values"])
    plain = encode_text(clip.model, clip.params, batch["input_ids"], batch["attention_mask"])
    assert text.shape == images.shape == (rows, 128)
    np.testing.assert_allclose(text, plain, atol=1e-6)
    np.testing.assert_allclose(images, encode_images(clip.model, clip.params, batch["pixel_values"]), atol=1e-6)


def test_no_rows_are_no_embeddings(clip):
    texts_on_all, _ = pmap_encoders(clip.model)
    assert texts_on_all(replicated(clip.params), np.zeros((0, 4), np.int32), np.zeros((0, 4), np.int32)).shape == (
        0,
        128,
    )


def test_replicated_arrays_are_on_every_device_and_one_copy_is_the_array():
    tree = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.int32(4)}
    copies = replicated(tree)
    assert copies["a"].shape == (8, 2, 3)
    assert {shard.device for shard in copies["a"].addressable_shards} == set(jax.devices())
    assert all(shard.data.shape == (1, 2, 3) for shard in copies["a"].addressable_shards)
    back = single(copies)
    np.testing.assert_array_equal(back["a"], tree["a"])
    assert back["b"].shape == ()
    assert int(back["b"]) == 4
