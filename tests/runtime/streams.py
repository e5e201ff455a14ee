"""A model run in pieces: the prompt in calls of a few tokens, the rest one by one; rows of unequal length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from compiler.language.model import Model
from compiler.lower.program import Program, program
from compiler.passes.select import Choice

TOLERANCE = 1e-4


def tokens_of(model: Model, lengths: Sequence[int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, model.dims["vocab"], (len(lengths), max(lengths))).astype(np.int32)


def forward(model: Model, params: Mapping[str, Any], tokens: np.ndarray, choice: Choice = Choice()) -> np.ndarray:
    sizes = {"batch": tokens.shape[0], "seq": tokens.shape[1]}
    fn = program(model, "forward", sizes, choice=choice).jitted()
    lengths = np.full(tokens.shape[0], tokens.shape[1], np.int32)
    return np.asarray(fn(params, {}, {"tokens": tokens, "seq_lengths": lengths})[0]["logits"])


def in_pieces(
    model: Model,
    params: Mapping[str, Any],
    tokens: np.ndarray,
    lengths: Sequence[int],
    *,
    prompt: int,
    chunk: int,
    capacity: int,
    choice: Choice = Choice(),
) -> np.ndarray:
    """Logits [rows, length, vocab] of ``prompt`` tokens in calls of ``chunk``, the first one fresh, and of the rest one
    by one; zeros past a row's length."""
    rows, longest = tokens.shape
    common = {"batch": rows, "capacity": capacity}
    whole = program(model, "prefill", {**common, "seq": chunk}, logits="all", fresh=True, choice=choice)
    more = program(model, "prefill", {**common, "seq": chunk}, logits="all", choice=choice)
    step = program(model, "decode", {**common, "seq": 1}, choice=choice)
    functions: dict[int, Any] = {id(p): p.jitted() for p in (whole, more, step)}
    state = more.empty_state()
    if "context" in {s.kind for s in _states(model)}:
        made = program(model, "encode", {**common, "seq": 1})
        state.update(jax.jit(made.function())({k: params[k] for k in made.parameters}, {}, {})[1])
    got: list[np.ndarray] = []

    def call(p: Program, start: int, width: int) -> None:
        nonlocal state
        part = np.zeros((rows, width), np.int32)
        part[:, : min(width, longest - start)] = tokens[:, start : start + width]
        valid = np.clip(np.asarray(lengths) - start, 0, width).astype(np.int32)
        own = {k: state[k] for k in p.states}
        out, new = functions[id(p)](params, own, {"tokens": part, "valid": valid})
        state = {**state, **new}
        logits = np.asarray(out["logits"])[:, : longest - start]
        got.append(np.where((np.arange(logits.shape[1]) < valid[:, None])[..., None], logits, 0))

    starts = range(0, prompt, chunk)
    for start in starts:
        call(whole if start == 0 else more, start, chunk)
    for start in range(len(starts) * chunk, longest):
        call(step, start, 1)
    return np.concatenate(got, 1)


def _states(model: Model) -> list[Any]:
    from compiler.passes.phase import phase_graph

    return [s for s, _ in phase_graph(model, "decode").states().values()]


def assert_streams(
    model: Model, params: Mapping[str, Any], lengths: Sequence[int] = (23, 14, 5), *, prompt: int = 14, chunk: int = 7,
    capacity: int | None = None, choice: Choice = Choice(), expected: np.ndarray | None = None,
) -> None:  # fmt: skip
    """What comes in pieces is what the forward pass gives of each row alone."""
    tokens = tokens_of(model, lengths)
    got = in_pieces(model, params, tokens, lengths, prompt=prompt, chunk=chunk, capacity=capacity or max(lengths) + 3,
                    choice=choice)  # fmt: skip
    whole = forward(model, params, tokens) if expected is None else expected
    seen = (np.arange(tokens.shape[1]) < np.asarray(lengths)[:, None])[..., None]
    np.testing.assert_allclose(got, np.where(seen, whole, 0), atol=TOLERANCE, rtol=0)
