"""Rematerialise: every policy gives the same gradients; they differ in what is kept and what is computed again."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from compiler.errors import SpecError
from compiler.graph.ir import Graph
from compiler.language.model import Model, load
from compiler.lower.program import training
from compiler.ops.control import Repeat
from compiler.passes.loss import CHUNKS, Chunk
from compiler.passes.pipeline import training_pipeline
from compiler.passes.rematerialise import POLICIES, Rematerialise
from runtime.weights.initial import random
from tests.passes.specs import spec

SIZES = {"batch": 2, "seq": 12}
SMALL = {"dtype": "float32", "vocab": 96, "embed": 32, "heads": 4, "mlp": 48, "head_dim": 8}
MODELS: dict[str, dict[str, Any]] = {
    "gemma2-9b": {"kv_heads": 2, "layers": 4, "window": 4},
    "recurrentgemma-2b": {"kv_heads": 1, "rnn": 40, "layers": 6, "window": 4},
    "mixtral-8x7b": {"kv_heads": 2, "layers": 2, "experts": 4},
}
LIMIT = 30_000.0
OTHERS = [Rematerialise("none"), Rematerialise("dots"), Rematerialise("auto", limit=LIMIT)]
SLOW = [(name, r) for name in MODELS for r in OTHERS if (name != "gemma2-9b") == (r.policy != "auto")]
ALL = [
    *((name, r) for name in MODELS for r in OTHERS if (name, r) not in SLOW),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW),
    ("gemma2-9b", Rematerialise("names", ("attention",))),
]


@cache
def model(name: str) -> Model:
    return load(name, SMALL | MODELS[name])


@cache
def gradients(name: str, remat: Rematerialise) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    inputs = {"tokens": draw.integers(0, 96, (2, 12)).astype(np.int32), "seq_lengths": np.array([12, 7], np.int32)}
    program = training(model(name), SIZES, remat=remat, chunk=Chunk(positions=5))
    found = program.jitted()(dict(random(model(name), 1).arrays), {}, inputs)[0]
    return {k: np.asarray(x) for k, x in found.items()}


def graph(name: str, remat: Rematerialise, **options: Any) -> Graph:
    made = model(name)
    return training_pipeline(made, SIZES, remat=remat, **options).run(made.graph)


def kept_bytes(graph: Graph) -> float:
    """What the forward repeats over layers stack for the way back."""
    forward = [n for n in graph.nodes if isinstance(n.op, Repeat) and not n.op.reverse and n.op.axis == "layers"]
    return sum(float(v.type.bytes.evaluate(SIZES)) for n in forward for v in n.results[n.op.carried :])


def recomputed(graph: Graph) -> float:
    """FLOPs of matrix products."""
    return sum(
        float((n.op.cost([v.type for v in n.operands], [v.type for v in n.results]).matrix * times).evaluate(SIZES))
        for n, times in graph.walk()
    )


@pytest.mark.parametrize(("name", "remat"), ALL, ids=lambda x: getattr(x, "policy", x))
def test_gradients_are_the_same(name: str, remat: Rematerialise) -> None:
    found, want = gradients(name, remat), gradients(name, Rematerialise("full"))
    assert set(found) == set(want)
    for key, g in want.items():
        np.testing.assert_allclose(found[key], g, rtol=0, atol=1e-6 * max(1.0, float(np.abs(g).max())))


@pytest.mark.parametrize("name", MODELS)
def test_more_kept_is_less_computed(name: str) -> None:
    made = {p: graph(name, Rematerialise(p)) for p in ("full", "dots", "none")}
    kept = [kept_bytes(made[p]) for p in ("full", "dots", "none")]
    flops = [recomputed(made[p]) for p in ("full", "dots", "none")]
    assert kept[0] < kept[1] < kept[2]
    assert flops[0] > flops[1] >= flops[2]
    forward = recomputed(training_pipeline(model(name), SIZES, wrt=[]).run(model(name).graph))
    # the way back of a product is two, of attention two and a half: nothing else is left when all is kept
    assert flops[0] - flops[2] > 0.5 * forward


def test_one_trip_computes_nothing_again() -> None:
    """XLA makes straight code of it and would merge what we ask to be computed again."""
    made = load("gemma2-9b", SMALL | MODELS["gemma2-9b"] | {"layers": 2})
    full, none = (training_pipeline(made, SIZES, remat=Rematerialise(p)).run(made.graph) for p in ("full", "none"))
    assert recomputed(full) == recomputed(none)


@pytest.mark.parametrize("name", MODELS)
def test_auto_keeps_within_its_limit_and_gains_with_it(name: str) -> None:
    full = graph(name, Rematerialise("full"))
    least, before = kept_bytes(full), recomputed(full)
    for share in (0.0, 1.2, 2.0, 4.0, 1e9):
        made = graph(name, Rematerialise("auto", limit=share * least))
        if share > 1:
            assert kept_bytes(made) <= share * least
        assert recomputed(made) <= before
        before = recomputed(made)
    assert before == recomputed(graph(name, Rematerialise("none")))
    assert kept_bytes(made) <= kept_bytes(graph(name, Rematerialise("none")))


def test_auto_counts_the_bytes_of_one_device() -> None:
    half = Rematerialise("auto", limit=LIMIT / 2, shards=lambda v: 2)
    assert kept_bytes(graph("gemma2-9b", half)) == kept_bytes(graph("gemma2-9b", Rematerialise("auto", limit=LIMIT)))


def test_names_keep_what_a_block_hands_on() -> None:
    """One more value of the residual stream's width for each layer."""
    more = kept_bytes(graph("gemma2-9b", Rematerialise("names", ("attention",))))
    stream = SIZES["batch"] * SIZES["seq"] * SMALL["embed"] * 4
    assert more - kept_bytes(graph("gemma2-9b", Rematerialise("full"))) == 4 * stream


@pytest.mark.parametrize("name", ["none", "dots", "auto"])
def test_logits_of_a_chunk_are_never_kept(name: str) -> None:
    made = graph("gemma2-9b", Rematerialise(name, limit=1e12), chunk=Chunk(positions=5))
    (chunks,) = [n for n in made.nodes if isinstance(n.op, Repeat) and n.op.axis == CHUNKS and not n.op.reverse]
    assert not any("vocab" in v.axes for v in chunks.results)


def test_unknown_policies_and_blocks_are_named() -> None:
    with pytest.raises(SpecError, match="no rematerialise policy is called dot") as error:
        graph("gemma2-9b", Rematerialise("dot"))
    assert error.value.problems[0].suggestion == "dots" and error.value.problems[0].allowed == POLICIES
    with pytest.raises(SpecError, match="called atention") as error:
        graph("gemma2-9b", Rematerialise("names", ("atention",)))
    assert error.value.problems[0].suggestion == "attention"
    with pytest.raises(SpecError, match="needs a limit"):
        graph("gemma2-9b", Rematerialise("auto"))


def test_a_model_without_repeats_keeps_all_there_is() -> None:
    made = spec("mlp")
    graphs = [training_pipeline(made, SIZES, remat=r).run(made.graph) for r in (*OTHERS, Rematerialise())]
    assert len({str(g) for g in graphs}) == 1
