"""Partition: every value gets a placement on the mesh and every collective becomes a node.

A plan says which axes go to which mesh axes for each class of tensors; that fixes parameters, inputs and states and
says where every other value is expected. Each op then decides, one mesh axis at a time, along which of its axes its
shards work, by its contract (``role``, ``together``, ``linear``, ``across``): the way that sends the fewest bytes,
its operands brought there and its results to where they are expected. Nothing is brought anywhere before an op needs
it, so that partial sums are added up first and a value is gathered once for all that read it. Values from outside a
repeat are brought outside; what a repeat carries may stay partial until it ends.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compiler.errors import Problem, SpecError
from compiler.graph.builder import Builder
from compiler.graph.ir import Graph, Node, Value
from compiler.graph.region import Region
from compiler.graph.replay import Replay
from compiler.graph.types import TensorType
from compiler.ops.contract import holders
from compiler.ops.control import Repeat
from compiler.ops.elementwise import Cast
from compiler.ops.leaves import Argument, Constant, Input, Leaf, Parameter, State
from compiler.ops.shape import Expand
from compiler.ops.shards import SHARDS
from compiler.parallel.plan import Plan
from compiler.passes.across import Across
from compiler.passes.choose import Chooser, Option
from compiler.passes.classes import classes, state_class
from compiler.passes.merge import merge
from compiler.passes.narrow import narrow
from compiler.passes.placement import NoWay, Partial, Placement, Split, local, moves, numbers, over, unsummed
from compiler.passes.prune import prune
from compiler.passes.sums import sums, uses


@dataclass(frozen=True)
class Partitioned:
    """A graph whose values are placed: ``placements`` by value id, regions included. Types stay those of the whole.
    ``why`` says for a collective's result what it was needed for."""

    graph: Graph
    placements: Mapping[int, Placement]
    mesh: Mapping[str, int]
    sizes: Mapping[str, int]
    why: Mapping[int, str]

    def of(self, value: Value) -> Split:
        """Axis -> the mesh axes that shard it, major first."""
        place = self.placements.get(value.id, {})
        return {a: found for a in value.axes if (found := over(place, self.mesh, a))}

    def local(self, value: Value) -> TensorType:
        """The type of one shard, in numbers."""
        return numbers(local(value.type, self.placements.get(value.id, {}), self.mesh), self.sizes)

    def __str__(self) -> str:
        """The graph's text, each sharded axis with its mesh axes: ``mlp=16/model``."""

        def placed(found: re.Match[str]) -> str:
            place = self.placements.get(int(found[1]), {})
            each = re.compile(r"(\w+)=[^=\]]*?(?= \w+=|$)")
            shown = {name: over(place, self.mesh, name) for name in each.findall(found[3])}
            axes = each.sub(lambda a: f"{a[0]}/{'/'.join(shown[a[1]])}" if shown[a[1]] else a[0], found[3])
            partial = "".join(f" {p} over {m}" for m, p in place.items() if p not in shown)
            return f"%{found[1]}: {found[2]}[{axes}]{partial}"

        return re.sub(r"%(\d+): (\w+)\[([^\]]*)\]", placed, str(self.graph))


def partition(graph: Graph, plan: Plan, sizes: Mapping[str, int]) -> Partitioned:
    """The graph sharded as ``plan`` says, for these sizes. Raises SpecError where an op cannot be sharded as asked."""
    mesh = {m: n for m, n in plan.mesh.items() if n > 1}
    kinds, terms, readers = classes(graph), sums(graph), uses(graph)
    first = Partition(Plan(mesh, plan.rules), sizes, kinds, terms, readers)
    first.chooser.learn(graph)
    made = first.run(graph)
    pass_ = Partition(Plan(mesh, plan.rules), sizes, kinds, terms, readers, first.partial_sums)
    pass_.chooser.learn(graph)
    again = pass_.run(graph)  # knowing which sums have partial terms
    if pass_.score <= first.score:
        made = again
    else:
        pass_ = first
    made = prune(made)
    _place_arguments(made, pass_.place)
    made = merge(prune(narrow(made, pass_.place, pass_.why)))
    return Partitioned(made, pass_.place, mesh, dict(sizes), pass_.why)


def _place_arguments(graph: Graph, place: dict[int, Placement]) -> None:
    """A region's arguments lie as the operands that they stand for."""
    for node in graph.nodes:
        if isinstance(node.op, Repeat):
            own = node.op.axis if node.op.parallel else None  # of a shard's own trip, no axis of what it gets
            for argument, value in zip(node.op.arguments, node.operands, strict=True):
                place[argument] = {m: p for m, p in place[value.id].items() if p != own}
            _place_arguments(node.op.body, place)


class Partition(Replay):
    """``place`` holds the placement of each value of the new graph."""

    def __init__(
        self,
        plan: Plan,
        sizes: Mapping[str, int],
        kinds: Mapping[int, str],
        terms: Mapping[int, int],
        uses: Mapping[int, int],
        known: Mapping[tuple[int, str], frozenset[int]] | None = None,
    ) -> None:
        super().__init__()
        self.plan, self.mesh, self.sizes, self.kinds = plan, plan.mesh, sizes, kinds
        self.place: dict[int, Placement] = {}
        self.brought: dict[tuple[int, frozenset[Any]], Value] = {}  # values as they were brought to a placement
        self.made: dict[tuple[Any, ...], list[Value]] = {}  # the same op on the same values is done once
        self.leaves: dict[str, int] = {}  # parameters and states by label
        self.zero: set[int] = set()
        self.narrow: dict[int, Value] = {}  # value -> the narrower float, placed alike, that it was cast from
        self.uses = uses
        self.shared: tuple[bool, ...] = ()  # which of the values that the present node reads have other readers
        self.why: dict[int, str] = {}
        self.score = 0.0  # bytes sent (and work, in bytes) so far, every trip counted
        self.terms, self.known_sums = terms, dict(known or {})
        self.partial_sums: dict[tuple[int, str], frozenset[int]] = {}  # (sum, mesh axis) -> its partial terms
        self.chooser = Chooser(self)
        self.inside: dict[str, str] = {}  # mesh axis -> the axis over its shards, in a program across them
        self.open: Mapping[str, int] = self.mesh  # less those that divide the trips of a parallel repeat, in its region
        self.entering: list[Placement] = []  # of what the region being opened carries
        self.late: list[set[tuple[int, str]]] = []  # of each open region, the sums that it hands on as parts, over what
        self.leaving: list[list[Placement]] = []  # of the outputs of the regions just replayed, and before matching

    # -- values
    def owner(self, value: Value) -> Builder:
        """The builder of the graph or region in which the value was made."""
        b: Builder | None = self.b
        while b is not None and value.id not in b.known:
            b = b.parent
        assert b is not None
        return b

    def trips(self, b: Builder | None) -> int:
        """How often what ``b`` holds runs."""
        total = 1
        while b is not None:
            total *= b.trips // b.shards if isinstance(b, Region) else 1
            b = b.parent
        return total

    def bring(self, value: Value, want: Placement, reason: str = "") -> Value:
        """The value placed as wanted, by collectives where it was made: once for all that want it so."""
        have = self.place[value.id]
        if have == want:
            return value
        key = (value.id, frozenset(want.items()))
        if key in self.brought:
            return self.brought[key]
        owner = self.owner(value)
        saved, now = self.b, value
        self.b, place = owner, (owner.path, owner.position)
        owner.path, owner.position = saved.path, saved.position
        narrow = self.narrow.get(value.id)
        if value.id in self.zero:
            now = self.zeros(value.type, want)
        elif narrow is not None and unsummed(have, want):  # travels before it is widened
            moved = self.bring(narrow, want, reason)
            (now,) = owner.append(Cast(value.type.dtype), (owner.use(moved),), (value.type,))
            self.place[now.id], self.narrow[now.id] = dict(want), moved
        else:
            for op, after in moves(have, want, self.mesh):
                halfway = self.brought.get((value.id, frozenset(after.items())))
                if halfway is not None:
                    now = halfway
                    continue
                (made,) = owner.append(op, (owner.use(now),), (now.type,))
                self.place[made.id] = after
                self.why[made.id] = reason
                self.score += self.trips(owner) * self.chooser.sent(op, now.type, self.place[now.id], after)
                now = made
                self.brought.setdefault((value.id, frozenset(after.items())), now)
        owner.path, owner.position = place
        self.b = saved
        self.brought[key] = now
        return now

    def zeros(self, t: TensorType, placement: Placement) -> Value:
        (nothing,) = self.b.append(Constant((0.0,)), (), (TensorType((), (), t.dtype),))
        self.place[nothing.id] = {}
        (made,) = self.b.append(Expand(t.axes, t.sizes), (nothing,), (t,))
        self.place[made.id] = dict(placement)
        self.zero |= {nothing.id, made.id}
        return made

    # -- nodes
    def node(self, node: Node) -> None:
        self.current = node
        self.results: list[int] = []  # ids of the old node's results, while it is rewritten
        self.shared = tuple(self.uses[v.id] > 1 for v in node.operands)
        super().node(node)

    def rewrite(self, node: Node, ins: Sequence[Value]) -> Sequence[Value] | None:
        if isinstance(node.op, Repeat):
            return None
        if isinstance(node.op, Leaf):
            return [self.leaf(node.op, node.result.type)]
        self.results = [v.id for v in node.results]
        made = self.emit(node.op, ins, [self.kinds.get(v.id, "activations") for v in node.results])
        for old, new in zip(node.results, made, strict=True):
            self._note_partial(old.id, self.place[new.id])
        return made

    def _note_partial(self, old: int, placement: Placement) -> None:
        for m, p in placement.items():
            if isinstance(p, Partial) and old in self.terms:
                key = (self.terms[old], m)
                self.partial_sums[key] = self.partial_sums.get(key, frozenset()) | {old}

    def completed_anyway(self, old: int, m: str) -> bool:
        """Whether another term of the sum to which an old value belongs is partial over ``m`` too, or its parts are
        handed on to the next trip."""
        if any((old, m) in own for own in self.late):
            return True
        key = (self.terms.get(old, -1), m)
        return bool((self.partial_sums.get(key, frozenset()) | self.known_sums.get(key, frozenset())) - {old})

    def leaf(self, op: Leaf, t: TensorType) -> Value:
        (made,) = self.b.append(op, (), (t,))
        kind = {Parameter: "parameters", Input: "activations"}.get(type(op), "activations")
        if isinstance(op, State):
            kind = state_class(op)
        self.place[made.id] = {} if isinstance(op, (Constant, Argument)) else self.chooser.expected(t, kind)
        if isinstance(op, (Parameter, State)):
            self.leaves[op.label] = made.id
        if isinstance(op, Constant) and op.values == (0.0,):
            self.zero.add(made.id)
        return made

    def emit(self, op: Any, ins: Sequence[Value], kinds: Sequence[str] = ()) -> list[Value]:
        """Adds an op, its operands brought to where its shards need them."""
        outs = op.infer(*(v.type for v in ins))
        kinds = kinds or ["activations"] * len(outs)
        chosen = self.chooser.choose(op, ins, outs, kinds)
        needs = [self.chooser.needs(v, chosen) for v in ins]
        ins = [self.bring(v, need, self._reason(op, v, need)) for v, need in zip(ins, needs, strict=True)]
        across = [m for m, option in chosen.items() if option.how == "across"]
        if across:
            return self._across(op, chosen[across[0]].axes[0], across, ins)
        shard = self._shard(op, chosen)
        if shard:
            op = dataclasses.replace(op, shard=shard)
        placed = self.chooser.results(op, ins, outs, chosen)
        key = (self.b, op, *(v.id for v in ins), *(frozenset(p.items()) for p in placed))
        if key in self.made:
            return self.made[key]
        made = self.made[key] = list(self.b.append(op, tuple(self.b.use(v) for v in ins), outs))
        self.score += self.trips(self.b) * self.chooser.work(op, ins, outs, chosen)
        for value, placement in zip(made, placed, strict=True):
            self.place[value.id] = placement
        if isinstance(op, Expand) and ins[0].id in self.zero:
            self.zero.add(made[0].id)
        if isinstance(op, Cast) and op.widens(ins[0].type) and self.place[ins[0].id] == placed[0]:
            self.narrow[made[0].id] = ins[0]
        return made

    def _shard(self, op: Any, chosen: Mapping[str, Option]) -> tuple[str, ...]:
        """The mesh axes over which a lookup's entries are split."""
        return tuple(m for m in chosen if chosen[m].lookup) if hasattr(op, "shard") else ()

    def _reason(self, op: Any, value: Value, need: Placement) -> str:
        have, changed = self.place[value.id], []
        for m in self.mesh:
            if have.get(m) != need.get(m):
                before, after = have.get(m), need.get(m)
                was = f"{before}" if isinstance(before, Partial) else f"{before} sharded" if before else "whole"
                changed.append(f"{was} over {m}, needed {f'{after} sharded' if after else 'whole'}")
        return f"{op.text().split('<')[0]} in {self.b.path or 'the graph'}: {'; '.join(changed)}"

    def _across(self, op: Any, axis: str, over: Sequence[str], ins: Sequence[Value]) -> list[Value]:
        """A program over the shards in place of an op that looks beyond its own."""
        if len(over) > 1:
            message = f"{self.b.path or op.name}: {axis} over several mesh axes ({', '.join(over)}) cannot be done here"
            raise SpecError(Problem("cannot-shard", message, self.b.position))
        (m,) = over
        saved, self.results, self.shared = dict(self.inside), [], ()
        self.inside[m] = SHARDS
        try:
            return list(op.across(Across(self, m), axis, self.mesh[m], ins))
        finally:
            self.inside = saved

    # -- outputs
    def output(self, name: str, value: Value) -> Value:
        made = self.map[value.id]
        group, _, label = name.partition(":")
        place = self.place[made.id]
        want: Placement = {m: p for m, p in place.items() if not isinstance(p, Partial)}
        if group in ("parameter", "state") and label in self.leaves:
            want = self.place[self.leaves[label]]
        elif group in ("gradient", "parameter", "state"):
            kind = {"gradient": "gradients", "parameter": "parameters"}.get(group, "state")
            want = self.chooser.expected(made.type, kind)
        elif any(isinstance(p, Partial) for p in place.values()):
            want = self.chooser.expected(made.type, "activations")
        return self.bring(made, want, f"output {name}")

    # -- repeats
    def repeat(self, op: Repeat, ins: Sequence[Value]) -> list[Value]:
        """Tries where what is carried may lie: as expected, as the body leaves it, and sums as parts that are added
        up after the last trip; keeps the cheapest."""
        if op.parallel:
            return self._parallel(op, ins)
        ins = [self._whole(v, op.axis) for v in ins]
        kinds = [self.kinds.get(a, "activations") for a in op.arguments[: op.carried]]
        guess: list[Placement] = [self.chooser.expected(v.type, k) for v, k in zip(ins, kinds, strict=False)]
        tried: list[tuple[float, list[Placement]]] = []
        node, before = self.current, self._save()

        def once(guess: list[Placement]) -> tuple[list[Value], list[Placement]] | None:
            self._restore(before)
            try:
                found = self._once(op, ins, guess)
            except NoWay:
                return None
            tried.append((self.score, guess))
            return found

        last = once(guess)  # what is expected is whole or sharded: there is always a way
        while last is not None and len(tried) < 3:
            guess = [self._may_enter(v, p) for v, p in zip(ins, last[1], strict=False)]
            if guess in [g for _, g in tried]:
                break
            last = once(guess)
        sums = [i for i, v in enumerate(ins[: op.carried]) if v.id in self.zero and op.arguments[i] in self.terms]
        for m in self.open if sums else ():
            best = min(tried, key=lambda t: t[0])[1]
            last = once([{m: Partial("sum"), **p} if i in sums else p for i, p in enumerate(best)])
        best = min(tried, key=lambda t: t[0])[1]
        results = last[0] if last is not None and best is tried[-1][1] else self._again(op, ins, best, before)
        self.current = node
        return results

    def _whole(self, value: Value, axis: str) -> Value:
        """Trips that follow each other need every slice of a stack."""
        place = self.place[value.id]
        want = {m: p for m, p in place.items() if p != axis}
        return self.bring(value, want, f"every slice along {axis}") if axis in value.axes else value

    def _parallel(self, op: Repeat, ins: Sequence[Value]) -> list[Value]:
        """Each shard of the mesh axes to which the plan sends the trips' axis runs its own trips; in the region these
        mesh axes do not exist."""
        over, left = {}, op.trips
        for m, n in self.open.items():
            if op.axis in self.plan.axes("activations", m) and left % n == 0:
                over[m], left = n, left // n
        own = dict.fromkeys(over, op.axis)
        held = len(ins) - op.stacked
        stacks = [self.bring(v, {**self.place[v.id], **own}, f"its own {op.axis}") for v in ins[held:]]
        saved, self.open = self.open, {m: n for m, n in self.open.items() if m not in over}
        try:
            op = dataclasses.replace(op, shards=op.trips // left)
            results, _ = self._once(op, [*ins[:held], *stacks], [])
        finally:
            self.open = saved
        for value in results:
            self.place[value.id] = {**own, **self.place[value.id]}
        return results

    def _again(self, op: Repeat, ins: Sequence[Value], guess: list[Placement], before: list[Any]) -> list[Value]:
        self._restore(before)
        return self._once(op, ins, guess)[0]

    def _may_enter(self, value: Value, placement: Placement) -> Placement:
        """A placement in which a value can enter: only zeros can be parts of a sum."""
        parts = value.id in self.zero
        return {m: p for m, p in placement.items() if isinstance(p, str) or (parts and p == Partial("sum"))}

    def _once(self, op: Repeat, ins: Sequence[Value], guess: list[Placement]) -> tuple[list[Value], list[Placement]]:
        for argument, placement in zip(op.arguments, guess, strict=False):
            self._note_partial(argument, placement)
        entering = [self.bring(v, p, "what the layers carry") for v, p in zip(ins, guess, strict=False)]
        self.entering = guess
        outs = (v.id for _, v in op.body.outputs)
        self.late.append({(v, m) for v, p in zip(outs, guess, strict=False) for m in p if p[m] == Partial("sum")})
        try:
            results = super().repeat(op, [*entering, *ins[op.carried :]])
        finally:
            self.late.pop()
        placed, left = self.leaving.pop(), self.leaving.pop()
        for value, placement in zip(results, placed, strict=True):
            self.place[value.id] = placement
        for value in results[: op.carried]:  # a carry of zeros is zeros no more
            self.zero.discard(value.id)
        return results, left

    def region_opened(self, region: Region) -> None:
        for value, argument in (*region.stacks, *region.states):
            self.place[argument.id] = {m: p for m, p in self.place[value.id].items() if p != region.axis}
        for (_, argument), placement in zip(region.carries, self.entering, strict=True):
            self.place[argument.id] = dict(placement)

    def region_outputs(self, region: Region, op: Repeat, outs: list[tuple[str, Value]]) -> list[tuple[str, Value]]:
        old = [v.id for _, v in op.body.outputs]
        entered = [self.place[a.id] for _, a in region.carries]
        states = [self.place[a.id] for _, a in region.states]
        left = [self.place[v.id] for _, v in outs[: op.carried]]
        placed, later = [], {m for own in self.late[:-1] for _, m in own}
        for i, (name, value) in enumerate(outs):
            have = self.place[value.id]
            if i < op.carried:
                want = entered[i]
            elif i >= len(outs) - op.states:
                want = states[i - len(outs) + op.states]
            else:
                kind = self.kinds.get(old[i])
                unfinished = any(isinstance(p, Partial) for p in have.values())
                want = self.chooser.expected(value.type, kind or "activations") if kind or unfinished else have
                want = {**want, **{m: p for m, p in have.items() if p in holders(value.type)}}
                # terms of a sum that is itself carried as parts: they are added up with it, after its last trip
                want = {**want, **{m: p for m, p in have.items() if m in later and p == Partial("sum")}}
            placed.append((name, self.bring(value, want, "what a layer hands on")))
        self.leaving += [left, [self.place[v.id] for _, v in placed]]
        return placed

    # -- trials
    def _save(self) -> list[Any]:
        chain, b = [], self.b
        while b is not None:
            chain.append((b, b.save()))
            b = b.parent  # type: ignore[assignment]
        values = (self.place, self.brought, self.made, self.zero, self.map, self.partial_sums)
        return [chain, [v.copy() for v in values], self.score, self.b, len(self.leaving)]

    def _restore(self, saved: list[Any]) -> None:
        chain, values, self.score, self.b, depth = saved
        del self.leaving[depth:]
        for b, state in chain:
            b.restore(state)
        self.place, self.brought, self.made, self.zero, self.map, self.partial_sums = (v.copy() for v in values)
