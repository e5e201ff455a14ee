"""Trace: every node's value in one forward pass, in short; and the first that differs from a reference file."""

from __future__ import annotations

import dataclasses
import itertools
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from runtime import device

device.prepare()

import jax  # noqa: E402
import numpy as np  # noqa: E402

from compiler.errors import BlockgraphError, Problem  # noqa: E402
from compiler.graph.ir import Graph, Node, Value  # noqa: E402
from compiler.language.model import Model  # noqa: E402
from compiler.lower.program import program  # noqa: E402
from compiler.ops.control import Repeat  # noqa: E402
from compiler.ops.control import stack as stacked  # noqa: E402
from compiler.ops.leaves import Layers, Parameter  # noqa: E402
from runtime.weights.packing import packed_arrays  # noqa: E402


@dataclass(frozen=True)
class Record:
    """A node's value. ``name``: that of the value where it has one in the spec (a block's result, a line of a
    program), else its path and op; then the layer's number in brackets (in nested repeats several), and #2, #3 …
    where the name comes again. ``alias``: path and op in any case. ``path``: of the block that it is in."""

    name: str
    op: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    minimum: float
    maximum: float
    mean: float
    rms: float
    finite: bool
    where: str = ""
    difference: float | None = None  # largest absolute difference from the reference
    alias: str = ""
    path: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Seen(NamedTuple):
    """A node, its value in the graph, and the numbers of one trip."""

    node: Node
    value: Value
    array: np.ndarray
    alias: str


def trace(
    model: Model,
    params: Mapping[str, Any],
    inputs: Mapping[str, np.ndarray],
    *,
    sizes: Mapping[str, int] | None = None,
) -> dict[str, Seen]:
    """Values of all nodes by name, layers of a repeat written out, in the order they are computed."""
    batch = len(next(iter(inputs.values())))
    seq = 1 if model.streaming_input is None else np.asarray(inputs[model.streaming_input]).shape[1]
    full_sizes = {"batch": batch, "seq": seq, "capacity": seq, **(sizes or {})}
    made = program(model, "forward", full_sizes)
    traced = exposed(made.graph)
    lengths = [k for k in made.inputs if k.endswith("_lengths") and k not in inputs]
    extra = {k: np.full(batch, full_sizes[k.removesuffix("_lengths")], np.int32) for k in lengths}
    full = dataclasses.replace(made, graph=traced.graph)
    held = packed_arrays(model, params)
    own = {k: held[k] for k in made.parameters}
    outputs, _ = jax.jit(full.function())(own, {}, {**inputs, **extra})
    arrays = {}
    for key in {e.output for e in traced.entries}:
        array = np.asarray(outputs.pop(key))
        arrays[key] = array if array.dtype == np.int32 else array.astype(np.float32)
    return {e.name: Seen(e.node, e.node.result, arrays[e.output][e.trips], e.alias) for e in traced.entries}


SILENT = ("parameter", "constant", "argument", "state")
Stack = tuple[Layers, ...]


@dataclass(frozen=True)
class Entry:
    """A node in one trip of each repeat around it: its name, and where its value is."""

    output: str
    name: str
    alias: str  # by path and op
    node: Node
    trips: tuple[int, ...]  # index into the leading axes of the output


@dataclass(frozen=True)
class Traced:
    graph: Graph
    entries: list[Entry]


@dataclass(frozen=True)
class _Shown:
    """A node whose value the graph gives out, or what is shown of a repeat's body."""

    node: Node
    value: Value  # in the graph at hand; with an axis in front for each repeat inside it
    stack: Stack | None  # the layers that it belongs to, None outside of all
    body: tuple[_Shown, ...] | None = None


def exposed(graph: Graph) -> Traced:
    """The graph with every node's value as an output; values inside a repeat come stacked over its trips."""
    ids = itertools.count(max(_ids(graph), default=0) + 1)
    made, shown = _expose(graph, {}, ids)
    outputs = [(f"trace:{x.value.id}", x.value) for x in _leaves(shown)]
    entries: list[Entry] = []
    given = _given(graph)
    names, aliases = Counter[str](), Counter[str]()

    def numbered(base: str, counts: Counter[str]) -> str:
        while True:
            counts[base] += 1
            name = base if counts[base] == 1 else f"{base}#{counts[base]}"
            if name == base or name not in counts:
                return name

    for x, trips in _in_order(shown, ()):
        layer, own = _layer(x.stack, trips), f"{x.node.path or 'graph'}.{x.node.op.name}"
        alias = numbered(own + layer, aliases)
        name = given.get(x.node.result.id)
        name = numbered(alias if name is None else name + layer, names)
        entries.append(Entry(f"trace:{x.value.id}", name, alias, x.node, trips))
    return Traced(dataclasses.replace(made, outputs=(*made.outputs, *outputs)), entries)


def _given(graph: Graph) -> dict[int, str]:
    """Names that values have in the spec, the innermost of several, in the graph and the regions inside it. Another
    value of the same name has it with a number behind an @, which is left out: layers tell them apart."""
    found: dict[int, str] = {}
    for name, value in graph.names.items():
        found.setdefault(value.id, name.partition("@")[0])
    for node in graph.nodes:
        if node.op.region is not None:
            found |= _given(node.op.region)
    return found


def _expose(graph: Graph, parameters: dict[int, Stack], ids: Iterator[int]) -> tuple[Graph, list[_Shown]]:
    """The graph whose repeats give out what is shown of their bodies. ``parameters``: the layers of the parameters
    among its arguments, by id."""
    stacks = parameters | {n.result.id: n.op.stack for n in graph.nodes if isinstance(n.op, Parameter)}
    layers = _layers(graph, stacks)
    nodes: list[Node] = []
    shown: list[_Shown] = []
    for node, stack in zip(graph.nodes, layers, strict=True):
        op = node.op
        if not isinstance(op, Repeat):
            nodes.append(node)
            if op.name not in SILENT:
                shown.append(_Shown(node, node.result, stack))
            continue
        inner = {a: stacks[v.id] for a, v in zip(op.arguments, node.operands, strict=True) if v.id in stacks}
        body, within = _expose(op.body, inner, ids)
        leaves = _leaves(within)
        outer = {x.value.id: Value(next(ids), stacked(x.value.type, op.trips, op.axis)) for x in leaves}
        at = len(body.outputs) - op.states
        ys = [(f"y{x.value.id}", x.value) for x in leaves]
        body = dataclasses.replace(body, outputs=(*body.outputs[:at], *ys, *body.outputs[at:]))
        results = (*node.results[:at], *outer.values(), *node.results[at:])
        nodes.append(dataclasses.replace(node, op=dataclasses.replace(op, body=body), results=results))
        shown.append(_Shown(node, node.results[0], None, tuple(_outside(x, outer) for x in within)))
    return dataclasses.replace(graph, nodes=tuple(nodes)), shown


def _outside(x: _Shown, outer: Mapping[int, Value]) -> _Shown:
    if x.body is not None:
        return dataclasses.replace(x, body=tuple(_outside(y, outer) for y in x.body))
    return dataclasses.replace(x, value=outer[x.value.id])


def _leaves(shown: Iterable[_Shown]) -> list[_Shown]:
    return [y for x in shown for y in ([x] if x.body is None else _leaves(x.body))]


def _in_order(shown: Iterable[_Shown], trips: tuple[int, ...]) -> Iterator[tuple[_Shown, tuple[int, ...]]]:
    """As they are computed: all of a body, trip by trip."""
    for x in shown:
        if x.body is None:
            yield x, trips
        else:
            assert isinstance(x.node.op, Repeat)
            count = x.node.op.trips
            for trip in reversed(range(count)) if x.node.op.reverse else range(count):
                yield from _in_order(x.body, (*trips, trip))


def _layers(graph: Graph, stacks: Mapping[int, Stack]) -> list[Stack | None]:
    """The layers of each node, from the parameters that are read around it: a node that reads none belongs to the
    block read last, or to the next where it has the path of that one's first reader (the norm before a scale)."""
    found: list[Stack | None] = [None] * len(graph.nodes)
    read = [next((stacks[v.id] for v in n.operands if v.id in stacks), None) for n in graph.nodes]
    read = [None if isinstance(n.op, Repeat) else r for n, r in zip(graph.nodes, read, strict=True)]
    last: Stack | None = None
    for i, node in enumerate(graph.nodes):
        if read[i] is not None:
            last = read[i]
        if isinstance(node.op, Repeat):
            last = None
        found[i] = last
    following: tuple[str, Stack] | None = None
    for i in reversed(range(len(graph.nodes))):
        node, own = graph.nodes[i], read[i]
        if isinstance(node.op, Repeat):
            following = None
        elif own is not None:
            following = (node.path, own)
        elif following is not None and (found[i] is None or node.path == following[0]):
            found[i] = following[1]
    return found


def _layer(stack: Stack | None, trips: tuple[int, ...]) -> str:
    """The layer in brackets, numbered as in the parameters' labels; in a repeat that reads no parameter, the trip."""
    left = list(trips)
    numbers = [s.start + s.step * left.pop(0) if s.count > 1 and left else s.start for s in stack or ()]
    numbers += left
    return f"[{','.join(map(str, numbers))}]" if numbers else ""


def _ids(graph: Graph) -> Iterator[int]:
    for node in graph.nodes:
        yield from (v.id for v in node.results)
        if node.op.region is not None:
            yield from _ids(node.op.region)


def records(values: Mapping[str, Seen], reference: Mapping[str, np.ndarray] | None = None) -> list[Record]:
    """Short statistics of traced values, with differences where the reference has the name."""
    made = []
    for name, (node, value, array, alias) in values.items():
        flat = array.astype(np.float64)
        some = flat if flat.size else np.zeros(1)
        other = next((reference[n] for n in (name, alias) if n in reference), None) if reference is not None else None
        difference = _difference(flat, other) if other is not None else None
        made.append(
            Record(
                name,
                node.op.name,
                value.axes,
                array.shape,
                value.type.dtype,
                minimum=float(some.min()),
                maximum=float(some.max()),
                mean=float(some.mean()),
                rms=float(np.sqrt(np.mean(np.square(some)))),
                finite=bool(np.isfinite(flat).all()),
                where=str(node.position or ""),
                difference=difference,
                alias=alias,
                path=node.path,
            )
        )
    return made


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest absolute difference; infinite where the shapes differ or one of two numbers is none."""
    if a.shape != b.shape:
        return float("inf")
    with np.errstate(invalid="ignore"):
        apart = np.where(a == b, 0.0, np.abs(a - b))  # infinities that agree
    return float(np.nan_to_num(apart, nan=np.inf, posinf=np.inf).max(initial=0.0))


def first_difference(made: list[Record], tolerance: float) -> Record | None:
    """The first node in order of computation that differs by more than ``tolerance`` times the value's rms."""
    for r in made:
        if not r.finite or (r.difference is not None and r.difference > tolerance * max(r.rms, 1e-30)):
            return r
    return None


def read_reference(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file. Raises BlockgraphError where it is none (never unpickles)."""
    try:
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            return {name: loaded[name] for name in loaded.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as e:
        pickled = "allow_pickle" in str(e)  # NumPy's advice would run whatever the file says
        why = "it holds Python objects or is no file of NumPy's, and is not read" if pickled else str(e)
        raise BlockgraphError(Problem("bad-reference", f"{path} is no .npz of a trace: {why}")) from None


def save(values: Mapping[str, Seen], path: Path) -> None:
    """Writes the values as a reference file (.npz), a temporary name first."""
    temporary = path.with_name(path.name + ".tmp.npz")
    arrays: dict[str, Any] = {name: traced.array for name, traced in values.items()}
    try:
        np.savez_compressed(temporary, **arrays)
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)  # the name that was asked for
        raise
