"""A phase of a model as a jitted function: ``fn(params, state, inputs) -> (outputs, state)``; the state is donated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from compiler.graph.ir import Graph, Value
from compiler.graph.types import TensorType
from compiler.language.model import Model
from compiler.lower.graph import run
from compiler.lower.registry import Context
from compiler.ops.leaves import Input, Parameter, State
from compiler.passes.call import TRAIN
from compiler.passes.loss import Chunk
from compiler.passes.partition import Partitioned
from compiler.passes.phase import PhaseGraph
from compiler.passes.pipeline import PrintAfter, micro_sizes, phase_pipeline, training_pipeline
from compiler.passes.rematerialise import Rematerialise
from compiler.passes.select import Choice

Tree = dict[str, Any]


@dataclass(frozen=True)
class Program:
    """A phase with numbers for its sizes. ``parameters``, ``states`` and ``inputs`` are the argument types."""

    phase: str
    graph: Graph
    sizes: Mapping[str, int]
    parameters: Mapping[str, TensorType]
    states: Mapping[str, TensorType]
    inputs: Mapping[str, TensorType]
    widen: bool = False
    placed: Partitioned | None = None  # where every value lies, on ``mesh``
    mesh: Mesh | None = None

    def results(self, leaves: Tree, watch: Any = None) -> Tree:
        """The graph's outputs by name. On a mesh: one shard_map with exactly the graph's collectives."""
        if self.placed is None or self.mesh is None:
            return run(self.graph, Context(self.sizes, leaves, watch, self.widen))
        placed, labels = self.placed, self.labels()

        def local(values: Tree) -> Tree:
            return run(placed.graph, Context(self.sizes, values, None, self.widen, placed.mesh, placed.of))

        inside = jax.shard_map(
            local,
            mesh=self.mesh,
            in_specs=({label: self.spec(labels[label]) for label in leaves},),
            out_specs={name: self.spec(v) for name, v in placed.graph.outputs},
            check_vma=False,
        )
        return inside(leaves)

    def labels(self) -> dict[str, Value]:
        """Leaves by label."""
        return {n.op.label: n.result for n in self.graph.nodes if isinstance(n.op, (Input, Parameter, State))}

    def spec(self, value: Value) -> PartitionSpec:
        """How a value's axes are split over the mesh."""
        assert self.placed is not None
        over = self.placed.of(value)
        return PartitionSpec(*(over.get(a) for a in value.axes))

    def put(self, leaves: Mapping[str, Any]) -> Tree:
        """Whole arrays laid on the devices as the program wants them."""
        where = self.shardings()
        return {label: jax.device_put(x, where.get(label)) for label, x in leaves.items()}

    def function(self, watch: Any = None) -> Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]:
        """The untraced function. States that the phase does not change pass through."""

        def fn(params: Tree, state: Tree, inputs: Tree) -> tuple[Tree, Tree]:
            leaves = {**params, **state, **inputs}
            results = self.results(leaves, watch)
            new = {k.removeprefix("state:"): v for k, v in results.items() if k.startswith("state:")}
            return {k: v for k, v in results.items() if not k.startswith("state:")}, {**state, **new}

        fn.__name__ = self.phase
        return fn

    def jitted(self) -> Any:
        return jax.jit(self.function(), donate_argnums=1)

    def shape(self, t: TensorType, sharding: Any = None) -> jax.ShapeDtypeStruct:
        dims = tuple(int(s.evaluate(self.sizes)) for s in t.sizes)
        return jax.ShapeDtypeStruct(dims, jnp.dtype(t.dtype), sharding=sharding)

    def arguments(self, sharding: Any = None) -> tuple[Tree, Tree, Tree]:
        """Shapes of (params, state, inputs), on the program's mesh where it has one."""
        groups, mine = (self.parameters, self.states, self.inputs), self.shardings()
        made = [{k: self.shape(t, mine.get(k, sharding)) for k, t in group.items()} for group in groups]
        return made[0], made[1], made[2]

    def shardings(self) -> dict[str, NamedSharding]:
        """Where each leaf lies, on a mesh."""
        if self.mesh is None:
            return {}
        return {label: NamedSharding(self.mesh, self.spec(v)) for label, v in self.labels().items()}

    def empty_state(self) -> Tree:
        """The state before the first call: zeros, each device's own part where there is a mesh."""
        return {k: jnp.zeros(s.shape, s.dtype, device=s.sharding) for k, s in self.arguments()[1].items()}


def program(
    model: Model,
    phase: str,
    sizes: Mapping[str, int],
    *,
    logits: str | None = None,
    fresh: bool = False,
    choice: Choice = Choice(),
    print_after: PrintAfter | None = None,
) -> Program:
    """The program of a phase. ``sizes``: batch, seq (positions of one call), capacity (longest sequence that the
    cache holds), and the model's other variable axes. ``print_after`` gets the graph after each pass. Raises
    PhaseError, SpecError."""
    pipeline = phase_pipeline(model, phase, sizes, logits=logits, fresh=fresh, choice=choice)
    return bind(phase, pipeline.run(model.graph, print_after), sizes, choice)


def training(
    model: Model,
    sizes: Mapping[str, int],
    *,
    wrt: Iterable[str] | None = None,
    remat: Rematerialise = Rematerialise(),
    accumulate: int = 1,
    chunk: Chunk | None = Chunk(),
    choice: Choice = Choice(),
    print_after: PrintAfter | None = None,
) -> Program:
    """Loss and gradients: outputs ``loss`` (mean next-token cross-entropy), ``loss_weight`` (over how many positions)
    and ``gradient:<label>`` of each trainable parameter in ``wrt`` (default: all). Inputs: the tokens, and
    ``seq_lengths`` [batch]."""
    pipeline = training_pipeline(model, sizes, wrt=wrt, remat=remat, accumulate=accumulate, chunk=chunk, choice=choice)
    return bind(TRAIN, pipeline.run(model.graph, print_after), micro_sizes(sizes, accumulate), choice)


def bind(phase: str, graph: Graph, sizes: Mapping[str, int], choice: Choice) -> Program:
    """A program of a graph whose passes have run."""
    made = PhaseGraph(phase, graph)
    states = {label: t for label, (_, t) in made.states().items()}
    return Program(phase, graph, dict(sizes), made.parameters(), states, made.inputs(), choice.widen)
