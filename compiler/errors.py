"""Errors for people: every problem carries a code, a place, what was found, what is allowed and the nearest name.

Nothing here depends on another module of the project, so every floor can raise these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

MAX_NAMES = 500  # among which a nearest one is looked for
MAX_SHOWN = 24  # names and places of one problem that are printed


@dataclass(frozen=True, order=True)
class Position:
    """A place in a text file; lines and columns count from 1 (line 0: all of it, or what is no file)."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with an input."""

    code: str  # stable, kebab-case: "unknown-key", "duplicate-key", ...
    message: str  # what was found, in one sentence without a full stop
    position: Position | None = None
    allowed: tuple[str, ...] = ()
    suggestion: str | None = None  # the nearest valid name, or a short mend

    def __str__(self) -> str:
        return self.text()

    def text(self, also: Sequence[Position] = ()) -> str:
        """As people read it. ``also``: further places of the same problem."""
        where = f"{self.position}: " if self.position else ""
        text = f"{where}{self.message} [{self.code}]"
        if also:
            own = self.position.file if self.position else ""
            places = [f"{p.line}:{p.column}" if p.file == own and p.line else str(p) for p in also]
            more = f", … ({len(places)} in all)" if len(places) > MAX_SHOWN else ""
            text += f"\n    also at {', '.join(places[:MAX_SHOWN])}{more}"
        if self.suggestion:  # a name has no space, a mend is a phrase
            text += f"\n    {'try' if ' ' in self.suggestion else 'did you mean'}: {self.suggestion}"
        if self.allowed:
            more = f", … ({len(self.allowed)} in all)" if len(self.allowed) > MAX_SHOWN else ""
            shown = ", ".join(self.allowed[:MAX_SHOWN]) + more
            text += f"\n    allowed: {shown}"
        return text

    def as_json(self) -> dict[str, object]:
        return {
            "code": self.code,
            "message": self.message,
            "file": self.position.file if self.position else None,
            "line": (self.position.line or None) if self.position else None,
            "column": (self.position.column or None) if self.position else None,
            "allowed": list(self.allowed),
            "suggestion": self.suggestion,
        }


def gathered(problems: Iterable[Problem]) -> list[tuple[Problem, tuple[Position, ...]]]:
    """Each problem with the further places where it is the same: a misspelt name that is used ten times."""
    places: dict[Problem, list[Position]] = {}
    first: dict[Problem, Problem] = {}
    for problem in problems:
        same = replace(problem, position=None)
        if same in first and problem.position is not None:
            places[same].append(problem.position)
        else:
            first[same], places[same] = problem, []
    return [(problem, tuple(places[same])) for same, problem in first.items()]


class BlockgraphError(Exception):
    """Base of everything that a user can cause; the CLI prints its problems and exits with ``exit_code``."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem] | Problem | str, code: str = "error") -> None:
        if isinstance(problems, str):
            problems = Problem(code, problems)
        if isinstance(problems, Problem):
            problems = [problems]
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(p.text(also) for p, also in gathered(self.problems)))


class SpecError(BlockgraphError):
    """A spec that does not say a legal model."""


class PhaseError(BlockgraphError):
    """A legal model that cannot run the phase asked for (a block that looks ahead has no decode)."""


class WeightsError(BlockgraphError):
    """A weights file that does not fit the model."""


class TargetError(BlockgraphError):
    """A target that does not exist, cannot be compiled for here, or refused the program."""


class InternalError(TargetError):
    """What should not happen: a mistake in Blockgraph, not in what it was given."""

    exit_code = 70  # EX_SOFTWARE of sysexits.h


@dataclass
class Problems:
    """Collects problems so that a file's faults are all told in one run."""

    items: list[Problem] = field(default_factory=list)
    limit: int = 100

    def add(
        self,
        code: str,
        message: str,
        position: Position | None = None,
        *,
        allowed: Iterable[str] = (),
        suggestion: str | None = None,
    ) -> None:
        self.put(Problem(code, message, position, tuple(allowed), suggestion))

    def put(self, problem: Problem) -> None:
        """Adds a problem that is not there yet."""
        if not self.full and problem not in self.items:
            self.items.append(problem)

    @property
    def full(self) -> bool:
        """More would be noise; whoever looks for problems may stop."""
        return len(self.items) >= self.limit

    def raise_if_any(self, kind: type[BlockgraphError] = SpecError) -> None:
        if self.items:
            none = Position("", 0, 0)
            raise kind(sorted(self.items, key=lambda p: p.position or none))


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The valid name closest to ``name``, or None when nothing is close."""
    return _nearest(name[:100], tuple(names)[:MAX_NAMES])


@lru_cache(4096)
def _nearest(name: str, names: tuple[str, ...]) -> str | None:
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return found[0] if found else None
