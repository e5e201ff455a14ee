"""Attention: multi-head, grouped and multi-query; causal, windowed, bidirectional, cross to a named context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import model_validator

from compiler.blocks.position import Buckets, Located, Place, Position, TransformerXL, Way
from compiler.errors import nearest
from compiler.graph.axes import RECENT, STREAM
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
    Share,
    Word,
)
from compiler.language.scope import Fault, divisors


class Biases(Args):
    """Which projections have biases."""

    bare: ClassVar[tuple[str, ...]] = ("boolean", "string")
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


class OutGate(Args):
    """What heads give times ``act`` of a linear map of the input, by channel or by head (arXiv:2505.06708)."""

    act: Annotated[Literal["sigmoid", "silu", "tanh"], Word] = "sigmoid"
    by: Annotated[Literal["channel", "head"], Word] = "channel"


@block
class Attention(Block):
    """softmax(mask(scale * q k)) v. ``window``: only keys nearer than this, the query's own among them (with
    ``causal: false`` on both sides); ``softcap`` on the scores;
    `from: {context: name}` takes keys and values from another value (cross-attention, not causal, save with
    `over: recent` to the sequence of which those are the last positions). Further ports:
    ``table`` of `position: buckets`; ``added``, numbers [heads queries keys] or fewer of these axes that are added to
    the scores; ``prefix``, an input of kind count: so many first positions are seen by all (prefix LM). Of a context:
    ``entry``, a number for each query [batch seq]: it sees that entry of the context's first axis, counted from 1, and
    0 is none; ``lengths`` [batch]: how many of its keys count."""

    kind: ClassVar[str] = "attention"
    ports: ClassVar[tuple[str, ...]] = ("context", "table", "added", "prefix", "entry", "lengths")
    heads: Annotated[Count, Dim("heads")]
    kv_heads: Annotated[Count, Dim("kv_heads")]
    head_dim: Annotated[Count, Dim("head_dim")]
    causal: Flag = True
    window: OptionalCount = None
    chunk: OptionalCount = None  # keys of the query's own chunk of so many positions only (Llama 4)
    position: Annotated[Position | None, Word] = None
    scale: OptionalNumber = None  # default: head_dim ** -0.5
    softcap: OptionalPositive = None
    bias: Biases = Biases()
    qk_norm: QKNorm | None = None
    sinks: Flag = False  # a learned logit a head, of a key more whose value is 0 (gpt-oss, arXiv:2508.10925)
    out_gate: OutGate | None = None
    over: Annotated[str, Word] = "seq"  # the axis attended along
    drop: Share = 0.0  # share of a context's positions that a training step leaves out, for all heads and queries

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
        source, keys = x, self.over
        segments: dict[str, Value] = {}
        if context is not None:
            source, keys, segments = self._read(env, x, context, ports.get("entry"))
        if self.drop:
            segments = self._dropped(env, x, context, keys, segments)
        q = env.linear(x, "query", [("heads", self.heads), ("head_dim", self.head_dim)], bias=self.bias.query)
        kv = [("kv_heads", self.kv_heads), ("head_dim", self.head_dim)]
        k = env.linear(source, "key", kv, bias=self.bias.key)
        v = env.linear(source, "value", kv, bias=self.bias.value)
        if self.qk_norm is not None:
            q, k = _qk_norm(env, q, "query_norm", self.qk_norm), _qk_norm(env, k, "key_norm", self.qk_norm)
        causal = self.causal and (context is None or (self.over, keys) == (RECENT, STREAM))
        way = self.position.way if self.position else Way()
        reach = min((n for n in (self.window, self.chunk) if n is not None), default=None)
        at = way.located(Place(env, x, source, self.over, keys, causal, ports.get("table"), reach), q, k)
        self._one_meaning(at, way, ports, causal)
        lengths = None if causal or "lengths" in ports else env.lengths(keys)
        if lengths is not None and source.type.size(keys) != Size.symbol(keys):
            size = source.type.size(keys)
            text = f"attention along {keys} = {size}: the entries of a row are no longer those of the input"
            raise Fault("varying-size", text, (), f"a fixed size: {keys} as a dim")
        h = b.attend(
            at.q, at.k, v, causal=causal, window=self.window, scale=self.scale, softcap=self.softcap, chunk=self.chunk,
            queries=self.over, keys=keys, bias=at.bias, given=at.given, added=ports.get("added"),
            prefix=ports.get("prefix"),
            lengths=ports.get("lengths", lengths), **segments,
            sinks=env.weight("sinks", [("heads", self.heads)], init="zeros") if self.sinks else None,
        )  # fmt: skip
        if self.out_gate is not None:
            pairs = [("heads", self.heads), ("head_dim", self.head_dim)][: 2 if self.out_gate.by == "channel" else 1]
            gate = getattr(b, self.out_gate.act)(env.linear(x, "gate", pairs))
            h = b.arrange(b.mul(h, gate), h.axes)
        return env.linear(h, "out", [(x.axes[-1], x.type.sizes[-1])], over=("heads", "head_dim"), bias=self.bias.out)

    def _read(self, env: Env, x: Value, context: Value, entry: Value | None) -> tuple[Value, str, dict[str, Value]]:
        """What keys are made of, their axis, and which of them a query sees. Keys lie along the context's axes that
        are not also rows of x."""
        b, own = env.b, {a for a in x.axes if a not in (self.over, x.axes[-1])}
        if entry is None:
            return context, _key_axis(context, own)[0], {}
        if not set(entry.axes) <= {*own, self.over} or self.over not in entry.axes:
            text = f"the port entry is a number for each query [batch {self.over}], found [{' '.join(entry.axes)}]"
            raise Fault("axis-mismatch", text, key="from")
        outer, inner = _key_axis(context, own, more=1)
        number = b.add(b.positions(context, outer), b.constant(1, "int32"))
        number = b.expand(number, [(inner, context.type.size(inner))])
        source, numbers = (b.merge(v, [outer, inner], inner) for v in (context, number))
        return source, inner, {"query_segments": entry, "key_segments": numbers}

    def _dropped(
        self, env: Env, x: Value, context: Value | None, keys: str, segments: dict[str, Value]
    ) -> dict[str, Value]:
        """A random share of the keys has a number that no query has (cross-attend dropout of Perceiver AR)."""
        if context is None or segments or "batch" not in context.axes:
            text = "drop leaves out positions of a context [batch, one axis, width]"
            raise Fault("conflicting-keys", text, ("from: {context: name}",), key="drop")
        if self.drop == 1:
            raise Fault("out-of-range", "drop = 1 would leave nothing", ("below 1",), key="drop")
        return {"query_segments": env.b.kept(x, self.over), "key_segments": env.b.kept(context, keys, self.drop)}

    def _one_meaning(self, at: Located, way: Way, ports: Mapping[str, Value], causal: bool) -> None:
        """Raises Fault for ports and options that say nothing together."""
        if "table" in ports and not isinstance(way, Buckets):
            allowed = ("position: buckets",)
            raise Fault("unknown-port", "the port table is for attention with position: buckets", allowed, key="from")
        for port in ("entry", "lengths"):
            if port in ports and "context" not in ports:
                raise Fault(
                    "unknown-port", f"the port {port} is of a context, and there is none", ("context",), key="from"
                )
        if self.softcap and isinstance(way, TransformerXL):
            raise Fault("conflicting-keys", "transformer_xl has no soft cap on its scores", key="softcap")
        if "added" in ports and at.bias is not None:
            raise Fault(
                "conflicting-keys", "added is for attention whose positions add nothing to scores", key="position"
            )
        if self.over == RECENT:
            self._of_the_last("context" in ports and causal, ports)
        if "prefix" in ports and (not causal or self.window or self.chunk):
            text = "a prefix is for causal attention without a window or chunks"
            raise Fault("conflicting-keys", text, key="window" if self.window else "chunk" if self.chunk else "causal")

    def _of_the_last(self, across: bool, ports: Mapping[str, Value]) -> None:
        """Raises Fault for what is not done over the last positions."""
        if self.chunk or "prefix" in ports:
            text = "chunks and prefixes count from the first token, and attention over recent from the last positions"
            raise Fault("conflicting-keys", text, key="chunk" if self.chunk else "from")
        if across and self.window:
            text = "the last positions are made anew from all of the sequence, of which a window would keep too little"
            raise Fault("conflicting-keys", text, key="window")


def _key_axis(context: Value, own: set[str], more: int = 0) -> tuple[str, ...]:
    """The axes of a context along which keys lie: those that are not also the queries' ``own``."""
    axes = [a for a in context.axes[:-1] if a != "batch"]
    axes = axes if len(axes) == 1 + more else [a for a in axes if a not in own]
    if len(axes) != 1 + more or "batch" not in context.axes:
        wanted = "batch, an axis of entries, one of keys, width" if more else "batch, one axis, width"
        raise Fault("axis-mismatch", f"a context is [{wanted}], found [{' '.join(context.axes)}]", key="from")
    return tuple(axes)


def _qk_norm(env: Env, x: Value, name: str, options: QKNorm) -> Value:
    b = env.b
    y = b.norm(x, "rms", "head_dim", options.eps)
    if options.scale:
        weight = b.cast(env.weight(name, [("head_dim", x.type.size("head_dim"))], init="ones"), "float32")
        y = b.mul(y, b.add(weight, options.offset) if options.offset else weight)
    return env.compute(y)
