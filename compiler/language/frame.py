"""One body being elaborated: its builder, scope and named values. Frames nest as blocks do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compiler.errors import nearest
from compiler.graph.ir import Value
from compiler.language.env import Env
from compiler.language.scope import Fault


@dataclass
class Numbering:
    """The layer numbers of a chain run on through its repeats."""

    next_layer: int = 0


@dataclass
class Frame:
    env: Env
    values: dict[str, Value | None]  # named values of this body; None: failed, already told
    outer: Frame | None = None
    defs: Mapping[str, Any] = field(default_factory=dict)  # blocks of the spec
    seen: dict[str, int] = field(default_factory=dict)
    ambiguous: set[str] = field(default_factory=set)
    numbering: Numbering = field(default_factory=Numbering)
    stack: tuple[str, ...] = ()  # blocks being expanded, to find cycles
    in_cycle: bool = False
    transparent: bool = False  # the body is one unnamed node: it adds no name of its own
    paths: dict[str, str] = field(default_factory=dict)  # node name -> path, for `share`

    def lookup(self, name: str) -> Value | None:
        """A named value here or outside. Raises Fault with the nearest name."""
        frame: Frame | None = self
        while frame is not None:
            if name in frame.values:
                return frame.values[name]
            frame = frame.outer
        known = self.known()
        unnamed = self.unnamed(name)
        hint = f"give the {name} node a name: {{{name}: …, name: …}}" if unnamed else nearest(name, known)
        raise Fault("unknown-node", f"no node or input is called {name}", tuple(known), hint)

    def unnamed(self, kind: str) -> bool:
        """Is a node of this kind here that can be meant, but has no name?"""
        frame: Frame | None = self
        while frame is not None and kind not in frame.paths:
            frame = frame.outer
        return frame is not None

    def known(self) -> list[str]:
        names: set[str] = set()
        frame: Frame | None = self
        while frame is not None:
            names |= set(frame.values)
            frame = frame.outer
        return sorted(n for n in names if not n.endswith("_lengths"))

    def local_name(self, kind: str, name: str | None) -> str:
        """The path component of a node: its name, or its kind, numbered when a body has several."""
        if name:
            return name
        if self.transparent:
            return ""
        if self.in_cycle:
            return kind
        self.seen[kind] = self.seen.get(kind, 0) + 1
        if self.seen[kind] == 1:
            return kind
        prefix = f"{self.env.b.path}." if self.env.b.path else ""
        self.ambiguous |= {prefix + kind, f"{prefix}{kind}_{self.seen[kind]}"}
        return f"{kind}_{self.seen[kind]}"
