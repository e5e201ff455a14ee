"""Ways of knowing positions: forward by their formulas in NumPy, and in pieces as the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compiler.errors import SpecError
from compiler.language.model import Model, loads
from compiler.lower.program import program
from runtime.weights.initial import random
from tests.runtime.streams import assert_streams, forward, tokens_of

HEAD = """
name: tiny
dims: {vocab: 31, embed: 12, heads: 2, kv_heads: heads, head_dim: 6, mlp: 16}
dtypes: {params: float32, compute: float32}
"""


def tiny(graph: str) -> tuple[Model, dict[str, Any]]:
    model = loads(HEAD + graph, "tiny.yaml")
    draw = np.random.default_rng(1)
    drawn = {k: a + 0.3 * draw.normal(size=a.shape).astype(a.dtype) for k, a in random(model, 1).arrays.items()}
    return model, drawn


ABSOLUTE = {
    "table": "{position_table: 26}",
    "paper": "sinusoid",
    "half": "{sinusoid: {pairs: half, theta: 100, scale: 0.5}}",
}


def absolute(kind: str, params: dict[str, Any], positions: np.ndarray) -> np.ndarray:
    """[positions, embed]"""
    if kind == "table":
        return np.asarray(params["position_table.table"][positions])
    angles = positions[:, None] / (10_000 if kind == "paper" else 100) ** (np.arange(0, 12, 2) / 12)
    if kind == "half":
        return 0.5 * np.concatenate([np.sin(angles), np.cos(angles)], 1)
    made = np.zeros((len(positions), 12))
    made[:, 0::2], made[:, 1::2] = np.sin(angles), np.cos(angles)
    return made


@pytest.mark.parametrize("kind", ABSOLUTE)
def test_absolute_positions_are_added(kind: str) -> None:
    model, params = tiny(
        f"graph: [embed, {ABSOLUTE[kind]}, {{linear: vocab, name: logits}}]\noutputs: {{logits: logits}}"
    )
    tokens = tokens_of(model, (9, 9))
    x = params["embed.table"][tokens] + absolute(kind, params, np.arange(9))
    np.testing.assert_allclose(forward(model, params, tokens), x @ params["logits.weight"], atol=1e-5)


@pytest.mark.parametrize("kind", ABSOLUTE)
def test_absolute_positions_go_on_from_what_a_row_holds(kind: str) -> None:
    assert_streams(*tiny(f"graph: [embed, {ABSOLUTE[kind]}, {{residual: [rms_norm, attention]}}, unembed]"))


def test_more_positions_than_a_table_has_are_refused() -> None:
    model, _ = tiny("graph: [embed, {position_table: 16}, unembed]")
    program(model, "forward", {"batch": 1, "seq": 16})
    for phase, sizes in (("forward", {"seq": 17}), ("decode", {"seq": 1, "capacity": 17})):
        with pytest.raises(SpecError) as caught:
            program(model, phase, {"batch": 1, **sizes})
        (problem,) = caught.value.problems
        assert (problem.code, problem.allowed) == ("out-of-capacity", ("lengths up to 16",))
