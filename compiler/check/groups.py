"""Which devices talk to which: the notations of replica groups, and the mesh axes that groups are the fibres of.

The numbers in groups are places in the program's device assignment, which JAX lays out as the mesh, row by row; another
order can be given.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from compiler.check.hlo import HloError

Group = frozenset[int]
Groups = frozenset[Group]
Pairs = tuple[tuple[int, int], ...]

_LISTED = re.compile(r"\{([^{}]*)\}")
_IOTA = re.compile(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?")
_MESH = re.compile(r"mesh\[([^\]]*)\](?:,\s*device_ids=\((.*)\))?\s*\{([^{}]*)\}$")
_SUB_AXIS = re.compile(r"(.+?)(?::\((\d+)\)(\d+))?$")


def groups(text: str, devices: int) -> Groups:
    """``{{0,1},{2,3}}``, ``[2,4]<=[4,2]T(1,0)`` or ``mesh['a'=2,'b'=4] {'b'}``; ``{}`` is one group of all."""
    text = text.strip()
    if text.startswith("mesh"):
        return _mesh(text)
    if text.startswith("["):
        return _iota(text)
    if not text.startswith("{"):
        raise HloError(f"not replica groups: {text[:80]!r}")
    listed = [frozenset(_numbers(found)) for found in _LISTED.findall(text)]
    found = frozenset(group for group in listed if group)
    return found or frozenset({frozenset(range(devices))})


def pairs(text: str) -> Pairs:
    """``{{0,1},{1,2}}`` of a permute: from, to."""
    found = []
    for inside in _LISTED.findall(text):
        numbers = _numbers(inside)
        if len(numbers) != 2:
            raise HloError(f"not a pair of devices: {inside!r}")
        found.append((numbers[0], numbers[1]))
    return tuple(found)


def _iota(text: str) -> Groups:
    """[groups, members]<=[sizes]T(order): a count over ``sizes``, its axes put in another order, cut in rows."""
    found = _IOTA.fullmatch(text)
    if found is None:
        raise HloError(f"not replica groups: {text[:80]!r}")
    size = _numbers(found[1])[-1]
    places = _places(_numbers(found[2] or found[1]), _numbers(found[3]) if found[3] else None)
    return frozenset(frozenset(places[i : i + size]) for i in range(0, len(places), size))


def _mesh(text: str) -> Groups:
    """mesh[axes=sizes], device_ids=(order) {axes of a group}; an axis may be a part of one, ``'a':(before)size``."""
    found = _MESH.fullmatch(text)
    if found is None:
        raise HloError(f"not replica groups: {text[:80]!r}")
    sizes: dict[str, int] = {}
    for part in found[1].split(","):
        name, _, size = part.strip().rpartition("=")
        sizes[name] = int(size)
    order = _device_ids(found[2]) if found[2] else list(range(math.prod(sizes.values())))
    cuts: dict[str, list[tuple[int, int]]] = {}
    for part in filter(None, (p.strip() for p in found[3].split(","))):
        axis = _SUB_AXIS.fullmatch(part)
        if axis is None or axis[1] not in sizes:
            raise HloError(f"not an axis of the mesh: {part!r} in {text[:80]!r}")
        cuts.setdefault(axis[1], []).append((int(axis[2] or 1), int(axis[3] or sizes[axis[1]])))
    dims: list[int] = []
    inside: list[bool] = []
    for name, size in sizes.items():
        done = 1  # what of this axis is cut already, major first
        for before, part_size in sorted(cuts.get(name, ())):
            dims += (before // done, part_size)
            inside += (False, True)
            done = before * part_size
        dims.append(size // done)
        inside.append(False)
    made: dict[tuple[int, ...], list[int]] = {}
    for place, device in zip(itertools.product(*map(range, dims)), order, strict=True):
        outside = tuple(0 if grouped else p for p, grouped in zip(place, inside, strict=True))
        made.setdefault(outside, []).append(device)
    return frozenset(map(frozenset, made.values()))


def _device_ids(text: str) -> list[int]:
    """``[2,4]T(1,0)``, a count over sizes in another order, or the numbers themselves."""
    found = _IOTA.fullmatch(text.strip())
    if found is not None:
        return _places(_numbers(found[2] or found[1]), _numbers(found[3]) if found[3] else None)
    return _numbers(text)


def _places(sizes: Sequence[int], order: Sequence[int] | None) -> list[int]:
    """0, 1, 2, … laid out over ``sizes``, the axes then in ``order``, read row by row."""
    strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    order = range(len(sizes)) if order is None else order
    steps = [range(0, sizes[i] * strides[i], strides[i]) for i in order]
    return [sum(place) for place in itertools.product(*steps)]


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def fibres(axes: Iterable[str], mesh: Mapping[str, int], order: Sequence[int] | None = None) -> Groups:
    """The groups of devices that differ in ``axes`` alone. ``order`` gives the device at each place of the mesh."""
    inside = [name in set(axes) for name in mesh]
    made: dict[tuple[int, ...], list[int]] = {}
    for i, place in enumerate(itertools.product(*map(range, mesh.values()))):
        outside = tuple(0 if grouped else p for p, grouped in zip(place, inside, strict=True))
        made.setdefault(outside, []).append(i if order is None else order[i])
    return frozenset(map(frozenset, made.values()))


def mesh_axes(found: Groups, mesh: Mapping[str, int], order: Sequence[int] | None = None) -> tuple[str, ...] | None:
    """The axes, in the mesh's order, that the groups are the fibres of; None when they are no product of axes. An axis
    of size 1 is never named."""
    sizes = {len(group) for group in found}
    wide = [name for name, size in mesh.items() if size > 1]
    for count in range(len(wide) + 1):
        for axes in itertools.combinations(wide, count):
            if sizes == {math.prod(mesh[a] for a in axes)} and fibres(axes, mesh, order) == found:
                return axes
    return None


@dataclass(frozen=True)
class Move:
    """What a permute does on a mesh: the axes along which any device sends, and, when all that send do so alike along
    one axis, by how many places (positive, modulo its size) and whether each device of the axis sends."""

    axes: tuple[str, ...]
    by: int | None = None
    ring: bool = False


def move(found: Pairs, mesh: Mapping[str, int], order: Sequence[int] | None = None) -> Move:
    names, sizes = list(mesh), list(mesh.values())
    total = math.prod(sizes)
    device_at = range(total) if order is None else order
    place = dict(zip(device_at, itertools.product(*map(range, sizes)), strict=True))
    steps = [tuple((t - f) % n for f, t, n in zip(place[a], place[b], sizes, strict=True)) for a, b in found]
    along = [i for i in range(len(names)) if any(step[i] for step in steps)]
    axes = tuple(names[i] for i in along)
    if len(along) != 1 or len({step[along[0]] for step in steps}) != 1:
        return Move(axes)
    return Move(axes, steps[0][along[0]], len(found) == total)
