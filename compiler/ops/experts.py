"""Sparse experts: route, dispatch, one product an expert, collect. Dropless; ``ragged`` sorts (token, expert)
pairs by expert, ``dense`` runs every expert on every token (better for few tokens): the select pass chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compiler.graph.ir import Value
from compiler.graph.sizes import Size, product
from compiler.graph.types import TensorType, TypeProblem
from compiler.ops.contract import Cost, Op, Role, function, moved, op

if TYPE_CHECKING:
    from compiler.graph.builder import Builder

Grads = tuple[Value | None, ...]


@op
@dataclass(frozen=True)
class Route(Op):
    """The ``active`` largest of softmax(logits) over ``experts``. Results: weights [batch, seq, active] in
    float32 (made to sum to 1 if ``normalise``), and the experts' numbers, int32."""

    name: ClassVar[str] = "route"
    active: int = 2
    normalise: bool = True

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        experts = ins[0].size("experts").constant
        if not 1 <= self.active <= experts:
            raise TypeProblem("out-of-range", f"chooses {self.active} of {experts} experts", [f"1 to {experts}"])
        out = TensorType.make([*ins[0].drop("experts").pairs, ("active", self.active)], "float32")
        return out, out.with_dtype("int32")

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        n = ins[0].elements
        return moved(ins, outs, vector=n * 5, transcendental=n)

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        if grads[0] is None:
            return (None,)
        (weights, chosen), (logits,) = outs, ins
        experts = logits.type.size("experts")
        if self.normalise:  # a softmax over the chosen logits alone
            inner = b.mul(weights, b.sub(grads[0], b.sum(b.mul(grads[0], weights), "active")))
            return (b.cast(b.arrange(b.one(OneHot(experts), inner, chosen), logits.axes), logits.type.dtype),)
        spread = b.arrange(b.one(OneHot(experts), grads[0], chosen), logits.axes)
        p = b.softmax(logits, "experts")
        inner = b.mul(p, b.sub(spread, b.sum(b.mul(spread, p), "experts")))
        return (b.cast(inner, logits.type.dtype),)

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.WHOLE if axis in ("experts", "active") else Role.PARALLEL


@op
@dataclass(frozen=True)
class OneHot(Op):
    """Weights [batch, seq, active] laid out over ``experts``: zero where not chosen. Operands: weights, chosen."""

    name: ClassVar[str] = "one_hot"
    experts: Size = Size.of(1)

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        return (TensorType.make([*ins[0].drop("active").pairs, ("experts", self.experts)], ins[0].dtype),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return moved(ins, outs, vector=outs[0].elements)

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        if grads[0] is None:
            return None, None
        return b.one(PickExperts(), grads[0], ins[1]), None

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.WHOLE if axis in ("experts", "active") else Role.PARALLEL


@op
@dataclass(frozen=True)
class PickExperts(Op):
    """Entries of [batch, seq, experts] at the chosen experts: [batch, seq, active]."""

    name: ClassVar[str] = "pick_experts"

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        return (TensorType.make([*ins[0].drop("experts").pairs, ("active", ins[1].size("active"))], ins[0].dtype),)

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        if grads[0] is None:
            return None, None
        return b.one(OneHot(ins[0].type.size("experts")), grads[0], ins[1]), None

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.WHOLE if axis in ("experts", "active") else Role.PARALLEL


@op
@dataclass(frozen=True)
class Dispatch(Op):
    """Tokens to their experts. Results when ragged: x by (token, expert) pair sorted by expert [rows, embed],
    the order [rows] int32 and the group sizes [experts] int32; when dense: x itself and empty books."""

    name: ClassVar[str] = "dispatch"
    experts: Size = Size.of(1)
    implementation: str = "ragged"

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        x, chosen = ins
        groups = TensorType.make([("experts", self.experts)], "int32")
        if self.implementation == "dense":
            return x, TensorType.make([("rows", 0)], "int32"), groups
        rows = chosen.elements
        extra = [p for p in x.pairs if p[0] not in chosen.axes]
        order = TensorType.make([("rows", rows)], "int32")
        return TensorType.make([("rows", rows), *extra], x.dtype), order, groups

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return Cost() if self.implementation == "dense" else moved(outs[:1], outs)

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        if grads[0] is None:
            return None, None
        if self.implementation == "dense":
            return grads[0], None
        ones = b.expand(b.constant(1.0), ins[1].type.pairs)
        return b.arrange(b.one(Collect("ragged"), grads[0], ones, ins[1], outs[1]), ins[0].axes), None

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.PARALLEL if axis == "embed" else Role.WHOLE


@op
@dataclass(frozen=True)
class ExpertDot(Op):
    """A product with each expert's own matrix w [experts, in, out]. Ragged: x [rows, in] -> [rows, out]; dense:
    x [batch, seq, in] or [batch, seq, experts, in] -> [batch, seq, experts, out]. Operands: x, w, groups."""

    name: ClassVar[str] = "expert_dot"
    contract: tuple[str, ...] = ()
    implementation: str = "ragged"

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        x, w, _ = ins
        for axis in self.contract:
            if x.size(axis) != w.size(axis):
                raise TypeProblem(
                    "axis-mismatch", f"{axis} is {x.size(axis)} in the input, {w.size(axis)} in the weight"
                )
        kept = [p for p in x.pairs if p[0] not in self.contract]
        gone = {
            *self.contract,
            *(("experts",) if self.implementation == "ragged" else ()),
            *(a for a, _ in kept),
        }
        return (TensorType.make([*kept, *(p for p in w.pairs if p[0] not in gone)], x.dtype),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        inner = product(ins[0].size(a) for a in self.contract)
        return moved(ins[:2], outs, matrix=outs[0].elements * inner * 2)

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        if grads[0] is None:
            return None, None, None
        x, w, groups = ins
        g = grads[0]
        out_axes = tuple(a for a in w.axes if a not in x.axes and a != "experts")
        if self.implementation == "ragged":
            dx = b.one(ExpertDot(out_axes, "ragged"), g, w, groups)
            dw = b.one(ExpertOuter(w.type.size("experts")), x, g, groups)
            return b.arrange(dx, x.axes), b.cast(b.arrange(dw, w.axes), w.type.dtype), None
        gone = out_axes if "experts" in x.axes else (*out_axes, "experts")
        dx = b.arrange(b.dot(g, w, gone), x.axes)
        over = tuple(a for a in x.axes if a not in w.axes)
        return dx, b.arrange(b.dot(x, g, over, w.type.dtype), w.axes), None

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        if axis in self.contract:
            return Role.SUM
        ragged = self.implementation == "ragged" and axis == "experts"
        return Role.WHOLE if axis == "rows" or ragged else Role.PARALLEL


@op
@dataclass(frozen=True)
class ExpertOuter(Op):
    """The weights' gradient of a ragged product: for each expert the sum over its rows of x outer g."""

    name: ClassVar[str] = "expert_outer"
    differentiable: ClassVar[bool] = False
    experts: Size = Size.of(1)

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        x, g, _ = ins
        return (TensorType.make([("experts", self.experts), *x.drop("rows").pairs, *g.drop("rows").pairs], "float32"),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return moved(ins[:2], outs, matrix=ins[0].elements * ins[1].drop("rows").elements * 2)

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        return tuple(None for _ in ins)

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.WHOLE if axis in ("rows", "experts") else Role.PARALLEL


@op
@dataclass(frozen=True)
class Collect(Op):
    """The experts' answers back to their tokens, weighted and added. Operands: y, weights, chosen, order. With
    ``shard`` (dense; a mesh axis over which the experts are split) each shard adds up its own experts."""

    name: ClassVar[str] = "collect"
    implementation: str = "ragged"
    shard: str = ""

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        y, weights = ins[:2]
        rest = [p for p in y.pairs if p[0] not in ("rows", "experts", *weights.axes)]
        return (TensorType.make([*weights.drop("active").pairs, *rest], y.dtype),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return moved(ins[:2], outs, vector=ins[0].elements * 2)

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        if grads[0] is None:
            return None, None, None, None
        y, weights, chosen, order = ins
        dy, dw = b.apply(CollectGradient(self.implementation), grads[0], y, weights, chosen, order)
        return dy, dw, None, None

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        if self.implementation == "ragged" and axis in ins[1].axes:
            return Role.WHOLE  # the rows of all tokens stand in one order
        return Role.WHOLE if axis in ("rows", "active") else Role.LOOKUP if axis == "experts" else Role.PARALLEL


@op
@dataclass(frozen=True)
class CollectGradient(Op):
    """Cotangents of the experts' answers and of the weights. Operands: g, y, weights, chosen, order."""

    name: ClassVar[str] = "collect_gradient"
    differentiable: ClassVar[bool] = False
    implementation: str = "ragged"

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        return ins[1], ins[2]

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return moved(ins, outs, vector=ins[1].elements * 3)

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        return tuple(None for _ in ins)

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.WHOLE


@function
def route(b: Builder, logits: Value, active: int, normalise: bool = True) -> tuple[Value, Value]:
    """Weights and numbers of the chosen experts."""
    weights, chosen = b.apply(Route(active, normalise), logits)
    return weights, chosen
