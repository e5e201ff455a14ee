"""Recurrences along the sequence: a gated linear recurrence and a short causal convolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from compiler.graph.ir import Value
from compiler.graph.types import TensorType, TypeProblem, broadcast
from compiler.ops import shards as across
from compiler.ops.contract import Along, Cost, Op, Role, function, moved, op
from compiler.ops.linear_attend import LinearAttend
from compiler.ops.shape import zeros

if TYPE_CHECKING:
    from compiler.graph.builder import Builder
    from compiler.passes.phase import Streaming

Grads = tuple[Value | None, ...]


@op
@dataclass(frozen=True)
class Recur(Op):
    """h_t = exp(log_decay_t) * h_(t-1) + value_t, channel by channel, in float32. Operands: value, log_decay,
    and the state before the first position where there is one."""

    name: ClassVar[str] = "recur"
    axis: str = "seq"
    reverse: bool = False
    implementation: str = "associative"  # "step" | "associative" | "blocked": chosen by the select pass

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        value, decay = ins[:2]
        if value.pairs != decay.pairs:
            raise TypeProblem("axis-mismatch", f"value {value} and log_decay {decay} differ")
        if len(ins) > 2 and ins[2].pairs != value.drop(self.axis).pairs:
            raise TypeProblem("axis-mismatch", f"value {value} and state {ins[2]} differ")
        return (value.with_dtype("float32"),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        n = outs[0].elements
        # an associative scan does about twice the work of a step-by-step one
        return moved(ins, outs, vector=n * (2 if self.implementation == "step" else 5), transcendental=n)

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        (h,), (g,) = outs, grads
        if g is None:
            return tuple(None for _ in ins)
        before = -1 if self.reverse else 1  # h_(t-1) in the direction of time
        decay = b.cast(ins[1], "float32")
        back = b.one(Recur(self.axis, not self.reverse, self.implementation), g, b.shift(decay, self.axis, -before))
        earlier = b.shift(h, self.axis, before)
        if len(ins) > 2:
            earlier = b.first(earlier, ins[2], self.axis, self.reverse)
        weighted = b.mul(b.mul(back, b.exp(decay)), earlier)
        grads_in: list[Value | None] = [b.cast(back, ins[0].type.dtype), b.cast(weighted, ins[1].type.dtype)]
        if len(ins) > 2:
            edge = b.mul(back, b.exp(decay))
            size = edge.type.size(self.axis)
            edge = b.slice(edge, self.axis, size - 1 if self.reverse else 0, 1)
            grads_in.append(b.cast(b.reduce(edge, "sum", (self.axis,)), ins[2].type.dtype))
        return tuple(grads_in)

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.ACROSS if axis == self.axis else Role.PARALLEL

    def across(self, b: Any, axis: str, shards: int, ins: Sequence[Value]) -> tuple[Value, ...]:
        return (across.recur(b, self, ins, shards),)

    def along(self, axis: str, ins: Sequence[TensorType]) -> Along:
        if axis != self.axis:
            return Along.POINTWISE
        return Along.LOOKAHEAD if self.reverse else Along.STATEFUL

    def stream(self, s: Streaming, ins: Sequence[Value]) -> tuple[Value, ...]:
        value, decay = ins
        state = s.state("recurrent", "recurrent", value.type.drop(self.axis).with_dtype("float32"))
        h = s.b.one(self, value, decay, state)
        s.write("recurrent", state, h, "keep_last")
        return (h,)


@op
@dataclass(frozen=True)
class ShortConv(Op):
    """Depthwise causal convolution: y_t = sum over taps k of kernel_k * x_(t - taps + 1 + k). Operands: x,
    kernel [channels, window], and the inputs before the first position [batch, taps, channels] if any (after the
    last one when ``reverse``: the same from the end)."""

    name: ClassVar[str] = "short_conv"
    axis: str = "seq"
    taps: str = "window"
    reverse: bool = False

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        x, kernel = ins[:2]
        kernel.size(self.taps)
        for axis, size in kernel.drop(self.taps).pairs:
            if x.size(axis) != size:
                raise TypeProblem("axis-mismatch", f"{axis} is {x.size(axis)} in the input, {size} in the kernel")
        return (x,)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return moved(ins, outs, vector=outs[0].elements * ins[1].size(self.taps) * 2)

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        if grads[0] is None:
            return tuple(None for _ in ins)
        if len(ins) > 2:
            return self._gradient_with_tail(b, ins, grads[0])
        x, kernel = ins
        g = grads[0]
        dx = b.one(ShortConv(self.axis, self.taps, not self.reverse), g, kernel)
        taps = int(kernel.type.size(self.taps).constant)
        over = tuple(a for a in x.axes if a not in kernel.axes)
        rows = []
        for k in range(taps):
            by = taps - 1 - k
            moved_x = b.shift(x, self.axis, -by if self.reverse else by)
            row = b.reduce(b.mul(b.cast(g, "float32"), b.cast(moved_x, "float32")), "sum", over)
            rows.append(b.expand(row, [(self.taps, 1)]))
        dk = b.arrange(b.concat(*rows, axis=self.taps) if taps > 1 else rows[0], kernel.axes)
        return dx, b.cast(dk, kernel.type.dtype)

    def _gradient_with_tail(self, b: Builder, ins: Sequence[Value], g: Value) -> Grads:
        """As if the tail stood before x; its own outputs are not used."""
        x, kernel, tail = ins
        before = b.arrange(b.rename(b.cast(tail, x.type.dtype), taps=self.axis), x.axes)
        taps, length = tail.type.size("taps"), x.type.size(self.axis)
        joined = b.concat(*((x, before) if self.reverse else (before, x)), axis=self.axis)
        none = zeros(b, before.type)
        wide = b.concat(*((g, none) if self.reverse else (none, g)), axis=self.axis)
        dx, dk = ShortConv(self.axis, self.taps, self.reverse).gradient(b, (joined, kernel), (joined,), (wide,))
        at = (length, 0) if self.reverse else (0, taps)
        dt = b.rename(b.slice(dx, self.axis, at[0], taps), **{self.axis: "taps"})
        dt = b.cast(b.arrange(dt, tail.axes), tail.type.dtype)
        return b.slice(dx, self.axis, at[1], length), dk, dt

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        if axis == self.taps or (axis == self.axis and len(ins) > 2):
            return Role.WHOLE
        return Role.ACROSS if axis == self.axis else Role.PARALLEL

    def across(self, b: Any, axis: str, shards: int, ins: Sequence[Value]) -> tuple[Value, ...]:
        return (across.short_conv(b, self, ins, shards),)

    def along(self, axis: str, ins: Sequence[TensorType]) -> Along:
        if axis != self.axis:
            return Along.POINTWISE
        return Along.LOOKAHEAD if self.reverse else Along.STATEFUL

    def stream(self, s: Streaming, ins: Sequence[Value]) -> tuple[Value, ...]:
        x, kernel = ins
        taps = kernel.type.size(self.taps)
        tail_type = x.type.resize(self.axis, taps - 1).rename({self.axis: "taps"})
        tail = s.state("tail", "tail", tail_type)
        y = s.b.one(self, x, kernel, tail)
        s.write("tail", tail, x, "keep_tail")
        return (y,)


@op
@dataclass(frozen=True)
class Shift(Op):
    """Entries move by ``by`` along an axis (later for positive), zeros come in; or, where ``wrap``, what falls off
    one end."""

    name: ClassVar[str] = "shift"
    axis: str = "seq"
    by: int = 1
    wrap: bool = False

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        ins[0].size(self.axis)
        return ins

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return True

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        return (None if grads[0] is None else b.one(Shift(self.axis, -self.by, self.wrap), grads[0]),)

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.ACROSS if axis == self.axis and self.by else Role.PARALLEL

    def across(self, b: Any, axis: str, shards: int, ins: Sequence[Value]) -> tuple[Value, ...]:
        return (across.shift(b, ins[0], axis, self.by, shards, self.wrap),)

    def along(self, axis: str, ins: Sequence[TensorType]) -> Along:
        if axis != self.axis or self.by == 0:
            return Along.POINTWISE
        if self.wrap:
            return Along.LOOKAHEAD
        return Along.STATEFUL if self.by > 0 else Along.LOOKAHEAD

    def stream(self, s: Streaming, ins: Sequence[Value]) -> tuple[Value, ...]:
        (x,) = ins
        b, size = s.b, x.type.size(self.axis)
        tail = s.state("tail", "tail", x.type.resize(self.axis, self.by).rename({self.axis: "taps"}))
        joined = b.concat(b.arrange(b.rename(tail, taps=self.axis), x.axes), x, axis=self.axis)
        s.write("tail", tail, x, "keep_tail")
        return (b.slice(joined, self.axis, 0, size),)


@function
def recur(
    b: Builder,
    value: Value,
    log_decay: Value | float | None = None,
    axis: str = "seq",
    *,
    key: Value | None = None,
    query: Value | None = None,
    delta: Value | None = None,
    erase: Value | None = None,
    remove: Value | None = None,
    bonus: Value | None = None,
    over: str | None = None,
) -> Value:
    """h_t = exp(log_decay_t) * h_(t-1) + value_t; float32; with log_decay 0 a running sum. With a key and a query the
    state is a matrix: linear attention, S_t = exp(log_decay_t) S_(t-1) + key_t value_t, read as query_t S_t along the
    query's last axis (``over``), in the value's dtype. ``delta``: the delta rule of that strength, erase = key and
    key = delta * key. ``erase``, ``remove``, ``bonus``: see the op linear_attend."""
    if isinstance(log_decay, (int, float)):
        log_decay = b.constant(float(log_decay), "float32") if log_decay or key is None else None
    more = {"erase": erase, "remove": remove, "bonus": bonus}
    if key is None or query is None:
        all_of = {"key": key, "query": query, "delta": delta, **more}
        there = [n for n, v in all_of.items() if v is not None]
        if there or log_decay is None:
            lacking = " and ".join(n for n in ("key", "query") if all_of[n] is None)
            with_what = f" with {' and '.join(there)}" if there else ""
            text = f"recur{with_what} needs {lacking if there else 'log_decay, or key and query'}"
            raise TypeProblem("operand-count", text)
        return b.one(Recur(axis), *_alike(b, value, log_decay))
    if delta is not None:
        if erase is not None:
            raise TypeProblem("operand-count", "recur: delta says what is erased; give one of delta and erase")
        more["erase"] = key
        key = b.cast(b.mul(b.cast(key, "float32"), b.cast(delta, "float32")), key.type.dtype)
    given = {"value": value, "key": key, "query": query, "log_decay": log_decay, **more}
    for name in ("key", "query", "log_decay", "erase", "remove"):
        x = given[name]
        if x is not None and axis not in x.axes:
            given[name] = b.expand(x, [(axis, value.type.size(axis))])
    operands = {n: v for n, v in given.items() if v is not None}
    return b.one(LinearAttend(tuple(operands), over or query.axes[-1], axis), *operands.values())


def _alike(b: Builder, *values: Value) -> list[Value]:
    """Values with the axes of all of them."""
    pairs = broadcast(v.type for v in values)
    wide = [b.expand(v, [p for p in pairs if p[0] not in v.axes]) for v in values]
    return [b.arrange(v, [a for a, _ in pairs]) for v in wide]


@function
def short_conv(b: Builder, x: Value, kernel: Value, axis: str = "seq") -> Value:
    """Depthwise causal convolution with kernel [channels, window]."""
    return b.one(ShortConv(axis), x, kernel)


@function
def shift(b: Builder, x: Value, axis: str = "seq", by: int = 1) -> Value:
    """Moves entries along an axis; zeros come in."""
    return b.one(Shift(axis, int(by)), x)


@function
def first(b: Builder, x: Value, edge: Value, axis: str, at_end: bool) -> Value:
    """x with its first (or last) entry along ``axis`` replaced by ``edge``."""
    size = x.type.size(axis)
    edge = b.arrange(b.expand(b.cast(edge, x.type.dtype), [(axis, 1)]), x.axes)
    rest = b.slice(x, axis, 0 if at_end else 1, size - 1)
    return b.concat(*((rest, edge) if at_end else (edge, rest)), axis=axis)
