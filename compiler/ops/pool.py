"""Pooling: the mean or the largest entry of windows that slide along axes, and its way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compiler.errors import nearest
from compiler.graph.ir import Value
from compiler.graph.sizes import Size, product
from compiler.graph.types import TensorType, TypeProblem
from compiler.ops.contract import Along, Cost, Op, Role, function, moved, op
from compiler.ops.windows import Window, resized, windows_of

if TYPE_CHECKING:
    from compiler.graph.builder import Builder

KINDS = ("mean", "max")


@dataclass(frozen=True)
class _Pool(Op):
    """What both have in common; ``slid`` is the type of the value over which the windows slide."""

    kind: str = "mean"
    windows: tuple[Window, ...] = ()

    def slid(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> TensorType:
        return ins[0]

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        x = self.slid(ins, outs)
        rest = product(s for a, s in x.pairs if a not in {w.axis for w in self.windows})
        return moved(ins, outs, vector=rest * product(w.met(x.size(w.axis)) for w in self.windows))

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return self.kind == "mean"

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        window = next((w for w in self.windows if w.axis == axis), None)
        reaches = window is not None and not window.alone(self.slid(ins, outs).size(axis))
        return Role.WHOLE if reaches else Role.PARALLEL

    def along(self, axis: str, ins: Sequence[TensorType]) -> Along:
        return Along.LOOKAHEAD if axis in {w.axis for w in self.windows} else Along.POINTWISE


@op
@dataclass(frozen=True)
class Pool(_Pool):
    """``mean`` (in float32) or ``max`` of the entries under each window; padding is no entry. Keeps the dtype."""

    name: ClassVar[str] = "pool"

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        for w in self.windows:
            ins[0].size(w.axis)
        return (TensorType.make(resized(ins[0].pairs, self.windows), ins[0].dtype),)

    def gradient(
        self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]
    ) -> tuple[Value | None, ...]:
        if grads[0] is None:
            return (None,)
        sizes = tuple(ins[0].type.size(w.axis) for w in self.windows)
        back = PoolGradient(self.kind, self.windows, sizes)
        return (b.one(back, grads[0], *(ins if self.kind == "max" else ())),)


@op
@dataclass(frozen=True)
class PoolGradient(_Pool):
    """The cotangent of a pool's input from that of its result, and for ``max`` from the input: the first of equal
    entries gets all of it."""

    name: ClassVar[str] = "pool_gradient"
    differentiable: ClassVar[bool] = False
    sizes: tuple[Size, ...] = ()  # of the input along the windows' axes

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        sizes = dict(zip((w.axis for w in self.windows), self.sizes, strict=True))
        return (TensorType.make([(a, sizes.get(a, s)) for a, s in ins[0].pairs], ins[0].dtype),)

    def slid(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> TensorType:
        return outs[0]

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return partial == {0}


@function
def pool(
    b: Builder,
    x: Value,
    by: str,
    *,
    over: Sequence[str],
    window: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: str | int | Sequence[int] = "same",
) -> Value:
    """The ``mean`` or ``max`` of windows that slide along axes; ``stride``: the window's size unless given. Padding
    is not counted in."""
    if by not in KINDS:
        raise TypeProblem("unknown-word", f"pool takes the mean or the max, not {by!r}", KINDS, nearest(by, KINDS))
    for axis in over:
        x.type.size(axis)
    windows = windows_of(over, window if isinstance(window, Sequence) else [window] * len(over),
                         window if stride is None else stride, padding)  # fmt: skip
    for w in windows:
        if isinstance(w.padding, tuple) and max(w.padding) >= w.size:
            text = f"padding of {max(w.padding)} would hold a whole window of {w.size} along {w.axis}"
            raise TypeProblem("out-of-range", text, (f"< {w.size}",))
    return x if all(w.size == w.stride == 1 for w in windows) else b.one(Pool(by, windows), x)
