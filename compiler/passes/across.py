"""Across: the builder with which an op writes its program over the shards; every node of it is placed at once.

See compiler/ops/shards.py for such programs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from compiler.graph.ir import Value
from compiler.graph.region import Region
from compiler.graph.types import TensorType
from compiler.ops.contract import FUNCTIONS
from compiler.ops.elementwise import Cast
from compiler.ops.leaves import Leaf, Positions
from compiler.ops.shards import SHARDS

if TYPE_CHECKING:
    from compiler.passes.partition import Partition


class Across:
    """Used like a Builder. ``mesh_axis`` holds the shards."""

    def __init__(self, p: Partition, mesh_axis: str) -> None:
        self.p, self.mesh_axis = p, mesh_axis

    def __getattr__(self, name: str) -> Callable[..., Any]:
        try:
            fn = FUNCTIONS[name]
        except KeyError:
            raise AttributeError(name) from None
        return lambda *args, **kwargs: fn(self, *args, **kwargs)

    def apply(self, op: Any, *operands: Value) -> tuple[Value, ...]:
        return tuple(self.p.emit(op, operands))

    def one(self, op: Any, *operands: Value) -> Value:
        return self.apply(op, *operands)[0]

    def append(self, op: Any, ins: Sequence[Value], types: Sequence[TensorType]) -> tuple[Value, ...]:
        assert isinstance(op, Leaf) and not ins
        return (self.p.leaf(op, types[0]),)

    def collective(self, op: Any, x: Value) -> Value:
        """A collective of the group of shards that leaves the placement as it is."""
        x = self.own(x)
        if x.id in self.p.narrow:  # travels before it is widened
            return self.one(Cast(x.type.dtype), self.collective(op, self.p.narrow[x.id]))
        key = (self.p.b, op, x.id)
        if key in self.p.made:
            return self.p.made[key][0]
        (made,) = self.p.b.append(op, (self.p.b.use(x),), (x.type,))
        self.p.made[key] = [made]
        place = self.p.place[x.id]
        self.p.place[made.id] = place
        self.p.score += self.p.trips(self.p.b) * self.p.chooser.sent(op, x.type, place, place)
        return made

    def moved(self, op: Any, ins: Sequence[Value], held: str | None) -> Value:
        """A collective of the group of shards after which a value lies by ``held`` on them (None: the same on each),
        and on other mesh axes as it did."""
        p = self.p
        key = (p.b, op, *(v.id for v in ins))
        if key not in p.made:
            before = p.place[ins[0].id]
            after = {m: a for m, a in before.items() if m != self.mesh_axis}
            after |= {} if held is None else {self.mesh_axis: held}
            made = list(p.b.append(op, tuple(p.b.use(v) for v in ins), op.infer(*(v.type for v in ins))))
            inner = [p.chooser.local(v.type, p.place[v.id]) for v in ins]
            p.score += p.trips(p.b) * float(op.cost(inner, [p.chooser.local(made[0].type, after)]).sent.constant)
            p.place[made[0].id], p.made[key] = after, made
        return p.made[key][0]

    def lies(self, value: Value) -> Any:
        """How a value lies on the shards."""
        return self.p.place[value.id].get(self.mesh_axis)

    def numbered(self, t: TensorType, axis: str) -> Value:
        """The number of each entry along ``axis`` [batch, axis], int32."""
        return self.one(Positions(axis, t.size(axis), t.size("batch")))

    def number(self, t: TensorType) -> TensorType:
        """The type with numbers for its sizes, of the whole."""
        return self.p.chooser.number(t)

    def size(self, t: TensorType, axis: str) -> int:
        """Entries of an axis, of the whole."""
        return self.p.chooser.size(t, axis)

    def own(self, x: Value) -> Value:
        """The value [.., shards, ..] with its own part on each shard."""
        return self.p.bring(x, {**self.p.place[x.id], self.mesh_axis: SHARDS})

    def whole(self, x: Value, axis: str) -> Value:
        """The value with every shard's part of ``axis`` on each."""
        place = self.p.place[x.id]
        return self.p.bring(x, {m: a for m, a in place.items() if m != self.mesh_axis}, f"all of {axis}")

    def loop(self, trips: int, carried: Sequence[Value], body: Callable[..., Sequence[Value]]) -> list[Value]:
        """``trips`` times: carried values become what ``body`` makes of them, placed as they are."""
        p = self.p
        outer, region = p.b, Region(p.b, trips, "steps")
        p.b = region
        arguments = []
        for value in carried:
            argument = region.carry(value)
            p.place[argument.id] = dict(p.place[value.id])
            arguments.append(argument)
        made = [p.bring(v, p.place[a.id]) for v, a in zip(body(*arguments), arguments, strict=True)]
        p.b = outer
        results, _, _ = region.close(made)
        for result, argument in zip(results, arguments, strict=True):
            p.place[result.id] = p.place[argument.id]
        return results
