"""The text of a compiled program: its instructions, how often each is run, and the arithmetic of its products.

Source: the HLO text of XLA as jax 0.10.2 prints it with `compiled.as_text()`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
# name = type opcode(operands), attributes; the type of a tuple has parentheses of its own, and so have layouts
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,<= ]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
    r"|\b(?:branch_computations|called_computations)=\{([^}]*)\}"
)
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_LESS = "direction=LT"
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Shape(NamedTuple):
    """One array."""

    dtype: str  # XLA's name
    sizes: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.sizes)

    @property
    def bytes(self) -> int:
        """What they take, without the padding of a layout."""
        return math.ceil(self.elements * _bits(self.dtype) / 8)


class Instruction(NamedTuple):
    """One line of a program."""

    opcode: str
    result: tuple[Shape, ...]  # the arrays of a tuple
    operands: tuple[str, ...]  # names
    attributes: str
    literal: str  # of a constant


class Placed(NamedTuple):
    """An instruction with what it reads and how often it is run."""

    instruction: Instruction
    operands: tuple[tuple[Shape, ...], ...]
    times: int
    fused_into: str | None  # the computation with the fusion that it is in


class Program(NamedTuple):
    """A program, by computation and by name; the one that is run is the last."""

    computations: dict[str, dict[str, Instruction]]

    def run(self) -> Iterator[Placed]:
        """Yields every instruction that is run, of fusions, calls and loops too.

        The rounds of loops multiply; of a conditional every branch counts. A loop of which the text does not say how
        often it goes round counts as one round, see `unknown_loops`.
        """
        fused = {
            called: name
            for name, computation in self.computations.items()
            for instruction in computation.values()
            if instruction.opcode == "fusion"
            for called in _called(instruction)
        }
        for name, times in self._times().items():
            computation = self.computations[name]
            for instruction in computation.values():
                read = tuple(computation[operand].result for operand in instruction.operands if operand in computation)
                yield Placed(instruction, read, times, fused.get(name))

    def unknown_loops(self) -> int:
        """Returns how many loops there are of which the text does not say how often they go round."""
        return sum(
            instruction.opcode == "while" and self._rounds(instruction) is None
            for name in self._times()
            for instruction in self.computations[name].values()
        )

    def product_flops(self) -> float:
        """Returns the operations of matrix products and convolutions, 2 m k n for (m, k) by (k, n), on one device."""
        return sum(
            placed.times * _FLOPS[placed.instruction.opcode](placed)
            for placed in self.run()
            if placed.instruction.opcode in _FLOPS
        )

    def _times(self) -> dict[str, int]:
        """Returns how often each computation is run: callers stand behind what they call, so they are seen first."""
        order = list(reversed(self.computations))
        times = dict.fromkeys(order, 0)
        times[order[0]] = 1
        for name in order:
            for instruction in self.computations[name].values() if times[name] else ():
                # the end of something asynchronous names what its start has called
                if not instruction.opcode.endswith(("-done", "-update")):
                    for called in _called(instruction):
                        times[called] += times[name] * (self._rounds(instruction) or 1)
        return {name: count for name, count in times.items() if count}

    def _rounds(self, instruction: Instruction) -> int | None:
        """Returns how often a loop goes round, 1 for what is no loop, or None if the text does not say.

        TPU programs keep no trip count. Their conditions compare a counter with a number, and the counter of a scan
        starts at 0 and goes up by 1.
        """
        if instruction.opcode != "while":
            return 1
        if found := _TRIPS.search(instruction.attributes):
            return int(found[1])
        found = _CONDITION.search(instruction.attributes)
        condition = self.computations[found[1]] if found else {}
        compared = [
            line.operands for line in condition.values() if line.opcode == "compare" and _LESS in line.attributes
        ]
        if len(compared) != 1 or not {*compared[0]} <= {*condition}:
            return None
        counter, limit = (condition[name] for name in compared[0])
        counts = counter.opcode == "get-tuple-element" and counter.result == (Shape("s32", ()),)
        return int(limit.literal) if counts and limit.opcode == "constant" else None


def parse(text: str) -> Program:
    """Reads a program.

    Raises:
        ValueError: the text is not one, as this version of XLA's printer writes them.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry = None
    current: dict[str, Instruction] = {}
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            entry = found[2] if found[1] else entry
            current = computations.setdefault(found[2], {})
        elif found := _INSTRUCTION.match(line):
            name, shapes, opcode, rest = found.groups()
            inside, _, attributes = rest.partition("), ")
            literal = inside.rstrip(")") if opcode == "constant" else ""
            current[name] = Instruction(opcode, _shapes(shapes), tuple(_NAME.findall(inside)), attributes, literal)
    if entry is None or entry != list(computations)[-1]:
        raise ValueError(
            "The text of the compiled program does not end with its ENTRY computation: it is not the HLO that jax"
            " prints, or a newer form of it that altclip_jax/planning/program.py has yet to learn."
        )
    return Program(computations)


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(
        Shape(dtype, tuple(int(size.removeprefix("<=")) for size in sizes.replace(" ", "").split(",") if size))
        for dtype, sizes in _SHAPE.findall(text)
    )


def _called(instruction: Instruction) -> Iterator[str]:
    for single, several in _CALLED.findall(instruction.attributes):
        yield from [single] if single else _NAME.findall(several)


def _dot_flops(placed: Placed) -> float:
    left = placed.operands[0][0].sizes
    contracted = _integers(r"lhs_contracting_dims=\{([\d,]*)\}", placed.instruction.attributes)
    return 2.0 * placed.instruction.result[0].elements * math.prod(left[axis] for axis in contracted)


def _convolution_flops(placed: Placed) -> float:
    """Counts where the window lies on numbers, not where it lies on padding or between dilated ones."""
    left, kernel = placed.operands[0][0].sizes, placed.operands[1][0].sizes
    out, attributes = placed.instruction.result[0].sizes, placed.instruction.attributes
    found = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    assert found is not None
    of_left, of_kernel, of_out = found.groups()
    window = re.search(r"window=\{([^}]*)\}", attributes)
    settings = dict(item.split("=") for item in window[1].split()) if window else {}
    flops = 2.0 * kernel[of_kernel.index("i")] * out[of_out.index("b")] * out[of_out.index("f")]
    for axis in range(len(out) - 2):
        label = str(axis)

        def setting(name: str, default: str, axis: int = axis) -> str:
            return settings[name].split("x")[axis] if name in settings else default

        stride, spread, gap = (int(setting(name, "1")) for name in ("stride", "rhs_dilate", "lhs_dilate"))
        start = np.arange(out[of_out.index(label)]) * stride - int(setting("pad", "0_0").split("_")[0])
        places = start[:, None] + np.arange(kernel[of_kernel.index(label)]) * spread
        last = (left[of_left.index(label)] - 1) * gap
        flops *= int(np.sum((places >= 0) & (places <= last) & (places % gap == 0)))
    return flops


_FLOPS = {"dot": _dot_flops, "convolution": _convolution_flops}


def _integers(pattern: str, text: str) -> list[int]:
    found = re.search(pattern, text)
    return [int(number) for number in found[1].split(",") if number] if found else []


def _bits(dtype: str) -> int:
    """Returns the width of a number by XLA's name of its type; what holds no numbers, such as a token, has none."""
    found = re.search(r"\d+", dtype)
    return 8 if dtype == "pred" else int(found[0]) if found else 0
