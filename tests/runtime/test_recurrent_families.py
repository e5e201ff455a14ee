"""State-space and linear attention layers in small, over more positions than a chunk has: forward equals the papers'
equations, pieces equal it with rows of unequal length, gradients are finite. Four of them equal transformers too
(test_huggingface), in pieces as well: these run here in the slow tests."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from compiler.language.model import Model, load
from compiler.lower.program import training
from runtime.weights.initial import random
from tests.runtime.recurrent_references import REFERENCES
from tests.runtime.streams import TOLERANCE, assert_streams, forward, tokens_of

SMALL: dict[str, Any] = {"vocab": 40, "embed": 24, "layers": 3, "dtype": "float32"}
HEADS = {"heads": 2, "key_dim": 6, "head_dim": 8, "mlp": 32}
FAMILIES: dict[str, dict[str, Any]] = {
    "mamba": {"state": 6, "rank": 3}, "mamba2": {"state": 6, "head_dim": 8, "key_heads": 2, "heads": 3},
    "retnet": HEADS, "gla": HEADS | {"rank": 4}, "linear-transformer": HEADS | {"context": 160},
    "rwkv4": {"mlp": 32},
    "rwkv7": {"heads": 2, "head_dim": 8, "mlp": 32, "decay_rank": 4, "rate_rank": 4, "value_rank": 4, "gate_rank": 4},
    # a larger eps: heads this narrow often read almost nothing, and their norm makes rounding visible
    "qwen3-next-80b-a3b": {"eps": 1e-2, "heads": 2, "kv_heads": 1, "head_dim": 16, "key_heads": 2, "key_dim": 6,
                           "value_dim": 8, "mlp": 16, "experts": 4, "active": 2, "layers": 4},
}  # fmt: skip


@cache
def small(name: str) -> tuple[Model, dict[str, Any]]:
    model = load(name, SMALL | FAMILIES[name])
    draw = np.random.default_rng(0)
    params = random(model, 1).arrays
    return model, {k: (a + 0.1 * draw.normal(size=a.shape)).astype(a.dtype) for k, a in params.items()}


LENGTHS = (141, 70, 5)


@pytest.mark.parametrize("name", REFERENCES)
def test_forward_and_pieces_equal_the_equations(name: str) -> None:
    model, params = small(name)
    tokens = tokens_of(model, LENGTHS)
    want = np.stack([REFERENCES[name](params, row, SMALL["layers"]) for row in tokens])
    np.testing.assert_allclose(forward(model, params, tokens), want, atol=TOLERANCE, rtol=0)
    assert_streams(model, params, LENGTHS, prompt=138, chunk=69, expected=want)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in REFERENCES])
def test_pieces_equal_the_whole(name: str) -> None:
    assert_streams(*small(name), LENGTHS, prompt=138, chunk=69)


def assert_gradients_are_finite(name: str, length: int) -> None:
    model, params = small(name)
    tokens, lengths = tokens_of(model, (length, length)), np.array([length, 4], np.int32)
    step = training(model, {"batch": 2, "seq": length}).jitted()
    out = step(params, {}, {"tokens": tokens, "seq_lengths": lengths})[0]
    gradients = {k: np.asarray(v) for k, v in out.items() if k.startswith("gradient:")}
    assert len(gradients) == len(params) and np.isfinite(out["loss"])
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in gradients.values())


LONG = ("mamba2", "gla", "rwkv7", "qwen3-next-80b-a3b")  # to compile; Mamba-2 is trained on a mesh, in tests/lower


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in LONG else ()) for n in FAMILIES])
def test_gradients_are_finite(name: str) -> None:
    assert_gradients_are_finite(name, 9)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_of_several_chunks_are_finite(name: str) -> None:
    assert_gradients_are_finite(name, 70)
