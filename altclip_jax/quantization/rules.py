"""Which parameters are stored in few bits, and how.

Rules are data: ordered, whole paths of a full model, the first match decides, and a parameter without a rule is an
error. `quantization_rules` gives those that "int8" and "int4" stand for.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

Scheme = Literal["int8", "int4"]
GROUP_SIZE = 128
_SMALLER_GROUPS = (64, 32)


@dataclasses.dataclass(frozen=True)
class QuantizationRule:
    r"""How the parameters of some paths are stored.

    Attributes:
        pattern: A pattern of whole paths in a full model, such as r"text_model/layer_\d+/mlp/(up|down)/kernel".
        scheme: "int8", "int4", or "float": not quantized.
        group_sizes: Of int4: the first that divides the input axis is taken.
        otherwise: The scheme where none divides it; None raises.
    """

    pattern: str
    scheme: Literal["int8", "int4", "float"]
    group_sizes: tuple[int, ...] = (GROUP_SIZE,)
    otherwise: Literal["int8", "float"] | None = None

    def __post_init__(self) -> None:
        if self.scheme not in ("int8", "int4", "float"):
            raise ValueError(f"The scheme {self.scheme!r} of the rule {self.pattern!r} is not int8, int4 or float.")
        wrong = [size for size in self.group_sizes if type(size) is not int or size < 2 or size % 2]
        if wrong or not self.group_sizes:
            raise ValueError(
                f"The rule {self.pattern!r} has group_sizes={self.group_sizes}: they must be positive even numbers,"
                " since a byte holds two neighbours."
            )


class Form(NamedTuple):
    """How a parameter is stored in few bits."""

    scheme: Scheme
    group_size: int = 0  # of int4


_FLOAT = QuantizationRule(
    r".*/bias|.*(_norm|/pre_norm|/post_norm)/scale|vision_model/class_embedding|logit_scale", "float"
)
_TABLES = QuantizationRule(r".*_embedding/embedding", "int8")
_LAYERS = r".*/layer_\d+/(attention|mlp)/\w+/kernel"
# half a percent of the full-size model
_ENDS = r".*/(patch_embedding|transformation)/kernel|(text|visual)_projection/kernel"


def quantization_rules(scheme: str, group_size: int | None = None) -> tuple[QuantizationRule, ...]:
    """Returns the rules that "int8" or "int4" stand for.

    int8: every kernel by output channel and every table by row. int4: the kernels of the layers, in groups of 128
    along the input axis, or 64 or 32 where 128 does not divide it, else int8; tables, patches, `transformation` and
    projections int8. Vectors and the temperature stay as they are.

    Args:
        scheme: "int8" or "int4".
        group_size: For int4; one that is named is kept everywhere, or raises.

    Raises:
        ValueError: another scheme, or a group size that it has no place for.
    """
    if scheme not in get_args(Scheme):
        raise ValueError(f"quantize={scheme!r} is not one of {', '.join(get_args(Scheme))}.")
    if scheme == "int8":
        if group_size is not None:
            raise ValueError(f"group_size={group_size} is for int4: int8 has one scale for each output channel.")
        return (_TABLES, QuantizationRule(f"{_LAYERS}|{_ENDS}", "int8"), _FLOAT)
    if group_size is None:
        layers = QuantizationRule(_LAYERS, "int4", (GROUP_SIZE, *_SMALLER_GROUPS), "int8")
    else:
        layers = QuantizationRule(_LAYERS, "int4", (group_size,))
    return (layers, _TABLES, QuantizationRule(_ENDS, "int8"), _FLOAT)


def choose_forms(
    shapes: Mapping[str, Any], quantize: str | Sequence[QuantizationRule], prefix: str = ""
) -> dict[str, Form]:
    """Returns how each parameter that is stored in few bits is stored.

    Args:
        shapes: {path: leaf with a shape} of all parameters.
        quantize: A scheme or rules.
        prefix: Which part of a full model they are.

    Raises:
        ValueError: parameters without a rule or that their rule does not fit, rules without a parameter; all are named.
    """
    wanted = quantization_rules(quantize) if isinstance(quantize, str) else tuple(quantize)
    if not all(isinstance(rule, QuantizationRule) for rule in wanted):
        raise TypeError(f"quantize must be 'int8', 'int4' or QuantizationRules, got {quantize!r}.")
    forms: dict[str, Form] = {}
    faults: list[str] = []
    used = set()
    for path, leaf in shapes.items():
        rule = next((rule for rule in wanted if re.fullmatch(rule.pattern, prefix + path)), None)
        if rule is None:
            faults.append(f"no rule says how {prefix + path} is stored")
            continue
        used.add(rule)
        found = _form(prefix + path, tuple(leaf.shape), rule)
        if isinstance(found, str):
            faults.append(found)
        elif found is not None:
            forms[path] = found
    if not isinstance(quantize, str):  # those of a scheme are for every part of a model
        standard = {rule for scheme in get_args(Scheme) for rule in quantization_rules(scheme)}
        faults += [f"no parameter has the path {rule.pattern!r}" for rule in wanted if rule not in used | standard]
    if faults:
        raise ValueError("The model cannot be quantized by these rules:\n  - " + "\n  - ".join(faults))
    return forms


def _form(path: str, shape: tuple[int, ...], rule: QuantizationRule) -> Form | str | None:
    scheme: str = rule.scheme
    if scheme == "float":
        return None
    if path.rsplit("/", 1)[-1] not in ("kernel", "embedding"):
        return f"{path} {shape} is no kernel and no table: leave it float"
    if scheme == "int4":
        if path.endswith("/embedding"):
            return f"{path} is a table, whose rows are read one by one: int4 is for kernels, use int8"
        if len(shape) != 2:
            return f"{path} {shape} has more axes than a matrix: int4 is for matrices, use int8"
        for size in rule.group_sizes:
            if shape[0] % size == 0:
                return Form("int4", size)
        if rule.otherwise is None:
            sizes = " nor ".join(map(str, rule.group_sizes))
            return f"groups of {sizes} do not divide the input axis of {path} {shape}: choose a size that does"
        scheme = rule.otherwise
    return Form("int8") if scheme == "int8" else None
