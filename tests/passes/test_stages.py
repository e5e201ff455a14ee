"""Stage: a pipeline computes what its layers do, in whatever schedule; what cannot be one is refused."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as draw

from compiler.errors import SpecError
from compiler.graph.ir import Graph
from compiler.language.model import loads
from compiler.lower.graph import run
from compiler.lower.registry import Context
from compiler.passes.phase import phase_graph
from compiler.passes.stages import Stages, stage
from compiler.passes.verify import verify
from runtime.weights.initial import random
from tests.passes.specs import HEAD

LAYERS = 12


def forward(layers: int = LAYERS) -> tuple[Graph, dict[str, np.ndarray]]:
    repeat = f"{{repeat: {{times: {layers}, cycle: [{{residual: [{{linear: {{to: embed}}}}, tanh]}}]}}}}"
    model = loads(HEAD + f"graph: [embed, {repeat}, unembed]", "layers.yaml")
    return phase_graph(model, "forward").graph, dict(random(model, 0).arrays)


@settings(max_examples=12, deadline=None)
@given(draw.sampled_from([1, 2, 3, 4, 6]), draw.integers(1, 3), draw.sampled_from([1, 2, 3]))
def test_a_pipeline_computes_what_its_layers_do(stages: int, groups: int, rounds: int) -> None:
    if LAYERS % (stages * rounds):
        rounds = 1
    asked = Stages(stages, stages * groups, rounds)
    graph, params = forward()
    sizes = {"batch": 2 * asked.micro, "seq": 3}
    made = stage(graph, asked, sizes)
    verify(made, ["elaborate", "phase", "stage"], "stage")
    tokens = np.random.default_rng(1).integers(0, 40, (sizes["batch"], 3)).astype(np.int32)
    leaves = params | {"tokens": tokens, "seq_lengths": np.full(sizes["batch"], 3, np.int32)}
    want, got = (jax.jit(lambda x, g=g: run(g, Context(sizes, x)))(leaves)["logits"] for g in (graph, made))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@given(draw.integers(1, 6), draw.integers(1, 5), draw.integers(1, 4))
def test_the_schedule_sends_every_micro_batch_through_every_group_of_layers(s: int, groups: int, rounds: int) -> None:
    """Followed tick by tick: who has which micro-batch, and which groups of layers it has passed."""
    asked = Stages(s, s * groups, rounds)
    waiting, done = list(range(asked.micro)), dict[int, list[int]]()
    held: list[int | None] = [None] * s
    for tick in range(asked.ticks):
        held = [held[-1], *held[:-1]]  # a ring
        if asked.enters(tick):
            held[0] = waiting.pop(0)
        for at, micro in enumerate(held):
            if micro is not None and len(done.setdefault(micro, [])) < s * rounds:
                done[micro].append(asked.round(tick, at) * s + at)
    assert not waiting
    assert all(passed == list(range(s * rounds)) for passed in done.values())
    assert asked.bubble == (s - 1) / asked.ticks


@pytest.mark.parametrize(
    ("asked", "batch", "code", "message", "allowed"),
    [
        (Stages(5, 5), 10, "cannot-pipeline", "12 layers do not divide into 5 stages", ("2", "3", "4", "6", "12")),
        (Stages(4, 4, 2), 8, "cannot-pipeline", "8 stages (4 devices x 2 rounds)", ("2", "3", "4", "6", "12")),
        (Stages(2, 3), 8, "indivisible", "batch = 8 does not divide into 3", ("1", "2", "4", "8")),
        (Stages(4, 2, 3), 8, "indivisible", "4 at a time, not 2", ("4", "8")),
    ],
)
def test_what_is_no_pipeline_is_refused(asked: Stages, batch: int, code: str, message: str, allowed: tuple) -> None:
    with pytest.raises(SpecError) as e:
        stage(forward()[0], asked, {"batch": batch, "seq": 3})
    (problem,) = e.value.problems
    assert (problem.code, problem.allowed) == (code, allowed)
    assert message in problem.message


def test_layers_with_state_are_no_pipeline() -> None:
    body = "{residual: [{attention: {window: 4}}]}"
    model = loads(HEAD + f"graph: [embed, {{repeat: {{times: 4, cycle: [{body}]}}}}, unembed]", "state.yaml")
    graph = phase_graph(model, "decode").graph
    with pytest.raises(SpecError, match="caches or other state"):
        stage(graph, Stages(2, 2), {"batch": 2, "seq": 1, "capacity": 8})
