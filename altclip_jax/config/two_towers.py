"""The configuration of a model with two towers, and a tower's own part of a full model's file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from altclip_jax.config.base import Config, size_problems

# Keys that every transformers configuration has. A `text_config_dict` resets them to their defaults with the rest
# of its sub-configuration, so under that rule they are dropped here: absent means default to every reader.
_COMMON_KEYS = frozenset(
    (
        "return_dict output_hidden_states output_attentions torchscript dtype torch_dtype pruned_heads "
        "tie_word_embeddings chunk_size_feed_forward is_encoder_decoder is_decoder "
        "cross_attention_hidden_size add_cross_attention tie_encoder_decoder architectures finetuning_task "
        "id2label label2id task_specific_params problem_type tokenizer_class prefix bos_token_id pad_token_id "
        "eos_token_id sep_token_id decoder_start_token_id max_length min_length do_sample early_stopping "
        "num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty "
        "length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences "
        "output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values "
        "exponential_decay_length_penalty suppress_tokens begin_suppress_tokens tf_legacy_loss use_bfloat16 "
    ).split()
)
_FULL_MODELS = ("altclip", "clip")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoTowerConfig(Config):
    """Both towers, the width they are compared in, and the initial temperature.

    `text_config` and `vision_config` are configurations or mappings of their fields; absent, they are the defaults.
    """

    text_class: ClassVar[type[Config]]
    vision_class: ClassVar[type[Config]]

    text_config: Any = None
    vision_config: Any = None
    projection_dim: int
    logit_scale_init_value: float = 2.6592
    initializer_factor: float = 1.0

    def __post_init__(self) -> None:
        for name, kind in (("text_config", self.text_class), ("vision_config", self.vision_class)):
            value = getattr(self, name)
            if value is None:
                object.__setattr__(self, name, kind())
            elif isinstance(value, Mapping):
                kind._refuse_misspelled(value)
                object.__setattr__(self, name, kind.from_dict(value))
            elif not isinstance(value, kind):
                raise TypeError(
                    f"{name} must be an {kind.__name__} or a mapping of its fields, got {type(value).__name__}."
                )
        super().__post_init__()

    def _problems(self) -> list[str]:
        return [*super()._problems(), *size_problems(self, "projection_dim")]

    @classmethod
    def _select(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        if "text_config" not in values and "vision_config" not in values and values.get("model_type") != cls.model_type:
            raise ValueError(
                f"{cls.__name__} expects text_config and vision_config and found model_type"
                f" {values.get('model_type')!r} without either: for one tower use {cls.text_class.__name__} or"
                f" {cls.vision_class.__name__}."
            )
        cls._check_model_type(values.get("model_type", cls.model_type))
        return {
            **{name: value for name, value in values.items() if name not in ("text_config_dict", "vision_config_dict")},
            "text_config": cls.text_class.from_dict(sub_config(values, "text_config", cls.text_class)),
            "vision_config": cls.vision_class.from_dict(sub_config(values, "vision_config", cls.vision_class)),
        }

    @classmethod
    def from_text_vision_configs(cls, text_config: Any, vision_config: Any, **fields: Any) -> Self:
        """Builds the configuration of a model from those of its towers."""
        return cls(text_config=text_config, vision_config=vision_config, **fields)

    def to_dict(self) -> dict[str, Any]:  # noqa: D102 - described by the base
        return {
            **super().to_dict(),
            "text_config": self.text_config.to_dict(),
            "vision_config": self.vision_config.to_dict(),
        }


def is_flagai(values: Mapping[str, Any]) -> bool:
    """Tells a FlagAI file: model_type "clip" around an XLM-R text tower, where a CLIP has a clip_text_model."""
    text = values.get("text_config") or {}
    return values.get("model_type") == "clip" and text.get("model_type") in ("xlm-roberta", "roberta")


def sub_config(values: Mapping[str, Any], name: str, kind: type[Config]) -> Mapping[str, Any]:
    """One tower's fields out of a full config.json, or `values` themselves when they are already a tower's.

    Files of transformers before 4.27 hold a second copy, `text_config_dict`, which wins: a whole sub-configuration is
    built from it and the class defaults, and each of its fields replaces the one in `text_config`. FlagAI's own files
    are exempt: there that copy describes another, smaller model.

    Raises:
        TypeError: one of the copies is no JSON object.
    """
    legacy = values.get(f"{name}_dict")
    if name not in values and legacy is None:
        if "text_config" in values or "vision_config" in values or values.get("model_type") in _FULL_MODELS:
            return {}
        return values
    current: Mapping[str, Any] = values.get(name) or {}
    if not isinstance(current, (Mapping, Config)) or not isinstance(legacy, (Mapping, type(None))):
        raise TypeError(f"{name} and {name}_dict must be JSON objects.")
    if isinstance(current, Config):
        return current.to_dict()
    if legacy is None or is_flagai(values):
        return current
    fields = kind.field_names()
    kept = {key: value for key, value in current.items() if key not in fields and key not in _COMMON_KEYS}
    return {**kept, **legacy}
