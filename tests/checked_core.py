"""Calls the core with arrays of numpy and jax and with tracers; each shape is checked against its annotation.

jaxtyping checks what is imported under its hook, so this is a program of its own, which test_annotations.py runs. It
ends with a line for each function with shapes that no call reached.
"""

import functools
import re

from beartype import beartype
from jaxtyping import TypeCheckError, install_import_hook

CORE = ("model.", "training.losses", "inference.", "processing.", "quantization.leaves", "quantization.codes")
ABSTRACT = {"quantization.leaves.QuantizedArray.rows"}
SHAPED = re.compile(r"jaxtyping|\[(Array|AnyArray|np\.ndarray)\b")
checked, called = set(ABSTRACT), set(ABSTRACT)


def check(function):
    """Checks the shapes that a function names and nothing else: beartype refuses our protocols, and mypy has them."""
    shapes = {name: told for name, told in function.__annotations__.items() if SHAPED.search(str(told))}
    if not shapes:
        return function
    name = f"{function.__module__.removeprefix('altclip_jax.')}.{function.__qualname__}"
    checked.add(name)
    function.__annotations__ = shapes
    strict = beartype(function)

    @functools.wraps(strict)
    def noted(*args, **kwargs):
        called.add(name)
        return strict(*args, **kwargs)

    return noted


def call_core():
    """Calls it; most of it is traced alone, which checks shapes and computes nothing."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import altclip_jax as ax
    from altclip_jax.assets import PICTURES
    from altclip_jax.inference import encoder
    from altclip_jax.inference.pmapped import pmap_encoders, replicated
    from altclip_jax.model.stacked import stack_layers
    from altclip_jax.model.two_towers import normalize, symmetric_cross_entropy
    from altclip_jax.parallel import make_mesh
    from altclip_jax.training.losses import contrastive_loss, mean_squared_error

    rng, key = np.random.default_rng(0), jax.random.key(0)
    ids, one_row = rng.integers(3, 50, (4, 7)), np.arange(2, 9)[None]
    mask = (np.arange(7) < np.array([[7], [3], [7], [1]])).astype(np.int32)
    pixels = rng.standard_normal((4, 3, 12, 12), np.float32)
    texts, pictures = {"input_ids": ids, "attention_mask": mask}, {"pixel_values": pixels}
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}
    table = {**tower, "vocab_size": 60, "max_position_embeddings": 24}
    vision = {**tower, "image_size": 12, "patch_size": 4}
    alt = ax.AltCLIPConfig(text_config={**table, "project_dim": 12}, vision_config=vision, projection_dim=10)
    clip = ax.CLIPConfig(text_config={**table, "attention_dropout": 0.1}, vision_config=vision, projection_dim=10)

    def trace(function, params, *given):
        """With numpy's arrays, jax's, and tracers of vmap and grad."""
        arrays = jax.tree.map(jnp.asarray, given)
        for known in (given, arrays):
            jax.eval_shape(lambda params, known=known: function(params, *known), params)
        jax.eval_shape(jax.vmap(function, (None, 0)), params, *jax.tree.map(lambda leaf: leaf[None], arrays))
        jax.eval_shape(jax.grad(lambda *both: sum(map(jnp.sum, jax.tree.leaves(function(*both))))), params, *given)

    model = ax.AltCLIPModel(alt)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), model.param_shapes())
    for layout in (params, stack_layers(params)[0]):
        trace(lambda params, inputs: model.apply({"params": params}, **inputs), layout, {**texts, **pictures})
    for form in ("int8", "int4"):
        few = model.quantize_params(params, form)
        jax.eval_shape(functools.partial(model.apply, **texts, **pictures), {"params": few})

    every = {"output_attentions": True, "output_hidden_states": True, "deterministic": False}
    companions = {"position_ids": one_row, "token_type_ids": 0 * one_row, "attention_mask": mask[:1] > 0}
    text, relative = alt.text_config, alt.text_config.replace(position_embedding_type="relative_key_query")
    square = np.repeat(mask[:, None], 7, axis=1)
    embeds = rng.standard_normal((4, 7, 16), np.float32)
    for other, inputs, flags in (
        (ax.AltCLIPModel(alt, remat=True), {**texts, **pictures}, {**every, "return_loss": True}),
        (ax.AltCLIPModel(alt, attention_implementation="xla"), {**texts, **pictures}, {}),
        (ax.AltCLIPModel(alt, dtype=jnp.bfloat16), {"input_ids": ids, **companions, **pictures}, {}),
        (ax.AltCLIPModel(alt), texts, {"method": "get_text_features"}),
        (ax.AltCLIPModel(alt), pictures, {"method": "get_image_features"}),
        (ax.AltCLIPTextModel(text), {"input_ids": ids, "head_mask": np.ones(2, np.float32)}, every),
        (ax.AltCLIPTextModel(text), {**texts, "head_mask": np.ones((1, 2), np.float32)}, {}),
        (ax.AltCLIPTextModel(text), {"inputs_embeds": embeds, "attention_mask": square}, {}),
        (ax.AltCLIPTextModel(relative), texts, {}),
        (ax.AltCLIPVisionModel(alt.vision_config), pictures, every),
        (ax.AltCLIPVisionModel(alt.vision_config), {"pixel_values": np.zeros((2, 3, 16, 20), np.float32)},
         {"interpolate_pos_encoding": True}),
        (ax.CLIPModel(clip), {**texts, **pictures}, {**every, "return_loss": True}),
        (ax.CLIPModel(clip), {**texts, "position_ids": one_row}, {"method": "get_text_features"}),
        (ax.CLIPTextModel(clip.text_config), {"input_ids": ids}, every),
        (ax.CLIPTextModelWithProjection(clip.text_config), texts, {}),
        (ax.CLIPVisionModel(clip.vision_config), pictures, {}),
    ):  # fmt: skip
        apply = functools.partial(other.apply, **flags, rngs={"dropout": key})
        jax.eval_shape(functools.partial(apply, **inputs), {"params": other.param_shapes()})
        jax.eval_shape(apply, {"params": other.param_shapes()}, **inputs)

    rows, others = (rng.standard_normal((8, 10), np.float32) for _ in range(2))
    scale, mesh = np.ones((), np.float32), make_mesh(devices=jax.devices())
    try:
        mean_squared_error(rows, others[:1])
    except TypeCheckError:
        pass
    else:
        raise AssertionError("nothing is checked")
    trace(lambda scale, rows: scale * normalize(rows), scale, rows)
    trace(lambda scale, rows: scale * mean_squared_error(*rows), scale, (rows, others))
    trace(lambda scale, scores: scale * symmetric_cross_entropy(scores), scale, rows @ others.T)
    for form in ({"form": "plain"}, {"form": "chunked", "chunk_rows": 4}, {"form": "ring", "mesh": mesh}):
        loss = functools.partial(contrastive_loss, **form)
        jax.eval_shape(lambda loss=loss: loss(rows, others, scale))
        jax.eval_shape(lambda loss=loss: loss(*map(jnp.asarray, (rows, others, scale))))
        jax.eval_shape(jax.grad(loss, (0, 1, 2)), rows, others, scale)

    for form in (np.asarray, jnp.asarray):
        encoder.encode_text(model, params, form(ids), form(mask))
        encoder.encode_images(model, params, form(pixels), at_once=2)
    encode_text, encode_images = pmap_encoders(model)
    encode_text(replicated(params), ids, mask)
    encode_images(replicated(params), pixels)

    embedded, paths = ax.AltCLIP.from_pretrained(quantize="int4"), sorted(PICTURES.glob("*.png"))[:3]
    embedded.similarity(paths, ["a cat", "苹果"])
    embedded.classify(paths, ["cat", "dog"], templates=["a {}"])
    prepare = embedded.processor.image_processor
    in_bytes = np.stack([prepare.resize_and_crop(path) for path in paths])
    for given in (in_bytes, prepare.normalize(in_bytes)):
        embedded.encoder.embed_prepared([given], batch_size=4)

    whole, fractions = rng.integers(0, 256, (40, 30, 3), np.uint8), rng.random((3, 30, 40), np.float32)
    for form in ("np", "jax"):
        embedded.processor(images=whole, text=["a", "a cat"], padding=True, return_tensors=form)
    embedded.processor(images=[whole, whole[:30]], do_resize=False, return_tensors=None)
    embedded.processor(images=fractions, do_rescale=False, data_format="channels_last")
    ax.AltCLIPImageProcessor()(np.zeros((2, 9000, 3), np.uint8))  # of which no more than the crop is enlarged


if __name__ == "__main__":
    with install_import_hook("altclip_jax", "checked_core.check"):
        import checked_core  # whose `check` the hook finds by its name

        checked_core.call_core()
    print(
        *sorted(name for name in checked_core.checked - checked_core.called if name.startswith(CORE)), sep="\n", end=""
    )
