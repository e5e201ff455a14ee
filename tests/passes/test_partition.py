"""Partition: placements, the collectives that follow from them, and what is chosen where there is a choice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.graph.types import TensorType
from compiler.language.model import load
from compiler.ops.collective import Collective, OwnShard
from compiler.parallel.plan import CLASSES, Plan
from compiler.passes.partition import Partitioned, partition
from compiler.passes.phase import phase_graph
from compiler.passes.pipeline import phase_pipeline, training_pipeline
from compiler.passes.placement import Partial, local, moves
from compiler.passes.stages import Stages
from compiler.passes.verify import verify
from tests.passes.specs import spec

SIZES = {"batch": 16, "seq": 2048, "capacity": 2048}
HEADS = ("heads", "kv_heads", "mlp", "vocab", "rnn", "blocks")
TENSOR = Plan({"model": 8}, {kind: {"model": HEADS} for kind in CLASSES})


def plan(mesh: Mapping[str, int], parameters: dict[str, tuple[str, ...]], rest: dict[str, tuple[str, ...]]) -> Plan:
    mine = dict.fromkeys(("parameters", "optimiser", "gradients"), parameters)
    return Plan(mesh, {**mine, **dict.fromkeys(("activations", "state"), rest)})


def training(
    name: str, p: Plan, sizes: Mapping[str, int] = SIZES, layers: int | None = None, **options: Any
) -> Partitioned:
    model = load(name, {} if layers is None else {"layers": layers})
    made = partition(training_pipeline(model, sizes, **options).run(model.graph), p, sizes)
    verify(made.graph, after="partition")
    return made


def nodes(made: Partitioned) -> list[tuple[Collective, TensorType, int]]:
    """Collectives that move something, with the type of a shard before and how often they run."""
    found = [(n, times) for n, times in made.graph.walk() if isinstance(n.op, Collective)]
    return [(n.op, made.local(n.operands[0]), times) for n, times in found if not isinstance(n.op, OwnShard)]  # type: ignore[misc]


def counts(made: Partitioned) -> Counter[str]:
    return Counter(op.name for op, _, _ in nodes(made))


def test_tensor_parallel_gemma_2_has_the_all_reduces_of_megatron() -> None:
    """Two a layer (two layers in the cycle), and one for the vocabulary-sharded embedding; nothing else moves."""
    graph = phase_graph(load("gemma2-27b"), "forward").graph
    assert counts(partition(graph, TENSOR, SIZES)) == {"all_reduce": 5}


def test_the_way_back_has_as_many_again_and_those_of_the_loss() -> None:
    made = training("gemma2-27b", TENSOR)
    # forward 5; the loss 3 (maximum, sum, picked entry) and 2 recomputed; backward: 4 recomputed, 4 into the
    # sub-layers' inputs, the sums of query, key and value added first, and 1 into the unembedding's
    assert counts(made) == {"all_reduce": 5 + 5 + 4 + 4 + 1}
    for label, (_, t) in load("gemma2-27b").parameters.items():
        leaf = next(n.result for n in made.graph.nodes if getattr(n.op, "label", "") == label)
        asked = {a: ("model",) for a in t.axes if a in HEADS}
        assert made.of(made.graph.output(f"gradient:{label}")) == made.of(leaf) == asked


def test_data_parallel_gradients_are_reduced_once_each() -> None:
    made = training("gemma2-2b", Plan({"data": 8}, {kind: {"data": ("batch",)} for kind in CLASSES}))
    reduced = [t.elements.constant * times for op, t, times in nodes(made) if op.name == "all_reduce" and times > 1]
    assert sum(reduced) == 2_024_517_888 - 2304  # table 1 of the paper, without the final norm


def test_gradients_of_micro_batches_are_added_up_before_they_are_reduced() -> None:
    """Matrices once a step, not once a micro-batch; so is the embedding, two sums in one."""
    shared = Plan({"data": 4}, {kind: {"data": ("batch",)} for kind in CLASSES})
    made = training("gemma2-2b", shared, accumulate=4)
    reduced = [(t, times) for op, t, times in nodes(made) if op.name == "all_reduce" and len(t.axes) > 2]
    assert {times for _, times in reduced} == {1} and len(reduced) == 2 * 7
    embeds = [times for op, t, times in nodes(made) if op.name == "all_reduce" and "vocab" in t.axes]
    assert embeds == [1]


def test_a_pipeline_reduces_gradients_after_its_last_tick() -> None:
    rules = {kind: {"data": ("batch",), "stage": ("stages",)} for kind in CLASSES}
    stages = Stages(2, 4)
    made = training("gemma2-2b", Plan({"data": 4, "stage": 2}, rules), layers=8, stages=stages)
    matrices = [times for op, t, times in nodes(made) if op.name == "all_reduce" and {"embed", "mlp"} <= set(t.axes)]
    assert matrices == [1] * 6


def test_fsdp_gathers_each_weight_twice_and_scatters_its_gradient() -> None:
    made = training("gemma2-2b", plan({"fsdp": 16}, {"fsdp": ("embed",)}, {"fsdp": ("batch",)}))
    matrices = [(op.name, times) for op, t, times in nodes(made) if {"embed", "head_dim"} <= set(t.axes)]
    # query, key, value, out of both layers of the cycle: gathered forward and again backward, scattered once
    assert Counter(name for name, _ in matrices) == {"all_gather": 2 * 8, "reduce_scatter": 8}
    assert {times for _, times in matrices} == {13}


def test_a_sharded_sequence_costs_less_than_whole_residuals() -> None:
    """With norms and residuals sharded along seq what is sent is at most that of plain tensor parallelism."""

    def sent(made: Partitioned) -> float:
        return sum(float(op.cost([t], [t]).sent.constant) * times for op, t, times in nodes(made))

    sequence = plan({"model": 8}, {"model": HEADS}, {"model": (*HEADS, "seq")})
    assert sent(training("gemma2-27b", sequence)) <= sent(training("gemma2-27b", TENSOR))


def test_decode_does_not_gather_weights() -> None:
    model = load("gemma2-27b")
    sizes = {"batch": 16, "seq": 1, "capacity": 8192}
    p = plan({"fsdp": 4, "model": 8}, {"fsdp": ("embed",), "model": HEADS}, {"fsdp": ("batch",), "model": HEADS})
    made = partition(phase_pipeline(model, "decode", sizes).run(model.graph), p, sizes)
    gathered = [t for op, t, _ in nodes(made) if op.name == "all_gather" and "batch" not in t.axes]
    assert {t.axes for t in gathered} <= {("embed",)}  # the scales of the norms


def test_a_mesh_axis_of_one_shards_nothing() -> None:
    made = partition(phase_graph(spec("mlp"), "forward").graph, Plan.of({"mlp": "model"}, {"model": 1}), SIZES)
    assert not counts(made)


MESH = {"a": 2, "b": 3, "c": 2}
X, Y = "x", "y"
placements = st.dictionaries(st.sampled_from(list(MESH)), st.sampled_from([X, Y, Partial("sum"), Partial("max")]))


@settings(max_examples=300, deadline=None)
@given(placements, placements)
def test_any_placement_comes_from_any_other(have: dict[str, str | Partial], want: dict[str, str | Partial]) -> None:
    """By collectives whose local types fit what they take and give."""
    want = {m: p for m, p in want.items() if isinstance(p, str)}
    t = TensorType.make([(X, 12), (Y, 24)], "float32")
    now = have
    for op, after in moves(have, want, MESH):
        before, then = local(t, now, MESH), local(t, after, MESH)
        grown = {"all_gather": op.shards, "reduce_scatter": 1 / op.shards, "own_shard": 1 / op.shards}
        ratio = then.elements.constant / before.elements.constant
        assert ratio == pytest.approx(grown.get(op.name, 1.0))
        now = after
    assert now == want
