"""The encoder gives the embeddings of the plain call on any mesh, and compiles nothing after its warm-up."""

import contextlib
import weakref

import jax
import numpy as np
import pytest

from altclip_jax import AltCLIP, ImageError
from altclip_jax.assets import PICTURES
from altclip_jax.inference.encoder import (
    CPU_PICTURES,
    Encoder,
    Skipped,
    encode_images,
    encode_text,
    normalize_bytes,
    pictures_at_once,
)
from altclip_jax.parallel import make_mesh, param_shardings

FILES = sorted(PICTURES.glob("*.png"))[:11]
MESHES = [None, {}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "fsdp": 8}]


@pytest.fixture(scope="module")
def clip():
    return AltCLIP.from_pretrained()


@pytest.fixture(scope="module")
def pictures(clip):
    return np.stack([clip.processor.image_processor.resize_and_crop(path) for path in FILES])


@contextlib.contextmanager
def compilations():
    """Lists what XLA compiles meanwhile."""
    seen = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("rows", [1, 4, 7, 8, 11])
def test_few_pictures_at_a_time_have_the_embeddings_of_all_together(clip, pictures, rows):
    pixels = clip.processor.image_processor.normalize(pictures)[:rows]
    plain = encode_images(clip.model, clip.params, pixels)
    found = encode_images(clip.model, clip.params, pixels, at_once=4)
    assert found.shape == plain.shape
    np.testing.assert_allclose(found, plain, atol=1e-6)


def test_pictures_come_a_few_at_a_time_on_one_cpu_and_stay_together_on_several_devices(clip):
    assert pictures_at_once(clip.params) == CPU_PICTURES
    assert pictures_at_once(jax.tree.map(np.asarray, clip.params)) == CPU_PICTURES
    mesh = make_mesh(data=2, fsdp=4)
    assert pictures_at_once(jax.device_put(clip.params, param_shardings(mesh, clip.params))) is None


def test_a_model_names_its_devices_or_says_that_there_are_none(clip):
    mesh = make_mesh(data=2, fsdp=4)
    second = jax.devices()[1]
    for params, where in (
        (clip.params, f"on {jax.devices()[0]}"),
        (jax.device_put(clip.params, second), f"on {second}"),
        (jax.device_put(clip.params, param_shardings(mesh, clip.params)), "on 8 devices"),
        (jax.tree.map(np.asarray, clip.params), "on no device"),
    ):
        told = repr(AltCLIP(clip.model, params, clip.processor, "mine"))
        assert told == f"AltCLIP('mine', 3,505,921 parameters, stored float32, computed float32, {where})"


def test_texts_that_were_not_padded_are_named_with_the_way_out(clip):
    texts = clip.processor(text=["x", "a red apple"])
    with pytest.raises(ValueError, match=r"input_ids has rows of different lengths.*padding=True"):
        encode_text(clip.model, clip.params, texts["input_ids"], texts["attention_mask"])


@pytest.mark.parametrize("axes", MESHES)
def test_embeddings_are_those_of_the_plain_call(clip, pictures, axes):
    mesh = None if axes is None else make_mesh(**axes)
    encoder = Encoder(clip.model, clip.params, clip.processor, mesh=mesh)
    texts = ["cat", "a red apple", "火箭", "ракета", "x"]
    tokens = clip.processor.tokenizer(texts, padding=(16,), return_tensors="np")
    found = encoder.embed_texts(texts)
    assert found.shape == (5, 128)
    plain = encode_text(clip.model, clip.params, tokens["input_ids"], tokens["attention_mask"])
    np.testing.assert_allclose(found, plain, atol=1e-6)
    pixels = clip.processor.image_processor.normalize(pictures)
    plain = encode_images(clip.model, clip.params, pixels)
    for given in (pixels, pictures, pixels.astype(np.float64)):
        np.testing.assert_allclose(encoder.embed_prepared([given[:8], given[8:]], 8), plain, atol=1e-6)
    np.testing.assert_allclose(encoder.embed_images(FILES, 4).embeddings, plain, atol=1e-6)
    assert encoder.embed_texts([]).shape == encoder.embed_images([]).embeddings.shape == (0, 128)


def test_float16_pictures_are_embedded_to_their_own_precision(clip, pictures):
    pixels = clip.processor.image_processor.normalize(pictures[:8])
    plain = encode_images(clip.model, clip.params, pixels)
    found = clip.encoder.embed_prepared([pixels.astype(np.float16)])
    np.testing.assert_allclose(found, plain, rtol=0, atol=2e-4)


def test_all_devices_are_one_word(clip):
    everywhere = AltCLIP.from_pretrained(mesh="all")
    assert "on 8 devices" in repr(everywhere)
    texts = [f"a cat {number}" for number in range(30)]
    np.testing.assert_allclose(everywhere.encode_text(texts), clip.encode_text(texts), atol=1e-6)
    found, expected = (one.classify(FILES, ["cat", "rocket"]) for one in (everywhere, clip))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert everywhere.fingerprint() == clip.fingerprint()


def test_parameters_are_cut_by_the_rules(clip):
    encoder = Encoder(clip.model, clip.params, clip.processor, mesh=make_mesh(data=1, fsdp=4, tensor=2))
    kernel = encoder.params["vision_model"]["layer_0"]["mlp"]["up"]["kernel"]
    rows, columns = kernel.shape
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(rows // 4, columns // 2)}


@pytest.mark.parametrize("changes", [{}, {"do_rescale": False}, {"do_normalize": False}, {"image_mean": 0.5}])
def test_bytes_are_normalised_on_the_device_bit_for_bit_as_the_processor_does(clip, changes):
    processor = clip.processor.image_processor.replace(**changes)
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    found = jax.jit(lambda values: normalize_bytes(values, processor))(every)
    np.testing.assert_array_equal(found, processor.normalize(every))


@pytest.mark.parametrize(("axes", "steady"), [(None, False), ({}, True)])
def test_nothing_is_compiled_after_the_warm_up(clip, axes, steady):
    mesh = None if axes is None else make_mesh(**axes)
    model = clip.model.clone(attention_implementation="xla")  # of which other tests have compiled nothing
    encoder = Encoder(model, clip.params, clip.processor, mesh=mesh, steady=steady)
    with compilations() as seen:
        assert 0 < encoder.warmup(texts=2, images=3) <= len(seen)
    texts = ["one " * (number % 60) for number in range(70)]
    with compilations() as seen:
        for some in (texts, texts[:1], texts[20:23]):
            assert encoder.embed_texts(some, 2).shape == (len(some), 128)
        for rows in (4, 2, 1):
            assert len(encoder.embed_images(FILES[:rows], 3).indices) == rows
    assert seen == []


def test_a_warm_up_for_one_at_a_time_compiles_few_programs(clip):
    assert clip.warmup(texts=1, images=1) < clip.warmup(texts=2, images=2)
    assert clip.warmup(texts=0, images=1) == 1
    with compilations() as seen:
        for text in ("cat", "cat " * 9, "cat " * 20, "cat " * 100):
            clip.encode_text(text)
        clip.encode_images(FILES[0])
    assert seen == []


@pytest.fixture
def damaged(tmp_path):
    """Files of which the second, the fourth and the last cannot be read."""
    (tmp_path / "damaged.png").write_bytes(FILES[0].read_bytes()[:200])
    return [FILES[0], tmp_path / "none.png", FILES[1], tmp_path / "damaged.png", FILES[2], FILES[3], tmp_path]


@pytest.mark.parametrize("size", [1, 2, 3, 32])
def test_pictures_that_cannot_be_read_are_skipped_and_named(clip, damaged, size):
    done = []
    found = clip.encode_images(damaged, batch_size=size, on_error="skip", progress=done.append)
    assert found.indices.tolist() == [0, 2, 4, 5]
    np.testing.assert_allclose(found.embeddings, clip.encode_images(FILES[:4]), atol=1e-6)
    assert [(one.index, one.name) for one in found.skipped] == [(place, str(damaged[place])) for place in (1, 3, 6)]
    assert found.skipped[0] == Skipped(1, str(damaged[1]), "No such file or directory")
    assert "damaged" in found.skipped[1].reason
    assert sum(done) == 7


def test_pictures_that_cannot_be_read_are_raised_unless_they_are_to_be_skipped(clip, damaged):
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        clip.encode_images(damaged)
    with pytest.raises(ImageError, match=r"damaged\.png"):
        clip.encode_images(damaged[3:6])
    with pytest.raises(ImageError, match=r"images\[2\] is not a picture"):
        clip.encode_images([FILES[0], FILES[1], b"x"], batch_size=2)
    with pytest.raises(ValueError, match="on_error='ignore' is neither"):
        clip.encode_images(damaged, on_error="ignore")
    with pytest.raises(TypeError):
        clip.encode_images([3], on_error="skip")


def test_all_that_cannot_be_read_are_no_embeddings(clip, damaged):
    found = clip.encode_images([damaged[1], damaged[3], "a\0b"], on_error="skip")
    assert found.embeddings.shape == (0, 128)
    assert [one.index for one in found.skipped] == [0, 1, 2]


def test_pictures_of_an_iterator_come_batch_by_batch_in_bounded_memory(clip):
    alive, most = weakref.WeakSet(), 0
    images = np.random.default_rng(0).integers(0, 256, (20, 40, 36, 3), dtype=np.uint8)

    class Picture(np.ndarray):
        """An array that can be counted."""

        __hash__ = object.__hash__

    def pictures():
        nonlocal most
        for image in images:
            picture = image.copy().view(Picture)
            alive.add(picture)
            most = max(most, len(alive))
            yield picture

    batches = clip.encoder.stream_images(pictures(), 4)
    first = next(batches)
    assert first.indices.tolist() == [0, 1, 2, 3]
    rest = list(batches)
    assert np.concatenate([batch.indices for batch in rest]).tolist() == list(range(4, 20))
    assert most <= 12
    rows = np.concatenate([first.embeddings, *(batch.embeddings for batch in rest)])
    np.testing.assert_allclose(rows, clip.encode_images(images), atol=2e-6)
    np.testing.assert_array_equal(clip.encode_images(iter(images), batch_size=4), rows)


def test_texts_of_an_iterator_are_read_a_window_at_a_time(clip, monkeypatch):
    monkeypatch.setattr("altclip_jax.inference.encoder._WINDOW", 16)
    read = []
    texts = [f"{'cat ' * (number * 7 % 13)}{number}" for number in range(50)]

    def lazily():
        for text in texts:
            read.append(text)
            yield text

    batches = clip.encoder.stream_texts(lazily(), 8)
    found = [next(batches)]
    assert len(read) <= 32
    found += batches
    rows = np.empty((50, 128), np.float32)
    for batch in found:
        rows[batch.indices] = batch.embeddings
    assert sorted(np.concatenate([batch.indices for batch in found])) == list(range(50))
    np.testing.assert_allclose(rows, clip.encode_text(texts), atol=2e-6)
    np.testing.assert_array_equal(clip.encode_text(lazily(), batch_size=8), rows)
