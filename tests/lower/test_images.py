"""NFNet runs as the paper says, has the gradients that differences say, costs what XLA counts, and is divided by rows;
convolutions are divided by rows, channels, groups and along the image."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compiler.check import flops
from compiler.graph.ir import Graph
from compiler.lower.graph import run
from compiler.lower.program import program
from compiler.lower.registry import Context
from compiler.ops.leaves import Input, Parameter
from compiler.passes.differentiate import differentiate, extend
from compiler.passes.prune import prune
from costmodel.price import price
from tests.children import rows
from tests.lower.nfnet import reference, tiny, weights
from tests.ops.float64 import TOLERANCE, float64, wide_arrays, widened, worst

SIZES = {"batch": 2}
DEVICES = ("rows", "height", "width and channels", "groups", "nfnet")


def images(size: int = 32) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(np.float32)


def loss(graph: Graph, name: str) -> Graph:
    """The mean square of a named value, and only what it needs."""
    b = extend(graph)
    x = graph.names[name]
    return prune(b.finish([("loss", b.reduce(b.square(x), "mean", x.axes))]))


def test_nfnet_equals_the_paper() -> None:
    model = tiny()
    given, x = weights(model), images()
    made = program(model, "forward", SIZES)
    found, _ = made.jitted()(given, {}, {"images": x})
    want = reference(model, given, x)
    for name in ("features", "logits"):
        scale = np.abs(want[name]).max()
        assert np.abs(np.asarray(found[name]) - want[name]).max() < 1e-5 * scale
    assert found["features"].shape == (2, 1, 1, 64) and found["logits"].shape == (2, 5)


def test_gradients_equal_differences() -> None:
    """Of the stem and two stages: a transition that keeps the resolution, one that halves it, a block."""
    model = tiny()
    forward = loss(model.graph, "stage2")
    needed = {n.op.label for n in forward.leaves(Parameter)}  # type: ignore[attr-defined]
    arrays = wide_arrays({**{k: a for k, a in weights(model).items() if k in needed}, "images": images()})
    f, g = widened(forward), widened(differentiate(forward))
    with float64():
        value = jax.jit(lambda leaves: run(f, Context(SIZES, leaves))["loss"])
        found = jax.jit(lambda leaves: run(g, Context(SIZES, leaves)))({k: jnp.asarray(a) for k, a in arrays.items()})
        gradients = {k.removeprefix("gradient:"): np.asarray(a) for k, a in found.items() if k.startswith("gradient:")}
        assert set(gradients) == needed and all(np.isfinite(a).all() for a in gradients.values())
        assert worst(lambda at: float(value(at)), arrays, gradients, directions=1) < TOLERANCE


def test_priced_flops_are_those_of_the_compiled_program() -> None:
    model = tiny()
    given = {**weights(model), "images": images()}
    for graph in (model.graph, differentiate(loss(model.graph, "stage2"))):
        labels = {n.op.label for n in graph.nodes if isinstance(n.op, (Input, Parameter))}
        leaves = {k: a for k, a in given.items() if k in labels}
        text = jax.jit(lambda x, graph=graph: run(graph, Context(SIZES, x))).lower(leaves).compile().as_text()
        counted = flops(text)
        assert counted.exact and counted.total == price(graph).at(SIZES).matrix


def on_devices() -> dict[str, dict[str, Any]]:
    return rows("tests.lower.images_on_devices", devices=4)


@pytest.mark.parametrize("case", DEVICES)
def test_devices_equal_one(case: str) -> None:
    assert on_devices()[case]["worst"] < 1e-5


def test_what_devices_send() -> None:
    found = on_devices()
    assert found["nfnet"]["planned"] == found["nfnet"]["emitted"] == {}  # rows are independent
    assert set(found["rows"]["planned"]) == {"all-reduce"}  # of gradients
    assert found["height"]["planned"]["collective-permute"] == 8  # edges, once for both ways
