"""Attention over keys of this call (``attend``) and over a cache besides (``attend_cached``), and the way back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compiler.graph.ir import Value
from compiler.graph.sizes import CAPACITY, ONE, Size, smaller
from compiler.graph.types import TensorType, TypeProblem
from compiler.ops.contract import Along, Cost, Op, Role, function, moved, op

if TYPE_CHECKING:
    from compiler.graph.builder import Builder
    from compiler.passes.phase import Streaming

SCORE_FLOPS = 5  # scale, mask, minus the maximum, times the weight, sum
BLOCK = 512  # queries and keys of one tile of blocked attention


@dataclass(frozen=True)
class _Attention(Op):
    """Shared attributes. q [batch, queries, heads, head_dim]; k [batch, keys, kv_heads, head_dim];
    v [batch, keys, kv_heads, value]. Heads are grouped: head h reads kv head h * kv_heads // heads."""

    queries: str = "seq"
    keys: str = "seq"
    causal: bool = True
    window: int | None = None  # a query sees this many keys, itself among them
    scale: float = 1.0
    softcap: float | None = None
    heads: str = "heads"
    kv_heads: str = "kv_heads"
    dim: str = "head_dim"
    implementation: str = (
        "plain"  # "plain" | "blocked" | "streamed", "doubled" (cached only): chosen by the select pass
    )

    def _check(self, q: TensorType, k: TensorType, v: TensorType) -> TensorType:
        heads, kv = q.size(self.heads), k.size(self.kv_heads)
        if heads.constant % kv.constant:
            raise TypeProblem("indivisible", f"{heads} query heads do not divide into {kv} key-value heads")
        if q.size(self.dim) != k.size(self.dim):
            raise TypeProblem(
                "axis-mismatch", f"queries have {q.size(self.dim)} channels a head, keys {k.size(self.dim)}"
            )
        if k.size(self.keys) != v.size(self.keys) or k.size(self.kv_heads) != v.size(self.kv_heads):
            raise TypeProblem("axis-mismatch", f"keys {k} and values {v} differ")
        batch = set(q.axes) - {self.queries, self.heads, self.dim}
        if batch != set(k.axes) - {self.keys, self.kv_heads, self.dim}:
            raise TypeProblem("axis-mismatch", f"queries {q} and keys {k} have other batch axes")
        return TensorType.make([*q.drop(self.dim).pairs, (v.axes[-1], v.sizes[-1])], q.dtype)

    def _scores(self, q: TensorType, k: TensorType, v: TensorType, keys: Size) -> Cost:
        """Cost of the score matrix against ``keys`` keys a query and of the weighted sum."""
        scores = q.drop(self.dim).elements * keys
        return Cost(
            matrix=scores * (q.size(self.dim) + v.sizes[-1]) * 2,
            vector=scores * SCORE_FLOPS,
            transcendental=scores * (2 if self.softcap else 1),
        )

    def _pairs(self, q: Size, k: Size) -> Size:
        """Keys a query, counted as this implementation runs them: whole tiles when blocked, all when plain."""
        if self.implementation != "blocked":
            return k
        pairs = Size.opaque("block_pairs", q, k, BLOCK, BLOCK, self.window or 0, int(self.causal))
        return pairs * (BLOCK * BLOCK)

    def conflict(self, sharded: Mapping[str, str], ins: Sequence[TensorType]) -> str | None:
        heads, kv = ins[0].size(self.heads), ins[1].size(self.kv_heads)
        if kv == 1 or sharded.get(self.heads) == sharded.get(self.kv_heads):
            return None
        return f"{heads} {self.heads} read {kv} {self.kv_heads} in groups: shard both alike, or neither"

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        if axis in (self.queries, self.keys):
            return Role.RING
        return Role.WHOLE if axis == self.dim or axis == ins[2].axes[-1] else Role.PARALLEL


@op
@dataclass(frozen=True)
class Attend(_Attention):
    """softmax(mask(softcap(scale * q k))) v, softmax in float32. Results: the output, and the log of each row's
    sum [batch, queries, heads] for the way back. An operand ``lengths`` [batch] masks keys from there on (right
    padding; only where not causal). A row with every key masked gives 0."""

    name: ClassVar[str] = "attend"

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        out = self._check(*ins[:3])
        return out, ins[0].drop(self.dim).with_dtype("float32")

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        q, k, v = ins[:3]
        nq, nk = q.size(self.queries), k.size(self.keys)
        if self.implementation != "blocked":
            return moved(ins, outs) + self._scores(q, k, v, nk)
        tile = q.resize(self.queries, ONE)
        return moved(ins, outs) + self._scores(tile, k, v, self._pairs(nq, nk))

    def gradient(
        self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]
    ) -> tuple[Value | None, ...]:
        if grads[0] is None:
            return tuple(None for _ in ins)
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        back = b.apply(AttendGradient(**fields), *ins[:3], outs[0], outs[1], grads[0], *ins[3:])
        return (*back, *(None for _ in ins[3:]))

    def along(self, axis: str, ins: Sequence[TensorType]) -> Along:
        if axis == self.keys:
            return Along.STATEFUL if self.causal and self.queries == self.keys else Along.LOOKAHEAD
        return Along.POINTWISE

    def stream(self, s: Streaming, ins: Sequence[Value]) -> tuple[Value, ...]:
        q, k, v = ins[:3]
        slots = CAPACITY if self.window is None else smaller(self.window, CAPACITY)
        kind = "cache" if self.window is None else "ring"

        def cache(name: str, x: Value) -> Value:
            # the order is the target's: see select.Choice
            t = x.type
            sizes = {"slots": slots, **{a: t.size(a) for a in t.axes if a != self.keys}}
            batch = [a for a in t.axes[:-1] if a not in (self.keys, self.kv_heads)]
            inner = [self.kv_heads, "slots"] if s.heads_first else ["slots", self.kv_heads]
            order = [*batch, *inner, t.axes[-1]]
            return s.state(name, kind, TensorType.make([(a, sizes[a]) for a in order], t.dtype))

        old_k, old_v = cache("key", k), cache("value", v)
        if s.fresh:  # the cache is empty: it is only written
            out = s.b.apply(self, q, k, v)
        else:
            fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
            out = s.b.apply(AttendCached(**fields), q, k, v, old_k, old_v, s.start)
        s.write("key", old_k, k, "append", out[0])
        s.write("value", old_v, v, "append", out[0])
        return out


@op
@dataclass(frozen=True)
class AttendCached(_Attention):
    """Attention of this call's queries over a cache [batch, kv_heads, slots, head_dim] and this call's own keys.
    Slot i holds the last position p < start with p % slots == i: a ring needs no stored positions."""

    name: ClassVar[str] = "attend_cached"
    differentiable: ClassVar[bool] = False

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        out = self._check(*ins[:3])
        return out, ins[0].drop(self.dim).with_dtype("float32")

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        q, k, v, old_k = ins[:4]
        own, slots = k.size(self.keys), old_k.size("slots")
        if self.implementation != "blocked":
            rows = 2 if self.implementation == "doubled" else 1
            return moved(ins, outs) + self._scores(q, k, v, own + slots).times(rows)
        tile = q.resize(self.queries, ONE)
        cached = Size.opaque("block_pairs", q.size(self.queries), slots, BLOCK, BLOCK, 0, 0) * (BLOCK * BLOCK)
        return moved(ins, outs) + self._scores(tile, k, v, self._pairs(q.size(self.queries), own) + cached)

    def gradient(
        self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]
    ) -> tuple[Value | None, ...]:
        return tuple(None for _ in ins)


@op
@dataclass(frozen=True)
class AttendGradient(_Attention):
    """dq, dk, dv from q, k, v, the output, the log-sums and the output's cotangent; scores are recomputed."""

    name: ClassVar[str] = "attend_gradient"
    differentiable: ClassVar[bool] = False

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        self._check(*ins[:3])
        return ins[0], ins[1], ins[2]

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        if axis == self.heads and ins[1].size(self.kv_heads) == 1:
            return Role.SUM  # every head adds to the one key and value head's cotangents
        return super().role(axis, ins, outs)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        q, k, v = ins[:3]
        # five products against the forward's two: scores again, dv, dp, dq, dk
        nq, nk = q.size(self.queries), k.size(self.keys)
        if self.implementation != "blocked":
            forward = self._scores(q, k, v, nk)
        else:
            forward = self._scores(q.resize(self.queries, ONE), k, v, self._pairs(nq, nk))
        scores = Size.of(1) * forward.vector
        per_score = (q.size(self.dim) * 3 + v.sizes[-1] * 2) * 2
        return moved(ins, outs) + Cost(
            matrix=(scores // SCORE_FLOPS) * per_score,
            vector=scores * 2,
            transcendental=forward.transcendental,
        )

    def gradient(
        self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]
    ) -> tuple[Value | None, ...]:
        return tuple(None for _ in ins)


@function
def attend(
    b: Builder,
    q: Value,
    k: Value,
    v: Value,
    *,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    queries: str = "seq",
    keys: str = "seq",
    lengths: Value | None = None,
) -> Value:
    """Scaled dot-product attention; scale defaults to head_dim ** -0.5. Grouped and multi-query by sizes."""
    dim = q.axes[-1]
    if scale is None:
        scale = float(q.type.size(dim).constant) ** -0.5
    attributes = Attend(queries, keys, bool(causal), window, float(scale), softcap, dim=dim)
    return b.apply(attributes, q, k, v, *([lengths] if lengths is not None else []))[0]
