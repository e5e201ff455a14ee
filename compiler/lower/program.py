"""A phase of a model as a jitted function: ``fn(params, state, inputs) -> (outputs, state)``; the state is donated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from compiler.errors import Problem, SpecError
from compiler.graph.ir import Graph
from compiler.graph.types import TensorType
from compiler.language.model import Model
from compiler.lower.graph import run
from compiler.lower.registry import Context
from compiler.passes.phase import PhaseGraph, phase_graph
from compiler.passes.select import Choice, select

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

    def function(self, watch: Any = None) -> Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]:
        """The untraced function. States that the phase does not change pass through."""

        def fn(params: Tree, state: Tree, inputs: Tree) -> tuple[Tree, Tree]:
            leaves = {**params, **state, **inputs}
            results = run(self.graph, Context(self.sizes, leaves, watch))
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


def sizes_of(phase: PhaseGraph, given: Mapping[str, int]) -> dict[str, int]:
    """Numbers for every symbol that the graph uses. Raises SpecError naming those that are missing."""
    needed: set[str] = set()
    for types in (phase.inputs(), {k: t for k, (_, t) in phase.states().items()}):
        for t in types.values():
            for s in t.sizes:
                needed |= s.symbols
    missing = sorted(needed - set(given))
    if missing:
        names = ", ".join(missing)
        raise SpecError(
            Problem(
                "missing-size",
                f"the model has an axis of variable size: give {names} (--size {missing[0]}=16)",
            )
        )
    return dict(given)


def program(
    model: Model,
    phase: str,
    sizes: Mapping[str, int],
    *,
    logits: str | None = None,
    fresh: bool = False,
    choice: Choice = Choice(),
) -> Program:
    """The program of a phase. ``sizes``: batch, seq (positions of one call), capacity (longest sequence that the
    cache holds), and the model's other variable axes. Raises PhaseError, SpecError."""
    made = phase_graph(model, phase, logits, fresh, choice.heads_first)
    numbers = sizes_of(made, sizes)
    graph = select(made.graph, numbers, choice)
    states = {label: t for label, (_, t) in made.states().items()}
    return Program(phase, graph, numbers, made.parameters(), states, made.inputs())
