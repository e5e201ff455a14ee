"""The pipeline: passes in order, verified between, printable after any; all shipped specs go through it."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.errors import PhaseError, SpecError
from compiler.graph.ir import Graph
from compiler.language.model import Model, load
from compiler.lower.program import program, training
from compiler.ops.latest import latest_of
from compiler.ops.leaves import Input, State
from compiler.passes.differentiate import differentiate
from compiler.passes.loss import Chunk, next_token_loss
from compiler.passes.optimise import AdamW
from compiler.passes.phase import PHASES
from compiler.passes.pipeline import (
    PASSES,
    Elaborate,
    Pipeline,
    micro_sizes,
    phase_pipeline,
    printer,
    training_pipeline,
)
from compiler.passes.rematerialise import Rematerialise
from compiler.passes.verify import IllegalGraph
from tests.passes.specs import spec

SPECS = sorted(p.stem for p in (Path(__file__).parents[2] / "specs" / "models").glob("*.yaml"))
SIZES = {"batch": 2, "seq": 16, "capacity": 64, "source": 12, "image": 2, "frame": 2}


def shipped(name: str) -> tuple[Model, tuple[str, ...]]:
    """A spec, with no more latents than positions, and its phases."""
    model = load(name)
    if latest_of(model.graph) is not None:
        return load(name, {"latents": 16, "keep": 12}), ("forward", "prefill", "decode")
    return model, PHASES if model.streaming_input else ("forward",)


@pytest.mark.parametrize("name", SPECS)
def test_every_shipped_spec_is_legal_after_every_pass(name: str) -> None:
    model, phases = shipped(name)
    for phase in phases:
        phase_pipeline(model, phase, SIZES).run(model.graph)
    if model.streaming_input is None:
        with pytest.raises(PhaseError, match="has no token input, so no next-token loss"):
            training_pipeline(model, SIZES)
        return
    graph = training_pipeline(model, SIZES).run(model.graph)
    found = {name.removeprefix("gradient:") for name, _ in graph.outputs if name.startswith("gradient:")}
    trained = {label: t for label, (op, t) in model.parameters.items() if op.trainable}
    assert found == set(trained)
    for label, t in trained.items():
        assert graph.output(f"gradient:{label}").type == t


@pytest.mark.parametrize("name", SPECS)
def test_every_shipped_spec_has_a_training_step(name: str) -> None:
    """In micro-batches, in chunks, with values kept: every parameter leaves as it came, with its state."""
    model, _ = shipped(name)
    if model.streaming_input is None:  # nothing to predict the next one of
        return
    remat = Rematerialise("auto", limit=1e9)
    steps = training_pipeline(model, SIZES, remat=remat, accumulate=2, chunk=Chunk(4), optimiser=AdamW(clip=1.0))
    assert [p.name for p in steps.passes] == [p for p in PASSES if p not in ("pack", "stage", "partition")]
    graph = steps.run(model.graph)
    outputs = dict(graph.outputs)
    assert {"loss", "loss_weight", "gradient_norm", "state:step"} < set(outputs)
    for label, (op, t) in model.parameters.items():
        if not op.trainable:
            assert f"parameter:{label}" not in outputs
            continue
        kinds = {n: outputs[f"state:{label}:{n}"].type for n in ("first", "second", "master") if t.dtype == "bfloat16"}
        assert outputs[f"parameter:{label}"].type == t
        assert all(kind == t.with_dtype("float32") for kind in kinds.values())
    assert all(n.op.kind == "optimiser" for n in graph.leaves(State))  # type: ignore[attr-defined]
    tokens = next(n.result.type for n in graph.leaves(Input) if n.op.label == "tokens")  # type: ignore[attr-defined]
    assert tokens.size("batch").evaluate(micro_sizes(SIZES, 2)) == SIZES["batch"]


def test_passes_run_in_order_and_print() -> None:
    seen: list[tuple[str, Graph]] = []
    program(spec("attention"), "decode", {**SIZES, "seq": 1}, print_after=lambda name, g: seen.append((name, g)))
    assert [name for name, _ in seen] == ["elaborate", "phase", "select", "pack"]
    texts: list[str] = []
    training(spec("mlp"), SIZES, print_after=printer(["loss", "differentiate"], texts.append))
    assert [t.splitlines()[0] for t in texts] == ["# after loss", "# after differentiate"]
    assert "gradient:mlp.up" in texts[1] and "pick(" in texts[0]


def test_an_unknown_pass_is_named_with_the_nearest() -> None:
    with pytest.raises(SpecError) as error:
        printer(["phases"], print)
    (problem,) = error.value.problems
    assert problem.code == "unknown-pass" and problem.suggestion == "phase" and "select" in problem.allowed


def test_a_pass_that_breaks_the_graph_is_caught() -> None:
    class Drops(Elaborate):
        name = "drops"

        def __call__(self, graph: Graph) -> Graph:
            return graph.with_nodes(graph.nodes[1:])

    model = spec("mlp")
    with pytest.raises(IllegalGraph, match="after drops"):
        Pipeline((Elaborate(), Drops())).run(model.graph)


def test_missing_sizes_are_named() -> None:
    with pytest.raises(SpecError, match="a size for capacity, seq"):
        program(spec("attention"), "prefill", {"batch": 1})


def test_differentiate_refuses_what_it_cannot() -> None:
    graph = next_token_loss(program(spec("mlp"), "forward", SIZES).graph)
    with pytest.raises(SpecError, match=r"no output is called los\b") as error:
        differentiate(graph, "los")
    assert error.value.problems[0].suggestion == "loss"
    with pytest.raises(SpecError, match="only a single number"):
        differentiate(program(spec("mlp"), "forward", SIZES).graph, "logits")
    with pytest.raises(SpecError, match=r"no parameter is called mlp\.upp") as error:
        differentiate(graph, wrt=["mlp.upp"])
    assert error.value.problems[0].suggestion == "mlp.up"


def test_only_what_leads_to_a_wanted_parameter_is_differentiated() -> None:
    model = spec("frozen")
    graph = training_pipeline(model, SIZES).run(model.graph)
    named = [n for n, _ in graph.outputs if n.startswith("gradient")]
    assert named == ["gradient:second.weight", "gradient:unembed.out"]
    start = next(i for i, n in enumerate(graph.nodes) if n.path == "gradient")
    assert not any(n.op.name == "scatter_add" or n.path == "first" for n in graph.nodes[start:])
    one = training_pipeline(model, SIZES, wrt=["unembed.out", "first.weight"]).run(model.graph)
    assert [n for n, _ in one.outputs if n.startswith("gradient")] == ["gradient:unembed.out"]
