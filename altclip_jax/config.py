"""What a model is: the three configurations, and Hugging Face's JSON in and out.

Source: configuration_altclip.py of transformers 4.56.2, and the config.json files of BAAI/AltCLIP, -m9 and -m18.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from altclip_jax.json_file import read_json_object, write_json

ACTIVATIONS = ("gelu", "gelu_new", "relu", "silu", "quick_gelu", "selu")
POSITION_EMBEDDING_TYPES = ("absolute", "relative_key", "relative_key_query")

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
# Settings that would build another network than the one this library has.
_UNSUPPORTED = {
    "is_decoder": "a causal mask",
    "add_cross_attention": "cross-attention layers",
    "is_encoder_decoder": "a decoder",
    "pruned_heads": "pruned attention heads",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Config:
    """Reading, writing and checking, shared by the three configurations."""

    output_attentions: bool = False  # default of the calls' argument of the same name
    output_hidden_states: bool = False
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)  # unknown keys, written back

    model_type: ClassVar[str]

    def __post_init__(self) -> None:
        problems = self._problems()
        if problems:
            raise ValueError(f"{type(self).__name__} cannot be built: " + "; ".join(problems) + ".")

    def _problems(self) -> list[str]:
        return [
            f"{name}={self.extra[name]!r} asks for {what}, which no AltCLIP has and this library does not build"
            for name, what in _UNSUPPORTED.items()
            if self.extra.get(name)
        ]

    @classmethod
    def _field_names(cls) -> list[str]:
        return [field.name for field in dataclasses.fields(cls) if field.name != "extra"]

    @classmethod
    def _select(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the part of a config.json that describes this class."""
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> Self:
        """Reads the content of a config.json, of any version of transformers; `overrides` win over it.

        Keys this class does not know are kept in `extra` and written back by `to_dict`. A tower's class also reads
        the configuration of a full model and takes its own part of it.

        Raises:
            ValueError: the values describe another model, contradict each other or ask for something unsupported.
            TypeError: `values` is not a mapping, or a value has the wrong type.
        """
        if not isinstance(values, Mapping):
            raise TypeError(
                f"{cls.__name__}.from_dict expects a mapping such as json.load gives, got {type(values).__name__}."
            )
        merged = copy.deepcopy({**cls._select(values), **overrides})
        found_type = merged.pop("model_type", cls.model_type)
        merged.pop("transformers_version", None)
        cls._check_model_type(found_type)
        known = {name: merged.pop(name) for name in cls._field_names() if name in merged}
        return cls(**known, extra={**merged.pop("extra", {}), **merged})

    @classmethod
    def _check_model_type(cls, found: str) -> None:
        if found != cls.model_type:
            raise ValueError(
                f"{cls.__name__} expects model_type {cls.model_type!r} and found {found!r}: this is the configuration"
                " of another model."
            )

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Self:
        """Reads a config.json, or the one in a folder.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a JSON object or describes another model; the message names the file.
        """
        file = Path(path)
        if file.is_dir():
            file = file / "config.json"
        values = read_json_object(file)
        try:
            return cls.from_dict(values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON object that transformers reads back equal."""
        known = {name: _plain(getattr(self, name)) for name in self._field_names()}
        return {**copy.deepcopy(dict(self.extra)), **known, "model_type": self.model_type}

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes `folder`/config.json, whole or not at all, and returns its path."""
        target = Path(folder) / "config.json"
        write_json(target, self.to_dict())
        return target

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AltCLIPTextConfig(_Config):
    """The text tower: XLM-RoBERTa, a LayerNorm and a linear layer to `project_dim`."""

    model_type: ClassVar[str] = "altclip_text_model"

    vocab_size: int = 250002
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    initializer_range: float = 0.02  # unused by the reference's initialisation, kept for the file
    initializer_factor: float = 0.02  # the standard deviation of every initial weight
    layer_norm_eps: float = 1e-5
    pad_token_id: int = 1
    bos_token_id: int | None = 0
    eos_token_id: int | tuple[int, ...] | None = 2
    position_embedding_type: str = "absolute"
    use_cache: bool = True  # no meaning here, kept for the file
    project_dim: int = 768

    def __post_init__(self) -> None:
        ids: object = self.eos_token_id
        if isinstance(ids, list):
            object.__setattr__(self, "eos_token_id", tuple(ids))
        super().__post_init__()

    def _problems(self) -> list[str]:
        return [
            *super()._problems(),
            *_size_problems(
                self,
                "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size"
                " max_position_embeddings type_vocab_size project_dim",
            ),
            *_rate_problems(self, "hidden_dropout_prob attention_probs_dropout_prob"),
            *_common_problems(self),
            *_choice_problems(self, "position_embedding_type", POSITION_EMBEDDING_TYPES),
            *self._pad_problems(),
        ]

    def _pad_problems(self) -> list[str]:
        limit = min(self.vocab_size, self.max_position_embeddings - 1)
        if _is_int(self.pad_token_id) and 0 <= self.pad_token_id < limit:
            return []
        return [
            f"pad_token_id={self.pad_token_id!r} must be an integer in [0, {limit}): it is a row of the vocabulary and"
            " positions start after it"
        ]

    @property
    def max_tokens(self) -> int:
        """The longest text, in tokens that are not padding: positions count from `pad_token_id` + 1."""
        return self.max_position_embeddings - self.pad_token_id - 1

    @classmethod
    def _select(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        return _sub_config(values, "text_config", cls)

    @classmethod
    def _check_model_type(cls, found: str) -> None:
        if found not in ("xlm-roberta", "roberta"):  # how FlagAI's own files call the text tower
            super()._check_model_type(found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AltCLIPVisionConfig(_Config):
    """The image tower: a CLIP ViT. The defaults are those of a ViT-B/32, as in the reference."""

    model_type: ClassVar[str] = "altclip_vision_model"

    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512  # unused: the model's own projection_dim decides
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    initializer_factor: float = 1.0

    def _problems(self) -> list[str]:
        sizes = _size_problems(
            self,
            "hidden_size intermediate_size projection_dim num_hidden_layers num_attention_heads num_channels"
            " image_size patch_size",
        )
        if not sizes and self.patch_size > self.image_size:
            sizes = [f"patch_size={self.patch_size} must not exceed image_size={self.image_size}"]
        return [
            *super()._problems(),
            *sizes,
            *_rate_problems(self, "attention_dropout"),
            *_common_problems(self),
        ]

    @property
    def grid_size(self) -> int:
        """Patches along one side of a picture of `image_size`."""
        return self.image_size // self.patch_size

    @classmethod
    def _select(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        return _sub_config(values, "vision_config", cls)

    @classmethod
    def _check_model_type(cls, found: str) -> None:
        if found != "clip_vision_model":  # FlagAI's files; the tower is CLIP's, unchanged
            super()._check_model_type(found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AltCLIPConfig(_Config):
    """Both towers, the width they are compared in, and the initial temperature.

    `text_config` and `vision_config` are configurations or mappings of their fields; absent, they are the defaults.
    The reference's default model is not BAAI/AltCLIP: for that one use `AltCLIPConfig.altclip()`.
    """

    model_type: ClassVar[str] = "altclip"

    text_config: AltCLIPTextConfig = dataclasses.field(default_factory=AltCLIPTextConfig)
    vision_config: AltCLIPVisionConfig = dataclasses.field(default_factory=AltCLIPVisionConfig)
    projection_dim: int = 768
    logit_scale_init_value: float = 2.6592
    initializer_factor: float = 1.0

    def __post_init__(self) -> None:
        for name, kind in (("text_config", AltCLIPTextConfig), ("vision_config", AltCLIPVisionConfig)):
            value = getattr(self, name)
            if value is None:
                object.__setattr__(self, name, kind())
            elif isinstance(value, Mapping):
                object.__setattr__(self, name, kind.from_dict(value))
            elif not isinstance(value, kind):
                raise TypeError(
                    f"{name} must be an {kind.__name__} or a mapping of its fields, got {type(value).__name__}."
                )
        super().__post_init__()

    def _problems(self) -> list[str]:
        return [*super()._problems(), *_size_problems(self, "projection_dim")]

    @classmethod
    def _select(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        if "text_config" not in values and "vision_config" not in values and values.get("model_type") != cls.model_type:
            raise ValueError(
                f"AltCLIPConfig expects text_config and vision_config and found model_type {values.get('model_type')!r}"
                " without either: for one tower use AltCLIPTextConfig or AltCLIPVisionConfig."
            )
        return {
            **{name: value for name, value in values.items() if name not in ("text_config_dict", "vision_config_dict")},
            "text_config": _sub_config(values, "text_config", AltCLIPTextConfig),
            "vision_config": _sub_config(values, "vision_config", AltCLIPVisionConfig),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> Self:  # noqa: D102 - described by the base
        if isinstance(values, Mapping) and _is_flagai(values):
            parts = {name: value for name, value in values.items() if not name.endswith("_config_dict")}
            values = {**parts, "model_type": cls.model_type}
        return super().from_dict(values, **overrides)

    @classmethod
    def from_text_vision_configs(
        cls, text_config: AltCLIPTextConfig, vision_config: AltCLIPVisionConfig, **fields: Any
    ) -> Self:
        """Builds the configuration of a model from those of its towers."""
        return cls(text_config=text_config, vision_config=vision_config, **fields)

    def to_dict(self) -> dict[str, Any]:  # noqa: D102 - described by the base
        return {
            **super().to_dict(),
            "text_config": self.text_config.to_dict(),
            "vision_config": self.vision_config.to_dict(),
        }

    @classmethod
    def altclip(cls) -> Self:
        """BAAI/AltCLIP: XLM-R large and ViT-L/14, Chinese and English; 864,186,113 parameters."""
        return cls(vision_config=_vit_large())

    @classmethod
    def altclip_m9(cls) -> Self:
        """BAAI/AltCLIP-m9: the network of BAAI/AltCLIP, trained on nine languages."""
        return cls.altclip()

    @classmethod
    def altclip_m18(cls) -> Self:
        """BAAI/AltCLIP-m18: XLM-R large and ViT-H/14, eighteen languages; 1,193,017,857 parameters.

        Its published configuration says quick_gelu although its image tower was trained with gelu; this follows the
        configuration, as the reference does.
        """
        vision = AltCLIPVisionConfig(
            hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, patch_size=14
        )
        return cls(text_config=AltCLIPTextConfig(project_dim=1024), vision_config=vision, projection_dim=1024)


def _vit_large() -> AltCLIPVisionConfig:
    return AltCLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14
    )


def _is_flagai(values: Mapping[str, Any]) -> bool:
    """FlagAI wrote model_type "clip" around an XLM-R text tower; an ordinary CLIP has a clip_text_model there."""
    text = values.get("text_config") or {}
    return values.get("model_type") == "clip" and text.get("model_type") in ("xlm-roberta", "roberta")


def _sub_config(values: Mapping[str, Any], name: str, kind: type[_Config]) -> Mapping[str, Any]:
    """One tower's fields out of a full config.json, or `values` themselves when they are already a tower's.

    Files of transformers before 4.27 hold a second copy, `text_config_dict`, which wins: a whole sub-configuration is
    built from it and the class defaults, and each of its fields replaces the one in `text_config`. FlagAI's own files
    are exempt: there that copy describes another, smaller model.
    """
    legacy = values.get(f"{name}_dict")
    if name not in values and legacy is None:
        if "text_config" in values or "vision_config" in values or values.get("model_type") == AltCLIPConfig.model_type:
            return {}
        return values
    current: Mapping[str, Any] = values.get(name) or {}
    if not isinstance(current, (Mapping, _Config)) or not isinstance(legacy, (Mapping, type(None))):
        raise TypeError(f"{name} and {name}_dict must be JSON objects.")
    if isinstance(current, _Config):
        return current.to_dict()
    if legacy is None or _is_flagai(values):
        return current
    fields = kind._field_names()
    kept = {key: value for key, value in current.items() if key not in fields and key not in _COMMON_KEYS}
    return {**kept, **legacy}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _size_problems(config: _Config, names: str) -> list[str]:
    return [
        f"{name}={getattr(config, name)!r} must be a positive integer"
        for name in names.split()
        if not _is_int(getattr(config, name)) or getattr(config, name) < 1
    ]


def _rate_problems(config: _Config, names: str) -> list[str]:
    return [
        f"{name}={getattr(config, name)!r} must be a number in [0, 1)"
        for name in names.split()
        if not isinstance(getattr(config, name), (int, float)) or not 0 <= getattr(config, name) < 1
    ]


def _choice_problems(config: _Config, name: str, choices: tuple[str, ...]) -> list[str]:
    value = getattr(config, name)
    return [] if value in choices else [f"{name}={value!r} is not one of {', '.join(choices)}"]


def _common_problems(config: AltCLIPTextConfig | AltCLIPVisionConfig) -> list[str]:
    """What both towers have: heads that divide the width, a known activation, a positive epsilon."""
    problems = []
    width, heads = config.hidden_size, config.num_attention_heads
    if _is_int(width) and _is_int(heads) and heads > 0 and width % heads:
        problems.append(f"hidden_size={width} must be divisible by num_attention_heads={heads}")
    if callable(config.hidden_act):
        problems.append(f"hidden_act must be a name ({', '.join(ACTIVATIONS)}), got a callable, which no file can hold")
    else:
        problems += _choice_problems(config, "hidden_act", ACTIVATIONS)
    if not isinstance(config.layer_norm_eps, (int, float)) or not config.layer_norm_eps > 0:
        problems.append(f"layer_norm_eps={config.layer_norm_eps!r} must be a positive number")
    return problems
