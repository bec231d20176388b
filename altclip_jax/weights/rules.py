"""An invertible table between PyTorch's tensor names and the paths of the parameter tree.

Each family of checkpoints has one, see `families`. Its names are those of transformers 4.56.2. Other spellings are
brought to these on reading (`canonical_name`); a name or path without a rule is an error wherever it appears.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from altclip_jax.machine import aligned_empty
from altclip_jax.quantization.leaves import is_part
from altclip_jax.quantization.narrowing import narrow

Transform = Literal["same", "linear", "patches"]


class Rule(NamedTuple):
    """A PyTorch name, the path of the same parameter, and how the array changes; `{i}` is a layer number."""

    name: str
    path: str
    transform: Transform


def norm_rules(name: str, path: str) -> list[Rule]:
    """Returns the two rules of a LayerNorm."""
    return [Rule(f"{name}.weight", f"{path}/scale", "same"), Rule(f"{name}.bias", f"{path}/bias", "same")]


def linear_rules(name: str, path: str) -> list[Rule]:
    """Returns the two rules of a linear layer."""
    return [Rule(f"{name}.weight", f"{path}/kernel", "linear"), Rule(f"{name}.bias", f"{path}/bias", "same")]


@dataclasses.dataclass(frozen=True)
class RuleTable:
    """The names of one family of checkpoints.

    Attributes:
        rules: One per kind of tensor.
        spellings: Patterns and replacements that turn other names into those of `rules`, applied in order.
        ignored: Pattern of the canonical names that files hold beside the parameters.
        dropped: What the names of a part lose when it is saved alone, by the part's prefix in the tree.
    """

    rules: tuple[Rule, ...]
    spellings: tuple[tuple[str, str], ...]
    ignored: str
    dropped: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def canonical_name(self, name: str) -> str:
        """Returns the name that transformers 4.56.2 gives to a tensor of a full model."""
        for pattern, replacement in self.spellings:
            name = re.sub(pattern, replacement, name)
        return name

    def is_ignored(self, name: str) -> bool:
        """Tells whether a canonical name belongs to what files may hold and the model does not need."""
        return re.fullmatch(self.ignored, name) is not None

    def path_of(self, name: str) -> tuple[str, Transform] | None:
        """Returns the path of a canonical name and the transform towards it, or None without a rule.

        The parts of a quantized parameter stand behind its name and its path.
        """
        return _look_up(self._by_name, name, ".", "/")

    def name_of(self, path: str) -> tuple[str, Transform] | None:
        """Returns the canonical name of a path and the transform that was applied towards the path, or None."""
        return _look_up(self._by_path, path, "/", ".")

    @functools.cached_property
    def _by_name(self) -> list[tuple[re.Pattern[str], str, Transform]]:
        return [(_compile(rule.name), rule.path, rule.transform) for rule in self.rules]

    @functools.cached_property
    def _by_path(self) -> list[tuple[re.Pattern[str], str, Transform]]:
        return [(_compile(rule.path), rule.name, rule.transform) for rule in self.rules]


def to_param(array: NDArray[Any], transform: Transform, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Brings an array from PyTorch's layout to ours: (out, in) to (in, out), (W, C, p, p) to (p, p, C, W).

    Raises:
        NarrowingError: see `narrow`.
    """
    return _lay_out(array, _AXES[transform], dtype)


def from_param(array: NDArray[Any], transform: Transform, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Undoes `to_param`."""
    axes = _AXES[transform]
    return _lay_out(array, axes and tuple(int(axis) for axis in np.argsort(axes)), dtype)


def torch_shape(shape: tuple[int, ...], transform: Transform) -> tuple[int, ...]:
    """Returns the shape in PyTorch's layout of a parameter of `shape`."""
    axes = _AXES[transform]
    return shape if axes is None else tuple(shape[axis] for axis in np.argsort(axes))


def param_shape(shape: tuple[int, ...], transform: Transform) -> tuple[int, ...]:
    """Undoes `torch_shape`; a shape of another number of axes stays as it is."""
    axes = _AXES[transform]
    return shape if axes is None or len(axes) != len(shape) else tuple(shape[axis] for axis in axes)


def output_axis(transform: Transform) -> int:
    """Returns which axis of a parameter is the first one, the output, in PyTorch's layout."""
    return 0 if _AXES[transform] is None else -1


def torch_index(index: tuple[slice, ...], transform: Transform) -> tuple[slice, ...]:
    """Returns where in PyTorch's layout the part of a parameter lies that `index` names, a slice for each axis."""
    axes = _AXES[transform]
    return index if axes is None else tuple(index[axis] for axis in np.argsort(axes))


_STRIP = 16
_AXES: dict[Transform, tuple[int, ...] | None] = {"same": None, "linear": (1, 0), "patches": (2, 3, 1, 0)}


def _lay_out(array: NDArray[Any], axes: tuple[int, ...] | None, dtype: np.dtype[Any]) -> NDArray[Any]:
    array = narrow(array, dtype)
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


def _compile(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{i\}", "(0|[1-9][0-9]*)"))


def _look_up(
    table: list[tuple[re.Pattern[str], str, Transform]], key: str, before: str, after: str
) -> tuple[str, Transform] | None:
    whole, _, part = key.rpartition(before) if is_part(key) else (key, "", "")
    for pattern, target, transform in table:
        if match := pattern.fullmatch(whole):
            found = target.replace("{i}", match[1] if match.groups() else "")
            return f"{found}{after}{part}" if part else found, transform
    return None
