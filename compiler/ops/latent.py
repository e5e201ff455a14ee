"""Attention whose keys and values are linear maps of one narrow latent a position (multi-head latent attention, MLA,
DeepSeek-V2, arXiv:2405.04434, section 2.1; its positions in a rotary key that all heads share)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from compiler.graph.ir import Value
from compiler.graph.sizes import CAPACITY
from compiler.graph.types import TensorType
from compiler.ops.attention import Attend, AttendCached
from compiler.ops.contract import Along, Role, function, op
from compiler.ops.defined import Defined

if TYPE_CHECKING:
    from compiler.graph.builder import Builder

LATENT, ROTARY = "latent", "rotary_dim"
ONE_HEAD = "latent_heads"  # of the cache: one, whatever the number of heads


@op
@dataclass(frozen=True)
class AttendLatent(Defined):
    """softmax(scale * (q k + q_rotary k_rotary)) v, causal, where k = key(latent) and v = value(latent). Operands: q
    [batch, seq, heads, head_dim], q_rotary [.., heads, rotary_dim], latent [batch, seq, latent], k_rotary [batch, seq,
    rotary_dim], key [latent, heads, head_dim], value [latent, heads, value_dim].

    Where all positions are at hand keys and values are made of the latents. What extends a state keeps latents and
    rotary keys only and is *absorbed*: a query is taken through the map of the keys and meets the latents themselves
    (arXiv:2405.04434, section 2.1.2)."""

    name: ClassVar[str] = "attend_latent"
    scale: float = 1.0

    def program(self, b: Builder, *ins: Value) -> tuple[Value, ...]:
        q, q_rotary, latent, k_rotary, key, value = ins
        dtype = q.type.dtype
        keys = b.dot(latent, key, (LATENT,), dtype)
        shared = b.expand(k_rotary, [("heads", q.type.size("heads"))])
        shared = b.arrange(b.rename(shared, **{ROTARY: "head_dim"}), keys.axes)
        k = b.rename(b.concat(keys, shared, axis="head_dim"), heads="kv_heads")
        v = b.rename(b.dot(latent, value, (LATENT,), dtype), heads="kv_heads")
        return (b.apply(Attend(scale=self.scale), self._query(b, q, q_rotary), k, v)[0],)

    def _query(self, b: Builder, q: Value, q_rotary: Value) -> Value:
        return b.concat(q, b.arrange(b.rename(q_rotary, **{ROTARY: "head_dim"}), q.axes), axis="head_dim")

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.PARALLEL if axis in ("batch", "heads") else Role.WHOLE

    def along(self, axis: str, ins: Sequence[TensorType]) -> Along:
        return Along.STATEFUL if axis == "seq" else Along.POINTWISE

    def stream(self, s: Any, ins: Sequence[Value]) -> tuple[Value, ...]:
        b, (q, q_rotary, latent, k_rotary, key, value) = s.b, ins
        entry = b.concat(latent, b.rename(k_rotary, **{ROTARY: LATENT}), axis=LATENT)
        entry = b.rename(b.expand(entry, [(ONE_HEAD, 1)]), **{LATENT: "head_dim"})
        entry = b.arrange(entry, ("batch", "seq", ONE_HEAD, "head_dim"))
        (kept,) = s.caches.types([entry.type], "seq", ONE_HEAD, CAPACITY)
        old = s.state("latent", "cache", kept)
        out = self.program(b, *ins)[0] if s.fresh else self._absorbed(s, q, q_rotary, entry, old, key, value)
        s.write("latent", old, entry, "append", out)
        return (out,)

    def _absorbed(self, s: Any, q: Value, q_rotary: Value, entry: Value, old: Value, key: Value, value: Value) -> Value:
        """Latents are keys and values at once, of one head. What a query reads of the rotary keys is cut off: cheaper
        than a second cache, or a copy of this one without them."""
        b, width = s.b, key.type.size(LATENT)
        through = b.rename(b.dot(q, key, ("head_dim",), q.type.dtype), **{LATENT: "head_dim"})
        query = self._query(b, b.arrange(through, q.axes), q_rotary)
        cached = AttendCached(scale=self.scale, kv_heads=ONE_HEAD)
        read = b.apply(cached, query, entry, entry, old, old, s.start)[0]
        read = b.rename(b.slice(read, "head_dim", 0, width), head_dim=LATENT)
        return b.dot(read, value, (LATENT,), q.type.dtype)


@function
def attend_latent(
    b: Builder,
    q: Value,
    q_rotary: Value,
    latent: Value,
    k_rotary: Value,
    key: Value,
    value: Value,
    *,
    scale: float | None = None,
) -> Value:
    """Latent attention (arXiv:2405.04434, section 2.1); scale defaults to (head_dim + rotary_dim) ** -0.5."""
    if scale is None:
        width = q.type.size("head_dim") + q_rotary.type.size(ROTARY)
        scale = float(width.constant) ** -0.5
    return b.one(AttendLatent(float(scale)), q, q_rotary, latent, k_rotary, key, value)
