"""A phase of a model as a jitted function: ``fn(params, state, inputs) -> (outputs, state)``; the state is donated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from compiler.graph.ir import Graph
from compiler.graph.types import TensorType
from compiler.language.model import Model
from compiler.lower.graph import run
from compiler.lower.registry import Context
from compiler.passes.differentiate import Keep, recompute
from compiler.passes.phase import PhaseGraph
from compiler.passes.pipeline import PrintAfter, phase_pipeline, training_pipeline
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

    def function(self, watch: Any = None) -> Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]:
        """The untraced function. States that the phase does not change pass through."""

        def fn(params: Tree, state: Tree, inputs: Tree) -> tuple[Tree, Tree]:
            leaves = {**params, **state, **inputs}
            results = run(self.graph, Context(self.sizes, leaves, watch, self.widen))
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
        """Shapes of (params, state, inputs)."""
        groups = (self.parameters, self.states, self.inputs)
        made = [{label: self.shape(t, sharding) for label, t in group.items()} for group in groups]
        return made[0], made[1], made[2]

    def empty_state(self) -> Tree:
        """The state before the first call: zeros."""
        return {label: jnp.zeros(s.shape, s.dtype) for label, s in self.arguments()[1].items()}


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
    return _program(phase, pipeline.run(model.graph, print_after), sizes, choice)


def training(
    model: Model,
    sizes: Mapping[str, int],
    *,
    wrt: Iterable[str] | None = None,
    keep: Keep = recompute,
    choice: Choice = Choice(),
    print_after: PrintAfter | None = None,
) -> Program:
    """Loss and gradients: outputs ``loss`` (mean next-token cross-entropy) and ``gradient:<label>`` of each
    trainable parameter in ``wrt`` (default: all). Inputs: the tokens, and ``seq_lengths`` [batch]."""
    pipeline = training_pipeline(model, sizes, wrt=wrt, keep=keep, choice=choice)
    return _program("train", pipeline.run(model.graph, print_after), sizes, choice)


def _program(phase: str, graph: Graph, sizes: Mapping[str, int], choice: Choice) -> Program:
    made = PhaseGraph(phase, graph)
    states = {label: t for label, (_, t) in made.states().items()}
    return Program(phase, graph, dict(sizes), made.parameters(), states, made.inputs(), choice.widen)
