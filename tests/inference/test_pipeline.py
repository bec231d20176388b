"""`AltCLIP` gives the model batches of the size that was asked for, however pictures and texts are handed in."""

import jax.numpy as jnp
import numpy as np
import pytest

from altclip_jax import AltCLIP
from altclip_jax.inference import encoders


@pytest.fixture(scope="module")
def clip():
    return AltCLIP.from_pretrained()


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (10, 40, 36, 3), dtype=np.uint8)


@pytest.fixture
def batches(monkeypatch):
    """The number of pictures in each batch that the model sees."""
    seen, encode = [], encoders.encode_images

    def counted(model, params, pixels, **how):
        seen.append(len(pixels))
        return encode(model, params, pixels, **how)

    monkeypatch.setattr(encoders, "encode_images", counted)
    return seen


@pytest.mark.parametrize(
    "given",
    [
        lambda pictures: pictures,
        jnp.asarray,
        lambda pictures: [pictures],
        lambda pictures: [pictures[:7], [pictures[7], pictures[8]], pictures[9:]],
        list,
    ],
    ids=["array", "jax array", "list of an array", "nested", "list"],
)
def test_pictures_come_in_batches_in_whatever_they_are_handed_in(clip, pictures, batches, given):
    done = []
    rows = clip.encode_images(given(pictures), batch_size=4, progress=done.append)
    assert batches == [4, 4, 2]
    assert done == [4, 4, 2]
    single = np.concatenate([clip.encode_images(picture) for picture in pictures])
    np.testing.assert_allclose(rows, single, atol=2e-6)


def test_one_array_is_one_picture_and_no_pictures_are_no_rows(clip, pictures, batches):
    assert clip.encode_images(pictures[0], batch_size=4).shape == (1, 128)
    assert batches == [1]
    for none in ([], pictures[:0]):
        assert clip.encode_images(none).shape == (0, 128)


def test_similarity_and_classify_see_no_more_pictures_at_once_than_they_say(clip, pictures, batches):
    many = np.concatenate([pictures] * 4)
    assert clip.similarity(many, ["cat"]).shape == (40, 1)
    assert clip.classify(many, ["cat", "dog"]).shape == (40, 2)
    assert batches == [32, 8, 32, 8]


def test_where_the_channels_are_does_not_depend_on_the_size_of_batches(clip):
    # the first array tells it for all: the last of these could be read either way
    generator = np.random.default_rng(1)
    arrays = [generator.integers(0, 256, (side, 40, 3), dtype=np.uint8) for side in (40, 40, 3)]
    rows = [clip.encode_images(arrays, batch_size=size) for size in (2, 3)]
    np.testing.assert_allclose(*rows, atol=2e-6)


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_a_batch_of_no_size_is_refused(clip, pictures, size):
    error = ValueError if isinstance(size, int) and size is not True else TypeError
    with pytest.raises(error, match=rf"batch_size={size} "):
        clip.encode_images(pictures, batch_size=size)
    with pytest.raises(error, match=rf"batch_size={size} "):
        clip.encode_text(["cat"], batch_size=size)
