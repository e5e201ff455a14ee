"""Seats: experts that take a fixed number of tokens of each row, chosen by the tokens or by the experts.

A seat is a place of an expert in one row of the batch. ``Seats`` gives them to the tokens that chose the expert, first
come first served (GShard, arXiv:2006.16668, section 3.2; Switch, arXiv:2101.03961, section 2.2); ``ChooseTokens`` lets
the expert choose (arXiv:2202.09368, section 3.1). Either way the seats hold the numbers of their tokens, an empty seat
the number of tokens, and the rest is the same: tokens to seats, one product an expert, seats back to tokens. What
leaves a row never depends on the other rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from compiler.graph.ir import Value
from compiler.graph.sizes import Size, smaller
from compiler.graph.types import TensorType, TypeProblem
from compiler.ops.contract import Along, Cost, Op, Role, moved, op

if TYPE_CHECKING:
    from compiler.graph.builder import Builder

Grads = tuple[Value | None, ...]
PLACES = ("experts", "seats")
FINEST = 10_000  # a capacity factor is taken as a fraction: 1.1 is eleven tenths


def seats(tokens: Size, active: int, experts: int, factor: float) -> Size:
    """Seats of each expert in a row: ceil(factor * active * tokens / experts), and no more than there are tokens."""
    each = Fraction(factor).limit_denominator(FINEST) * active / experts
    share, whole = max(1, each.numerator), each.denominator
    return smaller((tokens * share + (whole - 1)) // whole, tokens)


@dataclass(frozen=True)
class _Seated(Op):
    """``axis``: the tokens' axis of a row. ``places``: the axes of the seats."""

    axis: str = "seq"
    places: tuple[str, ...] = PLACES

    def along(self, axis: str, ins: Sequence[TensorType]) -> Along:
        return Along.LOOKAHEAD if axis == self.axis else Along.POINTWISE

    def _seat(self, at: TensorType) -> None:
        if not at.dtype.startswith("int"):
            raise TypeProblem("dtype-mismatch", f"seats hold numbers of tokens, found {at.dtype}")
        for axis in self.places:
            at.size(axis)


@op
@dataclass(frozen=True)
class Seats(_Seated):
    """The tokens that sit with each expert, int32 [.., experts, seats]: of those that chose it, in their order, as many
    as there are ``seats``. Operand: the experts that tokens chose [.., axis, active]."""

    name: ClassVar[str] = "seats"
    differentiable: ClassVar[bool] = False
    experts: Size = Size.of(1)
    seats: Size = Size.of(1)

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        rest = ins[0].drop(self.axis, "active").pairs
        ins[0].size(self.axis)
        return (TensorType.make([*rest, ("experts", self.experts), ("seats", self.seats)], "int32"),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return moved(ins, outs, vector=ins[0].elements * self.experts * 2)

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        return (None,)

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.WHOLE if axis in (self.axis, "active", "experts", "seats") else Role.PARALLEL


@op
@dataclass(frozen=True)
class ChooseTokens(_Seated):
    """The tokens that each expert chooses, int32 [.., experts, seats]: those with its largest scores, largest first.
    Operands: scores [.., axis, experts], and how many tokens each row has [batch] where some are padding."""

    name: ClassVar[str] = "choose_tokens"
    differentiable: ClassVar[bool] = False
    seats: Size = Size.of(1)

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        scores = ins[0]
        scores.size(self.axis)
        pairs = [*scores.drop(self.axis, "experts").pairs, ("experts", scores.size("experts")), ("seats", self.seats)]
        return (TensorType.make(pairs, "int32"),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return moved(ins, outs, vector=ins[0].elements * 5)

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        return tuple(None for _ in ins)

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.WHOLE if axis in (self.axis, "seats") else Role.PARALLEL


@op
@dataclass(frozen=True)
class ToSeats(_Seated):
    """The entries of x along the tokens' axis by seat, [.., experts, seats, ..] (or what ``places`` says); 0 where a
    seat is empty. Of an x that has experts each expert gets its own. Operands: x [.., axis, ..], the seats' tokens [..,
    experts, seats]."""

    name: ClassVar[str] = "to_seats"

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        x, at = ins
        x.size(self.axis)
        self._seat(at)
        return (TensorType.make([*at.pairs, *x.drop(self.axis, *at.axes).pairs], x.dtype),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return moved([*outs, ins[1]], outs)

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        if grads[0] is None:
            return None, None
        x, at = ins
        back = FromSeats(self.axis, self.places, x.type.size(self.axis), "experts" in x.axes)
        return b.arrange(b.one(back, grads[0], at), x.axes), None

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return partial == {0}

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.WHOLE if axis == self.axis else Role.PARALLEL


@op
@dataclass(frozen=True)
class FromSeats(_Seated):
    """What sits on the seats back at its tokens, added up: [.., axis, ..]. ``each``: of every expert apart, the axis
    experts stays. Operands: y [.., experts, seats, ..], the seats' tokens. ``size``: how many tokens."""

    name: ClassVar[str] = "from_seats"
    size: Size = Size.of(1)
    each: bool = False

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        y, at = ins
        self._seat(at)
        own = [p for p in at.pairs if p[0] not in self.places]
        kept = [("experts", at.size("experts"))] if self.each else []
        return (TensorType.make([*own, (self.axis, self.size), *kept, *y.drop(*at.axes).pairs], y.dtype),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return moved(ins, outs, vector=ins[0].elements)

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        if grads[0] is None:
            return None, None
        return b.arrange(b.one(ToSeats(self.axis, self.places), grads[0], ins[1]), ins[0].axes), None

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return partial == {0}

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        if axis == self.axis:
            return Role.WHOLE
        return Role.SUM if axis in self.places and not (axis == "experts" and self.each) else Role.PARALLEL
