"""Choose: along which axis the shards of each mesh axis do an op, by the bytes that must be sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compiler.errors import Problem, SpecError
from compiler.graph.ir import Graph, Value
from compiler.graph.types import TensorType
from compiler.ops.contract import LOCAL, Op, Role, holders, places
from compiler.ops.shards import FLOPS_A_BYTE, MEMORY_A_BYTE, SHARDS
from compiler.parallel.plan import CLASSES
from compiler.passes.placement import Partial, Placement, local, moves, numbers, shards, unsummed

if TYPE_CHECKING:
    from compiler.passes.partition import Partition

NEVER = 1e30  # a price above all others: rows away from where their experts' weights lie


@dataclass(frozen=True)
class Option:
    """How the shards of one mesh axis do an op: each on its part of ``axes`` ("shard"), by a program over the shards
    ("across"), each on its own part of a sum ("through"), or all the same ("whole")."""

    how: str = "whole"
    axes: tuple[str, ...] = ()
    role: Role = Role.PARALLEL
    every: bool = False  # "through": operands that were whole become parts too

    @property
    def lookup(self) -> bool:
        return self.role in (Role.LOOKUP, Role.OWN)


WHOLE = Option()


class Chooser:
    def __init__(self, p: Partition) -> None:
        self.p, self.plan, self.mesh, self.sizes = p, p.plan, p.mesh, p.sizes
        self.asked = {m: {a for kind in CLASSES for a in p.plan.axes(kind, m)} for m in p.mesh}
        self._numbers: dict[TensorType, TensorType] = {}
        self._locals: dict[tuple[TensorType, frozenset[Any]], TensorType] = {}
        self._moves: dict[Any, float] = {}
        self.homes: dict[tuple[str, str], str | None] = {}  # (axis of LOCAL, mesh axis) -> what holds it there

    def learn(self, graph: Graph) -> None:
        """Where entries in each shard's own order belong (``Op.home``). The rows of experts: at their experts where the
        weights are split by expert; whole on every shard (None) where the weights are split by an axis by which
        activations are split too (tensor parallelism); else where the tokens lie, and weights are gathered."""
        for node, _ in graph.walk():
            home = node.op.home()
            if home is not None:
                own, operand, holder = home
                for m, axis in self.expected(node.operands[operand].type, "parameters").items():
                    if axis in self.plan.axes("activations", m):
                        self.homes.setdefault((own, m), holder if axis == holder else None)

    # -- types
    def number(self, t: TensorType) -> TensorType:
        if t not in self._numbers:
            self._numbers[t] = numbers(t, self.sizes)
        return self._numbers[t]

    def size(self, t: TensorType, axis: str) -> int:
        return int(self.number(t).size(axis).constant)

    def local(self, t: TensorType, placement: Placement) -> TensorType:
        key = (t, frozenset(placement.items()))
        if key not in self._locals:
            self._locals[key] = local(self.number(t), placement, self.mesh)
        return self._locals[key]

    # -- where a value is expected
    def expected(self, t: TensorType, kind: str) -> dict[str, str | Partial]:
        """Of the axes that the plan lists for a mesh axis, the first that the tensor has and that divides."""
        found: dict[str, str | Partial] = {}
        for m, n in self.p.open.items():
            listed = (self.p.inside[m],) if m in self.p.inside else self.plan.axes(kind, m)
            for axis in listed:
                if axis in t.axes and axis not in LOCAL and self._fits(t, axis, n, found):
                    found[m] = axis
                    break
        return found

    def _fits(self, t: TensorType, axis: str, n: int, placed: Placement) -> bool:
        """Whether ``axis``, or what it holds, divides further by ``n``."""
        for split in (a for a in t.axes if a == axis or LOCAL.get(a, {}).get(axis)):
            here, rest = divmod(self.size(t, split), shards(placed, self.mesh, split))
            if rest or here % n or here == 0:
                return False
        return True

    def _goal(self, op: Op, t: TensorType, kind: str) -> dict[str, str | Partial]:
        """Where a result is expected: at its home, if it has one."""
        found, home = self.expected(t, kind), op.home()
        if home is not None and home[2] in t.axes:
            found |= {m: at for (_, m), at in self.homes.items() if at == home[2]}
        return found

    # -- options
    def choose(
        self, op: Op, ins: Sequence[Value], outs: Sequence[TensorType], kinds: Sequence[str]
    ) -> dict[str, Option]:
        """For each mesh axis the option that sends least; of equals one that completes a partial sum which has more
        readers (each would pay), and then the one that moves fewer operands now."""
        chosen: dict[str, Option] = {}
        goals = [self._goal(op, t, kind) for t, kind in zip(outs, kinds, strict=True)]
        for m in self.p.open:
            options = [o for o in self.options(op, ins, outs, m, chosen) if self._may(ins, m, o)]
            if not options:
                at = ", ".join(f"{v.type} by {self.p.place[v.id].get(m)}" for v in ins if holders(v.type))
                message = f"{self.p.b.path or op.name}: {op.name} finds its rows in different orders over {m}: {at}"
                raise SpecError(Problem("cannot-shard", message, self.p.b.position))
            best, least = WHOLE, (float("inf"), False, 0)
            for option in options:
                cost = self.price(op, ins, outs, m, {**chosen, m: option}, goals) if len(options) > 1 else 0.0
                brought = sum(self.p.place[v.id].get(m) != self.needs(v, {m: option}).get(m) for v in ins)
                rank = (round(cost, 3), option.how == "through" and self._shared(ins, m), brought)
                if rank < least:
                    best, least = option, rank
            chosen[m] = best
        return chosen

    def _shared(self, ins: Sequence[Value], m: str) -> bool:
        """Whether a partial operand has other readers than the node that is being rewritten."""
        return any(
            isinstance(self.p.place[v.id].get(m), Partial) and more for v, more in zip(ins, self.p.shared, strict=False)
        )

    def options(
        self, op: Op, ins: Sequence[Value], outs: Sequence[TensorType], m: str, chosen: Mapping[str, Option]
    ) -> Iterator[Option]:
        place = [self.p.place[v.id] for v in ins]
        partial = frozenset(i for i, p in enumerate(place) if p.get(m) == Partial("sum"))
        types = [v.type for v in ins]
        if partial and op.linear(partial, types):
            yield Option("through")
        follows = op.follows()
        axes = list(dict.fromkeys(a for v in ins for a in places(v.type)))
        axes += [a for t in outs for a in places(t) if a not in axes and a not in follows.values()]
        ways = op.exchanges()
        away = {a for o in chosen.values() for a in o.axes} | {SHARDS for _ in self.p.inside}
        placed = {p.get(m) for p in place}
        wanted = placed | ({self.p.inside[m]} if m in self.p.inside else self.asked[m])
        seen: set[tuple[str, ...]] = set()
        for axis in axes:
            if axis not in wanted:
                continue
            inner = [self.local(v.type, self.needs(v, chosen)) for v in ins]
            group = op.together(axis, inner)
            if not group or group in seen or not self._divides(group, follows, ins, outs, m, chosen):
                continue
            seen.add(group)
            role = op.role(axis, inner, [self.number(t) for t in outs])
            if ways and group[0] == ways[0][0] and (self.p.inside or any(o.how == "across" for o in chosen.values())):
                continue  # rows are exchanged over one mesh axis; no other one splits the experts besides
            if role is Role.ACROSS and type(op).across is not Op.across:
                if not any(o.how == "across" for o in chosen.values()):  # one at a time
                    yield Option("across", group, role)
            elif role not in (Role.ACROSS, Role.WHOLE):
                yield Option("shard", group, role)
        for group in ways if m not in self.p.inside else ():
            held = group[0] in wanted and group[1] in placed and not away & {group[0], SHARDS}
            if held and self._divides(group, follows, ins, outs, m, chosen):
                yield Option("across", group, Role.ACROSS)
        yield WHOLE
        everything = frozenset(range(len(ins)))
        rest = [i for i in everything - partial if m not in place[i] or ins[i].id in self.p.zero]
        possible = partial and not op.linear(partial, types) and len(rest) + len(partial) == len(ins)
        if possible and op.linear(everything, types):
            yield Option("through", every=True)

    def _may(self, ins: Sequence[Value], m: str, option: Option) -> bool:
        """Whether no value would be brought along an axis whose order is each shard's own."""
        for v in ins:
            have, want = self.p.place[v.id].get(m), self.needs(v, {m: option}).get(m)
            if have != want and {have, want} & {*holders(v.type)} and v.id not in self.p.zero:
                return False
        return True

    def _divides(
        self,
        group: tuple[str, ...],
        follows: Mapping[str, str],
        ins: Sequence[Value],
        outs: Sequence[TensorType],
        m: str,
        chosen: Mapping[str, Option],
    ) -> bool:
        n = self.mesh[m]
        for v in ins:
            placed = self.needs(v, chosen)
            if not all(self._fits(v.type, a, n, placed) for a in group if a in places(v.type)):
                return False
        return all(
            self._fits(t, follows.get(a, a), n, {mm: self._natural(t, o, follows) for mm, o in chosen.items()})
            for t in outs
            for a in group
            if follows.get(a, a) in places(t)
        )

    # -- what an option means
    def needs(self, v: Value, chosen: Mapping[str, Option]) -> dict[str, str | Partial]:
        """Where an operand must lie."""
        found: dict[str, str | Partial] = {}
        for m, option in chosen.items():
            if option.how == "through":
                if option.every or self.p.place[v.id].get(m) == Partial("sum"):
                    found[m] = Partial("sum")
                continue
            axis = next((a for a in option.axes if a in places(v.type)), None)
            if axis is not None:
                found[m] = axis
        return found

    def _natural(self, t: TensorType, option: Option, follows: Mapping[str, str], kind: str = "sum") -> Any:
        if option.how == "through":
            return Partial("sum")
        axis = next((follows.get(a, a) for a in option.axes if follows.get(a, a) in places(t)), None)
        if axis is None and option.role in (Role.SUM, Role.LOOKUP):
            return Partial(kind if option.role is Role.SUM else "sum")
        return axis

    def results(
        self, op: Op, ins: Sequence[Value], outs: Sequence[TensorType], chosen: Mapping[str, Option]
    ) -> list[dict[str, str | Partial]]:
        """Where the results lie."""
        follows, kind = op.follows(), op.partial()
        found = []
        for t in outs:
            placed = {m: self._natural(t, option, follows, kind) for m, option in chosen.items()}
            found.append({m: p for m, p in placed.items() if p is not None})
        return found

    # -- prices, in bytes sent
    def sent(self, op: Any, t: TensorType, before: Placement, after: Placement) -> float:
        cost = op.cost([self.local(t, before)], [self.local(t, after)])
        return float(cost.sent.constant)

    def price(
        self,
        op: Op,
        ins: Sequence[Value],
        outs: Sequence[TensorType],
        m: str,
        chosen: Mapping[str, Option],
        goals: Sequence[Placement],
    ) -> float:
        total, here = self.work(op, ins, outs, chosen), self.p.trips(self.p.b)
        if chosen[m].how == "across":
            local_ins = [self.local(v.type, self.needs(v, chosen)) for v in ins]
            local_outs = [self.local(t, p) for t, p in zip(outs, self.results(op, ins, outs, chosen), strict=True)]
            total *= op.runs(self.mesh[m], local_ins)
            total += float(op.exchanged(self.mesh[m], local_ins, local_outs).constant)
        for v in ins:
            move = self._move(v.type, self.p.place[v.id], m, self.needs(v, {m: chosen[m]}).get(m), v)
            total += move * self.p.trips(self.p.owner(v)) / here  # brought where it was made, before any loop
        for i, (made, goal) in enumerate(zip(self.results(op, ins, outs, chosen), goals, strict=True)):
            for own in outs[i].axes if m not in self.p.inside else ():
                if (own, m) in self.homes and self._held(outs[i], made, m) != self.homes[own, m]:
                    total += NEVER
            old = self.p.results[i] if self.p.results else -1
            unfinished = isinstance(made.get(m), Partial) and not self.p.completed_anyway(old, m)
            elsewhere = isinstance(made.get(m), str) and goal.get(m) is not None
            if unfinished or elsewhere:  # what is sharded and may be whole stays so until someone needs it
                total += self._move(outs[i], made, m, goal.get(m))
        return total

    def _held(self, t: TensorType, placement: Placement, m: str) -> Any:
        """What holds the rows of a value over a mesh axis."""
        return placement.get(m) if placement.get(m) in holders(t) else None

    def _move(self, t: TensorType, have: Placement, m: str, want: Any, value: Value | None = None) -> float:
        """Bytes that bring a value to another place on one mesh axis."""
        if have.get(m) == want or (value is not None and value.id in self.p.zero):
            return 0.0
        then = {k: p for k, p in have.items() if k != m} | ({} if want is None else {m: want})
        if value is not None and value.id in self.p.narrow and unsummed(have, then):
            return self._move(self.p.narrow[value.id].type, have, m, want, self.p.narrow[value.id])
        if value is not None and (value.id, frozenset(then.items())) in self.p.brought:
            return 0.0
        key = (t, frozenset(have.items()), frozenset(then.items()))
        if key not in self._moves:
            total, now = 0.0, have
            for op, after in moves(have, then, self.mesh):
                total += self.sent(op, t, now, after)
                now = after
            self._moves[key] = total
        return self._moves[key]

    def work(self, op: Op, ins: Sequence[Value], outs: Sequence[TensorType], chosen: Mapping[str, Option]) -> float:
        """What one shard does, in the bytes that it could send meanwhile."""
        inner = [self.local(v.type, self.needs(v, chosen)) for v in ins]
        made = self.results(op, ins, outs, chosen)
        cost = op.cost(inner, [self.local(t, p) for t, p in zip(outs, made, strict=True)])
        flops = float(cost.matrix.evaluate(self.sizes)) / FLOPS_A_BYTE
        return flops + float((cost.read + cost.written).evaluate(self.sizes)) / MEMORY_A_BYTE
