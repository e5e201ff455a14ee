"""T5 as transformers has it: encoder once, decoder whole, in chunks and token by token; rows of unequal length on both
sides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from compiler.language.model import Model, load
from compiler.lower.program import program
from runtime.weights.load import load as read

FOLDER = Path(__file__).parents[1] / "fixtures" / "hf" / "t5"
SIZES = {"vocab": 72, "embed": 32, "heads": 3, "head_dim": 8, "mlp": 40, "buckets": 8, "layers": 2, "distance": 12,
         "dtype": "float32"}  # fmt: skip
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def t5() -> tuple[Model, dict[str, Any], dict[str, np.ndarray]]:
    model = load("t5", SIZES)
    with np.load(FOLDER / "reference.npz") as r:
        return model, dict(read(model, FOLDER).arrays), dict(r)


def error(found: np.ndarray, want: dict[str, np.ndarray]) -> float:
    valid = (np.arange(found.shape[1]) < want["lengths"][:, None])[..., None]
    return float(np.abs(np.where(valid, found - want["logits"], 0)).max())


def test_forward(t5: Any) -> None:
    model, params, want = t5
    fn = program(model, "forward", {"batch": 3, "seq": 21, "source": 17}).jitted()
    given = {"tokens": want["tokens"], "seq_lengths": want["lengths"]}
    given |= {"source": want["source"], "source_lengths": want["source_lengths"]}
    assert error(np.asarray(fn(params, {}, given)[0]["logits"]), want) < TOLERANCE


def test_encoder_once_then_the_decoder_in_pieces(t5: Any) -> None:
    model, params, want = t5
    common = {"batch": 3, "capacity": 24, "source": 17}
    encode = program(model, "encode", {**common, "seq": 1})
    own = {k: params[k] for k in encode.parameters}
    given = {k: want[k] for k in encode.inputs}
    _, state = jax.jit(encode.function())(own, {}, given)
    prefill = program(model, "prefill", {**common, "seq": 5}, logits="all")
    decode = program(model, "decode", {**common, "seq": 1})
    functions = {p.phase: p.jitted() for p in (prefill, decode)}
    state, got = {**prefill.empty_state(), **state}, []
    for start, p, width in [(0, prefill, 5), (5, prefill, 5), *((t, decode, 1) for t in range(10, 21))]:
        call = {"tokens": want["tokens"][:, start : start + width], "valid": np.clip(want["lengths"] - start, 0, width)}
        own = {k: params[k] for k in p.parameters}
        call |= {k: want[k] for k in p.inputs if k not in call}
        out, new = functions[p.phase](own, {k: state[k] for k in p.states}, call)
        state = {**state, **new}
        got.append(np.asarray(out["logits"]))
    assert error(np.concatenate(got, 1), want) < TOLERANCE
