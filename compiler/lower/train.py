"""One training step as a jitted function: parameters and optimiser state in, the new ones out, the old ones donated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from compiler.language.model import Model
from compiler.lower.program import Program, Tree, bind
from compiler.passes.call import TRAIN
from compiler.passes.loss import Chunk
from compiler.passes.optimise import AdamW, Optimiser
from compiler.passes.pipeline import PrintAfter, micro_sizes, training_pipeline
from compiler.passes.rematerialise import Rematerialise
from compiler.passes.select import Choice

MASTER = ":master"


@dataclass(frozen=True)
class TrainingStep(Program):
    """``function`` and ``jitted`` take (params, state, inputs) and give (outputs, params, state). ``state`` holds the
    optimiser's moments, master copies and ``step``; inputs are the tokens, ``seq_lengths`` and ``learning_rate``.
    Outputs: ``loss``, ``loss_weight`` (positions that it is the mean over), ``gradient_norm`` before clipping."""

    def function(self, watch: Any = None) -> Callable[[Tree, Tree, Tree], Any]:
        def fn(params: Tree, state: Tree, inputs: Tree) -> tuple[Tree, Tree, Tree]:
            leaves = {**params, **state, **inputs}
            results = self.results(leaves, watch)
            groups: dict[str, Tree] = {"parameter": dict(params), "state": dict(state), "": {}}
            for name, value in results.items():
                kind, colon, label = name.partition(":")
                groups[kind if colon else ""][label if colon else name] = value
            return groups[""], groups["parameter"], groups["state"]

        fn.__name__ = self.phase
        return fn

    def jitted(self) -> Any:
        """Parameters and state are donated: what is passed in must not be used again."""
        return jax.jit(self.function(), donate_argnums=(0, 1))

    def initial_state(self, params: Mapping[str, Any]) -> Tree:
        """The optimiser's state before the first step: zeros, and a wider copy of each parameter that has a master."""
        state = self.empty_state()
        for label, t in self.states.items():
            if label.endswith(MASTER):
                state[label] = jnp.asarray(params[label.removesuffix(MASTER)]).astype(t.dtype)
        return state


def training_step(
    model: Model,
    sizes: Mapping[str, int],
    *,
    optimiser: Optimiser = AdamW(),
    accumulate: int = 1,
    remat: Rematerialise = Rematerialise(),
    chunk: Chunk | None = Chunk(),
    wrt: Iterable[str] | None = None,
    choice: Choice = Choice(),
    print_after: PrintAfter | None = None,
) -> TrainingStep:
    """The training step of a model on ``sizes`` (batch, seq and the model's other variable axes; of the whole batch).
    ``accumulate``: in how many micro-batches; ``remat``: what is kept for the way back; ``chunk``: how many positions
    have logits at once (None: all); ``wrt``: labels of the parameters that are trained (default: all trainable).
    Raises SpecError, PhaseError."""
    pipeline = training_pipeline(
        model, sizes, wrt=wrt, remat=remat, accumulate=accumulate, chunk=chunk, optimiser=optimiser, choice=choice
    )
    made = bind(TRAIN, pipeline.run(model.graph, print_after), micro_sizes(sizes, accumulate), choice)
    return TrainingStep(**vars(made))
