"""Partition: placements and collectives, and refusals by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest

from compiler.errors import SpecError
from compiler.language.model import load
from compiler.passes.partition import Partitioned, check_sizes, partition
from compiler.passes.phase import phase_graph
from compiler.passes.pipeline import training_pipeline
from compiler.passes.verify import ADDED_BY, verify
from tests.passes.specs import spec

MESH = {"data": 4, "model": 2}
TENSOR = {"heads": "model", "kv_heads": "model", "mlp": "model", "vocab": "model"}


def collectives(made: Partitioned) -> Counter[str]:
    return Counter(n.op.name for n, _ in made.graph.walk() if n.op.name in ADDED_BY["partition"])


def forward(name: str, axes: Mapping[str, str], mesh: Mapping[str, int] = MESH) -> Partitioned:
    return partition(phase_graph(spec(name), "forward").graph, axes, mesh)


@pytest.mark.parametrize(
    ("axes", "mesh", "code", "said", "allowed"),
    [
        ({"mlpp": "model"}, MESH, "unknown-axis", "no axis is called mlpp", None),
        ({"mlp": "modl"}, MESH, "unknown-mesh-axis", "mlp goes to modl", ("data", "model")),
        ({"mlp": "model"}, {"model": 3}, "indivisible", "mlp = 16 does not divide by mesh axis model = 3",
         ("model=2", "model=4")),
        ({"mlp": "model", "embed": "model"}, MESH, "mesh-axis-twice", "embed and mlp of float32[embed=8 mlp=16]", None),
        ({"heads": "model"}, MESH, "cannot-shard", "2 heads read 2 kv_heads in groups", None),
        ({"seq": "data"}, MESH, "cannot-shard", "attention: cannot shard seq here yet", None),
    ],
)  # fmt: skip
def test_refusals(axes: dict[str, str], mesh: dict[str, int], code: str, said: str, allowed: object) -> None:
    name = "attention" if {"heads", "seq"} & set(axes) else "mlp"
    with pytest.raises(SpecError) as error:
        forward(name, axes, mesh)
    (problem,) = error.value.problems
    assert problem.code == code and said in problem.message
    assert allowed is None or problem.allowed == allowed


def test_nearest_names() -> None:
    with pytest.raises(SpecError) as error:
        forward("mlp", {"mlpp": "model"})
    assert error.value.problems[0].suggestion == "mlp"


def test_a_batch_that_does_not_divide_is_told_when_it_is_known() -> None:
    made = forward("mlp", {"batch": "data"})
    check_sizes(made, {"batch": 8, "seq": 3})
    with pytest.raises(SpecError, match="batch = 6 does not divide by mesh axis data = 4"):
        check_sizes(made, {"batch": 6, "seq": 3})


@pytest.mark.parametrize("axis", ["seq", "rnn"])
def test_a_recurrence_over_a_sharded_sequence_is_refused(axis: str) -> None:
    model = load("recurrentgemma-2b", {"layers": 3})
    graph = phase_graph(model, "forward").graph
    if axis == "rnn":
        verify(partition(graph, {"rnn": "model", "blocks": "model"}, MESH).graph)
        return
    with pytest.raises(SpecError, match="cannot shard seq here yet"):
        partition(graph, {"seq": "data"}, MESH)


def test_tensor_parallel_gemma_2_has_the_all_reduces_of_megatron() -> None:
    """Two a layer (two layers in the cycle), and one for the vocabulary-sharded embedding; nothing else moves."""
    made = partition(phase_graph(load("gemma2-27b"), "forward").graph, TENSOR, MESH)
    assert collectives(made) == {"all_reduce": 5}


def test_the_way_back_has_as_many_again_and_those_of_the_loss() -> None:
    model = load("gemma2-27b")
    graph = training_pipeline(model, {"batch": 2, "seq": 64}).run(model.graph)
    made = partition(graph, TENSOR, MESH)
    verify(made.graph, after="partition")
    # forward 5; the loss 3 (maximum, sum, picked entry); backward: 4 recomputed, 4 into the sub-layers' inputs,
    # and 1 into the unembedding's
    assert collectives(made) == {"all_reduce": 5 + 3 + 4 + 4 + 1}
    for label, (_, t) in model.parameters.items():
        leaf = next(n.result for n in made.graph.nodes if getattr(n.op, "label", "") == label)
        asked = {a: TENSOR[a] for a in t.axes if a in TENSOR}
        assert made.of(made.graph.output(f"gradient:{label}")) == made.of(leaf) == asked


def test_a_mesh_axis_of_one_shards_nothing() -> None:
    assert not collectives(forward("mlp", {"mlp": "model"}, {"model": 1}))
