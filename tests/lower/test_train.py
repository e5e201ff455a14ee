"""A training step as one graph equals jax.grad of the forward graph and optax, step after step."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from compiler.errors import SpecError
from compiler.language.model import Model, load
from compiler.lower.graph import run
from compiler.lower.program import training
from compiler.lower.registry import Context
from compiler.lower.train import TrainingStep, training_step
from compiler.passes.loss import Chunk, narrowest_cut, next_token_loss
from compiler.passes.optimise import SGD, AdamW, Optimiser
from compiler.passes.phase import phase_graph
from compiler.passes.rematerialise import Rematerialise
from compiler.passes.select import Choice, select
from runtime.weights.initial import random
from tests.passes.specs import spec

SMALL = {"vocab": 96, "embed": 32, "heads": 4, "mlp": 48, "head_dim": 8, "kv_heads": 2, "layers": 2, "window": 4}
SIZES = {"batch": 4, "seq": 11}
STEPS = 3
RATES = (1e-2, 3e-3, 1e-3)


@cache
def model(dtype: str = "float32") -> Model:
    return load("gemma2-9b", SMALL | {"dtype": dtype})


def params(made: Model) -> dict[str, Any]:
    return {k: jnp.asarray(x) for k, x in random(made, 1).arrays.items()}


def batch(step: int) -> dict[str, np.ndarray]:
    """Rows of unequal length; one has no next token at all."""
    draw = np.random.default_rng(step)
    tokens = draw.integers(0, 40, (SIZES["batch"], SIZES["seq"])).astype(np.int32)
    return {"tokens": tokens, "seq_lengths": np.array([11, 1, 5, 8], np.int32)}


def ours(program: TrainingStep, made: Model) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    p = params(made)
    state, step, said = program.initial_state(p), program.jitted(), []
    for i in range(STEPS):
        out, p, state = step(p, state, {**batch(i), "learning_rate": np.float32(RATES[i])})
        said.append(jax.tree.map(np.asarray, out))
    return said, jax.tree.map(np.asarray, p), jax.tree.map(np.asarray, state)


def theirs(made: Model, transform: Any) -> tuple[list[dict[str, Any]], dict[str, Any], Any]:
    """The same steps by jax.grad and optax; ``transform`` takes the learning rate."""
    graph = select(next_token_loss(phase_graph(made, "forward").graph), SIZES, Choice())

    @jax.jit
    def step(p: Any, state: Any, inputs: Any, rate: Any) -> Any:
        loss, g = jax.value_and_grad(lambda p: run(graph, Context(SIZES, {**p, **inputs}))["loss"])(p)
        updates, state = transform(rate).update(g, state, p)
        return loss, optax.tree.norm(g), optax.apply_updates(p, updates), state

    p = params(made)
    state, said = transform(0.0).init(p), []
    for i in range(STEPS):
        loss, norm, p, state = step(p, state, batch(i), RATES[i])
        said.append({"loss": np.asarray(loss), "gradient_norm": np.asarray(norm)})
    return said, jax.tree.map(np.asarray, p), jax.tree.map(np.asarray, state)


def clipped(by: float, rest: Any) -> Any:
    return lambda rate: optax.chain(optax.clip_by_global_norm(by), rest(rate))


# Adam divides by the root of the second moment: with a small eps an entry whose gradient is rounding noise moves by
# noise. The default eps is that of the test of the update alone.
ADAMW = {"b1": 0.8, "b2": 0.99, "eps": 1e-3, "weight_decay": 0.1}
OURS: dict[str, Any] = {"beta1": 0.8, "beta2": 0.99, "eps": 1e-3, "weight_decay": 0.1}
MATRICES = {"eps": 1e-3, "weight_decay": 0.1, "mask": lambda p: {k: "scale" not in k for k in p}}
CASES: dict[str, tuple[Optimiser, Any]] = {
    "adamw": (AdamW(eps=1e-3), lambda rate: optax.adamw(rate, eps=1e-3)),
    "clipped": (AdamW(**OURS, clip=0.5), clipped(0.5, lambda rate: optax.adamw(rate, **ADAMW))),
    "not reached": (AdamW(**OURS, clip=1e4), clipped(1e4, lambda rate: optax.adamw(rate, **ADAMW))),
    "matrices": (AdamW(eps=1e-3, weight_decay=0.1, decay="matrices"), lambda rate: optax.adamw(rate, **MATRICES)),
    "sgd": (SGD(clip=0.5), clipped(0.5, optax.sgd)),
    "momentum": (SGD(momentum=0.9), lambda rate: optax.sgd(rate, momentum=0.9)),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ("clipped", "momentum") else pytest.mark.slow) for n in CASES]
)
def test_steps_equal_jax_and_optax(name: str) -> None:
    optimiser, transform = CASES[name]
    made = model()
    said, p, state = ours(training_step(made, SIZES, optimiser=optimiser), made)
    want, q, kept = theirs(made, transform)
    for a, b in zip(said, want, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-6)
        np.testing.assert_allclose(a["gradient_norm"], b["gradient_norm"], rtol=1e-5)
        assert a["loss_weight"] == 10 + 4 + 7
    assert set(p) == set(q) and state["step"] == STEPS
    for k in q:
        np.testing.assert_allclose(p[k], q[k], rtol=0, atol=1e-6)
    moments = next((s for s in jax.tree.leaves(kept, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")), None)
    if moments is not None:
        for k in q:
            np.testing.assert_allclose(state[f"{k}:first"], moments.mu[k], atol=1e-6)
            np.testing.assert_allclose(state[f"{k}:second"], moments.nu[k], atol=1e-6)


def test_the_update_alone_equals_optax_to_the_last_bits() -> None:
    """The same gradients to both: no forward or backward between."""
    made = spec("mlp")
    program = training_step(made, {"batch": 2, "seq": 4}, optimiser=AdamW(weight_decay=0.1, clip=0.7))
    draw = np.random.default_rng(0)
    p = {k: draw.normal(size=x.shape).astype(np.float32) for k, x in random(made, 0).arrays.items()}
    transform = optax.chain(optax.clip_by_global_norm(0.7), optax.adamw(1e-2, weight_decay=0.1))
    theirs_p, theirs_state, mine, state = p, transform.init(p), p, program.initial_state(p)
    updating = _update_graph(program)
    for _ in range(20):
        g = {k: draw.normal(size=x.shape).astype(np.float32) for k, x in p.items()}
        updates, theirs_state = transform.update(g, theirs_state, theirs_p)
        theirs_p = optax.apply_updates(theirs_p, updates)
        leaves = {**mine, **state, **{f"gradient:{k}": x for k, x in g.items()}, "learning_rate": jnp.float32(1e-2)}
        found = run(updating, Context({}, leaves))
        mine = {k: found[f"parameter:{k}"] for k in mine}
        state = {k: found[f"state:{k}"] for k in state}
    for k in p:
        np.testing.assert_allclose(mine[k], theirs_p[k], rtol=0, atol=1e-6)


def _update_graph(program: TrainingStep) -> Any:
    from compiler.graph.builder import Builder
    from compiler.ops.leaves import Input, Parameter
    from compiler.passes.optimise import optimise

    b = Builder()
    outputs = []
    for node in program.graph.leaves(Parameter):
        t = node.result.type
        b.append(node.op, (), (t,))
        outputs.append((f"gradient:{node.op.label}", b.append(Input(f"gradient:{node.op.label}"), (), (t,))[0]))  # type: ignore[attr-defined]
    return optimise(b.finish(outputs), AdamW(weight_decay=0.1, clip=0.7))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"accumulate": 2}, marks=pytest.mark.slow),
        {"accumulate": 4, "chunk": Chunk(positions=4)},
        {"chunk": Chunk(positions=3), "remat": Rematerialise("dots")},
        {"chunk": Chunk(logits_bytes=4 * 96 * 4 * 6), "remat": Rematerialise("none"), "accumulate": 2},
    ],
    ids=["accumulate", "accumulate in chunks", "chunks keeping dots", "all three"],
)
def test_how_a_step_is_cut_up_changes_no_number(options: dict[str, Any]) -> None:
    """Against the step in one piece. Plain gradient descent: what Adam makes of rounding noise is not told apart."""
    made, optimiser = model(), SGD(clip=0.5)
    said, p, _ = ours(training_step(made, SIZES, optimiser=optimiser, **options), made)
    want, q, _ = ours(training_step(made, SIZES, optimiser=optimiser, chunk=None), made)
    for a, b in zip(said, want, strict=True):
        for k in b:
            np.testing.assert_allclose(a[k], b[k], rtol=1e-6)
    for k in q:
        np.testing.assert_allclose(p[k], q[k], rtol=0, atol=1e-6)


def test_narrow_parameters_have_a_master_and_follow_it() -> None:
    made = model("bfloat16")
    program = training_step(made, SIZES, optimiser=AdamW(first="bfloat16"))
    p = params(made)
    state = program.initial_state(p)
    assert {str(x.dtype) for x in p.values()} == {"bfloat16"}
    for k in p:
        kinds = [str(state[f"{k}:{n}"].dtype) for n in ("first", "second", "master")]
        assert kinds == ["bfloat16", "float32", "float32"]
    start = {k: np.asarray(x, np.float32) for k, x in p.items()}
    said, q, after = ours(program, made)
    for k, x in q.items():
        master = after[f"{k}:master"]
        np.testing.assert_array_equal(np.asarray(x), master.astype(jnp.bfloat16))
        assert 0 < np.abs(master - start[k]).max() < 1e-1
    assert not np.array_equal(after[f"{k}:master"], np.asarray(q[k], np.float32))  # it holds more than the parameter
    assert said[0]["loss"].dtype == np.float32
    alone = training_step(made, SIZES, optimiser=AdamW(master="bfloat16"))
    assert not any(label.endswith(":master") for label in alone.states)


def test_frozen_parameters_have_no_state_and_stay() -> None:
    made = spec("frozen")
    sizes = {"batch": 2, "seq": 6}
    program = training_step(made, sizes)
    assert {k.partition(":")[0] for k in program.states} == {"step", "second.weight", "unembed.out"}
    p = params(made)
    before = {k: np.asarray(x) for k, x in p.items()}
    inputs = {"tokens": np.ones((2, 6), np.int32), "seq_lengths": np.array([6, 4], np.int32), "learning_rate": 0.1}
    _, q, _ = program.jitted()(p, program.initial_state(p), inputs)
    assert set(q) == set(before)
    same = {k for k in q if np.array_equal(before[k], np.asarray(q[k]))}
    assert same == {"embed.table", "first.weight"}


def test_parameters_and_state_are_donated() -> None:
    made = spec("mlp")
    program = training_step(made, {"batch": 2, "seq": 6})
    lowered = program.jitted().lower(*program.arguments())
    donated = len(re.findall(r"tf.aliasing_output|jax.buffer_donor", lowered.as_text()))
    assert donated == len(program.parameters) + len(program.states)


# -- chunks and micro-batches
@pytest.mark.parametrize(
    "name", ["mlp", "experts", "repeat", *(pytest.param(n, marks=pytest.mark.slow) for n in ("attention", "shift"))]
)
def test_chunks_change_no_number(name: str) -> None:
    made, sizes = spec(name), {"batch": 3, "seq": 7}
    draw = np.random.default_rng(0)
    inputs = {"tokens": draw.integers(0, 40, (3, 7)).astype(np.int32), "seq_lengths": np.array([7, 2, 5], np.int32)}
    whole, *cut = (
        jax.tree.map(np.asarray, training(made, sizes, chunk=c).jitted()(params(made), {}, inputs)[0])
        for c in (None, Chunk(positions=2), Chunk(positions=7), Chunk(logits_bytes=1))
    )
    for found in cut:
        for k, x in whole.items():
            np.testing.assert_allclose(found[k], x, rtol=0, atol=1e-6 * max(1.0, float(np.abs(x).max())))


def test_no_value_of_a_large_vocabulary_s_step_holds_all_logits() -> None:
    made = load("gemma2-2b", {"layers": 2})
    sizes = {"batch": 4, "seq": 4096}
    program = training_step(made, sizes)
    vocab = made.dims["vocab"]
    seen = [v.type for n, _ in program.graph.walk() for v in n.results if "vocab" in v.axes and "embed" not in v.axes]
    largest = max(int(t.elements.evaluate(sizes)) for t in seen)
    assert largest <= (1 << 30) / 4 and largest > (1 << 29) / 4
    assert largest % vocab == 0 and program.graph.outputs[0][0] == "loss"


def temporary_bytes(**options: Any) -> int:
    made = load("gemma2-9b", SMALL | {"dtype": "float32", "vocab": 4096, "layers": 8, "window": 64})
    program = training_step(made, {"batch": 4, "seq": 256}, **options)
    return int(program.jitted().lower(*program.arguments()).compile().memory_analysis().temp_size_in_bytes)


def test_what_is_cut_up_takes_less_memory() -> None:
    """As XLA for CPU says. The logits are 16 MiB; a layer's values for the way back, kept, are about 3 MiB."""
    whole = temporary_bytes(chunk=None)
    chunked = temporary_bytes(chunk=Chunk(positions=16))
    assert whole - chunked > 16 << 20
    assert temporary_bytes(chunk=Chunk(positions=16), remat=Rematerialise("none")) - chunked > 8 * (2 << 20)
    assert temporary_bytes(chunk=Chunk(positions=16), accumulate=4) < chunked


@pytest.mark.parametrize(
    ("seq", "positions", "want"), [(8, 4, (2, 4)), (8, 3, (4, 2)), (7, 3, (3, 3)), (13, 13, (1, 13)), (13, 1, (13, 1))]
)
def test_chunks_divide_where_they_can(seq: int, positions: int, want: tuple[int, int]) -> None:
    graph = phase_graph(spec("mlp"), "forward").graph
    assert Chunk(positions).split(graph.output("logits").type, {"batch": 2, "seq": seq}) == want


def test_the_cut_is_the_unembedding_s_input() -> None:
    graph = phase_graph(model("bfloat16"), "forward").graph
    (cut,), between = narrowest_cut(graph, graph.output("logits"), SIZES)
    assert [n.op.text().partition("<")[0] for n in between] == ["dot", "mul", "tanh", "mul"]
    assert cut.type.dtype == "bfloat16" and cut.axes == ("batch", "seq", "embed")


def test_the_cut_goes_no_further_than_the_narrow_place() -> None:
    """Tokens are narrower still, but all of this model lies between."""
    graph = phase_graph(spec("mlp"), "forward").graph
    (cut,), between = narrowest_cut(graph, graph.output("logits"), SIZES)
    assert [n.op.name for n in between] == ["dot"] and cut.axes == ("batch", "seq", "embed")


def test_a_batch_that_does_not_divide_into_micro_batches_is_refused() -> None:
    with pytest.raises(SpecError, match="batch = 4 does not divide into 3 micro-batches") as error:
        training_step(model(), SIZES, accumulate=3)
    assert error.value.problems[0].allowed == ("1", "2", "4")


def test_moments_are_wide_or_bfloat16() -> None:
    with pytest.raises(SpecError, match="first is kept in float32 or bfloat16, not float16"):
        training_step(model(), SIZES, optimiser=AdamW(first="float16"))
