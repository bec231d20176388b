"""One invertible table between PyTorch's tensor names and the paths of the parameter tree.

The names are those of transformers 4.56.2. Other spellings are brought to these on reading (`canonical_name`); a name
or path without a rule is an error wherever it appears.
"""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from altclip_jax.weights.stored import aligned_empty

Transform = Literal["same", "linear", "patches"]


class Rule(NamedTuple):
    """A PyTorch name, the path of the same parameter, and how the array changes; `{i}` is a layer number."""

    name: str
    path: str
    transform: Transform


def _norm(name: str, path: str) -> list[Rule]:
    return [Rule(f"{name}.weight", f"{path}/scale", "same"), Rule(f"{name}.bias", f"{path}/bias", "same")]


def _linear(name: str, path: str) -> list[Rule]:
    return [Rule(f"{name}.weight", f"{path}/kernel", "linear"), Rule(f"{name}.bias", f"{path}/bias", "same")]


_TEXT, _TEXT_LAYER = "text_model.roberta", "text_model.roberta.encoder.layer.{i}"
_VISION, _VISION_LAYER = "vision_model", "vision_model.encoder.layers.{i}"

RULES: tuple[Rule, ...] = (
    Rule("logit_scale", "logit_scale", "same"),
    Rule("text_projection.weight", "text_projection/kernel", "linear"),
    Rule("visual_projection.weight", "visual_projection/kernel", "linear"),
    Rule(f"{_TEXT}.embeddings.word_embeddings.weight", "text_model/token_embedding/embedding", "same"),
    Rule(f"{_TEXT}.embeddings.position_embeddings.weight", "text_model/position_embedding/embedding", "same"),
    Rule(f"{_TEXT}.embeddings.token_type_embeddings.weight", "text_model/token_type_embedding/embedding", "same"),
    *_norm(f"{_TEXT}.embeddings.LayerNorm", "text_model/embedding_norm"),
    *_linear(f"{_TEXT_LAYER}.attention.self.query", "text_model/layer_{i}/attention/query"),
    *_linear(f"{_TEXT_LAYER}.attention.self.key", "text_model/layer_{i}/attention/key"),
    *_linear(f"{_TEXT_LAYER}.attention.self.value", "text_model/layer_{i}/attention/value"),
    Rule(
        f"{_TEXT_LAYER}.attention.self.distance_embedding.weight",
        "text_model/layer_{i}/attention/distance_embedding/embedding",
        "same",
    ),
    *_linear(f"{_TEXT_LAYER}.attention.output.dense", "text_model/layer_{i}/attention/out"),
    *_norm(f"{_TEXT_LAYER}.attention.output.LayerNorm", "text_model/layer_{i}/attention_norm"),
    *_linear(f"{_TEXT_LAYER}.intermediate.dense", "text_model/layer_{i}/mlp/up"),
    *_linear(f"{_TEXT_LAYER}.output.dense", "text_model/layer_{i}/mlp/down"),
    *_norm(f"{_TEXT_LAYER}.output.LayerNorm", "text_model/layer_{i}/mlp_norm"),
    *_norm("text_model.pre_LN", "text_model/final_norm"),
    *_linear("text_model.transformation", "text_model/transformation"),
    Rule(f"{_VISION}.embeddings.class_embedding", "vision_model/class_embedding", "same"),
    Rule(f"{_VISION}.embeddings.patch_embedding.weight", "vision_model/patch_embedding/kernel", "patches"),
    Rule(f"{_VISION}.embeddings.position_embedding.weight", "vision_model/position_embedding/embedding", "same"),
    *_norm(f"{_VISION}.pre_layrnorm", "vision_model/pre_norm"),
    *_norm(f"{_VISION_LAYER}.layer_norm1", "vision_model/layer_{i}/attention_norm"),
    *_linear(f"{_VISION_LAYER}.self_attn.q_proj", "vision_model/layer_{i}/attention/query"),
    *_linear(f"{_VISION_LAYER}.self_attn.k_proj", "vision_model/layer_{i}/attention/key"),
    *_linear(f"{_VISION_LAYER}.self_attn.v_proj", "vision_model/layer_{i}/attention/value"),
    *_linear(f"{_VISION_LAYER}.self_attn.out_proj", "vision_model/layer_{i}/attention/out"),
    *_norm(f"{_VISION_LAYER}.layer_norm2", "vision_model/layer_{i}/mlp_norm"),
    *_linear(f"{_VISION_LAYER}.mlp.fc1", "vision_model/layer_{i}/mlp/up"),
    *_linear(f"{_VISION_LAYER}.mlp.fc2", "vision_model/layer_{i}/mlp/down"),
    *_norm(f"{_VISION}.post_layernorm", "vision_model/post_norm"),
)

# Other spellings of the names above, applied in order: towers saved alone, transformers 5, torch's old LayerNorm names.
_SPELLINGS: tuple[tuple[str, str], ...] = (
    (r"^(roberta|transformation|pre_LN)\.", r"text_model.\1."),
    (r"^(embeddings\.(class|patch|position)_embedding\b|pre_layrnorm\.|post_layernorm\.)", r"vision_model.\1"),
    (r"^encoder\.layers\.", "vision_model.encoder.layers."),
    (r"^vision_model\.encoder\.layer\.", "vision_model.encoder.layers."),  # transformers 5 writes full models so
    (r"^text_model\.(embeddings|encoder|pooler)\.", r"text_model.roberta.\1."),
    (r"^(text_model\.roberta\.encoder)\.layers\.", r"\1.layer."),
    (r"(LayerNorm|pre_LN)\.gamma$", r"\1.weight"),
    (r"(LayerNorm|pre_LN)\.beta$", r"\1.bias"),
)

# What files hold beside the parameters: buffers of older versions, and XLM-R's pooler, which AltCLIP does not use.
_IGNORED = re.compile(
    r"text_model\.roberta\.embeddings\.(position_ids|token_type_ids)"
    r"|vision_model\.embeddings\.position_ids"
    r"|text_model\.roberta\.pooler\.dense\.(weight|bias)"
)


def canonical_name(name: str) -> str:
    """Returns the name that transformers 4.56.2 gives to a tensor of a full model."""
    for pattern, replacement in _SPELLINGS:
        name = re.sub(pattern, replacement, name)
    return name


def is_ignored(name: str) -> bool:
    """Tells whether a canonical name belongs to what files may hold and the model does not need."""
    return _IGNORED.fullmatch(name) is not None


def path_of(name: str) -> tuple[str, Transform] | None:
    """Returns the path of a canonical name and the transform towards it, or None without a rule."""
    return _look_up(_BY_NAME, name)


def name_of(path: str) -> tuple[str, Transform] | None:
    """Returns the canonical name of a path and the transform that was applied towards the path, or None."""
    return _look_up(_BY_PATH, path)


def to_param(array: NDArray[Any], transform: Transform, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Brings an array from PyTorch's layout to ours: (out, in) to (in, out), (W, C, p, p) to (p, p, C, W)."""
    return _laid_out(array, _AXES[transform], dtype)


def from_param(array: NDArray[Any], transform: Transform, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Undoes `to_param`."""
    axes = _AXES[transform]
    return _laid_out(array, axes and tuple(int(axis) for axis in np.argsort(axes)), dtype)


def torch_shape(shape: tuple[int, ...], transform: Transform) -> tuple[int, ...]:
    """Returns the shape in PyTorch's layout of a parameter of `shape`."""
    axes = _AXES[transform]
    return shape if axes is None else tuple(shape[axis] for axis in np.argsort(axes))


_STRIP = 16
_AXES: dict[Transform, tuple[int, ...] | None] = {"same": None, "linear": (1, 0), "patches": (2, 3, 1, 0)}


def _laid_out(array: NDArray[Any], axes: tuple[int, ...] | None, dtype: np.dtype[Any]) -> NDArray[Any]:
    array = array.astype(dtype, copy=False)
    if axes is None:
        return array
    out = aligned_empty(tuple(array.shape[axis] for axis in axes), dtype)
    if axes != (1, 0):
        out[...] = array.transpose(axes)
        return out
    # by strips of one cache line, which is thirteen times faster than numpy's own copy of a transposed 4096x1024
    for start in range(0, len(array), _STRIP):
        out[:, start : start + _STRIP] = array[start : start + _STRIP].T
    return out


def _compiled(index: int) -> list[tuple[re.Pattern[str], str, Transform]]:
    return [
        (re.compile(re.escape(rule[index]).replace(r"\{i\}", "(0|[1-9][0-9]*)")), rule[1 - index], rule.transform)
        for rule in RULES
    ]


_BY_NAME, _BY_PATH = _compiled(0), _compiled(1)


def _look_up(table: list[tuple[re.Pattern[str], str, Transform]], key: str) -> tuple[str, Transform] | None:
    for pattern, target, transform in table:
        if match := pattern.fullmatch(key):
            return target.replace("{i}", match[1] if match.groups() else ""), transform
    return None
