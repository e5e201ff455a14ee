"""The mesh of devices as people write it: ``data=64,model=4``, one size may be -1 (the devices that are left).

``slices`` groups of devices that only the data-centre network joins are an axis ``dcn_data`` of their own in front,
unless the mesh names its own ``dcn_…`` axes. What a strategy says of ``data`` holds for ``dcn_data`` too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from compiler.errors import Position, Problem, Problems, SpecError
from compiler.language.scope import shown

NETWORK = "dcn_"  # what the names of axes over the data-centre network begin with
MOST = 1 << 20
MOST_AXES = 12
GRAMMAR = ("axis=size,axis=size", "one size may be -1: the devices that are left")
_NAME, _SIZE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*"), re.compile(r"-1|[0-9]{1,9}")


@dataclass(frozen=True)
class Mesh:
    """Mesh axes with their sizes, major first; a size of -1 is not known yet. ``position``: where it was written."""

    sizes: Mapping[str, int]
    position: Position

    @property
    def devices(self) -> int:
        return math.prod(self.sizes.values())

    @property
    def network(self) -> tuple[str, ...]:
        """The axes over the data-centre network."""
        return tuple(name for name in self.sizes if name.startswith(NETWORK))

    def __str__(self) -> str:
        return ",".join(f"{name}={size}" for name, size in self.sizes.items())

    def fill(self, devices: int | None, machine: str | None = None) -> Mesh:
        """With every size known, and as many devices as the machine has. Raises SpecError with the nearest that fit."""
        rest = [name for name, size in self.sizes.items() if size == -1]
        place = machine or "the machine"
        if rest and devices is None:
            raise SpecError(Problem("bad-mesh", f"{rest[0]}=-1 needs the number of devices", self.position))
        if devices is None:
            return self
        known = math.prod(size for size in self.sizes.values() if size != -1)
        if rest:
            if devices % known:
                message = f"{rest[0]}=-1: {place} has {devices:,} devices, and the other axes take {known:,}"
                raise SpecError(self._mismatch(message, devices))
            return Mesh({n: devices // known if s == -1 else s for n, s in self.sizes.items()}, self.position)
        if known != devices:
            message = f"the mesh {self} has {known:,} devices, and {place} has {devices:,}"
            raise SpecError(self._mismatch(message, devices))
        return self

    def _mismatch(self, message: str, devices: int) -> Problem:
        fitting = tuple(str(m) for m in _nearest(self, devices))
        return Problem("mesh-size", message, self.position, fitting, fitting[0] if fitting else None)


def parse(text: str, slices: int = 1) -> Mesh:
    """The mesh that ``text`` says. Raises SpecError with all that is wrong with it."""
    place, problems = Position(f"--mesh {text}"[:200], 0, 0), Problems()
    sizes: dict[str, int] = {}
    for part in str(text).split(","):
        name, equals, size = (p.strip() for p in part.partition("="))
        if not equals or not _NAME.fullmatch(name) or not _SIZE.fullmatch(size):
            problems.add("bad-mesh", f"{shown(part.strip()[:80])} is no mesh axis", place, allowed=GRAMMAR)
        elif name in sizes:
            problems.add("mesh-axis-twice", f"mesh axis {name} is given twice", place, allowed=GRAMMAR)
        elif int(size) == 0 or int(size) > MOST:
            problems.add("bad-mesh", f"{name}={size}: a size is from 1 to {MOST:,}, or -1", place)
        elif len(name) > 60 or len(sizes) >= MOST_AXES:
            problems.add("bad-mesh", f"a mesh has at most {MOST_AXES} axes, with names of at most 60 letters", place)
        else:
            sizes[name] = int(size)
    rest = [name for name, size in sizes.items() if size == -1]
    if len(rest) > 1:
        problems.add("bad-mesh", f"only one axis may be -1, found {' and '.join(rest)}", place)
    sizes = _slices(sizes, slices, place, problems)
    problems.raise_if_any()
    return Mesh(sizes, place)


def _slices(sizes: dict[str, int], slices: int, place: Position, problems: Problems) -> dict[str, int]:
    """The axes over the data-centre network in front; they make as many groups as there are slices."""
    own = {name: size for name, size in sizes.items() if name.startswith(NETWORK)}
    if not 1 <= slices <= MOST:
        problems.add("bad-mesh", f"--slices {slices}: takes 1 or more", place)
        return sizes
    if not own:
        return {f"{NETWORK}data": slices, **sizes} if slices > 1 else sizes
    if any(size == -1 for size in own.values()):
        problems.add("bad-mesh", f"an axis over the data-centre network ({', '.join(own)}) needs a number", place)
    elif slices not in (1, math.prod(own.values())):
        message = f"{', '.join(f'{n}={s}' for n, s in own.items())} makes {math.prod(own.values())} slices"
        problems.add("mesh-size", f"{message}, and there are {slices}", place)
    return own | sizes


def slices(mesh: Mesh) -> int:
    """Groups of devices that only the data-centre network joins."""
    return math.prod(mesh.sizes[name] for name in mesh.network)


def divisors(n: int) -> list[int]:
    """All divisors, smallest first."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return small + [n // d for d in reversed(small) if d * d != n]


def _nearest(mesh: Mesh, devices: int) -> list[Mesh]:
    """Meshes of as many devices that differ in one axis, else in two, the least changed first."""
    known = {name: size for name, size in mesh.sizes.items() if size != -1}
    rest = [name for name, size in mesh.sizes.items() if size == -1]

    def changed(names: tuple[str, ...]) -> Iterator[dict[str, int]]:
        others = math.prod(size for name, size in known.items() if name not in names)
        if devices % others:
            return
        left = devices // others
        if rest:  # the -1 takes what is left over
            for d in divisors(left) if len(names) == 1 else ():
                yield {names[0]: d}
        elif len(names) == 1:
            yield {names[0]: left}
        else:
            yield from ({names[0]: d, names[1]: left // d} for d in divisors(left))

    def distance(new: Mapping[str, int]) -> float:
        return sum(abs(math.log(size / known[name])) for name, size in new.items())

    names = list(known)
    one = [new for name in names for new in changed((name,))]
    two = [new for i, a in enumerate(names) for b in names[i + 1 :] for new in changed((a, b))]
    found = sorted(one, key=distance) or sorted(two, key=distance)
    return [Mesh({**mesh.sizes, **new}, mesh.position) for new in found[:4]]
