"""Trace: every node's value in one forward pass, in short; and the first that differs from a reference file."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime import device

device.prepare()

import jax  # noqa: E402
import numpy as np  # noqa: E402

from compiler.errors import BlockgraphError, Problem  # noqa: E402
from compiler.graph.ir import Graph, Node, Value  # noqa: E402
from compiler.language.model import Model  # noqa: E402
from compiler.lower.program import program  # noqa: E402
from compiler.ops.control import Repeat  # noqa: E402


@dataclass(frozen=True)
class Record:
    """A node's value: ``name`` is its path, or the spec's name for it; inside a repeat with the layer in brackets."""

    name: str
    op: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    minimum: float
    maximum: float
    rms: float
    finite: bool
    where: str = ""
    difference: float | None = None  # largest absolute difference from the reference

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def trace(
    model: Model,
    params: Mapping[str, Any],
    inputs: Mapping[str, np.ndarray],
    *,
    sizes: Mapping[str, int] | None = None,
) -> dict[str, tuple[Node, Value, np.ndarray]]:
    """Values of all nodes by name, layers of a repeat written out, in the order they are computed."""
    batch, seq = np.asarray(inputs[str(model.streaming_input)]).shape
    made = program(model, "forward", {"batch": batch, "seq": seq, "capacity": seq, **(sizes or {})})
    graph = unrolled_outputs(made.graph)
    extra = {k: np.full(batch, seq, np.int32) for k in made.inputs if k.endswith("_lengths") and k not in inputs}
    import dataclasses

    full = dataclasses.replace(made, graph=graph.graph)
    own = {k: params[k] for k in made.parameters}
    outputs, _ = jax.jit(full.function())(own, {}, {**inputs, **extra})
    found: dict[str, tuple[Node, Value, np.ndarray]] = {}
    for key, name, node, value, layer in graph.entries:
        array = np.asarray(outputs[key]).astype(np.float32) if outputs[key].dtype != np.int32 else np.asarray(outputs[key])
        found[name] = (node, value, array if layer is None else array[layer])
    return found


@dataclass(frozen=True)
class Traced:
    graph: Graph
    entries: list[tuple[str, str, Node, Value, int | None]]  # output, name, node, value, layer


def unrolled_outputs(graph: Graph) -> Traced:
    """The graph with every node's value as an output; values inside a repeat come stacked over its trips."""
    import dataclasses

    nodes: list[Node] = []
    outputs = list(graph.outputs)
    entries: list[tuple[str, str, Node, Value, int | None]] = []
    counts: dict[str, int] = {}

    def named(node: Node, suffix: str) -> str:
        base = f"{node.path or 'graph'}.{node.op.name}{suffix}"
        counts[base] = counts.get(base, 0) + 1
        return base if counts[base] == 1 else f"{base}#{counts[base]}"

    for node in graph.nodes:
        if not isinstance(node.op, Repeat):
            nodes.append(node)
            if node.op.name not in ("parameter", "constant", "argument", "state"):
                outputs.append((f"trace:{node.result.id}", node.result))
                entries.append((f"trace:{node.result.id}", named(node, ""), node, node.result, None))
            continue
        op = node.op
        inner = [n for n in op.body.nodes if n.op.name not in ("argument", "constant", "repeat")]
        fresh = max(_ids(graph)) + 1 + len(nodes) * 10_000
        ys = [(f"y{n.result.id}", n.result) for n in inner]
        outs = list(op.body.outputs)
        at = len(outs) - op.states
        body = dataclasses.replace(op.body, outputs=(*outs[:at], *ys, *outs[at:]))
        stacks = []
        for i, n in enumerate(inner):
            t = n.result.type
            from compiler.ops.control import stack

            stacks.append(Value(fresh + i, stack(t, op.trips, op.axis)))
        results = (*node.results[:at], *stacks, *node.results[at:])
        nodes.append(dataclasses.replace(node, op=dataclasses.replace(op, body=body), results=results))
        for trip in range(op.trips):
            for n, s in zip(inner, stacks, strict=True):
                if trip == 0:
                    outputs.append((f"trace:{s.id}", s))
                entries.append((f"trace:{s.id}", named(n, f"[{trip}]"), n, s, trip))
    return Traced(dataclasses.replace(graph, nodes=tuple(nodes), outputs=tuple(outputs)), entries)


def _ids(graph: Graph) -> list[int]:
    found = []
    for node in graph.nodes:
        found += [v.id for v in node.results]
        if node.op.region is not None:
            found += _ids(node.op.region)
    return found


def records(
    values: Mapping[str, tuple[Node, Value, np.ndarray]], reference: Mapping[str, np.ndarray] | None = None
) -> list[Record]:
    """Short statistics of traced values, with differences where the reference has the name."""
    made = []
    for name, (node, value, array) in values.items():
        flat = array.astype(np.float64)
        finite = bool(np.isfinite(flat).all())
        difference = None
        if reference is not None and name in reference:
            other = reference[name]
            difference = float(np.abs(flat - other).max()) if other.shape == flat.shape and flat.size else float("inf")
        axes = value.axes if len(value.axes) == array.ndim else value.axes[1:]
        empty = flat.size == 0
        made.append(
            Record(name, node.op.name, axes, array.shape, node.result.type.dtype, 0.0 if empty else float(flat.min()),
                   0.0 if empty else float(flat.max()), 0.0 if empty else float(np.sqrt(np.mean(np.square(flat)))), finite,
                   str(node.position or ""), difference)
        )  # fmt: skip
    return made


def first_difference(made: list[Record], tolerance: float) -> Record | None:
    """The first node in order of computation that differs by more than ``tolerance`` times the value's rms."""
    for r in made:
        if not r.finite or (r.difference is not None and r.difference > tolerance * max(r.rms, 1e-30)):
            return r
    return None


def read_reference(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file. Raises BlockgraphError where it is none (never unpickles)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as e:
        raise BlockgraphError(Problem("bad-reference", f"{path} is no .npz of a trace: {e}")) from None


def save(values: Mapping[str, tuple[Node, Value, np.ndarray]], path: Path) -> None:
    """Writes the values as a reference file (.npz), a temporary name first."""
    temporary = path.with_name(path.name + ".tmp.npz")
    arrays: dict[str, Any] = {name: array for name, (_, _, array) in values.items()}
    np.savez_compressed(temporary, **arrays)
    temporary.replace(path)
