"""What can be said of a model without running it: parameters by block, layers, state, the graph after a pass.

Nothing here imports jax. Embedding parameters are told by the graph, as ``simulate`` tells them: tables that
tokens look up, and weights over the same vocabulary (an untied output matrix; a tied one is the table itself).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from compiler.errors import BlockgraphError, PhaseError, Problem
from compiler.graph.ir import Graph
from compiler.graph.sizes import Size
from compiler.graph.types import TensorType
from compiler.language.model import Model
from compiler.ops.latest import latest_of
from compiler.ops.leaves import Input, Layers, Parameter
from compiler.ops.packed import SCALE
from compiler.passes.call import missing_size, unknown_size, whole_prompt
from compiler.passes.pack import held
from compiler.passes.phase import PHASES, phase_graph
from compiler.passes.select import Choice
from costmodel.price import price

CONTEXT = 8192  # tokens at which state is told, unless asked otherwise
STREAMING = ("prefill", "decode", "verify", "commit")
SHOWN = (
    "elaborate",
    "phase",
    "select",
    "pack",
    "loss",
    "differentiate",
    "optimise",
)  # whose graph can be printed
TRAINING = ("loss", "differentiate", "optimise")
_FAR = 1 << 30  # a context beyond every window: what still grows there grows without end


@dataclass
class Block:
    """The parameters under one path of the spec: "layer.attention", or a whole "layer"."""

    path: str
    parameters: int = 0
    embedding: int = 0
    bytes: int = 0
    tensors: int = 0
    outside: bool = False  # whether some of its weights lie in no repeat
    each: dict[tuple[int, ...], int] = field(default_factory=dict)  # parameters by layer: outer, then inner repeats

    def _by_layer(self) -> dict[tuple[int, ...], int]:
        """Where only some of its weights lie in a further repeat, that one is inside it."""
        depth, found = min(map(len, self.each), default=0), dict[tuple[int, ...], int]()
        for number, count in self.each.items():
            found[number[:depth]] = found.get(number[:depth], 0) + count
        return found

    @property
    def layers(self) -> int:
        """How many of it there are; 0 where it is not itself repeated."""
        return 0 if self.outside else len(self._by_layer())

    @property
    def per_layer(self) -> int | None:
        """Parameters of one layer where all hold as many, else None."""
        counts = set(self._by_layer().values())
        return counts.pop() if len(counts) == 1 and not self.outside else None

    def as_json(self) -> dict[str, Any]:
        return {
            "path": self.path, "parameters": self.parameters, "embedding": self.embedding, "bytes": self.bytes,
            "tensors": self.tensors, "layers": self.layers, "per_layer": self.per_layer,
        }  # fmt: skip


def blocks(model: Model) -> dict[str, Block]:
    """Every path that holds parameters and every path above one, parents before children, in order of use."""
    embedding = {leaf.label for leaf in price(model.graph).parameters if leaf.embedding}
    found: dict[str, Block] = {}
    types = held(model)
    for label, (op, t) in model.parameters.items():
        count = int(t.elements.constant)
        size = sum(int(types[k].bytes.constant) for k in (label, label + SCALE) if k in types)
        layers = list(_layers(op))
        for path in _above(op.path):
            block = found.setdefault(path, Block(path))
            block.parameters += count
            block.embedding += count if label in embedding else 0
            block.bytes += size
            block.tensors += 1
            block.outside |= not layers
            for number in layers:
                block.each[number] = block.each.get(number, 0) + count // len(layers)
    return _in_tree_order(found)


def _above(path: str) -> list[str]:
    """The blocks around a weight, outermost first; a weight without a block stands for itself."""
    parts = path.split(".")
    return [".".join(parts[:i]) for i in range(1, max(len(parts), 2))]


def _layers(op: Parameter) -> Iterator[tuple[int, ...]]:
    def numbers(layers: Layers) -> range:
        return range(layers.start, layers.start + layers.step * layers.count, layers.step)

    return itertools.product(*(numbers(s) for s in op.stack)) if op.stack else iter(())


def _in_tree_order(found: Mapping[str, Block]) -> dict[str, Block]:
    children: dict[str, list[str]] = {}
    for path in found:
        children.setdefault(path.rpartition(".")[0], []).append(path)
    ordered: dict[str, Block] = {}
    waiting = children.get("", [])[::-1]
    while waiting:
        path = waiting.pop()
        ordered[path] = found[path]
        waiting += children.get(path, [])[::-1]
    return ordered


def summary(model: Model, context: int = CONTEXT, sizes: Mapping[str, int] | None = None) -> dict[str, Any]:
    """All of it as plain JSON types. ``sizes``: of variable axes other than batch and length."""
    check_sizes(model, sizes or {})
    made = blocks(model)
    tops = [b for b in made.values() if "." not in b.path]
    total, embedding = sum(b.parameters for b in tops), sum(b.embedding for b in tops)
    by_dtype: dict[str, int] = {}
    for t in held(model).values():
        by_dtype[t.dtype] = by_dtype.get(t.dtype, 0) + int(t.bytes.constant)
    trainable = sum(int(t.elements.constant) for op, t in model.parameters.values() if op.trainable)
    inputs = {n.op.label: str(n.result.type) for n in model.graph.leaves(Input) if isinstance(n.op, Input)}
    policy = model.policy
    return {
        "name": model.name,
        "paper": model.spec.paper,
        "stand_in": model.spec.stand_in,
        "files": [str(f) for f in model.document.files],
        "dims": dict(model.dims),
        "args": dict(model.args),
        "inputs": inputs,
        "outputs": {name: str(value.type) for name, value in model.graph.outputs},
        "dtypes": {"params": policy.params, "compute": policy.compute, "residual": policy.residual,
                   **({"weights": f"{policy.weights} by {policy.group}"} if policy.weights else {}),
                   "master": model.spec.dtypes.master},
        "sources": dict(model.spec.sources),
        "assumed": dict(model.spec.assumed),
        "parameters": {
            "total": total,
            "embedding": embedding,
            "non_embedding": total - embedding,
            "trainable": trainable,
            "active": round(sum(int(t.elements.constant) * op.used for op, t in model.parameters.values())),
            "bytes": sum(by_dtype.values()),
            "bytes_by_dtype": by_dtype,
            "by_block": [b.as_json() for b in made.values()],
        },
        "layers": {b.path: b.layers for b in tops if b.layers},
        "phases": phases(model),
        "state": state(model, context, sizes or {}),
        "weights": list(model.spec.weights),
        "warnings": list(model.warnings),
    }  # fmt: skip


def runs(found: Mapping[str, bool]) -> str:
    """The phases that run, in words."""
    return ", ".join(name for name, can in found.items() if can)


def phases(model: Model) -> dict[str, bool]:
    """Which phases the model can run. A model that only runs forward has its reason in ``state``."""
    streams = _streams(model) is None
    if latest_of(model.graph) is not None:  # which are made anew when they are full, and not as a call ends
        return {phase: streams and phase not in ("encode", "verify", "commit") for phase in PHASES}
    return {phase: streams if phase in STREAMING else phase == "forward" or _encodes(model) for phase in PHASES}


def _encodes(model: Model) -> bool:
    return model.streaming_input is not None and any(
        isinstance(n.op, Input) and n.op.label not in (model.streaming_input, "seq_lengths") for n in model.graph.nodes
    )


def _streams(model: Model) -> PhaseError | None:
    """None, or why the model has no streaming phase."""
    try:
        phase_graph(model, "decode")
    except PhaseError as error:
        return error
    return None


def state(model: Model, context: int, sizes: Mapping[str, int]) -> dict[str, Any]:
    """What decode keeps of one sequence, by kind. ``bytes_per_token``: how it grows once all windows are full."""
    if error := _streams(model):
        return {"none": "; ".join(p.message for p in error.problems), "context": context, "kinds": []}
    kinds: dict[str, list[TensorType]] = {}
    for op, t in phase_graph(model, "decode").states().values():
        kinds.setdefault(op.kind, []).append(t)
    rows = []
    for kind, types in kinds.items():
        formula = sum((t.bytes for t in types), Size({}))
        here = _at(formula, context, sizes)
        far, further = (_at(formula, n, sizes) for n in (_FAR, _FAR + 1))
        growth = None if far is None or further is None else further - far
        rows.append(
            {
                "kind": kind,
                "tensors": len(types),
                "dtypes": sorted({t.dtype for t in types}),
                "bytes": here,
                "bytes_per_token": growth,
                "formula": str(formula),
            }
        )
    known = [r for r in rows if r["bytes"] is not None]
    return {
        "context": context,
        "batch": 1,
        "bytes": sum(r["bytes"] for r in known),
        "bytes_per_token": sum(r["bytes_per_token"] for r in known),
        "kinds": rows,
        "unknown_sizes": sorted(_symbols(kinds) - set(sizes) - {"batch", "capacity", "seq"}),
    }


def _symbols(kinds: Mapping[str, list[TensorType]]) -> set[str]:
    return {s for types in kinds.values() for t in types for s in t.bytes.symbols}


def _at(formula: Size, context: int, sizes: Mapping[str, int]) -> int | None:
    env = {"batch": 1, "seq": 1, "capacity": context, **sizes}
    return int(formula.evaluate(env)) if formula.symbols <= set(env) else None


def variable_axes(model: Model) -> set[str]:
    """Axes whose sizes a call decides, other than batch and length."""
    found: set[str] = set()
    for node, _ in model.graph.walk():
        for value in node.results:
            found |= value.type.elements.symbols
    return found - {"batch", "seq", "capacity"}


def check_sizes(model: Model, sizes: Mapping[str, int]) -> None:
    """Refuses a size that the model has no axis for."""
    known = sorted(variable_axes(model))
    wrong = [name for name in sizes if name not in known]
    if wrong:
        raise BlockgraphError(unknown_size(wrong[0], known))


# -- the graph after a pass
def after(model: Model, name: str, phase: str, sizes: Mapping[str, int], platform: str = "cpu") -> Graph:
    """The graph of a phase after the pass ``name``, verified. ``sizes``: batch, seq, capacity and what else it needs;
    ``platform``: whose implementations are selected. Raises BlockgraphError for a pass that this cannot be asked of."""
    from compiler.passes import pipeline
    from compiler.passes.optimise import AdamW

    pipeline.known_pass(name)
    if name == "partition":
        raise BlockgraphError(Problem("unknown-pass", "partition needs a mesh, and there is none here", None, SHOWN))
    if name in TRAINING and phase != "forward":
        raise BlockgraphError(Problem("unknown-pass", f"{name} belongs to training: {phase} has none", None, SHOWN[:3]))
    missing = sorted(variable_axes(model) - set(sizes)) if name not in ("elaborate", "phase") else []
    if missing:
        raise BlockgraphError(missing_size(missing))
    choice = Choice.of(platform)
    if name in TRAINING:
        optimiser = AdamW() if name == "optimise" else None
        steps = pipeline.training_pipeline(model, sizes, optimiser=optimiser, choice=choice).passes
    else:
        fresh = whole_prompt(phase, sizes)
        steps = pipeline.phase_pipeline(model, phase, sizes, fresh=fresh, choice=choice).passes
    last = next(i for i, step in enumerate(steps) if step.name == name)
    return pipeline.Pipeline(steps[: last + 1]).run(model.graph)
