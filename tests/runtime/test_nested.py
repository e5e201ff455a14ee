"""State inside a repeat inside a repeat: the streaming phases equal the forward pass."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from compiler.language.model import load
from compiler.lower.program import program
from runtime.weights.initial import random

SPEC = Path(__file__).parents[1] / "specs" / "nested.yaml"


def test_nested_repeats_stream() -> None:
    model = load(SPEC)
    params = dict(random(model, 1).arrays)
    tokens = np.random.default_rng(2).integers(0, 50, (2, 18)).astype(np.int32)
    sizes = {"batch": 2, "capacity": 18}
    forward = program(model, "forward", {**sizes, "seq": 18})
    expected = np.asarray(forward.jitted()(params, {}, {"tokens": tokens})[0]["logits"])
    assert [(n.op.name, times) for n, times in forward.graph.walk() if n.op.name == "recur"] == [("recur", 12)]

    made = program(model, "prefill", {**sizes, "seq": 6}, logits="all")
    fn, state, got = made.jitted(), made.empty_state(), []
    valid = np.full(2, 6, np.int32)
    for start in (0, 6):
        out, state = fn(params, state, {"tokens": tokens[:, start : start + 6], "valid": valid})
        got.append(np.asarray(out["logits"]))
    verify, commit = (program(model, phase, {**sizes, "seq": 6}) for phase in ("verify", "commit"))
    out, _ = jax.jit(verify.function())(params, state, {"tokens": tokens[:, 12:], "valid": valid})
    accepted = {**{k: v for k, v in out.items() if k.startswith("pending:")}, "valid": np.full(2, 3, np.int32)}
    _, state = commit.jitted()({}, state, accepted)
    decode = program(model, "decode", {**sizes, "seq": 1})
    step = decode.jitted()
    got.append(np.asarray(out["logits"])[:, :3])
    for t in range(15, 18):
        out, state = step(params, state, {"tokens": tokens[:, t : t + 1], "valid": np.ones(2, np.int32)})
        got.append(np.asarray(out["logits"]))
    np.testing.assert_allclose(np.concatenate(got, 1), expected, atol=1e-4)
