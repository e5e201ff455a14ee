"""Convolutions by axis names, and their two ways back. Products accumulate in float32.

FLOPs are those that XLA counts: a product with an entry of the input. What falls on padding is told apart
(``Cost.padding``), as papers count it: entries of the result x entries of the kernel for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from compiler.graph.ir import Value
from compiler.graph.sizes import Size, product
from compiler.graph.types import TensorType, TypeProblem
from compiler.ops import halo
from compiler.ops.contract import Along, Cost, Op, Role, function, moved, op
from compiler.ops.windows import TAPS, Window, resized, windows_of

if TYPE_CHECKING:
    from compiler.graph.builder import Builder

Grads = tuple[Value | None, ...]
GROUPS = "conv_groups"


@dataclass(frozen=True)
class _Conv(Op):
    """What the three have in common; ``slid`` is the type of the value over which the windows slide."""

    windows: tuple[Window, ...] = ()  # each slides along its axis of x; the kernel's is kernel_<axis>
    contract: tuple[str, ...] = ()  # of x and kernel, summed over; others that both have are groups
    dtype: str = "float32"

    def slid(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> TensorType:
        return ins[0]

    def summed(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> frozenset[str]:
        """Axes that the result has no more, besides those of the windows."""
        raise NotImplementedError

    @property
    def taps(self) -> tuple[str, ...]:
        return tuple(w.taps for w in self.windows)

    @property
    def over(self) -> tuple[str, ...]:
        return tuple(w.axis for w in self.windows)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        sizes = {a: s for t in (*ins, *outs) for a, s in t.pairs}
        x = self.slid(ins, outs)
        rest = product(s for a, s in sizes.items() if a not in (*self.over, *self.taps)) * 2
        met = rest * product(w.met(x.size(w.axis)) for w in self.windows)
        every = rest * product(w.places(x.size(w.axis)) * w.size for w in self.windows)
        return moved(ins, outs, matrix=met, padding=every - met)

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return len(partial) == 1

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        if axis in self.taps:
            return Role.WHOLE
        window = next((w for w in self.windows if w.axis == axis), None)
        if window is not None and not window.alone(self.slid(ins, outs).size(axis)):
            return Role.ACROSS
        return Role.SUM if axis in self.summed(ins, outs) else Role.PARALLEL

    def along(self, axis: str, ins: Sequence[TensorType]) -> Along:
        return Along.LOOKAHEAD if axis in (*self.over, *self.contract) else Along.POINTWISE


@op
@dataclass(frozen=True)
class Conv(_Conv):
    """Windows slide over x; at each place the sum of x times kernel over the window and ``contract``. An axis that
    both have and that is not summed is of groups (channels of a depthwise one). Result axes: x's that remain, in
    order, then the kernel's new ones. The kernel is not flipped."""

    name: ClassVar[str] = "conv"

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        x, kernel = ins
        for w in self.windows:
            if kernel.size(w.taps) != w.size:
                raise TypeProblem("axis-mismatch", f"a window of {w.size}, {w.taps} is {kernel.size(w.taps)}")
        for axis in (*self.contract, *(a for a in kernel.axes if a in x.axes)):
            if x.size(axis) != kernel.size(axis):
                text = f"{axis} is {x.size(axis)} in the input and {kernel.size(axis)} in the kernel"
                raise TypeProblem("axis-mismatch", text)
        kept = [p for p in x.pairs if p[0] not in self.contract]
        new = [p for p in kernel.pairs if p[0] not in (*x.axes, *self.taps)]
        return (TensorType.make([*resized(kept, self.windows), *new], self.dtype),)

    def summed(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> frozenset[str]:
        return frozenset(self.contract)

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        x, kernel = ins
        if grads[0] is None:
            return None, None
        g = b.cast(grads[0], kernel.type.dtype)  # as of a matrix product: narrow factors stay narrow
        groups = tuple(a for a in x.axes if a in kernel.axes and a not in self.contract)
        sizes = tuple(x.type.size(w.axis) for w in self.windows)
        back = ConvInput(self.windows, self.contract, x.type.dtype, groups, sizes)
        return b.one(back, g, kernel), b.one(
            ConvKernel(self.windows, self.contract, kernel.type.dtype, groups), x, b.cast(g, x.type.dtype)
        )

    def across(self, b: Any, axis: str, shards: int, ins: Sequence[Value]) -> tuple[Value, ...]:
        return (halo.conv(b, self, axis, ins, shards),)


@op
@dataclass(frozen=True)
class ConvInput(_Conv):
    """The cotangent of a convolution's input from that of its result and the kernel."""

    name: ClassVar[str] = "conv_input"
    differentiable: ClassVar[bool] = False
    groups: tuple[str, ...] = ()  # axes that input, kernel and result have
    sizes: tuple[Size, ...] = ()  # of the input along the windows' axes

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        g, kernel = ins
        gone, sizes = self.summed(ins, ()), dict(zip(self.over, self.sizes, strict=True))
        kept = [(a, sizes.get(a, s)) for a, s in g.pairs if a not in gone]
        return (TensorType.make([*kept, *((a, kernel.size(a)) for a in self.contract)], self.dtype),)

    def slid(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> TensorType:
        return outs[0]

    def across(self, b: Any, axis: str, shards: int, ins: Sequence[Value]) -> tuple[Value, ...]:
        return (halo.conv_input(b, self, axis, ins, shards),)

    def summed(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> frozenset[str]:
        return frozenset(a for a in ins[1].axes if a in ins[0].axes and a not in self.groups)


@op
@dataclass(frozen=True)
class ConvKernel(_Conv):
    """The cotangent of a convolution's kernel from its input and the cotangent of its result."""

    name: ClassVar[str] = "conv_kernel"
    differentiable: ClassVar[bool] = False
    groups: tuple[str, ...] = ()  # axes that input, kernel and result have

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        x, g = ins
        pairs: list[tuple[str, Any]] = [(w.taps, w.size) for w in self.windows]
        pairs += [(a, x.size(a)) for a in (*self.groups, *self.contract)]
        return (TensorType.make([*pairs, *(p for p in g.pairs if p[0] not in x.axes)], self.dtype),)

    def across(self, b: Any, axis: str, shards: int, ins: Sequence[Value]) -> tuple[Value, ...]:
        return (halo.conv_kernel(b, self, axis, ins, shards),)

    def summed(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> frozenset[str]:
        return frozenset(a for a in ins[0].axes if a in ins[1].axes and a not in self.groups)


@function
def conv(
    b: Builder,
    x: Value,
    kernel: Value,
    *,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = "same",
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    per: Sequence[str] = (),
) -> Value:
    """A convolution: along each axis of x for which the kernel has one called ``kernel_<axis>`` a window slides, and
    the sum runs over the window and the axes that both have, save those in ``per``. ``padding``: same, valid, or how
    many entries on both sides. ``groups``: x's last shared axis and the kernel's first new one fall into so many
    parts, each with its own. The dtype is x's."""
    over = [a for a in x.axes if TAPS + a in kernel.axes]
    if not over:
        found = f"[{' '.join(kernel.axes)}] over [{' '.join(x.axes)}]"
        hint = TAPS + x.axes[-2] if len(x.axes) > 1 else None
        raise TypeProblem("missing-axis", f"a kernel has kernel_<axis> for each axis it slides along, found {found}",
                          [TAPS + a for a in x.axes[:-1] if a != "batch"], hint)  # fmt: skip
    sizes = [int(kernel.type.size(TAPS + a).constant) for a in over]
    windows = windows_of(over, sizes, stride, padding, dilation)
    kernel = b.cast(kernel, x.type.dtype)
    shared = [a for a in x.axes if a in kernel.axes and a not in per]
    if groups == 1:
        return b.one(Conv(windows, tuple(shared), x.type.dtype), x, kernel)
    new = [a for a in kernel.axes if a not in (*x.axes, *(w.taps for w in windows))]
    if groups < 1 or not shared or not new:
        text = "groups divide an axis that input and kernel share and a new one of the kernel"
        raise TypeProblem("axis-mismatch", f"{text}, found {groups} groups of [{' '.join(kernel.axes)}]")
    into, out = _parts(x.type, kernel.type, shared[-1], new[0], groups)
    x = b.split(x, shared[-1], **{GROUPS: groups, shared[-1]: into})
    kernel = b.split(kernel, new[0], **{GROUPS: groups, new[0]: out})
    y = b.one(Conv(windows, tuple(shared), x.type.dtype), x, kernel)
    y = b.arrange(y, [*(a for a in y.axes if a not in (GROUPS, *new)), GROUPS, *new])
    return b.merge(y, (GROUPS, new[0]), new[0])


def _parts(x: TensorType, kernel: TensorType, shared: str, new: str, groups: int) -> tuple[Size, Size]:
    """Sizes of one group of the input's axis and of the kernel's new one."""
    into, made = kernel.size(shared), kernel.size(new)
    if x.size(shared) != into * groups:
        text = f"{shared} is {x.size(shared)} in the input and {groups} groups of {into} in the kernel"
        raise TypeProblem("axis-mismatch", text)
    if not made.is_constant or made.constant % groups:
        raise TypeProblem("indivisible", f"{new} = {made} does not divide into {groups} groups")
    return into, made // groups
