"""The programs that a model is exported as: what they take and give, and how they are traced.

A program is a function of a dict of weights and of its inputs, and returns a tuple. Its rows and the length of texts
are symbols, so that one program is for all of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.export
import numpy as np
from jax import Array

from altclip_jax.inference.encoder import normalize_bytes
from altclip_jax.model.two_towers import normalize
from altclip_jax.pretrained import TwoTowerModel
from altclip_jax.processing.image import AltCLIPImageProcessor
from altclip_jax.weights.convert import Params

ProgramName = Literal["text", "image", "both"]
PictureForm = Literal["float32", "uint8"]
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
MOST_BYTES = 2_000_000_000  # of a file of jax.export, which counts its bytes with signed 32 bits
_PARTS: dict[ProgramName, tuple[str, ...]] = {
    "text": ("text_model", "text_projection", "logit_scale"),  # the model's setup asks for the temperature
    "image": ("vision_model", "visual_projection", "logit_scale"),
    "both": ("text_model", "text_projection", "vision_model", "visual_projection", "logit_scale"),
}


class Argument(NamedTuple):
    """What a program takes or gives beside weights; a name in its shape is an axis of any size within limits."""

    name: str
    shape: tuple[str | int, ...]
    dtype: str


class Program(NamedTuple):
    """A function (weights by name, inputs...) -> outputs, and what these are."""

    name: ProgramName
    function: Callable[..., tuple[Array, ...]]
    weights: dict[str, Array]
    inputs: tuple[Argument, ...]
    outputs: tuple[Argument, ...]


def programs_of(
    model: TwoTowerModel,
    params: Params,
    image_processor: AltCLIPImageProcessor,
    names: Sequence[str],
    *,
    unit: bool = True,
    pictures: PictureForm = "float32",
) -> list[Program]:
    """Returns the programs that are wanted.

    Args:
        model: The model.
        params: Its parameters.
        image_processor: How pictures that are given as bytes are rescaled and normalised.
        names: "text", "image", or "both" for the two towers in one program.
        unit: Scale the embeddings to unit length.
        pictures: "float32", prepared (images, 3, height, width), or "uint8", resized (images, height, width, 3).

    Raises:
        ValueError: another name or form, or an image processor that gives no pictures for this model.
    """
    for argument, values, known in (
        ("programs", list(names), get_args(ProgramName)),
        ("pictures", [pictures], get_args(PictureForm)),
    ):
        unknown = [value for value in values if value not in known]
        if unknown or not values or len(set(values)) < len(values):
            raise ValueError(f"{argument}={values} must be of {', '.join(known)}, each at most once.")
    if set(names) != {"text"}:
        _check_pictures(model, image_processor, pictures)
    texts, images = _inputs(model, pictures)
    towers = _Towers(model, image_processor, unit, pictures)
    rows: dict[str, Any] = {"text": "texts", "image": "images"}
    kind = "embeds" if unit else "features"
    width = model.config.projection_dim
    made = []
    for name in get_args(ProgramName):
        if name not in names:
            continue
        sides = ("text", "image") if name == "both" else (name,)
        inputs = {"text": texts, "image": images, "both": (*texts, *images)}[name]
        outputs = tuple(Argument(f"{side}_{kind}", (rows[side], width), "float32") for side in sides)
        if name == "both" and unit:
            outputs += (Argument("logits_per_image", ("images", "texts"), "float32"),)
        function: Any = {"text": towers.text, "image": towers.image, "both": towers.both}[name]
        made.append(_program(name, function, params, inputs, outputs))
    return made


def _inputs(model: TwoTowerModel, pictures: PictureForm) -> tuple[tuple[Argument, ...], tuple[Argument, ...]]:
    side, channels = model.config.vision_config.image_size, model.config.vision_config.num_channels
    texts = tuple(Argument(name, ("texts", "length"), "int32") for name in ("input_ids", "attention_mask"))
    if pictures == "uint8":
        return texts, (Argument("pictures", ("images", side, side, channels), "uint8"),)
    return texts, (Argument("pixel_values", ("images", channels, side, side), "float32"),)


class _Towers:
    """The functions of parameters and inputs that become programs."""

    def __init__(self, model: TwoTowerModel, image_processor: AltCLIPImageProcessor, unit: bool, pictures: PictureForm):
        self._model, self._image_processor, self._unit, self._pictures = model, image_processor, unit, pictures

    def text(self, params: Params, ids: Array, mask: Array) -> tuple[Array, ...]:
        features: Any = self._model.apply({"params": params}, ids, mask, method="get_text_features")
        return (normalize(features) if self._unit else features,)

    def image(self, params: Params, values: Array) -> tuple[Array, ...]:
        features: Any = self._model.apply({"params": params}, self._pixels(values), method="get_image_features")
        return (normalize(features) if self._unit else features,)

    def both(self, params: Params, ids: Array, mask: Array, values: Array) -> tuple[Array, ...]:
        if not self._unit:
            return (*self.text(params, ids, mask), *self.image(params, values))
        found: Any = self._model.apply(
            {"params": params}, input_ids=ids, attention_mask=mask, pixel_values=self._pixels(values)
        )
        return found.text_embeds, found.image_embeds, found.logits_per_image

    def _pixels(self, values: Array) -> Array:
        return normalize_bytes(values, self._image_processor) if self._pictures == "uint8" else values


def _program(
    name: ProgramName,
    function: Callable[..., tuple[Array, ...]],
    params: Params,
    inputs: tuple[Argument, ...],
    outputs: tuple[Argument, ...],
) -> Program:
    """Makes a function of parameters one of plain arrays by name, which a process without this library can call."""
    used = {part: params[part] for part in _PARTS[name]}
    paths, tree = jax.tree_util.tree_flatten_with_path(used)
    # a parameter in few bits is a node with fields
    names = ["/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path) for path, _ in paths]

    def by_name(weights: Mapping[str, Array], *given: Array) -> tuple[Array, ...]:
        return function(jax.tree.unflatten(tree, [weights[name] for name in names]), *given)

    weights = dict(zip(names, (leaf for _, leaf in paths), strict=True))
    return Program(name, by_name, weights, inputs, outputs)


def limits(model: TwoTowerModel) -> dict[str, tuple[int, int | None]]:
    """Returns the smallest and the largest size of each axis that has a name; None for no largest."""
    return {"texts": (1, None), "length": (1, model.config.text_config.max_tokens), "images": (1, None)}


def lower(
    program: Program,
    sizes: Mapping[str, tuple[int, int | None]],
    platforms: Sequence[str],
    *,
    inside: bool = False,
) -> jax.export.Exported:
    """Traces a program for every size within limits, and lowers it for platforms that need not be here.

    Args:
        program: Which.
        sizes: What `limits` gives.
        platforms: "cpu", "cuda", "rocm", "tpu".
        inside: Make its weights a part of it; called, it then takes an empty dict.

    Raises:
        ValueError: an unknown platform, or more weights than a file with them inside can have.
    """
    unknown = [platform for platform in platforms if platform not in PLATFORMS]
    if unknown or not platforms or len(set(platforms)) < len(platforms):
        raise ValueError(f"platforms={list(platforms)} must be of {', '.join(PLATFORMS)}, each at most once.")
    abstract: Any = jax.ShapeDtypeStruct
    function: Any = program.function
    weights = {name: abstract(leaf.shape, leaf.dtype) for name, leaf in program.weights.items()}
    if inside:
        constants = {name: np.asarray(leaf) for name, leaf in program.weights.items()}
        size = sum(leaf.nbytes for leaf in constants.values())
        if size > MOST_BYTES:
            raise ValueError(
                f"The weights of the program {program.name!r} take {size:,} bytes, and a file with weights inside holds"
                f" {MOST_BYTES:,}: pass weights='beside', store them in param_dtype='bfloat16', or quantize."
            )
        weights = {}

        def function(_: Any, *given: Array) -> tuple[Array, ...]:
            return program.function(constants, *given)

    axes = list(dict.fromkeys(axis for given in program.inputs for axis in given.shape if isinstance(axis, str)))
    bounds = [f"{axis} <= {sizes[axis][1]}" for axis in axes if sizes[axis][1] is not None]
    symbols = dict(zip(axes, jax.export.symbolic_shape(", ".join(axes), constraints=bounds), strict=True))
    inputs = [
        abstract([symbols[axis] if isinstance(axis, str) else axis for axis in given.shape], np.dtype(given.dtype))
        for given in program.inputs
    ]
    # not the paths of this machine's files, which would travel with the program
    with setting("jax_hlo_source_file_canonicalization_regex", ".*"):
        return jax.export.export(jax.jit(function), platforms=list(platforms))(weights, *inputs)


@contextlib.contextmanager
def setting(name: str, value: Any) -> Iterator[None]:
    """Gives a setting of jax another value while the context is open."""
    config: Any = jax.config
    before = getattr(config, name)
    config.update(name, value)
    try:
        yield
    finally:
        config.update(name, before)


def _check_pictures(model: TwoTowerModel, processor: AltCLIPImageProcessor, pictures: PictureForm) -> None:
    side, channels = model.config.vision_config.image_size, model.config.vision_config.num_channels
    made = processor.output_size
    if made != (side, side):
        gives = "pictures of many sizes" if made is None else f"pictures of {made[0]}x{made[1]} pixels"
        raise ValueError(
            f"The image processor gives {gives} and the model takes {side}x{side}: correct preprocessor_config.json, or"
            f" replace its fields, for example AltCLIPProcessor.from_pretrained(..., crop_size={side},"
            f" size={{'shortest_edge': {side}}})."
        )
    if pictures == "uint8" and channels != 3:
        raise ValueError(
            f"The model takes pictures of {channels} channels, and pictures='uint8' is for 3: pass 'float32'."
        )
