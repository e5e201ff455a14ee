"""What a picture is made of: boxes and the clusters around them, and the edges between boxes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from compiler.graph.ir import Node
from compiler.graph.types import TensorType
from compiler.ops.leaves import Layers

BOX, JOIN, PILL, INPUT, OUTPUT, FORK = "box", "join", "function", "input", "output", "fork"
GROUP, REPEAT = "group", "repeat"


@dataclass(eq=False, repr=False)
class Item:
    """A box, a small join or function, an input or output; or a cluster (group, repeat) with ``children``."""

    kind: str
    name: str
    path: str = ""
    parent: Item | None = None
    times: int = 1
    extra: int = 0  # further runs: a cycle that is cut short
    tail: str = ""  # in words
    stacked: bool = False  # the parts of a cycle stand one below the other, not side by side
    scan: bool = False  # a repeat of the graph; others are folded layers
    level: int = 0  # repeats of the graph around it, its own included
    children: list[Item] = field(default_factory=list)
    ops: list[Node] = field(default_factory=list)
    weights: dict[str, int] = field(default_factory=dict)  # own parameters by label: elements over all layers
    borrowed: dict[str, str] = field(default_factory=dict)  # parameters of another box: label -> path
    numbers: dict[int, float] = field(default_factory=dict)  # constants that its ops take, by value
    frozen: bool = False
    states: list[tuple[str, TensorType]] = field(default_factory=list)  # (kind, type of one layer)
    others: list[Item] = field(default_factory=list)  # alike but for their options, folded into this one
    stacks: set[tuple[Layers, ...]] = field(default_factory=set)  # of the parameters
    type: TensorType | None = None  # inputs and outputs
    # while the tree is built: children by path component, what was seen, and the last of it
    open: dict[str, Item] = field(default_factory=dict)
    seen: set[object] = field(default_factory=set)
    last: object = None

    @property
    def is_cluster(self) -> bool:
        return self.kind in (GROUP, REPEAT)

    def add(self, child: Item) -> Item:
        child.parent = self
        child.level = self.level + (child.kind == REPEAT)
        self.children.append(child)
        return child

    def walk(self) -> Iterator[Item]:
        """This item and all below it, outer first."""
        yield self
        for child in self.children:
            yield from child.walk()

    def above(self) -> Iterator[Item]:
        """The clusters around this item, inner first."""
        if self.parent is not None:
            yield self.parent
            yield from self.parent.above()

    def runs(self) -> int:
        """How often this item runs: the product of the repeats around it, its own included."""
        return self.times * (1 if self.parent is None else self.parent.runs()) + self.extra

    def layers(self) -> list[int]:
        """The numbers of the layers that it holds, from its parameters."""
        found: set[int] = set()
        for box in self.walk():
            for stack in box.stacks:
                written_out = not self.scan and stack[-1].count == 1 and box.level == self.level
                one = stack[-1] if written_out else stack[min(max(self.level - 1, 0), len(stack) - 1)]
                found |= set(range(one.start, one.start + one.step * one.count, one.step))
        return sorted(found)

    def total(self) -> int:
        """Parameters of this item and all below, over all layers."""
        return sum(sum(i.weights.values()) for i in self.walk())

    def all_frozen(self) -> bool:
        owners = [i for i in self.walk() if i.weights]
        return bool(owners) and all(i.frozen for i in owners)


@dataclass(eq=False, repr=False)
class Edge:
    source: Item
    target: Item
    type: TensorType
    side: bool = False  # not the box's main input: cross-attention's context
