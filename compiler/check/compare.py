"""What was asked of the compiler against what it made: each collective of the graph is found again, found in another
form, changed, or missing; what nobody asked for is extra.

Counts are shared out: an expected collective that runs 46 times is equal to a loop of 45 and one peeled off. Nothing is
forgiven without a name: see ``NORMALISED``. A reduce-scatter that became an all-reduce moves twice the bytes, so it is
``changed``.
"""

from __future__ import annotations

import itertools
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from compiler.check.collectives import Collective, sent
from compiler.check.hlo import bits
from compiler.check.paths import under

Status = Literal["equal", "normalised", "changed", "missing", "extra"]
STATUSES: tuple[Status, ...] = ("equal", "normalised", "changed", "missing", "extra")
NORMALISED = {
    "promoted": "a narrow float travels as float32, as the CPU backend has it",
    "combined": "several became one of their bytes together",
    "split": "one became several of its bytes together",
    "merged": "equal gathers became one",
    "padded": "a reduce-scatter of a padded tensor, and a permute that puts the shards right, as TPU has it",
    "hoisted": "it left its loop: fewer runs, of the same tensor or of all trips' together",
}
CLOSE = 0.02  # bytes may differ by this part: padding
MOST_PADDING = 1 / 8  # of a reduce-scatter
MOST_TOGETHER = 4  # tensors that are tried as one
MOST_TRIED = 12  # candidates that such sets are looked for among

_DTYPES = {"bfloat16": "bf16", "bool": "pred"}
_DTYPE = re.compile(r"(float|uint|int)(\d+)(?:_(\w+))?")


def hlo_dtype(name: str) -> str:
    """``bfloat16`` or ``bf16`` as HLO writes it."""
    found = _DTYPE.fullmatch(name)
    if found is None:
        return _DTYPES.get(name, name)
    letter = {"float": "f", "uint": "u", "int": "s"}[found[1]]
    return f"{letter}{found[2]}{(found[3] or '').replace('_', '')}"


@dataclass(frozen=True)
class Expected:
    """A collective that a graph asks for. ``bytes`` are of one device and one run: of a gather the result, of all
    others the operand. ``value`` names what is moved, so that gathers of one value may be known as one."""

    kind: str
    axes: tuple[str, ...]
    dtype: str
    bytes: int
    count: int
    path: str  # of the node; empty when it is not known
    group: int  # devices
    value: str = ""
    shape: tuple[int, ...] = ()  # of the operand, on one device; empty when it is not known
    along: int | None = None  # which of its places is gathered or scattered

    @property
    def sent(self) -> int:
        return sent(self.kind, self.bytes, self.group)


@dataclass(frozen=True)
class Match:
    """``count`` runs of what was expected, and what they are in the program: ``taken`` runs of each found one."""

    status: Status
    expected: tuple[Expected, ...]
    found: tuple[Collective, ...]
    count: int
    how: tuple[str, ...] = ()  # normalisations
    note: str = ""
    cause: str = ""  # why it is not as asked, where that is known: see causes.py
    taken: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"found": [c.to_json() for c in self.found]}


@dataclass(frozen=True)
class Total:
    """Bytes that one device sends in one run of the program."""

    kind: str
    axes: tuple[str, ...] | None
    expected: int
    found: int

    @property
    def ratio(self) -> float | None:
        return self.found / self.expected if self.expected else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"ratio": self.ratio}


@dataclass(frozen=True)
class Comparison:
    matches: tuple[Match, ...]
    totals: tuple[Total, ...]

    @property
    def as_asked(self) -> bool:
        """Nothing changed, missing or extra."""
        return all(m.status in ("equal", "normalised") for m in self.matches)

    @property
    def runs(self) -> dict[Status, int]:
        """Collectives run, by status."""
        found = Counter[Status]()
        for m in self.matches:
            found[m.status] += m.count
        return {status: found[status] for status in STATUSES}

    def to_json(self) -> dict[str, Any]:
        return {
            "as_asked": self.as_asked,
            "runs": self.runs,
            "matches": [m.to_json() for m in self.matches],
            "totals": [t.to_json() for t in self.totals],
        }


def compare(expected: Iterable[Expected], found: Iterable[Collective]) -> Comparison:
    """Groups of one device move nothing and are left out on both sides."""
    asked = [e for e in expected if e.group > 1 and e.count > 0]
    made = [c for c in found if c.group > 1 and c.count > 0]
    return Comparison(tuple(_Matcher(asked, made).run()), _totals(asked, made))


def _totals(asked: Sequence[Expected], made: Sequence[Collective]) -> tuple[Total, ...]:
    sums: dict[tuple[str, tuple[str, ...] | None], list[int]] = {}
    for e in asked:
        sums.setdefault((e.kind, tuple(sorted(e.axes))), [0, 0])[0] += e.sent * e.count
    for c in made:
        axes = None if c.axes is None else tuple(sorted(c.axes))
        sums.setdefault((c.kind, axes), [0, 0])[1] += c.sent * c.count
    return tuple(Total(*key, *both) for key, both in sorted(sums.items(), key=lambda s: (s[0][0], s[0][1] or ())))


def _near(a: int, b: int) -> bool:
    return abs(a - b) <= CLOSE * max(a, b)


def _alike(e: Expected, c: Collective) -> bool:
    return e.kind == c.kind and _same_axes(e, c)


def _same_axes(e: Expected, c: Collective) -> bool:
    return c.axes is not None and set(e.axes) == set(c.axes)


def _factor(e: Expected, c: Collective) -> tuple[int, int] | None:
    """What the bytes grow by, as a ratio, when this travels as that; None when it never does."""
    dtype = hlo_dtype(e.dtype)
    if dtype == c.dtype:
        return 1, 1
    narrow = dtype[0] in "bf" and 0 < bits(dtype) < 32
    return (32, bits(dtype)) if narrow and c.dtype == "f32" else None


def _size(e: Expected, c: Collective) -> int | None:
    """The bytes of ``e`` in the dtype of ``c``."""
    factor = _factor(e, c)
    return None if factor is None else e.bytes * factor[0] // factor[1]


def _promoted(e: Expected, c: Collective) -> tuple[str, ...]:
    return () if hlo_dtype(e.dtype) == c.dtype else ("promoted",)


def _as_large(e: Expected, c: Collective) -> bool:
    size = _size(e, c)
    return size is not None and _near(size, c.bytes)


def _as_many(e: Expected, c: Collective, times: int = 1) -> bool:
    """As many numbers, of whatever dtype: what lost its path and was narrowed or widened."""
    return times * e.bytes * bits(c.dtype) == c.bytes * bits(hlo_dtype(e.dtype)) > 0


@dataclass
class _Matcher:
    """Both sides with the runs that are still to be explained; each rule takes from them."""

    asked: list[Expected]
    made: list[Collective]
    asked_left: list[int] = field(init=False)
    made_left: list[int] = field(init=False)
    matches: list[Match] = field(default_factory=list)
    single: dict[int, int] = field(default_factory=dict)  # of matches one to one: their place -> that of the asked

    def __post_init__(self) -> None:
        self.asked_left = [e.count for e in self.asked]
        self.made_left = [c.count for c in self.made]

    def run(self) -> list[Match]:
        def same(e: Expected, c: Collective) -> bool:
            return _alike(e, c) and _as_large(e, c)

        def exact(e: Expected, c: Collective) -> bool:
            return same(e, c) and not _promoted(e, c)

        def to_the_byte(e: Expected, c: Collective) -> bool:
            return _alike(e, c) and _size(e, c) == c.bytes

        # First those of the same bytes, alone and together: a small sum may have joined one that it hardly changes.
        self._pair("equal", lambda e, c: to_the_byte(e, c) and not _promoted(e, c))
        self._pair("normalised", to_the_byte)
        self._together(to_the_byte=True)
        self._pair("equal", exact)
        self._pair("normalised", same)
        self._padded()
        self._together()
        self._hoisted()
        self._merged()
        self._pair("changed", lambda e, c: _same_axes(e, c) and under(c.path, e.path), by_path=False)
        self._pair("changed", lambda e, c: under(c.path, e.path), by_path=False)
        self._pair("changed", lambda e, c: _same_axes(e, c) and _as_large(e, c), by_path=False)
        self._pair("changed", lambda e, c: _same_axes(e, c) and _as_many(e, c), by_path=False)
        self._hoisted_otherwise()
        for e, left in zip(self.asked, self.asked_left, strict=True):
            if left:
                self.matches.append(Match("missing", (e,), (), left))
        for c, left in zip(self.made, self.made_left, strict=True):
            if left:
                self.matches.append(Match("extra", (), (c,), left, taken=(left,)))
        return self.matches

    def _pair(self, status: Status, fits: Callable[[Expected, Collective], bool], by_path: bool = True) -> None:
        """One to one; first those that come from the same node."""
        taken: dict[int, dict[int, int]] = {}
        for near in (True, False) if by_path else (False,):
            for i, e in enumerate(self.asked):
                for j in self._left() if self.asked_left[i] else ():
                    c, count = self.made[j], min(self.asked_left[i], self.made_left[j])
                    if count and fits(e, c) and (not near or under(c.path, e.path)):
                        self._take((i,), (j,), count)
                        taken.setdefault(i, {})[j] = taken.get(i, {}).get(j, 0) + count
                        if not self.asked_left[i]:
                            break
        for i, parts in taken.items():
            e, found = self.asked[i], tuple(self.made[j] for j in parts)
            how = _promoted(e, found[0]) if status == "normalised" else ()
            note = "; ".join(dict.fromkeys(_difference(e, c) for c in found)) if status == "changed" else ""
            self.single[len(self.matches)] = i
            runs = tuple(parts.values())
            self.matches.append(Match(status, (e,), found, sum(runs), how, note, taken=runs))

    def _open(self) -> list[int]:
        return [i for i, left in enumerate(self.asked_left) if left]

    def _left(self) -> list[int]:
        return [j for j, left in enumerate(self.made_left) if left]

    def _take(self, asked: Iterable[int], made: Iterable[int], count: int) -> None:
        for i in asked:
            self.asked_left[i] -= count
        for j in made:
            self.made_left[j] -= count

    def _padded(self) -> None:
        """TPU pads what it scatters in equal spans; each device then hands its neighbour what lies beyond its shard."""
        for near in (True, False):
            for i in self._open():
                e = self.asked[i]
                for j in self._left() if e.kind == "reduce-scatter" else ():
                    c, count = self.made[j], min(self.asked_left[i], self.made_left[j])
                    size = _size(e, c) if count and _alike(e, c) else None
                    if size is None or (near and not under(c.path, e.path)):
                        continue
                    padding = c.bytes - size
                    if 0 < padding <= MOST_PADDING * size:
                        self._record((i,), (j, *self._shifts(c, padding, count)), ("padded", *_promoted(e, c)))

    def _shifts(self, c: Collective, padding: int, count: int) -> list[int]:
        def fits(j: int, other: Collective) -> bool:
            small = other.kind == "collective-permute" and other.bytes <= padding and not other.path
            return small and self.made_left[j] == count and other.axes == c.axes

        return [j for j, other in enumerate(self.made) if fits(j, other)][:1]

    def _together(self, to_the_byte: bool = False) -> None:
        """Several as one, and one as several."""
        fits = operator.eq if to_the_byte else _near
        for j in self._left():
            c = self.made[j]
            fitting = [i for i in self._open() if _alike(self.asked[i], c) and _factor(self.asked[i], c)]
            sizes = {i: _size(self.asked[i], c) or 0 for i in fitting}
            if self.made_left[j] and (together := _sum_to(sizes, c.bytes, self.asked_left, self.made_left[j], fits)):
                how = ("combined", *_promoted(self.asked[together[0]], c))
                self._record(together, (j,), how)
        for i in self._open():
            e = self.asked[i]
            fitting = [j for j in self._left() if _alike(e, self.made[j]) and _factor(e, self.made[j])]
            for dtype in dict.fromkeys(self.made[j].dtype for j in fitting):
                sizes = {j: self.made[j].bytes for j in fitting if self.made[j].dtype == dtype}
                size = _size(e, self.made[next(iter(sizes))]) or 0
                if self.asked_left[i] and (parts := _sum_to(sizes, size, self.made_left, self.asked_left[i], fits)):
                    self._record((i,), parts, ("split", *_promoted(e, self.made[parts[0]])))

    def _record(self, asked: Sequence[int], made: Sequence[int], how: tuple[str, ...]) -> None:
        count = min(*(self.asked_left[i] for i in asked), *(self.made_left[j] for j in made))
        self._take(asked, made, count)
        found = tuple(self.made[j] for j in made)
        both = tuple(self.asked[i] for i in asked), found
        self.matches.append(Match("normalised", *both, count, how, taken=(count,) * len(found)))

    def _hoisted(self) -> None:
        """Fewer runs: of one tensor (a sum of a loop's sums, a gather of what the loop does not change) or of all."""
        for k, i in self.single.items():
            m, e = self.matches[k], self.asked[i]
            runs = m.count
            left_loop = all(_left_loop(c) for c in m.found)
            if self.asked_left[i] and e.kind in ("all-reduce", "all-gather") and left_loop and not e.count % runs:
                self.asked_left[i] = 0
                self.matches[k] = _hoisting(e, m.found, e.count, m.taken)
        for i, j in itertools.product(self._open(), self._left()):
            e, c, runs, left = self.asked[i], self.made[j], self.asked_left[i], self.made_left[j]
            size = _size(e, c)
            fewer = 0 < left < runs and not runs % left
            if fewer and size and _alike(e, c) and _near(size * (runs // left), c.bytes):
                self.asked_left[i], self.made_left[j] = 0, 0
                self.matches.append(_hoisting(e, (c,), runs, (left,)))

    def _hoisted_otherwise(self) -> None:
        """Fewer runs of as many numbers together, in another dtype: other roundings, so it is changed."""
        for i, j in itertools.product(self._open(), self._left()):
            e, c, runs, left = self.asked[i], self.made[j], self.asked_left[i], self.made_left[j]
            if 0 < left < runs and not runs % left and _alike(e, c) and _as_many(e, c, runs // left):
                self.asked_left[i], self.made_left[j] = 0, 0
                note = f"{runs} runs became {left}, {c.dtype} in place of {hlo_dtype(e.dtype)}"
                self.matches.append(Match("changed", (e,), (c,), runs, (), note, taken=(left,)))

    def _merged(self) -> None:
        """A gather whose twin is in the program, taken already by the expectation of another node."""
        for i, e in enumerate(self.asked):
            if not self.asked_left[i] or e.kind != "all-gather":
                continue
            for twin in [m for m in self.matches if m.status in ("equal", "normalised") and m.count >= e.count]:
                other, c = twin.expected[0], twin.found[0]
                known = bool(e.value and other.value)
                if _alike(e, c) and _as_large(e, c) and (e.value == other.value or not known):
                    note = "" if known else "an equal gather is there; whether of the same value is not known"
                    how = ("merged", *_promoted(e, c))
                    self.matches.append(Match("normalised", (e,), (c,), self.asked_left[i], how, note, taken=(0,)))
                    self.asked_left[i] = 0
                    break


def _left_loop(c: Collective) -> bool:
    """Whether it was written in more loops than it runs in."""
    return c.path.count("while/body") > len(c.trips)


def _hoisting(e: Expected, found: tuple[Collective, ...], runs: int, taken: tuple[int, ...]) -> Match:
    how = ("hoisted", *_promoted(e, found[0]))
    return Match("normalised", (e,), found, runs, how, f"{runs} runs became {sum(taken)}", taken=taken)


def _sum_to(
    sizes: dict[int, int], wanted: int, left: Sequence[int], runs: int, fits: Callable[[int, int], bool] = _near
) -> tuple[int, ...]:
    """Two or more of those that run as often, whose sizes add up."""
    fitting = [i for i in sizes if left[i] == runs and sizes[i] < wanted]
    if len(fitting) > 1 and fits(sum(sizes[i] for i in fitting), wanted):
        return tuple(fitting)
    for count in range(2, MOST_TOGETHER + 1):
        for together in itertools.combinations(fitting[:MOST_TRIED], count):
            if fits(sum(sizes[i] for i in together), wanted):
                return together
    return ()


def _difference(e: Expected, c: Collective) -> str:
    """What is there in place of what was asked for."""
    over = "no mesh axes" if c.axes is None else "+".join(c.axes)
    said = []
    if e.kind != c.kind:
        said.append(f"{c.kind} in place of {e.kind}")
    if not _same_axes(e, c):
        said.append(f"over {over} in place of {'+'.join(e.axes)}")
    if hlo_dtype(e.dtype) != c.dtype:
        said.append(f"{c.dtype} in place of {hlo_dtype(e.dtype)}")
    if not _as_large(e, c):
        said.append(f"{c.bytes:,} bytes in place of {e.bytes:,}")
    return ", ".join(said) or "another count"
