"""Attention: multi-head, grouped and multi-query; causal, windowed, bidirectional, cross to a named context."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import model_validator

from compiler.blocks.position import Place, Position, Way
from compiler.errors import nearest
from compiler.graph.ir import Value
from compiler.graph.sizes import Size
from compiler.language.block import Block, block
from compiler.language.env import Env
from compiler.language.fields import (
    Args,
    Count,
    Dim,
    Epsilon,
    Flag,
    Number,
    OptionalCount,
    OptionalNumber,
    OptionalPositive,
    Word,
)
from compiler.language.scope import Fault, divisors


class Biases(Args):
    """Which projections have biases."""

    query: Flag = False
    key: Flag = False
    value: Flag = False
    out: Flag = False

    @model_validator(mode="before")
    @classmethod
    def _all(cls, raw: Any) -> Any:
        return dict.fromkeys(("query", "key", "value", "out"), raw) if isinstance(raw, (bool, str)) else raw


class QKNorm(Args):
    """RMS norm of queries and keys along head_dim before positions (arXiv:2302.05442)."""

    eps: Epsilon = 1e-6
    offset: Number = 0.0
    scale: Flag = True


@block
class Attention(Block):
    """softmax(mask(scale * q k)) v. ``window``: only keys nearer than this, the query's own among them (with
    ``causal: false`` on both sides); ``softcap`` on the scores;
    `from: {context: name}` takes keys and values from another value (cross-attention, not causal)."""

    kind: ClassVar[str] = "attention"
    ports: ClassVar[tuple[str, ...]] = ("context",)
    heads: Annotated[Count, Dim("heads")]
    kv_heads: Annotated[Count, Dim("kv_heads")]
    head_dim: Annotated[Count, Dim("head_dim")]
    causal: Flag = True
    window: OptionalCount = None
    position: Annotated[Position | None, Word] = None
    scale: OptionalNumber = None  # default: head_dim ** -0.5
    softcap: OptionalPositive = None
    bias: Biases = Biases()
    qk_norm: QKNorm | None = None
    over: Annotated[str, Word] = "seq"  # the axis attended along

    def build(self, env: Env, x: Value, **ports: Value) -> Value:
        b, context = env.b, ports.get("context")
        if self.heads % self.kv_heads:
            text = f"attention: {self.heads} heads do not divide into {self.kv_heads} kv_heads"
            allowed = (f"kv_heads: {k}" for k in divisors(self.heads))
            raise Fault("indivisible", text, allowed, key="kv_heads")
        if not {"batch", self.over} <= set(x.axes[:-1]):
            text = f"attention runs along {self.over} of [batch {self.over} width], found [{' '.join(x.axes)}]"
            hint = None if self.over in x.axes else nearest(self.over, x.axes)
            raise Fault("missing-axis", text, x.axes, hint, key="over")
        source = x if context is None else context
        keys = self.over if context is None else _key_axis(source)
        q = env.linear(x, "query", [("heads", self.heads), ("head_dim", self.head_dim)], bias=self.bias.query)
        kv = [("kv_heads", self.kv_heads), ("head_dim", self.head_dim)]
        k = env.linear(source, "key", kv, bias=self.bias.key)
        v = env.linear(source, "value", kv, bias=self.bias.value)
        if self.qk_norm is not None:
            q, k = _qk_norm(env, q, "query_norm", self.qk_norm), _qk_norm(env, k, "key_norm", self.qk_norm)
        way = self.position.way if self.position else Way()
        q, k = way.located(Place(env, x, source, self.over, keys), q, k)
        causal = self.causal and context is None
        lengths = None if causal else env.lengths(keys)
        if lengths is not None and source.type.size(keys) != Size.symbol(keys):
            size = source.type.size(keys)
            text = f"attention along {keys} = {size}: the entries of a row are no longer those of the input"
            raise Fault("varying-size", text, (), f"a fixed size: {keys} as a dim")
        h = b.attend(
            q, k, v, causal=causal, window=self.window, scale=self.scale, softcap=self.softcap,
            queries=self.over, keys=keys, lengths=lengths,
        )  # fmt: skip
        return env.linear(h, "out", [(x.axes[-1], x.type.sizes[-1])], over=("heads", "head_dim"), bias=self.bias.out)


def _key_axis(context: Value) -> str:
    axes = [a for a in context.axes[:-1] if a != "batch"]
    if len(axes) != 1:
        text = f"a context is [batch, one axis, width], found [{' '.join(context.axes)}]"
        raise Fault("axis-mismatch", text, key="from")
    return axes[0]


def _qk_norm(env: Env, x: Value, name: str, options: QKNorm) -> Value:
    b = env.b
    y = b.norm(x, "rms", "head_dim", options.eps)
    if options.scale:
        weight = b.cast(env.weight(name, [("head_dim", x.type.size("head_dim"))], init="ones"), "float32")
        y = b.mul(y, b.add(weight, options.offset) if options.offset else weight)
    return env.compute(y)
