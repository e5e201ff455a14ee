"""Strategies: files under ``specs/parallelism`` (or one's own), combined with ``+``, changed from the command line.

A strategy is an ordered list of rules "in tensors of this class this axis goes to these mesh axes". For each class and
mesh axis, of the axes that a tensor has, the first listed is divided. Files combine in order: what a later one says of
a mesh axis comes after what the earlier ones said.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from compiler.errors import Position, Problem, Problems, SpecError, nearest
from compiler.language.scope import shown
from compiler.parallel import strategy_file
from compiler.parallel.plan import CLASSES
from compiler.source.yaml import YMap, load_file, load_text

MOST_PARTS = 16
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Rule:
    """In tensors of class ``kind`` the axis is divided over these mesh axes."""

    kind: str
    axis: str
    over: tuple[str, ...]
    position: Position
    given: bool = False  # by --shard: then an axis that no tensor has is an error

    def __str__(self) -> str:
        return f"{self.kind}.{self.axis}={'+'.join(self.over) or 'none'}"


@dataclass(frozen=True)
class Strategy:
    """Rules in order of preference. ``replicated``: axes that the command line asked to keep whole, with the place
    that says so; ``unruled``: axes that ``--shard axis=none`` took out. Both are checked against the graph later."""

    name: str
    about: tuple[str, ...]
    mesh: tuple[str, ...]
    rules: tuple[Rule, ...]
    replicated: tuple[tuple[str, Position], ...] = ()
    unruled: tuple[tuple[str, Position], ...] = ()

    def rule(self, kind: str, axis: str, mesh_axis: str) -> Rule | None:
        """The rule that sends an axis of a class to a mesh axis."""
        return next((r for r in self.rules if (r.kind, r.axis) == (kind, axis) and mesh_axis in r.over), None)

    def table(self, mesh: Iterable[str]) -> dict[str, dict[str, tuple[str, ...]]]:
        """class -> mesh axis -> axes in order of preference, for the mesh axes given."""
        wanted = tuple(mesh)
        found: dict[str, dict[str, tuple[str, ...]]] = {kind: {} for kind in CLASSES}
        for kind in CLASSES:
            for m in wanted:
                axes = dict.fromkeys(r.axis for r in self.rules if r.kind == kind and m in r.over)
                if axes:
                    found[kind][m] = tuple(axes)
        return found

    def without(self, axis: str, kinds: Sequence[str] = CLASSES) -> Strategy:
        """The same with the axis whole everywhere (in these classes)."""
        return replace(self, rules=tuple(r for r in self.rules if r.axis != axis or r.kind not in kinds))

    def combine(self, other: Strategy) -> Strategy:
        """This one's rules, then the other's."""
        mesh = tuple(dict.fromkeys((*self.mesh, *other.mesh)))
        return Strategy(
            f"{self.name}+{other.name}",
            (*self.about, *other.about),
            mesh,
            (*self.rules, *other.rules),
            (*self.replicated, *other.replicated),
            (*self.unruled, *other.unruled),
        )

    def override(self, shard: Sequence[str] = (), replicate: Sequence[str] = ()) -> Strategy:
        """With what the command line says: ``axis=mesh``, ``class.axis=mesh``, ``axis=mesh+mesh``, ``axis=none``, and
        axes to keep whole. An axis given here forgets what the files say of it and comes first in its mesh axis.
        Raises SpecError."""
        problems, made = Problems(), self
        first: list[Rule] = []
        for text in shard:
            place = Position(f"--shard {text}", 0, 0)
            found = _override(text, place, problems)
            if found is None:
                continue
            kinds, axis, over = found
            made = made.without(axis, kinds)
            first = [r for r in first if r.axis != axis or r.kind not in kinds]
            first += [Rule(kind, axis, over, place, True) for kind in kinds if over]
            if not over:
                made = replace(made, unruled=(*made.unruled, (axis, place)))
        whole = []
        for axis in (a.strip() for text in replicate for a in text.split(",")):
            place = Position(f"--replicate {axis}", 0, 0)
            if not _IDENTIFIER.fullmatch(axis):
                problems.add("bad-option", f"{shown(axis)} is no axis name", place, suggestion="write --replicate axis")
            elif clash := next((r for r in first if r.axis == axis), None):
                message = f"{axis} is to be whole, and {clash.position.file} divides it"
                problems.add("conflicting-options", message, place)
            whole.append((axis, place))
        problems.raise_if_any()
        mesh = tuple(dict.fromkeys((*made.mesh, *(m for r in first for m in r.over))))
        return replace(made, rules=(*first, *made.rules), mesh=mesh, replicated=(*made.replicated, *whole))


def _override(text: str, place: Position, problems: Problems) -> tuple[tuple[str, ...], str, tuple[str, ...]] | None:
    left, equals, right = (part.strip() for part in text.partition("="))
    kind, dot, axis = left.rpartition(".")
    over = tuple(part.strip() for part in right.split("+"))
    names = [axis, *over]
    if not equals or (dot and not kind) or not all(_IDENTIFIER.fullmatch(n) for n in names):
        forms = ("axis=mesh", "class.axis=mesh", "axis=mesh+mesh", "axis=none")
        problems.add("bad-option", f"{shown(text)} is no rule", place, allowed=forms)
        return None
    if kind and kind not in (*CLASSES, "all"):
        message = f"no class of tensors is called {kind}"
        problems.add("unknown-class", message, place, allowed=CLASSES, suggestion=nearest(kind, CLASSES))
        return None
    if len(set(over)) != len(over):
        problems.add("mesh-axis-twice", f"{right} names a mesh axis twice", place)
        return None
    return (kind,) if kind in CLASSES else CLASSES, axis, () if over == ("none",) else over


# -- finding and reading
def strategies_folder() -> Path:
    """The folder of shipped strategies."""
    return Path(str(importlib.resources.files("specs"))) / "parallelism"


def strategies() -> tuple[str, ...]:
    """Names of the strategies that are shipped."""
    return tuple(sorted(p.stem for p in strategies_folder().glob("*.yaml")))


def load(text: str | Path, shard: Sequence[str] = (), replicate: Sequence[str] = ()) -> Strategy:
    """The strategy that names and paths joined by ``+`` say (``fsdp+tensor``, ``mine.yaml``), with the command line's
    changes. Raises SpecError with all problems found."""
    whole = str(text).strip()
    parts = [whole] if _is_path(whole) and Path(whole).is_file() else [p.strip() for p in whole.split("+")]
    problems, found = Problems(), []
    if len(parts) > MOST_PARTS:
        raise SpecError(Problem("too-large", f"a strategy combines at most {MOST_PARTS} files", None))
    for i, part in enumerate(parts):
        if part in parts[:i]:
            problems.add("duplicate-strategy", f"{shown(part)} is named twice in {shown(whole)}")
            continue
        try:
            found.append(_read(part))
        except SpecError as e:
            problems.items.extend(e.problems)
    problems.raise_if_any()
    made = found[0]
    for other in found[1:]:
        made = made.combine(other)
    return made.override(shard, replicate)


def loads(text: str, file: str = "<strategy>") -> Strategy:
    """The strategy of one file's text."""
    problems = Problems()
    raw = load_text(text, file, problems)
    problems.raise_if_any()
    assert raw is not None
    return _checked(raw, problems)


def _is_path(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) or "/" in name


def _read(name: str) -> Strategy:
    known = strategies()
    if name in known:
        return _shipped(name)
    if not _is_path(name):
        said = "no strategy is named" if not name else f"no strategy is called {shown(name[:200])}"
        raise SpecError(Problem("unknown-strategy", said, None, known, nearest(name, known)))
    problems = Problems()
    raw = load_file(Path(name), problems)
    problems.raise_if_any()
    assert raw is not None
    return _checked(raw, problems)


@lru_cache
def _shipped(name: str) -> Strategy:
    problems = Problems()
    raw = load_file(strategies_folder() / f"{name}.yaml", problems, f"specs/parallelism/{name}.yaml")
    problems.raise_if_any()
    assert raw is not None
    return _checked(raw, problems)


def _checked(raw: YMap, problems: Problems) -> Strategy:
    found = strategy_file.check(raw, problems)
    problems.raise_if_any()
    assert found is not None
    rules = []
    for kind in CLASSES:
        for section in ("all", kind):
            for axis, over in getattr(found, section).items():
                rules.append(Rule(kind, axis, tuple(over), strategy_file.place(raw, section, axis)))
    return Strategy(found.name, (found.about,), tuple(found.mesh), tuple(rules))


def json_schema() -> dict[str, Any]:
    """The JSON Schema of strategy files."""
    return strategy_file.json_schema()
