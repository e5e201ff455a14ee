"""What the child processes of test_*_on_devices share: one graph on one device and on several, compared."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from compiler.graph.ir import Graph
from compiler.language.model import Model
from compiler.lower.graph import run
from compiler.lower.program import Program
from compiler.lower.registry import Context
from compiler.ops.leaves import Input, Parameter, State
from compiler.ops.packed import SCALE
from compiler.parallel.plan import Plan
from compiler.passes.partition import Partitioned, partition
from compiler.passes.pipeline import Pipeline, phase_pipeline, training_pipeline
from compiler.passes.select import Choice
from compiler.passes.stages import Stages
from compiler.passes.verify import verify
from runtime.weights.initial import random
from runtime.weights.packing import packed_arrays

KINDS = {"all_reduce": "all-reduce", "all_gather": "all-gather", "reduce_scatter": "reduce-scatter",
         "all_to_all": "all-to-all", "permute": "collective-permute", "gather_counts": "all-gather",
         "exchange": "all-to-all"}  # fmt: skip
LENGTHS = (10, 7, 16, 13)


def planned(made: Partitioned) -> Counter[str]:
    """Collective nodes of the graph, a region's once."""
    return Counter(KINDS[n.op.name] for n, _ in made.graph.walk() if n.op.name in KINDS)


def emitted(text: str) -> Counter[str]:
    """Collectives of the compiled program: a combined one counts once for each of its operands (an all-to-all of
    XLA for CPU has one for each device)."""
    found: Counter[str] = Counter()
    for types, kind in re.findall(rf"= (.*?) ({'|'.join(sorted(set(KINDS.values())))})(?:-start)?\(", text):
        found[kind] += 1 if kind == "all-to-all" else len(re.findall(r"\w+\[", types))
    return found


def leaves(model: Model, graph: Graph, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Random parameters, inputs and states; rows of unequal length."""
    draw = np.random.default_rng(0)
    made: dict[str, Any] = dict(random(model, 0).arrays)
    if any(n.op.label.endswith(SCALE) for n in graph.leaves(Parameter)):  # type: ignore[attr-defined]
        made = packed_arrays(model, made)
    for node in (*graph.leaves(Input), *graph.leaves(State)):
        label, t = node.op.label, node.result.type  # type: ignore[attr-defined]
        shape = tuple(int(s.evaluate(sizes)) for s in t.sizes)
        if label == "length" or label.endswith("_lengths"):
            longest = sizes["capacity"] if label == "length" else sizes[label.removesuffix("_lengths")]
            made[label] = np.minimum(np.resize(LENGTHS, shape), longest).astype(np.int32)
        elif t.dtype == "int32":
            made[label] = (np.ones(shape) if label == "valid" else draw.integers(0, 30, shape)).astype(np.int32)
        else:
            made[label] = draw.normal(size=shape).astype(np.float32)
    return made


def compare(
    model: Model,
    phase: str,
    sizes: Mapping[str, int],
    plan: Plan,
    choice: Choice = Choice(),
    edit: Callable[[dict[str, Any]], None] = lambda arrays: None,
    stages: Stages | None = None,
) -> tuple[Partitioned, dict[str, Any]]:
    """The largest error of any output relative to its largest entry, and the collectives in graph and program.
    ``edit`` changes the arrays before they are used."""
    train = phase == "train"

    def make(stages: Stages | None = None) -> Pipeline:
        if train:
            return training_pipeline(model, sizes, choice=choice, stages=stages)
        return phase_pipeline(model, phase, sizes, choice=choice, stages=stages)

    graph = make().run(model.graph)
    staged = make(stages).run(model.graph) if stages else graph
    made = partition(staged, plan, sizes)
    verify(made.graph, after="partition")
    read = {n.op.label for n in graph.leaves(Parameter) if isinstance(n.op, Parameter)}  # a phase may lack some
    arrays = {k: x for k, x in leaves(model, graph, sizes).items() if k in read or k not in model.parameters}
    edit(arrays)
    alone = jax.jit(lambda x: run(graph, Context(sizes, x)))(arrays)
    shape = [*plan.mesh.values()]
    devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    program = Program(phase, made.graph, sizes, {}, {}, {}, placed=made, mesh=Mesh(devices, tuple(plan.mesh)))
    placed = program.put(arrays)
    function = jax.jit(program.results)
    compiled = function.lower(placed).compile()
    four = any(x.dtype.name == "int4" for x in placed.values())  # whose layout a compiled call holds to be another
    found = (function if four else compiled)(placed)
    worst = 0.0
    for name, value in alone.items():
        want, got = np.asarray(value, np.float64), np.asarray(found[name], np.float64)
        assert np.isfinite(want).all() and np.isfinite(got).all(), name  # or the largest of errors would not tell
        worst = max(worst, float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-30)))
    text = compiled.as_text() or ""
    return made, {"worst": worst, "planned": planned(made), "emitted": emitted(text)}
