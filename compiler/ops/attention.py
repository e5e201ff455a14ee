"""Attention over keys of this call (``attend``) and over a cache besides (``attend_cached``), and the way back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from compiler.graph.axes import RECENT, first_of
from compiler.graph.ir import Value
from compiler.graph.sizes import ONE, ZERO, Size, smaller
from compiler.graph.types import TensorType, TypeProblem
from compiler.ops import ring, zigzag
from compiler.ops.bias import Bias, Dense
from compiler.ops.contract import Along, Cost, Op, Role, function, moved, op
from compiler.ops.shape import zeros
from compiler.ops.shards import SHARDS
from compiler.ops.state import slots_of

if TYPE_CHECKING:
    from compiler.graph.builder import Builder
    from compiler.passes.phase import Streaming

SCORE_FLOPS = 5  # scale, mask, minus the maximum, times the weight, sum
BLOCK = 512  # queries and keys of one tile of blocked attention


@dataclass(frozen=True)
class _Attention(Op):
    """Shared attributes. q [batch, queries, heads, head_dim]; k [batch, keys, kv_heads, head_dim];
    v [batch, keys, kv_heads, value]. Heads are grouped: head h reads kv head h * kv_heads // heads. Further operands
    in this order: those of the bias, ``prefix`` [batch] where there is one, ``query_segments`` and ``key_segments``
    where there are segments, ``first`` [batch] where ``placed``, and ``lengths`` [batch]; each may have further batch
    axes."""

    queries: str = "seq"
    keys: str = "seq"
    causal: bool = True
    window: int | None = None  # a query sees keys nearer than this; where not causal, on both sides
    offset: int | Size = 0  # positions by which this call's keys lie before its queries
    chunk: int | None = None  # a query sees the keys of its own chunk of so many positions only
    prefix: bool = False  # keys at positions below ``prefix`` are seen by all queries (prefix LM, arXiv:1910.10683)
    segments: bool = False  # a query sees keys of its own number only: [batch, queries] and [batch, keys], int32
    placed: bool = False  # ``first`` says at which position each row's queries begin
    bias: Bias | None = None  # what is added to the scores
    scale: float = 1.0
    softcap: float | None = None
    heads: str = "heads"
    kv_heads: str = "kv_heads"
    dim: str = "head_dim"
    implementation: str = (
        "plain"  # "plain" | "blocked" | "streamed", "doubled", "diagonal" (cached only): chosen by the select pass
    )

    def given(self, rest: Sequence[Any]) -> dict[str, Any]:
        """Operands behind the usual ones, by name."""
        names = [*(self.bias.operands if self.bias else ()), *(["prefix"] if self.prefix else [])]
        names += ["query_segments", "key_segments"] if self.segments else []
        names += ["first"] if self.placed else []
        return dict(zip([*names, "lengths"], rest, strict=False))

    def attributes(self) -> dict[str, Any]:
        """Those that all attention ops have."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(_Attention)}

    @property
    def by_position(self) -> bool:
        """Whether more than causality and a window depends on where a key lies."""
        return self.bias is not None or self.chunk is not None or self.prefix

    def _check(self, ins: Sequence[TensorType], rest: Sequence[TensorType]) -> TensorType:
        q, k, v = ins[:3]
        if self.bias is not None:
            self.bias.check(self, q, k, self.given(rest))
        if self.prefix and (not self.causal or self.window or self.chunk):
            raise TypeProblem("axis-mismatch", "a prefix is for causal attention without a window or chunks")
        if self.segments:
            self._check_segments(q, k, self.given(rest))
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

    def _check_segments(self, q: TensorType, k: TensorType, given: Mapping[str, TensorType]) -> None:
        for name, axis, of, inner in (
            ("query_segments", self.queries, q, (self.heads, self.dim)),
            ("key_segments", self.keys, k, (self.kv_heads, self.dim)),
        ):
            t, allowed = given[name], set(of.axes) - set(inner)
            if axis not in t.axes or not set(t.axes) <= allowed or t.size(axis) != of.size(axis):
                raise TypeProblem("axis-mismatch", f"{name.replace('_', ' ')} {t} are not of {of}: [batch {axis}]")
            if not t.dtype.startswith("int"):
                raise TypeProblem("dtype-mismatch", f"{name.replace('_', ' ')} are whole numbers, found {t.dtype}")

    def _scores(self, q: TensorType, k: TensorType, v: TensorType, keys: Size) -> Cost:
        """Cost of the score matrix against ``keys`` keys a query and of the weighted sum."""
        scores = q.drop(self.dim).elements * keys
        return Cost(
            matrix=scores * (q.size(self.dim) + v.sizes[-1]) * 2,
            vector=scores * (SCORE_FLOPS + self.segments),
            transcendental=scores * (2 if self.softcap else 1),
        )

    def _biased(self, q: TensorType, keys: Size, tile: int = 0, back: bool = False) -> Cost:
        """Cost of the bias of as many scores, in tiles of ``tile`` keys if so."""
        if self.bias is None:
            return Cost()
        scores = q.drop(self.dim).elements * keys
        met = (scores // tile) * (2 * tile - 1) if tile else scores
        return (self.bias.back if back else self.bias.cost)(scores, met, q.size(self.dim))

    def _pairs(self, q: Size, k: Size, chunk: int | None = None) -> Size:
        """Keys a query, counted as this implementation runs them: whole tiles when blocked, all when plain."""
        if self.implementation != "blocked":
            return k
        known = not self.prefix and not self.placed
        causal, window = self.causal and known, self.window or 0 if known else 0
        pairs = Size.opaque("block_pairs", q, k, BLOCK, BLOCK, window, int(causal), self.offset, chunk or 0)
        return pairs * (BLOCK * BLOCK)

    def together(self, axis: str, ins: Sequence[TensorType]) -> tuple[str, ...]:
        """Heads read key heads in groups: both are sharded alike, until one key head is left to a shard."""
        if axis not in (self.heads, self.kv_heads):
            return (axis,)
        return (self.heads,) if ins[1].size(self.kv_heads) == 1 else (self.heads, self.kv_heads)

    def runs(self, shards: int, ins: Sequence[TensorType]) -> float:
        if self.queries != self.keys:
            return 1.0
        length = ins[1].size(self.keys)
        if zigzag.pays(self, shards, *(t.resize(self.keys, t.size(self.keys) * shards) for t in ins[:3])):
            return zigzag.runs(shards)
        return 1.0 + ring.steps(self, int(length.constant), shards)

    def _shared_out(self, shards: int, ins: Sequence[TensorType], tensors: Sequence[TensorType]) -> Size:
        """Bytes that a shard sends so that all have as much to do."""
        whole = [t.resize(self.keys, t.size(self.keys) * shards) for t in ins[:3]] if self.queries == self.keys else []
        if not whole or not zigzag.pays(self, shards, *whole):
            return ZERO
        return sum((t.bytes for t in tensors), ZERO)

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        if axis == self.keys == self.queries:  # a window that looks both ways is not done across shards
            apart = not self.by_position and not self.segments and (self.causal or self.window is None)
            return Role.ACROSS if apart else Role.WHOLE
        if axis == self.queries and self.causal:
            return Role.WHOLE  # of which position a shard's first query is, it does not know
        own = self.bias.whole if self.bias else ()
        whole = (self.keys, self.dim, ins[2].axes[-1], "slots", "slot_rows", "lanes", *own)
        return Role.WHOLE if axis in whole else Role.PARALLEL


@op
@dataclass(frozen=True)
class Attend(_Attention):
    """softmax(mask(softcap(scale * q k) + bias)) v, softmax in float32. Results: the output, and the log of each row's
    sum [batch, queries, heads]. The operand ``lengths`` masks keys from there on (right padding; only where not
    causal). A row with every key masked gives 0. ``prefix`` in a call that extends a state: a prefix must lie in one
    call, and a row of which more prefix is to come gives NaN."""

    name: ClassVar[str] = "attend"

    def across(self, b: Any, axis: str, shards: int, ins: Sequence[Value]) -> tuple[Value, ...]:
        way = zigzag if zigzag.pays(self, shards, *(b.number(v.type) for v in ins[:3])) else ring
        return way.attend(b, self, ins, shards)

    def exchanged(self, shards: int, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Size:
        return ring.sent(self, shards, ins[1:3]) + self._shared_out(shards, ins, [*ins[:3], *outs])

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        out = self._check(ins, ins[3:])
        return out, ins[0].drop(self.dim).with_dtype("float32")

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        q, k, v = ins[:3]
        nq, nk = q.size(self.queries), k.size(self.keys)
        if self.implementation != "blocked":
            return moved(ins, outs) + self._scores(q, k, v, nk) + self._biased(q, nk)
        tile, pairs = q.resize(self.queries, ONE), self._pairs(nq, nk, self.chunk)
        return moved(ins, outs) + self._scores(tile, k, v, pairs) + self._biased(tile, pairs, BLOCK)

    def gradient(
        self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]
    ) -> tuple[Value | None, ...]:
        g, of_sums = grads
        if g is None and of_sums is None:
            return tuple(None for _ in ins)
        if g is None:
            g = zeros(b, outs[0].type)
        # of a row: what its weights have in common in the softmax's derivative; the log-sum's own is a weight each
        delta = b.reduce(b.mul(b.cast(g, "float32"), b.cast(outs[0], "float32")), "sum", (outs[0].axes[-1],))
        delta = b.arrange(delta if of_sums is None else b.sub(delta, of_sums), outs[1].axes)
        back = b.apply(AttendGradient(**self.attributes()), *ins[:3], delta, outs[1], g, *ins[3:])
        learned = dict(zip(self.bias.learned if self.bias else (), back[3:], strict=True))
        return (*back[:3], *(learned.get(name) for name in self.given(ins[3:])))

    def along(self, axis: str, ins: Sequence[TensorType]) -> Along:
        if axis == self.keys:
            known = not isinstance(self.bias, Dense) and not self.segments  # of what lies in a cache
            streams = self.causal and known
            return Along.STATEFUL if streams else Along.LOOKAHEAD
        if axis == self.queries:  # counted from the first query of a call, which is not where the sequence begins
            fixed = not self.causal and self.window is None and (not self.by_position or isinstance(self.bias, Dense))
            return Along.POINTWISE if fixed else Along.LOOKAHEAD
        return Along.POINTWISE

    def stream(self, s: Streaming, ins: Sequence[Value]) -> tuple[Value, ...]:
        q, k, v = ins[:3]
        reach = min((n for n in (self.window, self.chunk) if n is not None), default=None)
        slots = s.capacity if reach is None else smaller(reach, s.capacity)
        kind = "cache" if reach is None else "ring"
        types = s.caches.types([k.type, v.type], self.keys, self.kv_heads, slots)  # as the target wants them
        old_k, old_v = (s.state(name, kind, t) for name, t in zip(("key", "value"), types, strict=True))
        first = s.first(self.queries) if self.queries != self.keys else None
        op, rest = dataclasses.replace(self, offset=0, placed=first is not None), [*ins[3:]]
        rest += [] if first is None else [first]
        if s.fresh:  # the cache is empty: it is only written
            out = s.b.apply(op, q, k, v, *rest)
        else:
            out = s.b.apply(AttendCached(**op.attributes()), q, k, v, old_k, old_v, s.start, *rest)
        s.write("key", old_k, k, "append", out[0])
        s.write("value", old_v, v, "append", out[0])
        return out


@op
@dataclass(frozen=True)
class AttendCached(_Attention):
    """Attention of this call's queries over a cache (as any CacheLayout has it) and this call's own keys. Slot i holds
    the last position p < start with p % slots == i: a ring needs no stored positions. "diagonal": over a packed
    cache, as it lies."""

    name: ClassVar[str] = "attend_cached"
    differentiable: ClassVar[bool] = False
    slot_axes: tuple[str, ...] = ()  # mesh axes that split the slots: then of the cache only, a result for each part
    parts: int = 1

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        side_by_side = "lanes" in ins[3].axes and self.kv_heads not in ins[3].axes
        if axis in (self.heads, self.kv_heads) and side_by_side and ins[1].size(self.kv_heads) != 1:
            return Role.WHOLE  # such heads are not an axis of the cache
        if axis == "slots":
            own = self.chunk is not None or self.prefix  # of this call's keys, for which ``across`` has no start
            return Role.PARALLEL if self.slot_axes else Role.WHOLE if own else Role.ACROSS
        if axis == self.queries:
            return Role.WHOLE
        return super().role(axis, ins, outs)

    def follows(self) -> Mapping[str, str]:
        return {"slots": SHARDS} if self.slot_axes else {}

    def across(self, b: Any, axis: str, shards: int, ins: Sequence[Value]) -> tuple[Value, ...]:
        return ring.over_slots(b, self, ins, shards)

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        out = self._check(ins, ins[6:])
        found = out, ins[0].drop(self.dim).with_dtype("float32")
        if not self.slot_axes:
            return found
        return tuple(TensorType.make([(SHARDS, self.parts), *t.pairs], t.dtype) for t in found)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        q, k, v, old_k = ins[:4]
        own, slots = k.size(self.keys), slots_of(old_k, k, self.keys)
        if self.implementation == "diagonal":  # a query meets the lanes of all heads, and of all slots of a row
            lanes = old_k.size("lanes") + ins[4].size("lanes")
            scores = self._scores(q, k, v, own + slots)
            matrix = self._scores(q, k, v, own).matrix + q.drop(self.dim).elements * slots * lanes * 2
            return moved(ins, outs) + dataclasses.replace(scores, matrix=matrix) + self._biased(q, own + slots)
        if self.implementation != "blocked":
            rows = 2 if self.implementation == "doubled" else 1
            return moved(ins, outs) + self._scores(q, k, v, own + slots).times(rows) + self._biased(q, own + slots)
        tile = q.resize(self.queries, ONE)
        cached = Size.opaque("block_pairs", q.size(self.queries), slots, BLOCK, BLOCK, 0, 0) * (BLOCK * BLOCK)
        pairs = self._pairs(q.size(self.queries), own) + cached
        return moved(ins, outs) + self._scores(tile, k, v, pairs) + self._biased(tile, pairs, BLOCK)

    def gradient(
        self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]
    ) -> tuple[Value | None, ...]:
        return tuple(None for _ in ins)


@op
@dataclass(frozen=True)
class AttendGradient(_Attention):
    """dq, dk, dv and the cotangents of what a bias learns, from q, k, v, ``delta`` [batch, queries, heads] (the sum of
    the output times its cotangent, less the cotangent of the log-sums), the log-sums and the output's cotangent;
    scores are recomputed, unless they are ``shared`` with the forward op of the same body
    (compiler/passes/merge.py)."""

    name: ClassVar[str] = "attend_gradient"
    differentiable: ClassVar[bool] = False
    shared: bool = False

    def across(self, b: Any, axis: str, shards: int, ins: Sequence[Value]) -> tuple[Value, ...]:
        way = zigzag if zigzag.pays(self, shards, *(b.number(v.type) for v in ins[:3])) else ring
        return way.attend_gradient(b, self, ins, shards)

    def exchanged(self, shards: int, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Size:
        travelling = [*ins[1:3], *(t.with_dtype("float32") for t in outs[1:])]
        return ring.sent(self, shards, travelling) + self._shared_out(shards, ins, [*ins[:6], *outs])

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        self._check(ins, ins[6:])
        given = self.given(ins[6:])
        return (*ins[:3], *(given[name] for name in (self.bias.learned if self.bias else ())))

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        if axis == self.heads and ins[1].size(self.kv_heads) == 1:
            return Role.SUM  # every head adds to the one key and value head's cotangents
        if axis == self.queries != self.keys and not self.causal:
            return Role.SUM  # every query adds to the cotangents of keys that are not its own sequence's
        if axis in ins[0].axes and any(axis not in t.axes for t in outs[3:]):
            return Role.SUM if super().role(axis, ins, outs) is Role.PARALLEL else Role.WHOLE  # rows share a bias
        return super().role(axis, ins, outs)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        q, k, v = ins[:3]
        # against the forward's two products: scores again (if not shared), dv, dp, dq, dk
        nq, nk = q.size(self.queries), k.size(self.keys)
        if self.implementation != "blocked":
            forward, bias = self._scores(q, k, v, nk), self._biased(q, nk, back=True)
        else:
            tile, pairs = q.resize(self.queries, ONE), self._pairs(nq, nk, self.chunk)
            forward, bias = self._scores(tile, k, v, pairs), self._biased(tile, pairs, BLOCK, back=True)
        scores = Size.of(1) * forward.vector
        per_score = (q.size(self.dim) * (2 if self.shared else 3) + v.sizes[-1] * 2) * 2
        products = (scores // (SCORE_FLOPS + self.segments)) * per_score
        return moved(ins, outs) + bias + Cost(products, scores * 2, forward.transcendental)

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
    chunk: int | None = None,
    bias: Bias | None = None,
    given: Mapping[str, Value] | None = None,
    added: Value | None = None,
    prefix: Value | None = None,
    query_segments: Value | None = None,
    key_segments: Value | None = None,
    lengths: Value | None = None,
    sinks: Value | None = None,
) -> Value:
    """Scaled dot-product attention; scale defaults to head_dim ** -0.5. Grouped and multi-query by sizes. ``chunk``: a
    query sees its own chunk of so many positions. ``bias``: what positions add to the scores, from the operands
    ``given`` by name; ``added``: any numbers, [heads queries keys] or fewer of these axes (and batch), where the keys'
    axis has another name than the queries'. ``prefix`` [batch]: keys before it are seen by all queries.
    ``query_segments`` and ``key_segments``: whole numbers [batch queries] and [batch keys] or [keys]; a query sees keys
    of its own number (packed sequences; the images of a text), and gives 0 where there are none. ``lengths`` [batch]:
    keys from there on are not seen. ``sinks`` [heads]: logits of one key more, whose value is 0 (arXiv:2309.17453;
    gpt-oss)."""
    dim = q.axes[-1]
    if added is not None:
        others = [a for a in added.axes if a not in ("batch", "heads", queries)]
        if len(others) > 1:
            wanted = f"axes heads, {queries} and one for the keys"
            raise TypeProblem("axis-mismatch", f"what is added to scores has {wanted}, found [{' '.join(added.axes)}]")
        bias, given = Dense(*others), {"added": added}
    if scale is None:
        scale = float(q.type.size(dim).constant) ** -0.5
    if (query_segments is None) != (key_segments is None):
        raise TypeProblem("axis-mismatch", "segments are numbers of queries and of keys, found one of them")
    segments = [b.cast(v, "int32") for v in (query_segments, key_segments) if v is not None]
    offset = first_of(queries, q.type.size(queries)) if queries == RECENT != keys else 0
    op = Attend(queries, keys, bool(causal), window, offset, scale=float(scale), softcap=softcap, dim=dim, chunk=chunk,
                prefix=prefix is not None, segments=bool(segments), bias=bias)  # fmt: skip
    lengths = None if lengths is None else b.cast(lengths, "int32")
    rest = [*((given or {})[n] for n in (bias.operands if bias else ())), prefix, *segments, lengths]
    out, sums = b.apply(op, q, k, v, *(v for v in rest if v is not None))
    if sinks is None:
        return out
    share = b.sigmoid(b.sub(sums, b.cast(sinks, "float32")))  # of the weights that the keys have
    return b.arrange(b.cast(b.mul(b.cast(out, "float32"), share), out.type.dtype), out.axes)
