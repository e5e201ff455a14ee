"""A plan: what the partition pass follows. Made from a strategy (specs/parallelism) and a mesh by ``resolve``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

CLASSES = ("parameters", "optimiser", "gradients", "activations", "state")

Rules = Mapping[str, tuple[str, ...]]  # mesh axis -> axes in order of preference: a tensor's first one is sharded


@dataclass(frozen=True)
class Plan:
    """``mesh``: mesh axis -> size, major first. ``rules``: for each class of tensors (``CLASSES``) the axes that go
    to each mesh axis: of those that a tensor has, the first. An axis listed under several mesh axes is sharded over
    all of them, the first mesh axis outermost."""

    mesh: Mapping[str, int]
    rules: Mapping[str, Rules] = field(default_factory=dict)

    def axes(self, kind: str, mesh_axis: str) -> tuple[str, ...]:
        return self.rules.get(kind, {}).get(mesh_axis, ())

    @property
    def devices(self) -> int:
        total = 1
        for n in self.mesh.values():
            total *= n
        return total

    @staticmethod
    def of(axes: Mapping[str, str], mesh: Mapping[str, int]) -> Plan:
        """The same axes for every class: axis -> mesh axis."""
        rules = {m: tuple(a for a, over in axes.items() if over == m) for m in mesh}
        return Plan(dict(mesh), dict.fromkeys(CLASSES, rules))
