"""Prices a phase graph: what its nodes compute and move, as formulas of batch, seq and capacity.

``price(graph)`` walks the graph once; ``Price.at(env)`` evaluates it on numbers or on NumPy arrays (then
every total is an array). FLOPs: 1 multiply-add = 2; lookups are no FLOPs; attention is counted as its chosen
implementation runs it. Bytes are counted twice over:

- unfused: every node reads its operands and writes its results;
- fused: element-wise ops, norms, reductions and reshapes ride with their neighbours; every other op reads its
  operands (parameters as stored) and writes its results once; parameters of the ops that ride are still read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from compiler.graph.ir import Graph, Node
from compiler.graph.sizes import ZERO, Size
from compiler.graph.types import DTYPE_BITS, TensorType
from compiler.ops.leaves import Leaf, Parameter, State
from compiler.ops.lookup import Lookup
from compiler.ops.packed import SCALE
from costmodel.origins import AS_WRITTEN, VIEWS, Origin, Stored, origins, stored_type

RIDES = VIEWS | frozenset(
    {
        "map",
        "norm",
        "softmax",
        "rotate",
        "sinusoid",
        "reduce",
        "expand",
        "concat",
        "slice",
        "pad",
        "shift",
        "positions",
        "distances",
    }
)


@dataclass(frozen=True)
class Item:
    """One node's price for one run, in FLOPs and bytes, and how often it runs in a call."""

    op: str
    path: str
    times: Size
    dtype: str  # of its first operand: the rate of its products
    rides: bool
    matrix: Size
    vector: Size
    transcendental: Size
    unfused: Size  # bytes read and written, node by node
    parameters: Size  # bytes of parameters read
    state: Size  # bytes of state read
    activations: Size  # other bytes of the fused estimate
    padding: Size  # FLOPs of products with padding, which ``matrix`` has not


@dataclass(frozen=True)
class Leaves:
    """One kind of stored thing: parameters, or a kind of state."""

    kind: str
    label: str
    type: TensorType  # as stored
    embedding: bool = False


@dataclass(frozen=True)
class Work:
    """Totals of one call; each field a number or an array. FLOPs and bytes."""

    matrix: Any = 0
    vector: Any = 0
    transcendental: Any = 0
    unfused: Any = 0
    parameters: Any = 0
    state: Any = 0
    activations: Any = 0
    padding: Any = 0

    @property
    def fused(self) -> Any:
        return self.parameters + self.state + self.activations

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f) + getattr(other, f) for f in FIELDS))


FIELDS = ("matrix", "vector", "transcendental", "unfused", "parameters", "state", "activations", "padding")


@dataclass(frozen=True)
class Price:
    """The priced nodes of a graph and its leaves."""

    items: tuple[Item, ...]
    parameters: tuple[Leaves, ...]
    states: tuple[Leaves, ...]
    origins: Mapping[int, Origin]

    @property
    def symbols(self) -> frozenset[str]:
        found: frozenset[str] = frozenset()
        for item in self.items:
            for f in FIELDS:
                found |= getattr(item, f).symbols
        for leaf in self.states:
            found |= leaf.type.elements.symbols
        return found

    def by(self, key: Callable[[Item], str], env: Mapping[str, Any]) -> dict[str, Work]:
        """Totals by what ``key`` says of an item, in graph order."""
        found: dict[str, Work] = {}
        for item in self.items:
            name = key(item)
            found[name] = found.get(name, Work()) + at(item, env)
        return found

    def at(self, env: Mapping[str, Any]) -> Work:
        """Totals of the whole call. Arrays broadcast; let them be float64: int64 overflows at 9.2e18."""
        return sum((at(item, env) for item in self.items), Work())

    def parameter_count(self, embedding: bool | None = None) -> int:
        """Elements; of embedding tables only, of all others, or of both. Scales of packed ones are no parameters."""
        own = [p for p in self.parameters if not p.label.endswith(SCALE)]
        chosen = [p for p in own if embedding is None or p.embedding == embedding]
        return int(sum(p.type.elements.constant for p in chosen))

    def parameter_bytes(self) -> dict[str, float]:
        """Bytes by stored dtype."""
        found: dict[str, float] = {}
        for p in self.parameters:
            found[p.type.dtype] = found.get(p.type.dtype, 0) + float(p.type.bytes.constant)
        return found

    def state_bytes(self, env: Mapping[str, Any]) -> dict[str, Any]:
        """Bytes by kind of state: cache, ring, recurrent, tail, context, length."""
        found: dict[str, Any] = {}
        for s in self.states:
            found[s.kind] = found.get(s.kind, 0) + s.type.bytes.evaluate(env)
        return found


def at(item: Item, env: Mapping[str, Any]) -> Work:
    """An item's totals over all its runs."""
    times = item.times.evaluate(env)
    return Work(*(getattr(item, f).evaluate(env) * times for f in FIELDS))


def price(graph: Graph, stored: Stored = AS_WRITTEN) -> Price:
    """The price of a graph whose leaves are stored as ``stored`` says."""
    found = origins(graph, stored)
    items = tuple(_item(node, Size.of(times), found) for node, times in graph.walk() if not isinstance(node.op, Leaf))
    tables = _looked_up(graph, found)
    parameters = []
    for node in graph.leaves(Parameter):
        assert isinstance(node.op, Parameter)
        t = node.result.type.with_dtype(stored.of(node))
        embedding = node.op.label in tables or any(axis in t.axes for axis in tables.values())
        parameters.append(Leaves("parameter", node.op.label, t, embedding))
    states = []
    for node in graph.leaves(State):
        assert isinstance(node.op, State)
        states.append(Leaves(node.op.kind, node.op.label, node.result.type.with_dtype(stored.of(node))))
    return Price(items, tuple(parameters), tuple(states), found)


def _looked_up(graph: Graph, found: Mapping[int, Origin]) -> dict[str, str]:
    """Tables that a lookup reads, with the axis that it looks up along."""
    tables: dict[str, str] = {}
    for node, _ in graph.walk():
        if isinstance(node.op, Lookup) and node.operands[0].id in found:
            tables[found[node.operands[0].id].label] = node.op.axis
    return tables


def _item(node: Node, times: Size, found: Mapping[int, Origin]) -> Item:
    op, outs = node.op, [v.type for v in node.results]
    ins = [stored_type(v, found) for v in node.operands]
    cost = op.cost(ins, outs)
    rides = op.name in RIDES
    dtype = node.operands[0].type.dtype if node.operands else "float32"
    item = Item(
        op.name,
        node.path,
        times,
        dtype,
        rides,
        cost.matrix,
        cost.vector,
        cost.transcendental,
        cost.read + cost.written,
        ZERO,
        ZERO,
        ZERO,
        cost.padding,
    )
    stores = {"parameter": ZERO, "state": ZERO}
    for i, v in enumerate(node.operands):
        if v.id in found and not (i == 0 and op.name in VIEWS):  # what reads a view reads what is behind it
            origin = found[v.id]
            stores[origin.kind] = stores[origin.kind] + _share(op, ins, outs, i)
    rest = ZERO if rides else cost.read + cost.written - stores["parameter"] - stores["state"]
    return replace(item, parameters=stores["parameter"], state=stores["state"], activations=rest)


def _share(op: Any, ins: Sequence[TensorType], outs: Sequence[TensorType], i: int) -> Size:
    """Bytes that an op reads of operand ``i``: reads are linear in each operand's width, so doubling it tells
    them without knowing which operands an op reads whole, in rows or not at all."""

    def read(dtype: str) -> Size:
        return op.cost([*ins[:i], ins[i].with_dtype(dtype), *ins[i + 1 :]], outs).read

    one_byte = read("float16") - read("int8")
    bits = DTYPE_BITS[ins[i].dtype]
    return one_byte * (bits // 8 if bits >= 8 else bits / 8)
