"""Parameters that are stored in few bits: leaves of the tree that give back arrays.

They are registered pytrees, so that jit, export, device_put, orbax and shardings see the small arrays they are made
of, and `dequantize` inside jit makes an array of one leaf where a layer asks for it. `split_leaves` and
`join_leaves` go between a tree with such leaves and one of plain arrays, which is what files hold.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Int
from numpy.typing import NDArray

from altclip_jax.quantization.codes import SCALE_DTYPES
from altclip_jax.quantization.rules import Form

PARTS = ("codes", "scales", "zero_points")  # the last names of what a quantized parameter is stored as


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedArray:
    """What the two kinds share; axes before the last two (of patches, four) are stacked layers.

    Attributes:
        codes: Small integers.
        scales: The width of a step of the codes, broadcast over what shares it.
        dtype: Dtype of the array that `dequantize` gives; its values are computed in float32.
    """

    codes: Any
    scales: Any
    dtype: np.dtype[Any]

    scheme: ClassVar[str]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return tuple(self.codes.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the parts take, not the array."""
        return sum(int(part.nbytes) for part in jax.tree.leaves(self))

    def dequantize(self) -> Array:
        """Returns the array."""
        raise NotImplementedError

    def rows(self, ids: Int[Array, " ..."]) -> Array:
        """Returns rows of a table; those outside it are NaN."""
        return _take(self.dequantize(), ids, jnp.nan)

    def __jax_array__(self) -> Array:
        return self.dequantize()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self.dequantize(), dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Int8Array(QuantizedArray):
    """codes * scales: int8, and float32 scales, one for each output channel of a kernel or row of a table."""

    scheme: ClassVar[str] = "int8"

    def dequantize(self) -> Array:
        """Returns the array."""
        values: Array = self.codes.astype(jnp.float32) * self.scales
        return values.astype(self.dtype)

    def rows(self, ids: Int[Array, " ..."]) -> Array:
        """Returns rows of a table, each with its own scale; no array is made of the others."""
        values: Array = _take(self.codes, ids, 0).astype(jnp.float32) * _take(self.scales, ids, jnp.nan)
        return values.astype(self.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Int4Array(QuantizedArray):
    """(code - 8) * scale + zero point: a kernel (..., in, out) in groups of neighbours along its input axis.

    Byte i of `codes` (..., in / 2, out), uint8, has the code of row 2i in its low four bits and that of row 2i + 1 in
    its high four. `scales` and `zero_points` are (..., in / group, out), bfloat16.
    """

    zero_points: Any = None

    scheme: ClassVar[str] = "int4"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        *stack, pairs, out = self.codes.shape
        return (*stack, 2 * pairs, out)

    @property
    def group_size(self) -> int:
        """How many rows share a scale and a zero point."""
        return self.shape[-2] // int(self.scales.shape[-2])

    def dequantize(self) -> Array:
        """Returns the array."""
        *stack, width, out = self.shape
        codes = jnp.stack([self.codes & 15, self.codes >> 4], axis=-2)
        steps = codes.reshape(*stack, width // self.group_size, self.group_size, out).astype(jnp.float32) - 8
        scales, zero_points = (part[..., None, :].astype(jnp.float32) for part in (self.scales, self.zero_points))
        values: Array = steps * scales + zero_points
        return values.reshape(self.shape).astype(self.dtype)


def _take(table: Array, ids: Array, outside: float) -> Array:
    return jnp.take(table, ids, axis=0, mode="fill", fill_value=outside)


def split_leaves(tree: Any) -> dict[str, Any]:
    """Returns a tree of plain arrays: a dict of its parts in the place of each quantized leaf."""
    found: dict[str, Any] = _map(tree, lambda leaf: _parts_of(leaf) if _is_leaf(leaf) else leaf)
    return found


def _parts_of(leaf: QuantizedArray) -> dict[str, Any]:
    return {name: getattr(leaf, name) for name in PARTS if hasattr(leaf, name)}


def join_leaves(tree: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """Undoes `split_leaves`; the quantized leaves give back arrays of `dtype`."""
    made: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            kind = Int4Array if "zero_points" in value else Int8Array
            made[key] = kind(dtype=np.dtype(dtype), **value) if "codes" in value else join_leaves(value, dtype)
        else:
            made[key] = value
    return made


def is_part(path: str) -> bool:
    """Tells whether a path, or a name in a file, is that of a part of a quantized parameter."""
    return re.split(r"[./]", path)[-1] in PARTS


def shape_leaves(shapes: Mapping[str, Any], forms: Mapping[str, Form]) -> dict[str, Any]:
    """Returns {path: shape and dtype} with a quantized leaf of shapes and dtypes for each of `forms`."""
    return {path: _shape_leaf(path, leaf, forms[path]) if path in forms else leaf for path, leaf in shapes.items()}


def _shape_leaf(path: str, leaf: Any, form: Form) -> QuantizedArray:
    make: Any = jax.ShapeDtypeStruct
    shape, dtype, scale_dtype = tuple(leaf.shape), np.dtype(leaf.dtype), SCALE_DTYPES[form.scheme]
    if form.scheme == "int8":
        output = 0 if path.endswith("embedding") else len(shape) - 1
        scales = make(tuple(size if axis == output else 1 for axis, size in enumerate(shape)), scale_dtype)
        return Int8Array(make(shape, np.dtype(np.int8)), scales, dtype)
    width, outputs = shape
    scales = make((width // form.group_size, outputs), scale_dtype)
    return Int4Array(make((width // 2, outputs), np.dtype(np.uint8)), scales, dtype, scales)


def is_quantized(tree: Any) -> bool:
    """Tells whether some leaf of a tree is stored in few bits."""
    return any(_is_leaf(leaf) for leaf in jax.tree.leaves(tree, is_leaf=_is_leaf))


def dequantize(tree: Any) -> dict[str, Any]:
    """Returns a tree of float arrays, which takes the memory that these take."""
    found: dict[str, Any] = _map(tree, lambda leaf: leaf.dequantize() if _is_leaf(leaf) else leaf)
    return found


def _is_leaf(value: Any) -> bool:
    return isinstance(value, QuantizedArray)


def _map(tree: Any, function: Callable[[Any], Any]) -> Any:
    return jax.tree.map(function, tree, is_leaf=_is_leaf)


def _register(kind: type[QuantizedArray], *data: str) -> None:
    jax.tree_util.register_dataclass(kind, data_fields=list(data), meta_fields=["dtype"])
    # exported programs take the leaves as arguments
    jax.export.register_pytree_node_serialization(
        kind,
        serialized_name=f"altclip_jax.{kind.__name__}",
        serialize_auxdata=lambda aux: aux[0].name.encode(),
        deserialize_auxdata=lambda name: (np.dtype(name.decode()),),
    )


_register(Int8Array, "codes", "scales")
_register(Int4Array, *PARTS)
