"""Gradients of whole tiny models: against torch autograd's saved ones, and against jax.grad of our own forward."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from compiler.language.model import Model, load
from compiler.lower.graph import run
from compiler.lower.program import training
from compiler.lower.registry import Context
from compiler.passes.loss import next_token_loss
from compiler.passes.phase import phase_graph
from compiler.passes.rematerialise import Rematerialise
from compiler.passes.select import Choice, select
from runtime.weights import mapping
from runtime.weights.initial import random
from runtime.weights.load import assemble
from tests.huggingface import FIXTURES, case

SPECS = Path(__file__).parents[1] / "specs"


@pytest.mark.parametrize("name", ["gemma", "gemma2", "recurrent_gemma", "mixtral"])
def test_equal_torch_autograd(name: str) -> None:
    """The fixtures hold the gradients of row 0's mean loss."""
    made = case(name)
    row = made.tokens[:1]
    program = training(made.model, {"batch": 1, "seq": row.shape[1]})
    inputs = {"tokens": row, "seq_lengths": made.lengths[:1]}
    found = jax.tree.map(np.asarray, program.jitted()(made.params, {}, inputs)[0])
    reference, saved = np.load(FIXTURES / name / "reference.npz"), np.load(FIXTURES / name / "gradients.npz")
    assert abs(found["loss"] - reference["loss"]) < 1e-5
    grads = {k.removeprefix("gradient:"): v for k, v in found.items() if k.startswith("gradient:")}
    table = mapping.compile(made.model, "huggingface")
    assert set(table.tensors) == set(saved.files)
    for tensor in table.tensors.values():
        theirs = saved[tensor.name]
        error = np.abs(assemble(tensor, grads) - theirs).max() / np.abs(theirs).max()
        assert error < 2e-5, f"{tensor.name}: {error}"


def both(model: Model, sizes: dict[str, int], remat: Rematerialise, choice: Choice = Choice()) -> float:
    """Largest difference of any gradient to jax.grad of the forward graph's lowering, relative to its largest entry."""
    draw = np.random.default_rng(0)
    params = dict(random(model, 1).arrays)
    inputs = {
        "tokens": draw.integers(0, model.dims["vocab"], (sizes["batch"], sizes["seq"])).astype(np.int32),
        "seq_lengths": np.array([sizes["seq"], *draw.integers(2, sizes["seq"], sizes["batch"] - 1)], np.int32),
    }
    program = training(model, sizes, remat=remat, choice=choice)
    for label in program.inputs:
        if label not in inputs:
            t = program.shape(program.inputs[label])
            inputs[label] = (np.full(t.shape, 3) if t.dtype == "int32" else draw.normal(size=t.shape)).astype(t.dtype)
    forward = select(next_token_loss(phase_graph(model, "forward").graph), sizes, choice)
    loss, want = jax.jit(jax.value_and_grad(lambda p: run(forward, Context(sizes, {**p, **inputs}))["loss"]))(params)
    found = program.jitted()(params, {}, inputs)[0]
    assert abs(float(found["loss"]) - float(loss)) < 1e-5
    return max(
        float(np.abs(np.asarray(found[f"gradient:{k}"]) - np.asarray(g)).max() / max(np.abs(np.asarray(g)).max(), 1e-6))
        for k, g in want.items()
    )


@pytest.mark.parametrize(("name", "policy"), [("nested", "full"), ("captioner", "none")])
def test_nested_repeats_and_contexts_equal_jax_grad(name: str, policy: str) -> None:
    """Repeats inside repeats; values captured by every layer (their gradients are summed over the layers)."""
    model = load(SPECS / f"{name}.yaml")
    assert both(model, {"batch": 2, "seq": 8, "frames": 4}, Rematerialise(policy)) < 1e-4


def test_ragged_experts_equal_dense_ones() -> None:
    made = case("mixtral")
    row, sizes = made.tokens[:1, :12], {"batch": 1, "seq": 12}
    inputs = {"tokens": row, "seq_lengths": np.array([12], np.int32)}
    choices = (Choice(dense_tokens=0), Choice(dense_tokens=100))
    ragged, dense = (training(made.model, sizes, choice=c).jitted()(made.params, {}, inputs)[0] for c in choices)
    for name in ragged:
        scale = float(np.abs(np.asarray(dense[name])).max())
        np.testing.assert_allclose(ragged[name], dense[name], atol=2e-5 * scale)
