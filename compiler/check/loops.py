"""How often each instruction runs: the program is walked from its entry, and loops multiply.

CPU and GPU write a loop's trip count down. TPU does not: it is worked out from the condition, the start and the step,
which are sums of constants and of parts of the loop's tuple.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

from compiler.check.hlo import Computation, HloError, Instruction, Module

Path = tuple[int, ...]  # into a tuple

_SAME = {"copy", "bitcast", "convert", "reshape", "copy-done", "optimization-barrier", "broadcast"}
# What begins a computation beside others; the ends and steps name the same computation again. TPU 7x calls its sparse
# cores so.
STARTS = ("async-start", "call-start", "fusion-start")
_FLIPPED = {"GT": "LT", "GE": "LE"}


@dataclass(frozen=True)
class Linear:
    """A constant and multiples of the elements of a loop's tuple."""

    constant: int = 0
    terms: tuple[tuple[int, int], ...] = ()  # element, factor; sorted, without zeros

    def plus(self, other: Linear, factor: int = 1) -> Linear:
        terms = dict(self.terms)
        for element, times in other.terms:
            terms[element] = terms.get(element, 0) + factor * times
        kept = tuple(sorted((e, t) for e, t in terms.items() if t))
        return Linear(self.constant + factor * other.constant, kept)

    def times(self, factor: int) -> Linear:
        return Linear().plus(self, factor)


def element(index: int) -> Linear:
    return Linear(0, ((index, 1),))


@dataclass
class Scope:
    """A computation with what is known of its parameters."""

    module: Module
    computation: Computation
    parameter: Callable[[int, Path], Linear | None] = field(default=lambda number, path: None)
    known: dict[tuple[str, Path], Linear | None] = field(default_factory=dict)

    def value(self, name: str, path: Path = ()) -> Linear | None:
        """A scalar as a linear form; None when it is not one."""
        if (name, path) not in self.known:
            self.known[name, path] = self._value(name, path)
        return self.known[name, path]

    def _value(self, name: str, path: Path) -> Linear | None:
        i = self.computation.get(name)
        if i is None:
            return None
        if i.opcode == "parameter":
            return self.parameter(int(i.operand_text), path)
        if i.opcode == "constant":
            return Linear(int(i.operand_text)) if not path and _is_int(i.operand_text) else None
        if i.opcode == "get-tuple-element":
            return self.value(i.operands[0], (i.ints("index")[0], *path))
        if i.opcode == "tuple":
            return self.value(i.operands[path[0]], path[1:]) if path else None
        if i.opcode in _SAME:
            return self.value(i.operands[0], path)
        if i.opcode == "copy-start":  # copy, source, context
            return self.value(i.operands[0], path[1:])
        if i.opcode in ("add", "subtract", "multiply"):
            return self._arithmetic(i)
        if i.opcode in ("fusion", "call"):
            inside = self.inside(i)
            return inside.value(inside.root.name, path)
        if i.opcode == "while":
            return Loop(self, i).kept(path)
        return None

    def _arithmetic(self, i: Instruction) -> Linear | None:
        left, right = (self.value(name) for name in i.operands)
        if left is None or right is None:
            return None
        if i.opcode != "multiply":
            return left.plus(right, 1 if i.opcode == "add" else -1)
        if left.terms and right.terms:
            return None
        return left.times(right.constant) if left.terms else right.times(left.constant)

    def inside(self, i: Instruction) -> Scope:
        """What a fusion or a call runs."""
        names = i.called("calls", "to_apply")
        if not names:
            raise HloError(f"%{i.name} calls nothing")
        return Scope(self.module, self.module[names[0]], lambda n, path: self.value(i.operands[n], path))

    @property
    def root(self) -> Instruction:
        if self.computation.root is None:
            raise HloError(f"%{self.computation.name} has no root")
        return self.computation.root


def _is_int(text: str) -> bool:
    return text.removeprefix("-").isdigit()


@dataclass
class Loop:
    """A while instruction in its scope."""

    outer: Scope
    instruction: Instruction

    @cached_property
    def body(self) -> Scope:
        return self._part("body", lambda n, path: self.kept(path))

    @cached_property
    def condition(self) -> Scope:
        return self._part("condition", lambda n, path: self.kept(path))

    @cached_property
    def _turn(self) -> Scope:
        """The body with its tuple's elements as unknowns."""
        return self._part("body", lambda n, path: element(path[0]) if len(path) == 1 else None)

    def _part(self, key: str, parameter: Callable[[int, Path], Linear | None]) -> Scope:
        module = self.outer.module
        return Scope(module, module[self.instruction.called(key)[0]], parameter)

    def _start(self, path: Path) -> Linear | None:
        return self.outer.value(self.instruction.operands[0], path)

    def kept(self, path: Path) -> Linear | None:
        """The value of an element that every trip hands on as it came."""
        if len(path) != 1 or self._turn.value(self._turn.root.name, path) != element(path[0]):
            return None
        return self._start(path)

    @cached_property
    def written(self) -> int | None:
        """The trip count that the compiler wrote down."""
        known = self.instruction.backend_config.get("known_trip_count")
        return int(known["n"]) if isinstance(known, dict) and "n" in known else None

    @cached_property
    def trips(self) -> int | None:
        return self.written if self.written is not None else self.derived

    @cached_property
    def derived(self) -> int | None:
        """The trip count from condition, start and step; None when they do not say."""
        found = _comparison(self._part("condition", lambda n, path: element(path[0]) if len(path) == 1 else None))
        if found is None:
            return None
        difference, direction = found
        moving: tuple[int, int, int] | None = None  # factor, start, step
        fixed = difference.constant
        for index, factor in difference.terms:
            step, start = self._step(index), self._start((index,))
            if step is None or start is None or start.terms:
                return None
            if step == 0:
                fixed += factor * start.constant
            elif moving is None:
                moving = (factor, start.constant, step)
            else:
                return None
        if moving is None:
            return None
        factor, first, step = moving
        return _count(fixed + factor * first, factor * step, direction)

    def _step(self, index: int) -> int | None:
        """What one trip adds to an element."""
        after = self._turn.value(self._turn.root.name, (index,))
        if after is None:
            return None
        added = after.plus(element(index), -1)
        total = added.constant
        for other, factor in added.terms:
            kept = self.kept((other,))
            if kept is None or kept.terms:
                return None
            total += factor * kept.constant
        return total


def _comparison(scope: Scope) -> tuple[Linear, str] | None:
    """A condition as (form, direction): it holds while the form compares so with 0."""
    i = scope.root
    while i.opcode != "compare":
        if i.opcode in ("fusion", "call"):
            scope = scope.inside(i)
            i = scope.root
        elif i.opcode in _SAME:
            i = scope.computation[i.operands[0]]
        else:
            return None
    left, right = (scope.value(name) for name in i.operands)
    if left is None or right is None:
        return None
    direction = i.attributes["direction"]
    if direction in _FLIPPED:
        return right.plus(left, -1), _FLIPPED[direction]
    return left.plus(right, -1), direction


def _count(start: int, step: int, direction: str) -> int | None:
    """How often start, start + step, … passes before one does not; None for ever."""
    if direction in ("LT", "LE"):
        limit = -start - (1 if direction == "LT" else 0)  # the most that may be added
        if limit < 0:
            return 0
        return limit // step + 1 if step > 0 else None
    if direction == "NE":
        return -start // step if step and -start % step == 0 and -start // step >= 0 else None
    if direction == "EQ":
        return 0 if start else (1 if step else None)
    return None


@dataclass(frozen=True)
class Around:
    """Where in the running program a computation runs. ``times`` counts a loop without a known count once; ``exact`` is
    false then. ``place`` is the nearest computation that is no fusion, ``outer`` are those around that one;
    ``caller``: the fusion or call around it."""

    times: int = 1
    exact: bool = True
    place: str = ""
    outer: tuple[str, ...] = ()
    trips: tuple[int, ...] = ()  # of the loops around it, outermost first; 1 for an unknown one
    caller: Instruction | None = None
    asynchronous: bool = False
    branches: tuple[tuple[int, int], ...] = ()  # conditionals around it: which (a number of its own), which branch

    def inside(self, computation: str) -> Around:
        return replace(self, place=computation, outer=(*self.outer, self.place))


@dataclass(frozen=True, kw_only=True)
class Visit(Around):
    """One instruction of the running program."""

    computation: Computation
    instruction: Instruction


@dataclass(frozen=True)
class Trips:
    """A loop that the program runs ``times`` times, of ``trips`` each; None when the text does not say."""

    name: str
    op_name: str
    trips: int | None
    written: bool  # by the compiler; else worked out
    times: int


def walk(module: Module, loops: list[Trips] | None = None) -> Iterator[Visit]:
    """Every instruction that runs, once for each place it is called from; loops are added to ``loops``. All branches
    of a conditional are visited. The combiners of reductions are no part of it."""
    return _Walk(loops if loops is not None else []).run(Scope(module, module.entry), Around(place=module.entry.name))


@dataclass
class _Walk:
    loops: list[Trips]
    conditionals: int = 0

    def run(self, scope: Scope, at: Around) -> Iterator[Visit]:
        for i in scope.computation:
            yield Visit(computation=scope.computation, instruction=i, **vars(at))
            if i.opcode in ("fusion", "call", *STARTS):
                inside = scope.inside(i)
                within = at if i.opcode == "fusion" else at.inside(inside.computation.name)
                later = at.asynchronous or i.opcode in STARTS
                yield from self.run(inside, replace(within, caller=i, asynchronous=later))
            elif i.opcode == "while":
                yield from self._loop(Loop(scope, i), at)
            elif i.opcode == "conditional":
                self.conditionals += 1
                number = self.conditionals
                names = i.called("branch_computations", "true_computation", "false_computation")
                for branch, name in enumerate(names):
                    state = replace(at.inside(name), caller=None, branches=(*at.branches, (number, branch)))
                    yield from self.run(Scope(scope.module, scope.module[name]), state)

    def _loop(self, loop: Loop, at: Around) -> Iterator[Visit]:
        i, trips = loop.instruction, loop.trips
        self.loops.append(Trips(i.name, i.op_name, trips, loop.written is not None, at.times))
        known = 1 if trips is None else trips
        state = replace(at, exact=at.exact and trips is not None, trips=(*at.trips, known), caller=None)
        turns = at.times * known
        for part, times in ((loop.condition, turns + at.times), (loop.body, turns)):
            yield from self.run(part, replace(state.inside(part.computation.name), times=times))


def unexpected(loops: Iterable[Trips], depths: Iterable[int]) -> list[Trips]:
    """The loops whose count is unknown or none of ``depths``: what to look at before a count is believed."""
    allowed = set(depths)
    return [loop for loop in loops if loop.trips not in allowed]
