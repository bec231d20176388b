"""`AltCLIP` gives the model batches of the size that was asked for, however pictures and texts are handed in."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from altclip_jax import AltCLIP, AltCLIPProcessor
from altclip_jax.inference.encoder import encode_text
from altclip_jax.inference.pmapped import pmap_encoders, replicated


@pytest.fixture(scope="module")
def clip():
    return AltCLIP.from_pretrained()


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (10, 40, 36, 3), dtype=np.uint8)


@pytest.fixture
def batches(clip, monkeypatch):
    """The number of pictures in each batch that the model sees."""
    seen, encode = [], clip.encoder._encode_images

    def counted(pixels):
        seen.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(clip.encoder, "_encode_images", counted)
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


IDS = np.array([[0, 5, 6, 2], [0, 7, 2, 1]])
MASK = (IDS != 1).astype(np.int32)


@pytest.fixture(scope="module")
def doors(clip):
    """All ways by which ids come to a compiled program."""
    copies = replicated(clip.params)
    return {
        "jitted": lambda ids, mask: encode_text(clip.model, clip.params, ids, mask),
        "pmap": lambda ids, mask: pmap_encoders(clip.model)[0](copies, ids, mask),
    }


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
@pytest.mark.parametrize(
    ("ids", "mask", "words"),
    [
        (np.where(IDS == 7, 8000, IDS), MASK, "1 value.s. outside the vocabulary of 8000 rows, such as 8000"),
        (np.where(IDS == 7, -1, IDS), MASK, "such as -1"),
        (IDS.astype(np.float32), MASK, "input_ids must be integers"),
        (np.full((2, 65), 5), np.ones((2, 65), np.int32), "65 tokens and the position table ends after 64"),
        (IDS, MASK[:, :1], r"attention_mask must have shape \(2, 4\) or \(2, 4, 4\) .* got int32 of shape \(2, 1\)"),
        (np.repeat(IDS, 2, 0), MASK, r"attention_mask must have shape \(4, 4\)"),
        (IDS, MASK[0], r"got int32 of shape \(4,\)"),
    ],
)
@pytest.mark.parametrize("door", ["jitted", "pmap"])
def test_ids_that_are_known_are_checked_before_a_compiled_program_gets_them(doors, door, ids, mask, words, array):
    with pytest.raises(ValueError, match=words):
        doors[door](array(ids), array(mask))


def test_ids_that_are_right_once_they_are_cut_to_32_bits_are_wrong(doors):
    for door in doors.values():
        with pytest.raises(ValueError, match="such as 4294967301"):
            door(IDS + 2**32 * (IDS == 5), MASK)


def test_one_row_of_a_mask_is_for_all_texts_under_jit(doors):
    ids = np.array([[0, 5, 2, 1], [0, 7, 2, 1]])
    rows = [doors["jitted"](ids, mask) for mask in (MASK[1:], np.repeat(MASK[1:], 2, 0))]
    np.testing.assert_array_equal(*rows)


def test_a_tokenizer_that_gets_more_ids_later_gives_no_nan(clip, monkeypatch):
    monkeypatch.setattr(clip.processor.tokenizer._vocabulary, "encode", lambda texts, _: [[5, 8000] for _ in texts])
    with pytest.raises(ValueError, match="outside the vocabulary of 8000 rows, such as 8000"):
        clip.similarity([], ["cat"])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_embedded_upright_however_the_camera_was_held(clip, photograph, store_turned, orientation):
    """The pictures of a phone, stored as they were taken: from a path, from bytes and opened."""
    data = store_turned(photograph, orientation)
    opened = Image.open(io.BytesIO(data))
    upright = clip.encode_images(photograph)
    np.testing.assert_array_equal(clip.encode_images([data, opened]), clip.encode_images([photograph] * 2))
    turned = clip.processor(images=opened)["pixel_values"]  # as the reference: a PIL image is taken as it is
    assert np.array_equal(turned, clip.processor(images=photograph)["pixel_values"]) == (orientation == 1)
    pictures = clip.processor.image_processor
    for said in (True, False):  # wins
        own = AltCLIPProcessor(pictures.replace(apply_exif_orientation=said), clip.processor.tokenizer)
        found = AltCLIP(clip.model, clip.params, own).encode_images(opened)
        assert np.array_equal(found, upright) == (said or orientation == 1)


def test_parameters_and_processor_can_be_exchanged(pictures):
    clip, other = AltCLIP.from_pretrained(mesh="all"), AltCLIP.from_pretrained()
    texts = clip.encode_text("red apple")
    other.params = {**other.params, "text_projection": {"kernel": -other.params["text_projection"]["kernel"]}}
    np.testing.assert_allclose(other.encode_text("red apple"), -texts, atol=2e-6)
    clip.params = other.params
    np.testing.assert_allclose(clip.encode_text("red apple"), -texts, atol=2e-6)
    assert len(clip.params["text_projection"]["kernel"].devices()) == 8

    processor = AltCLIPProcessor(clip.processor.image_processor.orient("stored"), clip.processor.tokenizer)
    other.processor = processor
    assert other.processor is other.encoder.processor is processor
