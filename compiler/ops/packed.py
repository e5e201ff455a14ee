"""Weights in few bits: whole numbers with a scale for each group of neighbours.

``Packed`` says how a parameter is held: values [axes] in int4 or int8, and scales with the same axes, one of them as
many entries long as it has groups. The scale of a group is its largest magnitude over the largest number, so that a
weight is off by half a scale at most. A named axis keeps its name in both, so one rule divides both on a mesh.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compiler.graph.ir import Value
from compiler.graph.sizes import product
from compiler.graph.types import DTYPE_BITS, TensorType, TypeProblem
from compiler.ops.contract import Cost, Op, Role, moved, op
from compiler.ops.linear import Dot

if TYPE_CHECKING:
    from compiler.graph.builder import Builder

SCALE = ":scale"  # behind a parameter's label: the scales of its groups
LEAST = 8  # entries of a group below which the scales would outweigh what they save


@dataclass(frozen=True)
class Packed:
    """``dtype``: "int4" or "int8"; groups of ``group`` neighbours along ``axis``."""

    dtype: str
    axis: str
    group: int

    @property
    def largest(self) -> int:
        """The largest number: 7 or 127. The least is its negative, so that 0 is in the middle."""
        return (1 << (DTYPE_BITS[self.dtype] - 1)) - 1

    def held(self, t: TensorType) -> tuple[TensorType, TensorType]:
        """The types of values and scales of a parameter of type ``t``."""
        return t.with_dtype(self.dtype), t.resize(self.axis, t.size(self.axis) // self.group)

    def __str__(self) -> str:
        return f"{self.dtype} along {self.axis} by {self.group}"


def packed(dtype: str, axis: str, size: int, group: int) -> Packed:
    """Groups of the largest divisor of ``size`` up to ``group``; the whole axis where there is none worth it."""
    fitting = max(d for d in range(1, min(group, size) + 1) if size % d == 0)
    return Packed(dtype, axis, fitting if fitting >= min(LEAST, group) else size)


@op
@dataclass(frozen=True)
class Unpack(Op):
    """Values times the scale of their group. Operands: values, whole numbers or their lookups in floats; scales, with
    ``axis`` as many entries long as it has groups. Computed where it is read: a product reads what is packed."""

    name: ClassVar[str] = "unpack"
    axis: str = "embed"
    dtype: str = "bfloat16"

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        values, scales = ins
        whole, groups = values.size(self.axis), scales.size(self.axis)
        if values.axes != scales.axes or scales.resize(self.axis, whole).sizes != values.sizes:
            raise TypeProblem("axis-mismatch", f"scales {scales} are not those of {values} by groups of {self.axis}")
        if whole.constant % groups.constant:
            raise TypeProblem("indivisible", f"{self.axis} = {whole} does not divide into {groups} groups")
        return (values.with_dtype(self.dtype),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return moved(ins, outs, vector=outs[0].elements)

    def gradient(
        self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]
    ) -> tuple[Value | None, ...]:
        """Of the scales: the sum over a group of values times their cotangents; of values that are floats too."""
        if grads[0] is None:
            return None, None
        values, scales = ins
        back = None
        if values.type.dtype.startswith(("float", "bfloat")):
            back = b.one(Unpack(self.axis, values.type.dtype), grads[0], scales)
        count = scales.type.size(self.axis)
        size = values.type.size(self.axis) // count
        terms = b.mul(b.cast(values, "float32"), b.cast(grads[0], "float32"))
        parts = b.split(terms, self.axis, **{self.axis: count, "packed": size})
        return back, b.cast(b.arrange(b.reduce(parts, "sum", ("packed",)), scales.axes), scales.type.dtype)

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return partial == {0} and ins[0].dtype.startswith(("float", "bfloat"))

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.PARALLEL


@op
@dataclass(frozen=True)
class DotPacked(Dot):
    """A product with a packed weight, which is unpacked on the way, a part at a time where it is large. Operands: x,
    values, scales; ``axis``: along which the weight has its groups."""

    name: ClassVar[str] = "dot_packed"
    axis: str = "embed"

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        x, values, scales = ins
        return super().infer(x, *Unpack(self.axis, x.dtype).infer(values, scales))

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        sizes = dict(ins[0].pairs) | dict(ins[1].pairs)
        return moved(ins, outs, matrix=product(sizes.values()) * 2, vector=ins[1].elements)

    def gradient(
        self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]
    ) -> tuple[Value | None, ...]:
        """That of the product of the unpacked weight."""
        x, values, scales = ins
        how = Unpack(self.axis, x.type.dtype)
        dx, dw = Dot(self.contract, self.dtype).gradient(b, (x, b.one(how, values, scales)), outs, grads)
        return dx, *how.gradient(b, (values, scales), (), (dw,))

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return partial == {0}
