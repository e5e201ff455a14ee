"""Linear attention: a recurrence whose state is a matrix that keys write values into and queries read from.

One op says Mamba's selective scan (arXiv:2312.00752), SSD (Mamba-2, arXiv:2405.21060), retention (arXiv:2307.08621),
gated linear attention (arXiv:2312.06635), RWKV-5 and 6 (arXiv:2404.05892), the delta rule (arXiv:2406.06484), gated
(arXiv:2412.06464) or by channel, and RWKV-7 (arXiv:2503.14456), by which inputs it has and which axes they have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from compiler.errors import nearest
from compiler.graph.ir import Value
from compiler.graph.sizes import ZERO, Size, smaller
from compiler.graph.types import TensorType, TypeProblem
from compiler.ops import shards as across
from compiler.ops.chunks import Tally, count
from compiler.ops.contract import Along, Cost, Op, Role, moved, op
from compiler.ops.shape import zeros

if TYPE_CHECKING:
    from compiler.graph.builder import Builder
    from compiler.passes.phase import Streaming

Grads = tuple[Value | None, ...]

CHUNK = 64  # positions of one chunk, as in flash-linear-attention; a power of two
WRITING = ("value", "key", "log_decay", "erase", "remove")  # what the state depends on
WITHOUT_POSITIONS = ("bonus", "state", "valid")


@dataclass(frozen=True)
class _Linear(Op):
    """What the op and its way back share. ``given`` names the operands, in their order."""

    given: tuple[str, ...] = ("value", "key", "query")
    over: str = "key_dim"  # the axis along which keys write and queries read
    axis: str = "seq"
    ends: bool = False  # the state after the last position is a result too
    implementation: str = "chunked"  # "step" | "scan" | "chunked": chosen by the select pass
    chunk: int = CHUNK  # positions of one chunk, chosen with it; 1 for "step"

    def has(self, name: str) -> bool:
        return name in self.given

    def only(self, *names: str) -> tuple[str, ...]:
        """Of the operands' names those."""
        return tuple(n for n in self.given if n in names)

    def state(self, x: dict[str, TensorType]) -> TensorType:
        """The type of the state: the axes of what writes it, ``over`` before the last, which is the widest."""
        sizes = {a: s for n in WRITING if n in x for a, s in x[n].pairs if a not in (self.axis, self.over)}
        pairs = list(sizes.items())
        return TensorType.make([*pairs[:-1], (self.over, x["key"].size(self.over)), *pairs[-1:]], "float32")

    def read(self, x: dict[str, TensorType]) -> TensorType:
        """The type of what queries read: the value's axes; further axes of the others stand before its own ones."""
        own, others = x["value"], [t for n, t in x.items() if n not in ("value", "state", "valid")]
        further = {a: s for t in others for a, s in t.pairs if a != self.over and a not in own.axes}
        shared = {a for t in others for a in t.axes}
        if not further:
            return own
        first = [p for p in own.pairs if p[0] in shared]
        return TensorType.make([*first, *further.items(), *(p for p in own.pairs if p[0] not in shared)], own.dtype)

    def check(self, ins: Sequence[TensorType]) -> dict[str, TensorType]:
        """The operands by name. Raises TypeProblem."""
        x = dict(zip(self.given, ins, strict=False))
        if len(ins) != len(self.given) or not {"value", "key"} <= set(x):
            raise TypeProblem("operand-count", f"takes {' '.join(self.given)}, found {len(ins)} values")
        for name, needed in (("remove", "erase"), ("bonus", "query")):
            if name in x and needed not in x:
                raise TypeProblem("operand-count", f"{name} without {needed} has no meaning")
        for name, t in x.items():
            wanted = [] if name in WITHOUT_POSITIONS else [self.axis]
            wanted += [] if name in ("value", "log_decay", "valid") else [self.over]
            for axis in wanted:
                if axis not in t.axes:
                    text = f"the {name} needs an axis {axis}, found [{' '.join(t.axes)}]"
                    raise TypeProblem("missing-axis", text, t.axes, nearest(axis, t.axes))
        if self.over in x["value"].axes:
            raise TypeProblem("axis-mismatch", f"keys write along {self.over}, which the value {x['value']} has too")
        known: dict[str, tuple[str, Size]] = {}
        for name, t in x.items():
            for axis, size in t.pairs:
                where, first = known.setdefault(axis, (name, size))
                if size != first:
                    raise TypeProblem("axis-mismatch", f"{axis} is {first} in {where} and {size} in {name}")
        if "valid" in x and not set(x["valid"].axes) <= set(self.state(x).axes):
            raise TypeProblem("axis-mismatch", f"valid {x['valid']} counts rows that the state {self.state(x)} lacks")
        if "state" in x and dict(x["state"].pairs) != dict(self.state(x).pairs):
            raise TypeProblem("axis-mismatch", f"the state is {x['state']}, what writes it makes {self.state(x)}")
        return x

    def chunks(self, x: dict[str, TensorType]) -> Size:
        return (x["value"].size(self.axis) + (self.chunk - 1)) // self.chunk

    def tally(self, x: dict[str, TensorType], state: bool, ends: bool, without: str = "", fixed: bool = False) -> Tally:
        """What one chunk costs: from a state on or from nothing, with the state after it or without."""
        names = [n for n in self.given if n not in ("state", "valid", *without.split())]
        inputs = {n: {a: s for a, s in x[n].pairs if a != self.axis} for n in names}
        if "valid" in x:  # each row has its own part of what is written
            inputs |= {n: inputs[n] | dict(x["valid"].pairs) for n in names if n in WRITING}
        before = dict(self.state(x).pairs) if state else None
        return count(self.implementation, self.over, inputs, before, ends, self.chunk, fixed)

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        if axis == self.axis:
            return Role.WHOLE
        if axis == self.over:
            return Role.WHOLE if self.has("erase") else Role.SUM
        return Role.PARALLEL if all(axis in t.axes for t in outs) else Role.SUM


def _when(many: Size, so: Size, otherwise: Size) -> Size:
    """``many`` is 1 or 0."""
    return otherwise + (so - otherwise) * many


def _several(n: Size) -> Size:
    """1 where n > 1, 0 where n is 1."""
    return smaller(1, n - 1)


@op
@dataclass(frozen=True)
class LinearAttend(_Linear):
    """S' = exp(log_decay_t) S_(t-1); S_t = S' + key_t value_t - remove_t (erase_t S'), or without ``remove``
    S' + key_t (value_t - erase_t S'); y_t = query_t S_t, or with a ``bonus`` query_t (S_(t-1) + bonus key_t value_t).
    Products along ``over`` are summed; all other axes are matched by name. Operands as in ``given``: those, the
    ``state`` before the first position, and ``valid`` [batch], from which position on a row's state stays as it is.
    Results: y in the value's dtype (if there is a query), and the state after the last position (if ``ends``)."""

    name: ClassVar[str] = "linear_attend"

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        x = self.check(ins)
        if not self.ends and not self.has("query"):
            raise TypeProblem("operand-count", "without a query and without ends there is no result")
        return (*([self.read(x)] if self.has("query") else []), *([self.state(x)] if self.ends else []))

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return _forward(self, tuple(ins), tuple(outs))

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        if all(g is None for g in grads):
            return tuple(None for _ in ins)
        given = [g if g is not None else zeros(b, y.type) for g, y in zip(grads, outs, strict=True)]
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        back = iter(b.apply(LinearAttendGradient(**fields), *ins, *given))
        return tuple(None if n == "valid" else next(back) for n in self.given)

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        if axis == self.axis:
            return Role.WHOLE if self.has("erase") or self.has("valid") else Role.ACROSS
        return super().role(axis, ins, outs)

    def across(self, b: Any, axis: str, shards: int, ins: Sequence[Value]) -> tuple[Value, ...]:
        return across.linear_attend(b, self, ins, shards)

    def along(self, axis: str, ins: Sequence[TensorType]) -> Along:
        return Along.STATEFUL if axis == self.axis else Along.POINTWISE

    def stream(self, s: Streaming, ins: Sequence[Value]) -> tuple[Value, ...]:
        x = dict(zip(self.given, ins, strict=True))
        state = s.state("recurrent", "recurrent", self.state({n: v.type for n, v in x.items()}))
        if s.deferred:  # nothing is written: what would write it is handed out
            y = s.b.one(dataclasses.replace(self, given=(*self.given, "state")), *ins, state)
            writing = self.only(*WRITING)
            later = dataclasses.replace(self, given=(*writing, "state", "valid"), ends=True)
            s.write("recurrent", state, [x[n] for n in writing], later)
            return (y,)
        onward = dataclasses.replace(self, given=(*self.given, "state", "valid"), ends=True)
        y, end = s.b.apply(onward, *ins, state, s.b.use(s.valid))
        s.write("recurrent", state, end, "replace")
        return (y,)


@lru_cache(maxsize=4096)
def _forward(op: LinearAttend, ins: tuple[TensorType, ...], outs: tuple[TensorType, ...]) -> Cost:
    x = dict(zip(op.given, ins, strict=True))
    n = op.chunks(x)
    each, alone = op.tally(x, True, True), op.tally(x, op.has("state"), op.ends)

    def all_of(field: str) -> Size:
        return _when(_several(n), getattr(each, field) * n, getattr(alone, field))

    cost = moved(ins, outs, **{f: all_of(f) for f in ("matrix", "vector", "transcendental")})
    passed = op.state(x).bytes * (n - 1)  # from chunk to chunk
    return cost + Cost(read=passed, written=passed)


@op
@dataclass(frozen=True)
class LinearAttendGradient(_Linear):
    """The cotangents of all operands (but ``valid``) from the operands and the results' cotangents. The states at
    the chunks' beginnings are computed again, then from the last chunk to the first each chunk's own way back."""

    name: ClassVar[str] = "linear_attend_gradient"
    differentiable: ClassVar[bool] = False
    shared: bool = False  # the forward op stands in the same body: what a single chunk has in common is computed once
    fixed: bool = False  # nobody asks for the cotangent of the decays: what it alone needs is left out

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        x = self.check(ins[: len(self.given)])
        return tuple(t for n, t in x.items() if n != "valid")

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return _backward(self, tuple(ins), tuple(outs))

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        return tuple(None for _ in ins)

    def along(self, axis: str, ins: Sequence[TensorType]) -> Along:
        return Along.LOOKAHEAD if axis == self.axis else Along.POINTWISE


@lru_cache(maxsize=4096)
def _backward(op: LinearAttendGradient, ins: tuple[TensorType, ...], outs: tuple[TensorType, ...]) -> Cost:
    x = dict(zip(op.given, ins, strict=False))
    n, has_state = op.chunks(x), op.has("state")
    many, earlier = _several(n), n - 1
    # the states: of all chunks but the last
    each, alone = op.tally(x, True, True, "query bonus"), op.tally(x, has_state, True, "query bonus")
    back, last = op.tally(x, True, True, fixed=op.fixed), op.tally(x, has_state, op.ends, fixed=op.fixed)

    def all_of(field: str) -> Size:
        states = _when(_several(earlier), getattr(each, field) * earlier, getattr(alone, field))
        if field == "matrix":
            again = ZERO if op.shared else last.again
            return _when(many, states + (back.matrix * 2 + back.again) * n, last.matrix * 2 + again)
        return _when(many, states + getattr(back, field) * 3 * n, getattr(last, field) * 3)

    cost = moved(ins, outs, **{f: all_of(f) for f in ("matrix", "vector", "transcendental")})
    passed = op.state(x).bytes * earlier * 2  # forward, kept, and cotangents on the way back
    inputs = sum((t.bytes for name, t in x.items() if name in WRITING), ZERO)
    return cost + Cost(read=passed + _when(many, inputs, ZERO), written=passed)
