"""Several inputs: what does not depend on the tokens is computed once; rows keep their own lengths of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compiler.errors import BlockgraphError
from compiler.language.model import load
from compiler.lower.program import program
from compiler.passes.phase import phase_graph
from runtime.session import Session
from runtime.weights.initial import random

SPEC = Path(__file__).parents[1] / "specs" / "captioner.yaml"
ROWS, TOKENS, FRAMES = 3, 20, 7


@pytest.fixture(scope="module")
def setting() -> tuple:
    model = load(SPEC)
    params = dict(random(model, 3).arrays)
    draw = np.random.default_rng(5)
    tokens = draw.integers(0, 64, (ROWS, TOKENS)).astype(np.int32)
    frames = draw.normal(size=(ROWS, FRAMES, 10)).astype(np.float32)
    lengths, seen = np.array([20, 11, 4], np.int32), np.array([7, 3, 5], np.int32)
    return model, params, tokens, frames, lengths, seen


def solo(setting: tuple) -> list[np.ndarray]:
    """Each row alone, without any padding."""
    model, params, tokens, frames, lengths, seen = setting
    found = []
    for row in range(ROWS):
        n, m = int(lengths[row]), int(seen[row])
        fn = program(model, "forward", {"batch": 1, "seq": n, "frames": m}).jitted()
        inputs = {"tokens": tokens[row : row + 1, :n], "frames": frames[row : row + 1, :m],
                  "frames_lengths": np.array([m], np.int32)}  # fmt: skip
        found.append(np.asarray(fn(params, {}, inputs)[0]["logits"])[0])
    return found


def test_padded_forward_equals_each_row_alone(setting: tuple) -> None:
    model, params, tokens, frames, lengths, seen = setting
    fn = program(model, "forward", {"batch": ROWS, "seq": TOKENS, "frames": FRAMES}).jitted()
    got = np.asarray(fn(params, {}, {"tokens": tokens, "frames": frames, "frames_lengths": seen})[0]["logits"])
    for row, alone in enumerate(solo(setting)):
        np.testing.assert_allclose(got[row, : lengths[row]], alone, atol=1e-5)


def test_encode_once_then_prefill_and_decode(setting: tuple) -> None:
    model, params, tokens, frames, lengths, seen = setting
    session = Session(model, params, batch=ROWS, capacity=TOKENS, chunk=4, sizes={"frames": FRAMES})
    prompts = [list(map(int, tokens[row, : lengths[row] - 2])) for row in range(ROWS)]
    with pytest.raises(BlockgraphError, match="frames"):
        session.prefill(prompts)
    session.encode({"frames": frames, "frames_lengths": seen}, {"frames": FRAMES})
    first = session.prefill(prompts)
    second = session.decode([tokens[row, lengths[row] - 2] for row in range(ROWS)])
    third = session.decode([tokens[row, lengths[row] - 1] for row in range(ROWS)])
    for row, alone in enumerate(solo(setting)):
        for got, at in ((first, -3), (second, -2), (third, -1)):
            np.testing.assert_allclose(got[row], alone[at], atol=1e-5)


def test_the_streaming_graphs_hold_no_encoder(setting: tuple) -> None:
    model = setting[0]
    decode, encode = phase_graph(model, "decode"), phase_graph(model, "encode")
    assert not any("encoder_layer" in label or "cross.key" in label for label in decode.parameters())
    assert {label for label in encode.parameters() if "cross" in label} == {
        "decoder_layer.cross.key[0:4:1]", "decoder_layer.cross.value[0:4:1]"}  # fmt: skip
    kinds = {label: state.kind for label, (state, _) in decode.states().items()}
    assert sorted(kinds.values()) == ["context"] * 3 + ["length"] + ["ring"] * 2
