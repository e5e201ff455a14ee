"""Placements: where a value lies on a mesh, and the collectives that bring it from one placement to another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from compiler.graph.sizes import Size
from compiler.graph.types import TensorType
from compiler.ops.collective import AllGather, AllReduce, AllToAll, Collective, Once, OwnShard, ReduceScatter
from compiler.ops.contract import LOCAL


@dataclass(frozen=True)
class Partial:
    """Each shard holds a part; the whole is their ``kind``: "sum", "mean" or "max"."""

    kind: str = "sum"

    def __str__(self) -> str:
        return f"partial {self.kind}"


class NoWay(Exception):
    """What is sharded does not become parts of a sum."""


Placement = Mapping[str, "str | Partial"]  # mesh axis -> the axis that it shards, or partial; else every shard has all
Mesh = Mapping[str, int]  # mesh axis -> size, major first
Split = dict[str, tuple[str, ...]]  # axis -> the mesh axes that shard it, major first


def split_of(placement: Placement, mesh: Mesh) -> Split:
    """The placement by axis."""
    found: Split = {}
    for m in mesh:
        axis = placement.get(m)
        if isinstance(axis, str):
            found[axis] = (*found.get(axis, ()), m)
    return found


def shards(placement: Placement, mesh: Mesh, axis: str) -> int:
    """Into how many parts an axis is split."""
    total = 1
    for m in over(placement, mesh, axis):
        total *= mesh[m]
    return total


def over(placement: Placement, mesh: Mesh, axis: str) -> tuple[str, ...]:
    """The mesh axes that split an axis, major first: one of each shard's own order is split by what holds it."""
    names = {h for h, shared in LOCAL[axis].items() if shared} if axis in LOCAL else {axis}
    return tuple(m for m in mesh if placement.get(m) in names)


def local(t: TensorType, placement: Placement, mesh: Mesh) -> TensorType:
    """The type of one shard."""
    if not placement:
        return t
    return TensorType(t.axes, tuple(s // shards(placement, mesh, a) for a, s in t.pairs), t.dtype)


def numbers(t: TensorType, sizes: Mapping[str, int]) -> TensorType:
    """The type with numbers for its sizes."""
    return TensorType(t.axes, tuple(Size.of(s.evaluate(sizes)) for s in t.sizes), t.dtype)


def unsummed(have: Placement, want: Placement) -> bool:
    """Whether bringing a value from one placement to another adds nothing up."""
    both = ((have.get(m), want.get(m)) for m in {*have, *want})
    return all(a == b for a, b in both if isinstance(a, Partial) or isinstance(b, Partial))


def moves(have: Placement, want: Placement, mesh: Mesh) -> Iterator[tuple[Collective, dict[str, str | Partial]]]:
    """The collectives from one placement to another, each with the placement after it. What makes a value smaller
    comes first. An axis that several mesh axes shard loses the innermost first and gains it last."""
    now = dict(have)

    def inner(axis: str) -> tuple[str, ...]:
        return split_of(now, mesh).get(axis, ())

    def enters(m: str) -> bool:
        """Whether ``m`` may shard its wanted axis now: those already there are exactly the wanted ones outside it."""
        axis = want.get(m)
        if not isinstance(axis, str):
            return False
        asked = split_of(want, mesh)[axis]
        return inner(axis) == asked[: asked.index(m)]

    def last(m: str) -> bool:
        axis = now.get(m)
        return isinstance(axis, str) and inner(axis)[-1] == m

    def step() -> Collective | None:
        for m in mesh:  # partial sums to shards
            if now.get(m) == Partial("sum") and enters(m):
                now[m] = want[m]
                return ReduceScatter((m,), mesh[m], str(want[m]))
        kinds = [p.kind for m in mesh if isinstance(p := now.get(m), Partial) and want.get(m) != p]
        if kinds:
            group = tuple(m for m in mesh if now.get(m) == Partial(kinds[0]) and want.get(m) != now.get(m))
            for m in group:
                del now[m]
            return AllReduce(group, size(group), kinds[0])
        parts = tuple(m for m in mesh if m not in now and want.get(m) == Partial("sum"))
        if parts:
            now.update(dict.fromkeys(parts, Partial("sum")))
            return Once(parts, size(parts))
        for m in mesh:
            old = now.get(m)
            if isinstance(old, str) and want.get(m) != old and last(m) and enters(m):
                now[m] = want[m]
                return AllToAll((m,), mesh[m], str(want[m]), old)
        for m in mesh:
            if m not in now and enters(m):
                now[m] = want[m]
                return OwnShard((m,), mesh[m], str(want[m]))
        for axis, over in split_of(now, mesh).items():
            asked = split_of(want, mesh).get(axis, ())
            same = 0
            while same < min(len(over), len(asked)) and over[same] == asked[same]:
                same += 1
            if over[same:]:
                for m in over[same:]:
                    del now[m]
                return AllGather(over[same:], size(over[same:]), axis)
        return None

    def size(group: tuple[str, ...]) -> int:
        total = 1
        for m in group:
            total *= mesh[m]
        return total

    while (made := step()) is not None:
        yield made, dict(now)
    if now != dict(want):
        raise NoWay(f"cannot bring {dict(have)} to {dict(want)}")
