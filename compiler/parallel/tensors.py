"""The tensors of a graph as a strategy sees them: a class, axes, sizes in numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from compiler.errors import Problems
from compiler.graph.ir import Graph
from compiler.graph.types import TensorType
from compiler.ops.leaves import Argument, Constant, Parameter, State
from compiler.parallel.plan import Plan
from compiler.passes.call import missing_size

GRADIENT = "gradient:"  # what the names of a training graph's outputs begin with


@dataclass(frozen=True)
class Tensor:
    kind: str  # one of CLASSES
    label: str
    sizes: Mapping[str, int]
    symbols: Mapping[str, frozenset[str]]  # of the axes whose size is not the model's alone
    bytes: float

    def divided(self, plan: Plan) -> dict[str, tuple[str, ...]]:
        """axis -> mesh axes, major first: of each mesh axis's list the first axis that this tensor has. One position
        (decode) is never divided."""
        found: dict[str, tuple[str, ...]] = {}
        for m in plan.mesh:
            for axis in plan.axes(self.kind, m):
                if axis in self.sizes and not (axis == "seq" and self.sizes[axis] == 1):
                    found[axis] = (*found.get(axis, ()), m)
                    break
        return found

    def shards(self, plan: Plan) -> int:
        return math.prod(plan.mesh[m] for over in self.divided(plan).values() for m in over)


def is_training(graph: Graph) -> bool:
    return any(name.startswith(GRADIENT) for name, _ in graph.outputs)


def tensors(graph: Graph, sizes: Mapping[str, int], training: bool, problems: Problems) -> list[Tensor]:
    """Every leaf and every computed value, regions included. Values that only hand on another (arguments of regions)
    are left out. A size that ``sizes`` lacks becomes a problem."""
    found: list[Tensor] = []
    missing: set[str] = set()

    def add(kinds: Iterable[str], label: str, t: TensorType) -> None:
        lacks = {s for size in t.sizes for s in size.symbols if s not in sizes}
        if lacks:
            missing.update(lacks)
            return
        numbers = {a: int(size.evaluate(sizes)) for a, size in t.pairs}
        symbols = {a: size.symbols for a, size in t.pairs if size.symbols}
        taken = float(t.bytes.evaluate(sizes))
        found.extend(Tensor(kind, label, numbers, symbols, taken) for kind in kinds)

    stored = ("parameters", "gradients", "optimiser") if training else ("parameters",)
    for node, _ in graph.walk():
        op = node.op
        if isinstance(op, (Argument, Constant)):
            continue
        for value in node.results:
            if isinstance(op, Parameter):
                add(stored if op.trainable else stored[:1], op.label, value.type)
            elif isinstance(op, State):
                add(("state",), op.label, value.type)
            else:
                add(("activations",), node.path or op.text(), value.type)
    if missing:
        problems.put(missing_size(sorted(missing)))
    return found
