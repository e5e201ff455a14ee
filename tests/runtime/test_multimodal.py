"""Text, images and sound in one sequence: soft tokens in the places of markers, whole, in chunks and one by one."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import blockgraph as bg
from blockgraph.inspect import summary
from compiler.errors import SpecError
from compiler.language.model import Model, load, loads
from compiler.lower.program import program
from costmodel.simulate import simulate
from runtime.weights.initial import random

SMALL = {
    "dtype": "float32", "text": 24, "codes": 8, "embed": 32, "heads": 4, "head_dim": 8, "mlp": 48, "layers": 2,
    "vision": 16, "vision_heads": 2, "vision_mlp": 24, "vision_layers": 1, "side": 28, "images": 2, "usm": 6,
    "frames": 3,
}  # fmt: skip
IMAGE, SOUND = 22, 23
LENGTHS = np.array([12, 7], np.int32)
TOKENS = np.array([
    [1, IMAGE, IMAGE, IMAGE, 2, SOUND, IMAGE, 3, SOUND, IMAGE, 25, 4],
    [SOUND, 5, SOUND, SOUND, SOUND, IMAGE, 6, 0, 0, 0, 0, 0],
], np.int32)  # fmt: skip


MODELS = {
    "gemini-1": SMALL, "gemini-1.5-flash": SMALL | {"kv_heads": 2},
    "gemini-1.5-pro": SMALL | {"kv_heads": 2, "dense_mlp": 64, "experts": 4},
}  # fmt: skip


def made(name: str = "gemini-1") -> tuple[Model, dict[str, np.ndarray], dict[str, np.ndarray]]:
    model, draw = load(name, MODELS[name]), np.random.default_rng(0)
    params = {k: np.asarray(x) for k, x in random(model, 0).arrays.items()}
    images = draw.normal(size=(2, 2, 28, 28, 3)).astype(np.float32)
    return model, params, {"images": images, "sound": draw.normal(size=(2, 3, 6)).astype(np.float32)}


def forward(model: Model, params: Any, tokens: np.ndarray, given: Any) -> np.ndarray:
    fn = program(model, "forward", {"batch": len(tokens), "seq": tokens.shape[1]}).jitted()
    return np.asarray(fn(params, {}, {"tokens": tokens, **given})[0]["logits"])


@pytest.mark.parametrize(
    ("name", "chunk"), [("gemini-1", 1), ("gemini-1", 5), ("gemini-1.5-pro", 5), ("gemini-1.5-flash", 1)]
)
def test_chunks_equal_forward(name: str, chunk: int) -> None:
    """A chunk goes on counting where the one before ended; padding is not counted."""
    model, params, given = made(name)
    want = forward(model, params, TOKENS, given)
    sizes = {"batch": 2, "seq": chunk, "capacity": 16}
    encode = program(model, "encode", {**sizes, "seq": 1})
    step = program(model, "decode" if chunk == 1 else "prefill", sizes, logits="all")
    state = step.empty_state()
    context = jax.jit(encode.function())({k: params[k] for k in encode.parameters}, {}, given)[1]
    assert {t.axes for t in step.states.values()} >= {("batch", "patches", "embed")}
    state.update(context)
    fn, own = step.jitted(), {k: params[k] for k in step.parameters}
    for start in range(0, 12, chunk):
        tokens = np.zeros((2, chunk), np.int32)
        part = TOKENS[:, start : start + chunk]
        tokens[:, : part.shape[1]] = part
        valid = np.clip(LENGTHS - start, 0, part.shape[1]).astype(np.int32)
        out, new = fn(own, state, {"tokens": tokens, "valid": valid})
        state.update(new)
        for row in range(2):
            n = valid[row]
            np.testing.assert_allclose(out["logits"][row, :n], want[row, start : start + n], atol=1e-4, rtol=1e-4)


def test_every_marker_reads_its_own_feature() -> None:
    """Changing one image moves the logits from its first marker on, and nothing before it or in another row."""
    model, params, given = made()
    before = forward(model, params, TOKENS, given)
    images = given["images"].copy()
    images[0, 1] += 1  # of row 0: places 4 to 7, of which the 5th and last marker has the first
    after = forward(model, params, TOKENS, {**given, "images": images})
    moved = np.abs(after - before).max(-1) > 1e-6
    assert not moved[0, :9].any() and moved[0, 9:].all() and not moved[1].any()


def test_what_fill_takes() -> None:
    head = (
        "name: a\ndims: {vocab: 8, embed: 4}\ninputs: {tokens: {kind: tokens}, f: {kind: features, axes: [n, embed]}}\n"
    )
    with pytest.raises(SpecError, match="fill needs its input ids"):
        loads(head + "graph: [embed, {fill: 3, from: {features: f}}, unembed]", "a.yaml")
    with pytest.raises(SpecError, match="fill takes features"):
        loads(head + "graph: [embed, {fill: 3, from: {features: tokens, ids: tokens}}, unembed]", "a.yaml")


@pytest.mark.parametrize(("name", "count"), [("nano-1", 1.8), ("nano-2", 3.25)])
def test_stand_ins_have_what_is_published_and_say_what_they_are(name: str, count: float) -> None:
    """arXiv:2312.11805, table 1: 1.8B and 3.25B."""
    model = load(f"gemini-1@{name}")
    assert model.parameter_count() / 1e9 == pytest.approx(count, abs=0.005)
    assert "published" in summary(model)["stand_in"]
    assert any(n.startswith("stand-in: ") for n in simulate(model, "v5e", length=32_768).notes)


@pytest.mark.parametrize(("name", "chips"), [("gemini-1.5-pro", 64), ("gemini-1.5-flash", 32)])
def test_ten_million_tokens_are_priced(name: str, chips: int) -> None:
    """arXiv:2403.05530, section 5.2. What a step reads is the cache, and the weights that a token uses or all."""
    model, length = load(name), 10 * 2**20
    plan = simulate(model, "v5p", "decode", 1, length, chips)
    layers, dims = model.args["layers"], model.dims
    cache = length * layers * dims["kv_heads"] * dims["head_dim"] * 2 * 2
    assert plan.memory.fits and plan.memory.state_by_kind["cache"] == cache / chips
    assert plan.traffic.state == pytest.approx(cache, rel=1e-3)
    assert any(n.startswith("stand-in: ") for n in plan.notes)


@pytest.mark.slow
def test_ten_million_tokens_are_compiled() -> None:
    """A decode step of the stand-in of Gemini 1.5 Pro on 64 v5p chips, by XLA for TPU."""
    pytest.importorskip("libtpu")
    compiled = bg.compile(
        "gemini-1.5-pro", target="tpu:v5p:4x4x4", phase="decode", batch=1, length=10 * 2**20,
        parallel="tensor+decode-length", mesh="model=64", replicate=("kv_heads",),
    )  # fmt: skip
    assert compiled.result.accepted and any(n.startswith("stand-in: ") for n in compiled.result.notes)
