"""Sparse experts: route, dispatch, one product an expert, collect. Dropless; ``ragged`` sorts (token, expert)
pairs by expert, ``dense`` runs every expert on every token (better for few tokens): the select pass chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from compiler.graph.ir import Value
from compiler.graph.sizes import Size, product
from compiler.graph.types import TensorType, TypeProblem
from compiler.ops.contract import Cost, Op, Role, function, holders, moved, op
from compiler.ops.rows import FromRows, Rows, ToRows, balanced, counts, from_experts, own_groups, to_experts

if TYPE_CHECKING:
    from compiler.graph.builder import Builder

Grads = tuple[Value | None, ...]
BOOKS = ("pairs", "groups")  # axes of what dispatch keeps to find its rows again
TINY = 1e-20  # where every sigmoid is 0


def tile_rows(rows: int, experts: int) -> int:
    """Rows of one tile where ragged products run tile by tile (compiler/lower/tiles.py): a power of two, so that what
    tiles at the ends of experts multiply in vain is about a sixteenth of the rows."""
    size = 1 << (rows // (16 * experts)).bit_length() - 1 if rows >= 16 * experts else 1
    return min(256, max(16, size))


def tiled_rows(rows: int, experts: int) -> int:
    """Rows that these tiles multiply, whatever goes to which expert."""
    tile = tile_rows(rows, experts)
    return (rows // tile + experts) * tile


@op
@dataclass(frozen=True)
class Choose(Op):
    """Numbers of the ``active`` largest scores over ``experts``, largest first, int32. With ``groups`` experts are
    chosen in their ``active_groups`` best groups only (neighbours are a group; ``by`` its best score, "max", or the sum
    of its two best, "top2"; arXiv:2405.04434 section 2.1.2, arXiv:2412.19437 section 2.1.2)."""

    name: ClassVar[str] = "choose"
    differentiable: ClassVar[bool] = False
    active: int = 2
    groups: int = 1
    active_groups: int = 1
    by: str = "max"

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        experts = int(ins[0].size("experts").constant)
        if experts % self.groups:
            raise TypeProblem("indivisible", f"{experts} experts do not divide into {self.groups} groups")
        if not 1 <= self.active_groups <= self.groups:
            message = f"chooses {self.active_groups} of {self.groups} groups of experts"
            raise TypeProblem("out-of-range", message, [f"1 to {self.groups}"])
        room = experts // self.groups * self.active_groups
        if not 1 <= self.active <= room:
            raise TypeProblem("out-of-range", f"chooses {self.active} of {room} experts", [f"1 to {room}"])
        return (TensorType.make([*ins[0].drop("experts").pairs, ("active", self.active)], "int32"),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return moved(ins, outs, vector=ins[0].elements * 5)

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        return (None,)

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.WHOLE if axis in ("experts", "active") else Role.PARALLEL


@op
@dataclass(frozen=True)
class OneHot(Op):
    """Weights [batch, seq, active] laid out over ``experts``: zero where not chosen. Operands: weights, chosen.
    ``shard``: the mesh axes over which the experts are split; each shard lays out its own."""

    name: ClassVar[str] = "one_hot"
    experts: Size = Size.of(1)
    shard: tuple[str, ...] = ()

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        return (TensorType.make([*ins[0].drop("active").pairs, ("experts", self.experts)], ins[0].dtype),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return moved(ins, outs, vector=outs[0].elements)

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        if grads[0] is None:
            return None, None
        return b.one(PickExperts(), grads[0], ins[1]), None

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return partial == {0}

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.OWN if axis == "experts" else Role.WHOLE if axis == "active" else Role.PARALLEL


@op
@dataclass(frozen=True)
class PickExperts(Op):
    """Entries of [batch, seq, experts] at the chosen experts: [batch, seq, active]."""

    name: ClassVar[str] = "pick_experts"
    shard: tuple[str, ...] = ()

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        return (TensorType.make([*ins[0].drop("experts").pairs, ("active", ins[1].size("active"))], ins[0].dtype),)

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        if grads[0] is None:
            return None, None
        return b.one(OneHot(ins[0].type.size("experts")), grads[0], ins[1]), None

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return partial == {0}

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.LOOKUP if axis == "experts" else Role.WHOLE if axis == "active" else Role.PARALLEL


@op
@dataclass(frozen=True)
class Dispatch(Rows):
    """Tokens to their experts. Results when ragged: x by (token, expert) pair sorted by expert [rows, embed],
    the order [pairs] int32 and how many rows each expert has [groups] int32; when dense: x itself and empty books.
    Where experts are split, a shard's rows are those of its own experts: picked out of all tokens, or exchanged."""

    name: ClassVar[str] = "dispatch"
    implementation: str = "ragged"

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        x, chosen = ins
        dense = self.implementation == "dense"
        rows, groups = (Size.of(0), Size.of(0)) if dense else (chosen.elements, self.experts)
        books = [TensorType.make([(axis, n)], "int32") for axis, n in zip(BOOKS, (rows, groups), strict=True)]
        if dense:
            return x, *books
        extra = [p for p in x.pairs if p[0] not in chosen.axes]
        return TensorType.make([("rows", rows), *extra], x.dtype), *books

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return Cost() if self.implementation == "dense" else moved(outs[:1], outs)

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        if grads[0] is None:
            return None, None
        if self.implementation == "dense":
            return grads[0], None
        back = b.one(FromRows(self.experts), grads[0], ins[1], outs[1])
        return b.arrange(b.reduce(back, "sum", ("active",)), ins[0].axes), None

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        if self.implementation == "dense":
            return Role.WHOLE if axis == "active" else Role.PARALLEL
        return Role.OWN if axis == "experts" else self._beside(axis, ins[1])

    def exchanges(self) -> tuple[tuple[str, ...], ...]:
        return () if self.implementation == "dense" else super().exchanges()

    def exchanged(self, shards: int, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Size:
        return balanced(outs[0], shards)

    def across(self, b: Any, axis: str, shards: int, ins: Sequence[Value]) -> tuple[Value, ...]:
        rows, order, _ = b.apply(self, *ins)
        table = counts(b, ins[1], self.experts, shards)
        return to_experts(b, rows, table, shards), order, own_groups(b, table, shards)


@op
@dataclass(frozen=True)
class ExpertDot(Op):
    """A product with each expert's own matrix w [experts, in, out]. Ragged: x [rows, in] -> [rows, out]; dense:
    x [batch, seq, in] or [batch, seq, experts, in] -> [batch, seq, experts, out]. Operands: x, w, groups."""

    name: ClassVar[str] = "expert_dot"
    contract: tuple[str, ...] = ()
    implementation: str = "ragged"
    experts: Size = Size.of(1)  # of the whole

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
        share = _share(ins[1], self.experts) if self.implementation == "ragged" else 1
        return moved(ins[:2], outs, matrix=outs[0].elements * inner * (2 * share))

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        if grads[0] is None:
            return None, None, None
        x, w, groups = ins
        g = grads[0]
        out_axes = tuple(a for a in w.axes if a not in x.axes and a != "experts")
        if self.implementation == "ragged":
            dx = b.one(ExpertDot(out_axes, "ragged", self.experts), g, w, groups)
            dw = b.one(ExpertOuter(w.type.size("experts"), w.type.dtype), x, g, groups)
            return b.arrange(dx, x.axes), b.arrange(dw, w.axes), None
        gone = out_axes if "experts" in x.axes else (*out_axes, "experts")
        dx = b.arrange(b.dot(g, w, gone), x.axes)
        over = tuple(a for a in x.axes if a not in w.axes)
        return dx, b.arrange(b.dot(x, g, over, w.type.dtype), w.axes), None

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return len(partial) == 1 and 2 not in partial

    def home(self) -> tuple[str, int, str] | None:
        return "rows", 1, "experts"

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.SUM if axis in self.contract else Role.PARALLEL


def _share(w: TensorType, experts: Size) -> float:
    """Of the rows that a shard has room for, those it has when tokens go to all experts alike."""
    here = w.size("experts")
    return 1 if here == experts else float(here.constant) / float(experts.constant)


@op
@dataclass(frozen=True)
class ExpertOuter(Op):
    """The weights' gradient of a ragged product: for each expert the sum over its rows of x outer g."""

    name: ClassVar[str] = "expert_outer"
    differentiable: ClassVar[bool] = False
    experts: Size = Size.of(1)
    dtype: str = "float32"

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        x, g, _ = ins
        pairs = [("experts", self.experts), *x.drop("rows").pairs, *g.drop("rows").pairs]
        return (TensorType.make(pairs, self.dtype),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        pairs = ins[0].elements * ins[1].drop("rows").elements
        return moved(ins[:2], outs, matrix=pairs * (2 * _share(outs[0], self.experts)))

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        return tuple(None for _ in ins)

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return len(partial) == 1 and 2 not in partial

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        tokens = axis not in outs[0].axes and axis in holders(ins[0])
        return Role.SUM if tokens else Role.PARALLEL


@op
@dataclass(frozen=True)
class Collect(Rows):
    """The experts' answers back to their tokens, weighted and added. Operands: y, weights, chosen, order. With
    ``shard`` (mesh axes over which the experts are split) each shard adds up its own experts."""

    name: ClassVar[str] = "collect"
    implementation: str = "ragged"

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        y, weights = ins[:2]
        rest = [p for p in y.pairs if p[0] not in ("rows", "experts", *weights.axes)]
        return (TensorType.make([*weights.drop("active").pairs, *rest], y.dtype),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return moved(ins[:2], outs, vector=ins[0].elements * 2)

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        """The answers' cotangents are the tokens' own, weighted; the weights' are how answer and cotangent agree."""
        if grads[0] is None:
            return None, None, None, None
        y, weights, chosen, order = ins
        dense, g = self.implementation == "dense", b.cast(grads[0], y.type.dtype)
        if dense:
            spread = b.one(OneHot(self.experts), weights, chosen)
        else:
            g, spread = (b.one(ToRows(self.experts), v, chosen, order) for v in (g, weights))
        dy = b.mul(b.cast(g, "float32"), b.cast(spread, "float32"))
        width = tuple(a for a in outs[0].axes if a not in weights.axes)
        agree = b.dot(y, g, width, "float32")  # not a product and a sum: partial sums of y go through it
        dw = b.one(PickExperts(), agree, chosen) if dense else b.one(FromRows(self.experts), agree, chosen, order)
        return b.cast(b.arrange(dy, y.axes), y.type.dtype), b.cast(dw, weights.type.dtype), None, None

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return partial in ({0}, {1})

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        if axis == "experts":
            return Role.LOOKUP
        if self.implementation == "dense":
            return Role.WHOLE if axis == "active" else Role.PARALLEL
        return self._beside(axis, ins[2])

    def exchanges(self) -> tuple[tuple[str, ...], ...]:
        return () if self.implementation == "dense" else super().exchanges()

    def exchanged(self, shards: int, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Size:
        return balanced(ins[0], shards)

    def across(self, b: Any, axis: str, shards: int, ins: Sequence[Value]) -> tuple[Value, ...]:
        y, weights, chosen, order = ins
        return (b.one(self, from_experts(b, y, chosen, self.experts, shards), weights, chosen, order),)


@function
def route(
    b: Builder,
    logits: Value,
    active: int,
    normalise: bool = True,
    *,
    score: str = "softmax",
    correction: Value | None = None,
    groups: int = 1,
    active_groups: int = 1,
    by: str = "max",
    scale: float = 1.0,
) -> tuple[Value, Value]:
    """Weights [batch, seq, active] in float32 and numbers of the chosen experts. Scores are the softmax or the sigmoid
    of the logits; a ``correction`` [experts] counts in the choice alone (arXiv:2408.15664)."""
    scores = b.softmax(logits, "experts") if score == "softmax" else b.sigmoid(b.cast(logits, "float32"))
    judged = scores if correction is None else b.arrange(b.add(scores, correction), scores.axes)
    chosen = b.one(Choose(active, groups, active_groups, by), judged)
    weights = b.one(PickExperts(), scores, chosen)
    if normalise:
        total = b.reduce(weights, "sum", ("active",))
        weights = b.div(weights, b.max(total, TINY) if score == "sigmoid" else total)
    return (b.mul(weights, scale) if scale != 1.0 else weights), chosen
