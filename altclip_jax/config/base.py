"""What every configuration shares: Hugging Face's JSON in and out, and the checks of its fields."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from altclip_jax.files.checkpoint_folder import CONFIG_FILE, read_whole
from altclip_jax.files.json_file import json_bytes, read_json_object
from altclip_jax.files.whole import replace_files

ACTIVATIONS = ("gelu", "gelu_new", "relu", "silu", "quick_gelu", "selu")
POSITION_EMBEDDING_TYPES = ("absolute", "relative_key", "relative_key_query")

# Settings that would build another network than the ones this library has.
_UNSUPPORTED = {
    "is_decoder": "a decoder",
    "add_cross_attention": "cross-attention layers",
    "is_encoder_decoder": "a decoder",
    "pruned_heads": "pruned attention heads",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Reading, writing and checking, shared by all configurations."""

    output_attentions: bool = False  # default of the calls' argument of the same name
    output_hidden_states: bool = False
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)  # unknown keys, written back

    model_type: ClassVar[str]

    def __new__(cls, **fields: Any) -> Self:
        """Refuses a misspelled field with a better sentence than Python's."""
        cls._refuse_misspelled(fields)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        problems = self._problems()
        if problems:
            raise ValueError(f"{type(self).__name__} cannot be built: " + "; ".join(problems) + ".")

    def _problems(self) -> list[str]:
        listed = [name for name in self.field_names() if isinstance(getattr(self, name), (list, dict, set))]
        return [f"{name}={getattr(self, name)!r} must be a single value" for name in listed] + [
            f"{name}={self.extra[name]!r} asks for {what}, which no such model has and this library does not build"
            for name, what in _UNSUPPORTED.items()
            if self.extra.get(name)
        ]

    @classmethod
    def field_names(cls) -> list[str]:
        """Returns the names of the settings, `extra` aside."""
        return [field.name for field in dataclasses.fields(cls) if field.name != "extra"]

    @classmethod
    def _refuse_misspelled(cls, given: Iterable[str]) -> None:
        """Raises TypeError for a name given by hand that is nearly that of a setting; it would change nothing."""
        for name in sorted({str(name) for name in given} - {*cls.field_names(), "extra"}):
            for near in difflib.get_close_matches(name, cls.field_names(), n=1, cutoff=0.85):
                raise TypeError(
                    f"{cls.__name__} has no setting {name!r}: did you mean {near!r}? Unknown keys are kept where a file"
                    " has them: read it by from_json, or what is in it by from_dict."
                )

    @classmethod
    def _select(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the part of a config.json that describes this class."""
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> Self:
        """Reads the content of a config.json, of any version of transformers; `overrides` win over it.

        Keys this class does not know are kept in `extra` and written back by `to_dict`: published files have many, some
        of which are nearly those of settings. A tower's class also reads the configuration of a full model and takes
        its own part of it.

        Raises:
            ValueError: the values describe another model, contradict each other or ask for something unsupported.
            TypeError: `values` is not a mapping, a value has the wrong type, or an override is a misspelled setting.
        """
        if not isinstance(values, Mapping):
            raise TypeError(
                f"{cls.__name__}.from_dict expects a mapping such as json.load gives, got {type(values).__name__}."
            )
        cls._refuse_misspelled(overrides)
        merged = copy.deepcopy({**cls._select(values), **overrides})
        found_type = merged.pop("model_type", cls.model_type)
        merged.pop("transformers_version", None)
        cls._check_model_type(found_type)
        known = {name: merged.pop(name) for name in cls.field_names() if name in merged}
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
            file = file / CONFIG_FILE
        values = read_whole(file.parent, lambda: read_json_object(file))
        try:
            return cls.from_dict(values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON object that transformers reads back equal."""
        known = {name: _plain(getattr(self, name)) for name in self.field_names()}
        return {**copy.deepcopy(dict(self.extra)), **known, "model_type": self.model_type}

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes `folder`/config.json, whole or not at all, and returns its path."""
        replace_files(folder, {CONFIG_FILE: json_bytes(self.to_dict())}, [CONFIG_FILE])
        return Path(folder) / CONFIG_FILE

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def without_extra(self) -> Self:
        """Returns a copy with nothing but settings this library knows: equal ones are equal networks."""
        towers = {
            name: value.without_extra()
            for name in self.field_names()
            if isinstance(value := getattr(self, name), Config)
        }
        return self.replace(extra={}, **towers)


def is_int(value: object) -> bool:
    """Tells whether a value is a whole number and not a truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def size_problems(config: Config, names: str) -> list[str]:
    """Names the fields that are no positive integers."""
    return [
        f"{name}={getattr(config, name)!r} must be a positive integer"
        for name in names.split()
        if not is_int(getattr(config, name)) or getattr(config, name) < 1
    ]


def rate_problems(config: Config, names: str) -> list[str]:
    """Names the fields that are no dropout rates."""
    return [
        f"{name}={getattr(config, name)!r} must be a number in [0, 1)"
        for name in names.split()
        if not isinstance(getattr(config, name), (int, float)) or not 0 <= getattr(config, name) < 1
    ]


def choice_problems(config: Config, name: str, choices: tuple[str, ...]) -> list[str]:
    """Names the field if its value is none of `choices`."""
    value = getattr(config, name)
    return [] if value in choices else [f"{name}={value!r} is not one of {', '.join(choices)}"]


def tower_problems(config: Any) -> list[str]:
    """What every tower needs: heads that divide the width, a known activation, a positive epsilon."""
    problems = []
    width, heads = config.hidden_size, config.num_attention_heads
    if is_int(width) and is_int(heads) and heads > 0 and width % heads:
        problems.append(f"hidden_size={width} must be divisible by num_attention_heads={heads}")
    if callable(config.hidden_act):
        problems.append(f"hidden_act must be a name ({', '.join(ACTIVATIONS)}), got a callable, which no file can hold")
    else:
        problems += choice_problems(config, "hidden_act", ACTIVATIONS)
    if not isinstance(config.layer_norm_eps, (int, float)) or not config.layer_norm_eps > 0:
        problems.append(f"layer_norm_eps={config.layer_norm_eps!r} must be a positive number")
    return problems


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
