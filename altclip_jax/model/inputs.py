"""What is checked of the inputs before they reach the device.

Shapes are always checked. Values can only be checked where they are known: outside jit. Inside it an id outside its
table becomes NaN (see `layers.lookup`), so it is never mistaken for an answer.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from altclip_jax.config import AltCLIPTextConfig, CLIPTextConfig, TwoTowerConfig, VisionConfig

AnyArray = jax.Array | np.ndarray  # what a model is called with; a tracer is the first


def static_flag(name: str, value: Any, default: bool) -> bool:
    """Returns a flag that decides what is computed, or its default when it is None.

    Raises:
        TypeError: the flag was traced by jit, which cannot decide on it.
    """
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{name} decides what is computed, so jit must know it before tracing: use"
            f" jax.jit(functools.partial(model.apply, {name}=True)) or static_argnames=({name!r},)."
        )
    return default if value is None else bool(value)


def tower_flags(config: Any, output_attentions: Any, output_hidden_states: Any, deterministic: Any) -> dict[str, bool]:
    """Returns the flags that every tower takes, by name."""
    return {
        "output_attentions": static_flag("output_attentions", output_attentions, config.output_attentions),
        "output_hidden_states": static_flag("output_hidden_states", output_hidden_states, config.output_hidden_states),
        "deterministic": static_flag("deterministic", deterministic, True),
    }


def example_inputs(config: Any) -> dict[str, np.ndarray]:
    """Returns the smallest valid inputs of what a configuration describes, by name: zeros that take no memory."""
    if isinstance(config, TwoTowerConfig):
        return example_inputs(config.text_config) | example_inputs(config.vision_config)
    if isinstance(config, VisionConfig):
        shape = (1, config.num_channels, config.image_size, config.image_size)
        return {"pixel_values": np.broadcast_to(np.float32(0), shape)}
    return {"input_ids": np.zeros((1, 1), np.int32)}


def check_text_inputs(
    config: AltCLIPTextConfig,
    input_ids: Any,
    inputs_embeds: Any,
    position_ids: Any = None,
    token_type_ids: Any = None,
    attention_mask: Any = None,
) -> None:
    """Raises ValueError for inputs that the text tower has no rows for, naming the argument and what it found."""
    if (input_ids is None) == (inputs_embeds is None):
        given = "neither" if input_ids is None else "both"
        raise ValueError(f"The text tower needs input_ids or inputs_embeds, exactly one of them; got {given}.")
    name, tokens = ("input_ids", input_ids) if inputs_embeds is None else ("inputs_embeds", inputs_embeds)
    shape = _shape(name, tokens)
    if inputs_embeds is None:
        _check_input_ids(tokens)
    if inputs_embeds is not None and (len(shape) != 3 or shape[2] != config.hidden_size):
        raise ValueError(f"inputs_embeds must have shape (batch, sequence, {config.hidden_size}), got {shape}.")
    batch, length = shape[:2]
    _check_shape("attention_mask", attention_mask, (batch, length), (batch, length, length))
    for companion, ids in (("token_type_ids", token_type_ids), ("position_ids", position_ids)):
        _check_shape(companion, ids, (batch, length), integers=True)
    _check_ids("input_ids", input_ids, config.vocab_size, "the vocabulary")
    _check_ids("token_type_ids", token_type_ids, config.type_vocab_size, "the token types")
    _check_ids("position_ids", position_ids, config.max_position_embeddings, "the position table")
    if length > config.max_position_embeddings:
        raise ValueError(_too_long(name, length, config))
    if config.position_embedding_type == "absolute" and position_ids is None and length > config.max_tokens:
        longest = length
        if input_ids is not None and _is_known(input_ids):
            longest = int((np.asarray(input_ids) != config.pad_token_id).sum(axis=1).max(initial=0))
        if longest > config.max_tokens:
            raise ValueError(_too_long(name, longest, config))


def check_causal_text_inputs(
    config: CLIPTextConfig, input_ids: Any, position_ids: Any = None, attention_mask: Any = None
) -> None:
    """Raises ValueError for inputs that CLIP's text tower has no rows for, naming the argument and what it found."""
    if input_ids is None:
        raise ValueError("You have to specify input_ids: integers of shape (batch, sequence).")
    _check_input_ids(input_ids)
    batch, length = _shape("input_ids", input_ids)
    _check_shape("attention_mask", attention_mask, (batch, length))
    _check_shape("position_ids", position_ids, (batch, length), integers=True)
    _check_ids("input_ids", input_ids, config.vocab_size, "the vocabulary")
    _check_ids("position_ids", position_ids, config.max_position_embeddings, "the position table")
    limit = config.max_position_embeddings
    if not 0 < length <= limit:
        raise ValueError(
            f"input_ids are {length} tokens long and this tower takes 1 to {limit}: truncate, for example with"
            f" processor(text=..., truncation=True, max_length={limit})."
        )


def check_texts(config: AltCLIPTextConfig | CLIPTextConfig, input_ids: Any, attention_mask: Any) -> None:
    """Raises ValueError for tokenized texts that the tower of a configuration does not take.

    For what calls a compiled program, in which values can no longer be checked.
    """
    if isinstance(config, CLIPTextConfig):
        check_causal_text_inputs(config, input_ids, attention_mask=attention_mask)
    else:
        check_text_inputs(config, input_ids, None, attention_mask=attention_mask)


def check_pixel_values(config: VisionConfig, pixel_values: Any, interpolate_pos_encoding: bool) -> None:
    """Raises ValueError for pictures that the image tower cannot take, naming what it expected."""
    if pixel_values is None:
        raise ValueError("You have to specify pixel_values: an array of shape (batch, channels, height, width).")
    shape, size, patch = _shape("pixel_values", pixel_values), config.image_size, config.patch_size
    if len(shape) != 4 or shape[1] != config.num_channels:
        raise ValueError(f"pixel_values must have shape (batch, {config.num_channels}, height, width), got {shape}.")
    height, width = shape[2:]
    if not interpolate_pos_encoding and (height, width) != (size, size):
        raise ValueError(
            f"Input image size ({height}*{width}) doesn't match model ({size}*{size}). Prepare the pictures with"
            " AltCLIPProcessor, or pass interpolate_pos_encoding=True."
        )
    if min(height, width) < patch:
        raise ValueError(f"A picture of {height}*{width} pixels is smaller than one patch of {patch}*{patch}.")


def _shape(name: str, value: Any) -> tuple[int, ...]:
    """Returns the shape of an array, or of the one that lists make.

    Raises:
        ValueError: they make none, since their rows differ in length.
        TypeError: jit traced them, number by number.
    """
    way_out = "pad the texts, as processor(text=..., padding=True, return_tensors='np') does"
    if name == "pixel_values":
        way_out = "give np.stack(pixel_values) of pictures of one size, such as AltCLIPProcessor makes"
    if not hasattr(value, "shape") and not all(map(_is_known, jax.tree.leaves(value))):
        raise TypeError(f"{name} is a list, and jit takes arrays: {way_out}.")
    try:
        shape: tuple[int, ...] | None = np.shape(value)
    except ValueError:
        shape = None
    if shape is None or isinstance(getattr(value, "dtype", None), np.dtypes.ObjectDType):
        raise ValueError(f"{name} has rows of different lengths, which make no array: {way_out}.")
    return shape


def _is_known(value: Any) -> bool:
    return not isinstance(value, jax.core.Tracer)


def _is_integer(value: Any) -> bool:
    return np.issubdtype(getattr(value, "dtype", np.asarray(value).dtype if _is_known(value) else float), np.integer)


def _check_input_ids(ids: Any) -> None:
    if len(_shape("input_ids", ids)) != 2 or not _is_integer(ids):
        raise ValueError(f"input_ids must be integers of shape (batch, sequence), got {_describe(ids)}.")


def _describe(value: Any) -> str:
    return f"{getattr(value, 'dtype', type(value).__name__)} of shape {np.shape(value)}"


def _check_shape(name: str, value: Any, *shapes: tuple[Any, ...], integers: bool = False) -> None:
    """Checks what comes beside texts; one row may stand for all of them."""
    if value is None:
        return
    found = _shape(name, value)
    fits = any(len(found) == len(shape) and found[1:] == shape[1:] and found[0] in (shape[0], 1) for shape in shapes)
    if not fits or (integers and not _is_integer(value)):
        expected = " or ".join(map(str, shapes))
        raise ValueError(
            f"{name} must {'be integers of' if integers else 'have'} shape {expected} beside these texts, or one row"
            f" for all of them; got {_describe(value)}."
        )


def _check_ids(name: str, ids: Any, rows: int, table: str) -> None:
    if ids is None or not _is_known(ids) or np.size(ids) == 0:
        return
    values = np.asarray(ids)
    wrong = values[(values < 0) | (values >= rows)]
    if wrong.size:
        raise ValueError(
            f"{name} holds {wrong.size} value(s) outside {table} of {rows} rows, such as {wrong.flat[0]}: valid are"
            f" 0 to {rows - 1}. Is the tokenizer that of this checkpoint?"
        )


def _too_long(name: str, length: int, config: AltCLIPTextConfig) -> str:
    return (
        f"{name} holds a text of {length} tokens and the position table ends after {config.max_tokens}: truncate, for"
        f" example with processor(text=..., truncation=True, max_length={config.max_tokens}). Inside jit padding counts"
        " too, since the values are not known there."
    )
