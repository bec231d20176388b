"""Compiled encoders give the embeddings of the plain call on any mesh, and compile nothing after their warm-up."""

import contextlib

import jax
import numpy as np
import pytest

from altclip_jax import AltCLIP
from altclip_jax.assets import PICTURES
from altclip_jax.inference import encoders
from altclip_jax.inference.compiled import CompiledEncoders, normalized
from altclip_jax.inference.token_batches import TokenBatching
from altclip_jax.parallel import make_mesh, param_shardings

MESHES = [None, {}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "fsdp": 8}]


@pytest.fixture(scope="module")
def clip():
    return AltCLIP.from_pretrained()


@pytest.fixture(scope="module")
def pictures(clip):
    paths = sorted(PICTURES.glob("*.png"))[:11]
    return np.stack([clip.processor.image_processor.resize_and_crop(path) for path in paths])


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


@pytest.mark.parametrize("axes", MESHES)
def test_embeddings_are_those_of_the_plain_call(clip, pictures, axes):
    mesh = None if axes is None else make_mesh(**axes)
    compiled = CompiledEncoders(clip.model, clip.params, mesh=mesh, image_processor=clip.processor.image_processor)
    texts = clip.processor.tokenizer(["cat", "a red apple", "火箭", "ракета", "x"], padding=(16,), return_tensors="np")
    found = compiled.text(texts["input_ids"], texts["attention_mask"]).result()
    plain = encoders.encode_text(clip.model, clip.params, texts["input_ids"], texts["attention_mask"])
    assert found.shape == (5, 128)
    np.testing.assert_allclose(found, plain, atol=1e-6)
    pixels = clip.processor.image_processor.normalize(pictures)
    plain = encoders.encode_images(clip.model, clip.params, pixels)
    for given in (pixels, pictures):
        np.testing.assert_allclose(compiled.images(given).result(), plain, atol=1e-6)
    np.testing.assert_allclose(compiled.images(pictures[:3], rows=11).result(), plain[:3], atol=1e-6)
    assert compiled.text(texts["input_ids"][:0], texts["attention_mask"][:0]).result().shape == (0, 128)


@pytest.mark.parametrize("axes", [None, {}])
def test_pictures_of_another_dtype_have_a_program_of_their_own(clip, pictures, axes):
    compiled = CompiledEncoders(clip.model, clip.params, mesh=None if axes is None else make_mesh(**axes))
    pixels = clip.processor.image_processor.normalize(pictures[:8])
    plain = encoders.encode_images(clip.model, clip.params, pixels)
    for dtype, noise in ((np.float32, 1e-6), (np.float16, 2e-4), (np.float64, 1e-6)):
        np.testing.assert_allclose(compiled.images(pixels.astype(dtype)).result(), plain, rtol=0, atol=noise)
    assert compiled.programs == 2  # jax makes float32 of float64


@pytest.mark.parametrize("rows", [1, 4, 7, 8, 11])
def test_few_pictures_at_a_time_have_the_embeddings_of_all_together(clip, pictures, rows):
    pixels = clip.processor.image_processor.normalize(pictures)[:rows]
    plain = encoders.encode_images(clip.model, clip.params, pixels)
    found = encoders.encode_images(clip.model, clip.params, pixels, at_once=4)
    assert found.shape == plain.shape
    np.testing.assert_allclose(found, plain, atol=1e-6)


def test_pictures_come_a_few_at_a_time_on_one_cpu_and_stay_together_on_several_devices(clip):
    assert encoders.pictures_at_once(clip.params) == encoders.CPU_PICTURES
    assert encoders.pictures_at_once(jax.tree.map(np.asarray, clip.params)) == encoders.CPU_PICTURES
    mesh = make_mesh(data=2, fsdp=4)
    assert encoders.pictures_at_once(jax.device_put(clip.params, param_shardings(mesh, clip.params))) is None


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


def test_parameters_are_cut_by_the_rules(clip):
    compiled = CompiledEncoders(clip.model, clip.params, mesh=make_mesh(data=1, fsdp=4, tensor=2))
    kernel = compiled._params["vision_model"]["layer_0"]["mlp"]["up"]["kernel"]
    rows, columns = kernel.shape
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(rows // 4, columns // 2)}


@pytest.mark.parametrize("changes", [{}, {"do_rescale": False}, {"do_normalize": False}, {"image_mean": 0.5}])
def test_bytes_are_normalised_on_the_device_as_the_processor_does(clip, changes):
    processor = clip.processor.image_processor.replace(**changes)
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    found = jax.jit(lambda values: normalized(values, processor))(every)
    expected = processor.normalize(every)
    scale = 1 if processor.do_rescale else 255
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("axes", [None, {}])
def test_nothing_is_compiled_after_the_warm_up(clip, pictures, axes):
    mesh = None if axes is None else make_mesh(**axes)
    compiled = CompiledEncoders(clip.model, clip.params, mesh=mesh, image_processor=clip.processor.image_processor)
    batching = TokenBatching(
        clip.processor.tokenizer, clip.text_limit, tokens=256, steady=True, multiple=compiled.multiple
    )
    with compilations() as seen:
        compiled.warmup(texts=batching.shapes, images=[8], as_bytes=True)
    assert len(seen) == compiled.programs == len(batching.shapes) + 1
    texts = ["one " * (number % 60) for number in range(70)]
    with compilations() as seen:
        rows = np.concatenate(list(batching.encode(compiled.text, texts)))
        images = [compiled.images(pictures[start : start + 8], rows=8).result() for start in (0, 8)]
    assert seen == []
    assert rows.shape == (70, 128)
    assert [len(part) for part in images] == [8, 3]


def test_texts_that_were_not_padded_are_named_with_the_way_out(clip):
    texts = clip.processor(text=["x", "a red apple"])
    with pytest.raises(ValueError, match=r"input_ids has rows of different lengths.*padding=True"):
        encoders.encode_text(clip.model, clip.params, texts["input_ids"], texts["attention_mask"])


def test_bytes_need_the_image_processor(clip, pictures):
    with pytest.raises(ValueError, match="image_processor="):
        CompiledEncoders(clip.model, clip.params).images(pictures)
