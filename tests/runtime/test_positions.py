"""Ways of knowing positions: forward by their formulas in NumPy, and in pieces as the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compiler.errors import SpecError
from compiler.language.model import Model, loads
from compiler.lower.program import program
from compiler.passes.select import Choice
from runtime.session import Session
from runtime.weights.initial import random
from tests.runtime.streams import assert_streams, forward, tokens_of

HEAD = """
name: tiny
dims: {vocab: 31, embed: 12, heads: 2, kv_heads: heads, head_dim: 6, mlp: 16}
dtypes: {params: float32, compute: float32}
"""


def tiny(graph: str, dims: str = "") -> tuple[Model, dict[str, Any]]:
    model = loads(HEAD.replace("mlp: 16", f"mlp: 16, {dims}" if dims else "mlp: 16") + graph, "tiny.yaml")
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


MIXED = """
blocks:
  shared: {params: {table: buckets heads}, program: {output: table}}
  layer:
    body:
      - residual: [{rms_norm: , name: one}, {attention: {position: alibi, sinks: true}, name: sloped}]
      - residual: [{rms_norm: , name: two}, {attention: {position: {buckets: {distance: 9}}, chunk: 6}, name: near,
          from: {table: far}}]
      - residual: [{rms_norm: , name: three}, {attention: {position: {buckets: {count: 6, distance: 5}}, window: 5,
          out_gate: {by: head}}, name: windowed}]
      - residual: [{rms_norm: , name: four}, {attention: {position: {rope: {scaling: {ntk: 4}}}, out_gate: {act: silu}},
          name: gated}]
graph:
  far: [shared]
  logits: [embed, {repeat: {times: 2, cycle: [layer]}}, unembed]
"""  # fmt: skip


@pytest.mark.parametrize("choice", [Choice.of("cpu"), Choice.of("tpu"), Choice(scores=0, streamed=False)], ids=str)
def test_attention_by_position_in_pieces(choice: Choice) -> None:
    """Slopes, buckets (shared and own), sinks, chunks, gates: streamed, over a packed cache, and in tiles."""
    model, params = tiny(MIXED, "buckets: 8")
    assert [label for label in params if "bucket" in label] == ["layer.windowed.bucket_table[0:2:1]"]
    assert params["far.shared.table" if "far.shared.table" in params else "shared.table"].shape == (8, 2)
    assert_streams(model, params, choice=choice)


def test_a_prefix_is_seen_by_all_and_must_come_in_one_call() -> None:
    layers = "blocks: {layer: {body: [{residual: [rms_norm, {attention: {position: rope}FROM}]}]}}\n"
    layers += "graph: [embed, {repeat: {times: 2, cycle: [layer]}}, unembed]\n"
    inputs = "inputs: {tokens: {kind: tokens}, prompt: {kind: count}}\n"
    model, params = tiny(inputs + layers.replace("FROM", ", from: {prefix: prompt}"))
    causal, _ = tiny(layers.replace("FROM", ""))
    tokens, prefix = tokens_of(model, (12, 12, 12)), np.array([7, 3, 0], np.int32)
    sizes = {"batch": 3, "capacity": 12}
    fn = program(model, "forward", {**sizes, "seq": 12}).jitted()
    whole = fn(params, {}, {"tokens": tokens, "prompt": prefix, "seq_lengths": np.full(3, 12, np.int32)})[0]["logits"]
    plainly = forward(causal, params, tokens)
    np.testing.assert_allclose(whole[2], plainly[2], atol=1e-5)
    assert np.abs(whole[0, :6] - plainly[0, :6]).max() > 0.01

    def pieces(chunk: int) -> np.ndarray:
        session = Session(model, params, batch=3, capacity=12, chunk=chunk)
        session.encode({"prompt": prefix}, {})
        first = [session.prefill([list(map(int, row[:7])) for row in tokens])]
        return np.stack([*first, *(session.decode(tokens[:, t]) for t in range(7, 12))], 1)

    np.testing.assert_allclose(pieces(8), whole[:, 6:], atol=1e-4)
    broken = pieces(5)  # a call ends inside the first row's prefix
    assert np.isnan(broken[0]).all()
    np.testing.assert_allclose(broken[1:], whole[1:, 6:], atol=1e-4)


XL = """
graph:
  - embed
  - repeat: {times: 2, cycle: [{residual: [{rms_norm: , name: norm}, {attention: {position: transformer_xl}}]}]}
  - unembed
"""


def transformer_xl(params: dict[str, Any], layer: int, x: np.ndarray) -> np.ndarray:
    """One row [length, embed] through one layer, as arXiv:1901.02860 writes it (section 3.3): the score of query i and
    key j is E_i^T Wq^T Wke E_j + E_i^T Wq^T Wkr R_(i-j) + u^T Wke E_j + v^T Wkr R_(i-j)."""
    w = {n: np.asarray(params[f"attention.{n}[0:2:1]"][layer], np.float64) for n in (
        "query", "key", "value", "position", "content_bias", "position_bias", "out")}  # fmt: skip
    e = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * params["norm.scale[0:2:1]"][layer]
    out = np.zeros_like(x)
    for h in range(2):
        values = e @ w["value"][:, h]
        for i in range(len(x)):
            scores = []
            for j in range(i + 1):
                turns = (i - j) / 10_000 ** (np.arange(0, 12, 2) / 12)
                r = np.concatenate([np.sin(turns), np.cos(turns)])
                q, k, kr = w["query"][:, h].T @ e[i], w["key"][:, h].T @ e[j], w["position"][:, h].T @ r
                scores.append(q @ k + q @ kr + w["content_bias"][h] @ k + w["position_bias"][h] @ kr)
            weights = np.exp(np.array(scores) / 6**0.5)
            out[i] += (weights @ values[: i + 1] / weights.sum()) @ w["out"][h]
    return x + out


def test_transformer_xl_is_the_paper_s_equation() -> None:
    model, params = tiny(XL)
    tokens = tokens_of(model, (9, 9))
    x = np.asarray(params["embed.table"], np.float64)[tokens]
    for layer in range(2):
        x = np.stack([transformer_xl(params, layer, row) for row in x])
    np.testing.assert_allclose(forward(model, params, tokens), x @ params["unembed.out"], atol=1e-4)


@pytest.mark.parametrize("choice", [Choice.of("cpu"), Choice.of("tpu"), Choice(scores=0, streamed=False)], ids=str)
@pytest.mark.parametrize("window", [None, 5])
def test_transformer_xl_in_pieces(window: int | None, choice: Choice) -> None:
    text = XL if window is None else XL.replace("transformer_xl}", f"transformer_xl, window: {window}}}")
    assert_streams(*tiny(text), choice=choice)


def test_a_session_computes_the_keys_of_distances_when_it_begins() -> None:
    model, params = tiny(XL)
    tokens = tokens_of(model, (11, 11))
    session = Session(model, params, batch=2, capacity=13, chunk=4)
    got = [session.prefill([list(map(int, row[:9])) for row in tokens]), session.decode(tokens[:, 9])]
    np.testing.assert_allclose(np.stack(got, 1), forward(model, params, tokens)[:, 8:10], atol=1e-4)
