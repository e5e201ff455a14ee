"""How one of a checkpoint's tensors holds one or several of ours, in a small language that is its own reverse.

    embed mlp                    our axes, in the checkpoint's order
    out in                       of a linear map: its outputs, its inputs, each flattened in our order
    (heads head_dim) embed       parentheses merge axes into one of theirs
    channel 1 window             1 is an axis of one entry that we do not have
    {} embed                     a fused tensor: {} takes what the layout does not name, the parts one after another
    (kv_heads {} head_dim) in    the parts interleaved: for each key head its queries, its key, its value

Where a part has no axis of a named place (the query has ``heads``, not ``kv_heads``), the first of its axes at {}
that divides is split: heads -> kv_heads × (heads / kv_heads).

Every layout is a chain of splits, one transpose and one slice, so a view of our array in the checkpoint's order
serves loading and export alike.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from compiler.errors import nearest

PARTS = "{}"
PER = frozenset({"experts", "blocks"})  # independent copies of a linear map: not its inputs
_TOKEN = re.compile(r"\s*(\{\}|[()]|[A-Za-z_]\w*|1(?!\w)|\S+)")


class LayoutFault(Exception):
    """A layout that does not say a legal arrangement; the caller adds the place in the spec."""

    def __init__(self, message: str, allowed: Sequence[str] = (), suggestion: str | None = None) -> None:
        super().__init__(message)
        self.message, self.allowed, self.suggestion = message, tuple(allowed), suggestion


@dataclass(frozen=True)
class Layout:
    """One tuple of names for each axis of the checkpoint's tensor."""

    places: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        return " ".join(p[0] if len(p) == 1 else f"({' '.join(p)})" for p in self.places)

    @property
    def fused(self) -> bool:
        return any(PARTS in p for p in self.places)


@dataclass(frozen=True)
class Part:
    """One of our tensors, without the axes that are spread over tensors. ``inputs``: how many axes are a linear
    map's inputs; ``paired``: an axis whose rotary pairs the checkpoint stores side by side."""

    name: str
    axes: tuple[tuple[str, int], ...]
    inputs: int | None = None
    paired: str | None = None


@dataclass(frozen=True)
class Recipe:
    """Where one part lies in a tensor of ``shape``. ``split`` is our shape with some axes cut in two; ``order``
    transposes it into the checkpoint's order; ``full`` is their shape with merged axes apart, of which the part
    takes ``cut`` (axis, start, stop)."""

    shape: tuple[int, ...]
    full: tuple[int, ...]
    first: int  # how many axes of ``full`` make up their first axis
    cut: tuple[int, int, int] | None
    split: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def inner(self) -> tuple[int, ...]:
        """The part's own shape in the checkpoint's order."""
        return tuple(self.split[i] for i in self.order)

    def view(self, ours: np.ndarray) -> np.ndarray:
        """Our array seen in the checkpoint's order; writing to the view writes to ``ours``."""
        return ours.reshape(self.split).transpose(self.order)

    def steps(self, limit: int) -> Iterator[tuple[slice, slice]]:
        """(rows of their first axis, slice of the view's first axis) pairs of about ``limit`` elements each."""
        rest = math.prod(self.full[1 : self.first])
        start, per_step = 0, rest
        if self.cut and self.cut[0] == 0:  # the view's first axis is only a part of theirs
            start = self.cut[1] * rest
            per_step = (self.cut[2] - self.cut[1]) // self.inner[0] * rest
        count = max(1, limit // max(1, per_step * math.prod(self.shape[1:])))
        for a in range(0, self.inner[0], count):
            b = min(a + count, self.inner[0])
            yield slice(start + a * per_step, start + b * per_step), slice(a, b)

    def own(self, rows: np.ndarray, count: int) -> np.ndarray:
        """The part's own entries, a view [count, *inner[1:]], of ``rows`` that ``steps`` gave."""
        if self.cut is None or self.cut[0] == 0:
            return rows.reshape(count, *self.inner[1:])
        axis, start, stop = self.cut
        apart = rows.reshape(count, *self.full[1:])
        return apart[(slice(None),) * axis + (slice(start, stop),)].reshape(count, *self.inner[1:])


def parse(text: str) -> Layout:
    """A layout from its text. Raises LayoutFault."""
    places: list[tuple[str, ...]] = []
    group: list[str] | None = None
    for token in _TOKEN.findall(text):
        if token == "(" and group is None:
            group = []
        elif token == ")" and group:
            places.append(tuple(group))
            group = None
        elif token in "()":
            raise LayoutFault(f"brackets of '{text}' do not pair up around axes")
        elif token not in (PARTS, "1") and not token.isidentifier():
            raise LayoutFault(f"'{token}' is no axis in '{text}'", ("axis names", "in", "out", "1", PARTS, "( )"))
        elif group is not None:
            group.append(token)
        else:
            places.append((token,))
    if group is not None:
        raise LayoutFault(f"a bracket of '{text}' is never closed")
    names = [n for n in chain.from_iterable(places) if n != "1"]
    if twice := {n for n in names if names.count(n) > 1}:
        raise LayoutFault(f"'{text}' names {', '.join(sorted(twice))} twice")
    return Layout(tuple(places))


def standard(part: Part, linear: str) -> Layout:
    """The layout of a mapping line without one: the file's for linear maps, our order for plain tensors."""
    if part.inputs == 0:  # a bias
        return parse("out")
    return parse(linear if part.inputs is not None else " ".join(a for a, _ in part.axes))


@functools.lru_cache(maxsize=4096)
def _resolve(layout: Layout, parts: tuple[Part, ...], dims: tuple[tuple[str, int], ...]) -> tuple[Recipe, ...]:
    sizes = dict(dims)
    for part in parts:
        sizes.update(part.axes)
    placed = [_Placed(layout, part, sizes) for part in parts]
    fused = sum(p.width for p in placed)
    recipes, start = [], 0
    for p in placed:
        recipes.append(p.recipe(fused, start))
        start += p.width
    for p, recipe in zip(placed, recipes, strict=True):
        if recipe.shape != recipes[0].shape:
            raise LayoutFault(f"{p.part.name} would lie in a tensor {list(recipe.shape)}, but {parts[0].name} in "
                              f"{list(recipes[0].shape)}: the parts of '{layout}' differ outside {PARTS}")  # fmt: skip
    return tuple(recipes)


def resolve(layout: Layout, parts: Sequence[Part], dims: Mapping[str, int]) -> tuple[Recipe, ...]:
    """One recipe for each part. ``dims`` gives sizes of axes that only the layout names. Raises LayoutFault."""
    if len(parts) > 1 and not layout.fused:
        raise LayoutFault(
            f"a fused tensor's layout needs {PARTS} where the parts lie, found '{layout}'", (f"{PARTS} in",)
        )
    named = {n for place in layout.places for n in place}
    return _resolve(layout, tuple(parts), tuple(sorted((k, v) for k, v in dims.items() if k in named)))


def places(layout: Layout, part: Part, dims: Mapping[str, int]) -> list[tuple[str, ...]]:
    """The layout with `in` and `out` replaced by the part's axes."""
    return _Placed(layout, part, dims).places


_Factor = tuple[str, str]  # (our axis, which part of it: "" all, "outer" and "inner", "two" and "half")


class _Placed:
    """One part's factors, place by place."""

    def __init__(self, layout: Layout, part: Part, sizes: Mapping[str, int]) -> None:
        self.layout, self.part, self.own = layout, part, dict(part.axes)
        self.places = [tuple(chain.from_iterable(self._names(n) for n in p)) for p in layout.places]
        named = [n for p in self.places for n in p if n not in (PARTS, "1")]
        self.free = [a for a in self.own if a not in named]
        foreign = [n for n in named if n not in self.own]
        if (self.free and not layout.fused) or (foreign and not layout.fused) or len(set(named)) != len(named):
            self._refuse(foreign)
        self.split_by: dict[str, tuple[str, int]] = {}  # our axis -> (their name of its outer part, its size)
        for name in foreign:
            if name not in sizes:
                self._refuse([name])
            fitting = [a for a in self.free if self.own[a] % sizes[name] == 0 and a not in self.split_by]
            if not fitting:
                raise LayoutFault(f"'{layout}': {part.name} has no axis that divides into {name} = {sizes[name]}",
                                  [f"{a} = {n}" for a, n in part.axes])  # fmt: skip
            self.split_by[fitting[0]] = (name, sizes[name])
        if part.paired and (part.paired not in self.own or self.own[part.paired] % 2 or part.paired in self.split_by):
            raise LayoutFault(f"pairs: {part.name} has no even axis {part.paired}", list(self.own))
        self.width = math.prod(self._size(f) for f in self._free()) if layout.fused else 0

    def _names(self, name: str) -> Sequence[str]:
        """The axes that a word of the layout stands for."""
        if name not in ("in", "out"):
            return (name,)
        axes, count = list(self.own), self.part.inputs
        if count is None:
            raise LayoutFault(f"'{self.layout}': {self.part.name} is a plain tensor and has no {name}", axes)
        named = {n for p in self.layout.places for n in p}
        side = [a for a in axes[:count] if a not in PER] if name == "in" else axes[count:]
        left = [a for a in side if a not in named]
        if side and not left:
            raise LayoutFault(f"'{self.layout}': {self.part.name} has no {name} that is not named already", axes)
        return left or ["1"]  # a map to one number: torch keeps an axis for it

    def _refuse(self, foreign: Sequence[str]) -> None:
        missing = f" has no place for {', '.join(self.free)}" if self.free and not self.layout.fused else ""
        unknown = f" names {', '.join(foreign)}, which is no axis of it" if foreign else ""
        text = " and".join(t for t in (unknown, missing) if t) or " names an axis twice"
        hint = nearest(foreign[0], self.own) if foreign else None
        raise LayoutFault(f"{self.part.name}: layout '{self.layout}'{text}", [*self.own, "in", "out"], hint)

    def _size(self, factor: _Factor) -> int:
        axis, piece = factor
        whole = 1 if piece == "one" else self.own[axis]
        if piece in ("two", "half"):
            return 2 if piece == "two" else whole // 2
        if piece in ("outer", "inner"):
            outer = self.split_by[axis][1]
            return outer if piece == "outer" else whole // outer
        return whole

    def _theirs(self, axis: str) -> list[_Factor]:
        return [(axis, "half"), (axis, "two")] if axis == self.part.paired else [(axis, "")]

    def _free(self) -> list[_Factor]:
        """The factors at {}."""
        found: list[_Factor] = []
        for axis in self.free:
            found += [(axis, "inner")] if axis in self.split_by else self._theirs(axis)
        return found or [("{}", "one")]

    def recipe(self, fused: int, start: int) -> Recipe:
        outer = {name: axis for axis, (name, _) in self.split_by.items()}
        ours: list[_Factor] = []
        for axis in self.own:
            if axis in self.split_by:
                ours += [(axis, "outer"), (axis, "inner")]
            else:
                ours += self._theirs(axis)[::-1]  # ours is half-split: the two halves are the outer factor
        inner: list[_Factor] = []
        full: list[int] = []
        shape: list[int] = []
        cut, first = None, 1
        for place in self.places:
            before = len(full)
            for name in place:
                if name == PARTS:
                    cut = (len(full), start, start + self.width)
                    full.append(fused)
                    inner += self._free()
                    continue
                factors: list[_Factor]
                factors = (
                    [(f"1.{len(inner)}", "one")]
                    if name == "1"
                    else [(outer[name], "outer")]
                    if name in outer
                    else self._theirs(name)
                )
                full += [self._size(f) for f in factors]
                inner += factors
            shape.append(math.prod(full[before:]))
            first = len(full) if len(shape) == 1 else first
        if not inner:  # a scalar
            inner, full = [("1", "one")], [1]
        ours += [f for f in inner if f[1] == "one"]
        split = tuple(self._size(f) for f in ours)
        order = tuple(ours.index(f) for f in inner)
        return Recipe(tuple(shape), tuple(full), first, cut, split, order)
