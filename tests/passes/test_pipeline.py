"""The pipeline: passes in order, verified between, printable after any; all shipped specs go through it."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.errors import SpecError
from compiler.graph.ir import Graph
from compiler.language.model import load
from compiler.lower.program import program, training
from compiler.passes.differentiate import differentiate
from compiler.passes.loss import next_token_loss
from compiler.passes.phase import PHASES
from compiler.passes.pipeline import Elaborate, Pipeline, phase_pipeline, printer, training_pipeline
from compiler.passes.verify import IllegalGraph
from tests.passes.specs import spec

SPECS = sorted(p.stem for p in (Path(__file__).parents[2] / "specs" / "models").glob("*.yaml"))
SIZES = {"batch": 2, "seq": 16, "capacity": 64}


@pytest.mark.parametrize("name", SPECS)
def test_every_shipped_spec_is_legal_after_every_pass(name: str) -> None:
    model = load(name)
    for phase in PHASES:
        phase_pipeline(model, phase, SIZES).run(model.graph)
    graph = training_pipeline(model, SIZES).run(model.graph)
    found = {name.removeprefix("gradient:") for name, _ in graph.outputs if name.startswith("gradient:")}
    assert found == set(model.parameters)
    for label, (_, t) in model.parameters.items():
        assert graph.output(f"gradient:{label}").type == t


def test_passes_run_in_order_and_print() -> None:
    seen: list[tuple[str, Graph]] = []
    program(spec("attention"), "decode", {**SIZES, "seq": 1}, print_after=lambda name, g: seen.append((name, g)))
    assert [name for name, _ in seen] == ["elaborate", "phase", "select"]
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
    with pytest.raises(SpecError, match="give capacity, seq"):
        program(spec("attention"), "prefill", {"batch": 1})


def test_differentiate_refuses_what_it_cannot() -> None:
    graph = next_token_loss(program(spec("mlp"), "forward", SIZES).graph)
    with pytest.raises(SpecError, match=r"no output is called los\b") as error:
        differentiate(graph, "los")
    assert error.value.problems[0].suggestion == "loss"
    with pytest.raises(SpecError, match="only a single number"):
        differentiate(graph, "logits")
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
