"""Sparse experts: who goes where against NumPy, one expert against a dense layer, the terms of the training loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compiler.errors import BlockgraphError
from compiler.language.model import Model, loads
from compiler.lower.program import bind, program, training
from compiler.passes.pipeline import training_pipeline
from compiler.passes.select import Choice
from compiler.passes.stages import Stages
from runtime.weights.initial import random
from tests.ops import reference as ref
from tests.ops.seat_cases import expert_choice, first_come, from_seats, to_seats

HEAD = """
name: experts
dims: {vocab: 32, embed: 8, mlp: 12, experts: 4, active: 2, heads: 2, kv_heads: 1, head_dim: 4}
dtypes: {params: float32, compute: float32}
"""
ROWS, LENGTH = 3, 10
LENGTHS = np.array([10, 4, 7], np.int32)


def model(options: str) -> Model:
    return loads(HEAD + f"graph: [{{embed: , name: table}}, {{{options}}}, unembed]", "experts.yaml")


def arrays(made: Model) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(5)
    return {k: (3 if "router" in k else 1) * draw.normal(size=x.shape).astype(np.float32)
            for k, x in random(made, 0).arrays.items()}  # fmt: skip


def tokens(rows: int = ROWS) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 32, (rows, LENGTH)).astype(np.int32)


def forward(made: Model, params: dict[str, np.ndarray], **more: Any) -> np.ndarray:
    ids = tokens()
    fn = program(made, "forward", {"batch": ROWS, "seq": LENGTH}).jitted()
    return np.asarray(fn(params, {}, {"tokens": ids, **more})[0]["logits"])


def experts(params: dict[str, np.ndarray], h: np.ndarray) -> np.ndarray:
    """h [.., experts, seats, embed] through each expert's gated layer."""
    gate, up, down = (params[f"moe.{k}"] for k in ("gate", "up", "down"))
    a = np.einsum("bxce,xem->bxcm", h, gate)
    return np.einsum("bxcm,xme->bxce", a / (1 + np.exp(-a)) * np.einsum("bxce,xem->bxcm", h, up), down)


def expected(params: dict[str, np.ndarray], gates: np.ndarray, at: np.ndarray) -> np.ndarray:
    x = params["table.table"][tokens()]
    own = np.take_along_axis(np.concatenate([gates, gates[:, :1] * 0], 1).transpose(0, 2, 1), at, 2)
    y = from_seats(experts(params, to_seats(x, at)) * own[..., None], at, LENGTH)
    return y @ params["unembed.out"]


def test_an_expert_takes_as_many_tokens_as_it_has_seats() -> None:
    made = model("moe: {gate: silu, capacity: 0.8}")
    params = arrays(made)
    scores = ref.softmax(params["table.table"][tokens()] @ params["moe.router"])
    chosen = np.argsort(-scores, -1, kind="stable")[..., :2]
    seats = 4  # of 0.8 * 2 * 10 / 4
    at = first_come(chosen, 4, seats)
    dropped = sum((chosen == e).sum() for e in range(4)) - (at < LENGTH).sum()
    assert dropped > 3
    weights = np.take_along_axis(scores, chosen, -1)
    gates = np.zeros_like(scores)
    np.put_along_axis(gates, chosen, weights / weights.sum(-1, keepdims=True), -1)
    np.testing.assert_allclose(forward(made, params), expected(params, gates, at), rtol=2e-4, atol=2e-4)


def test_with_seats_for_all_nothing_is_dropped() -> None:
    made = model("moe: {gate: silu, capacity: 4}")
    params = arrays(made)
    np.testing.assert_allclose(forward(made, params), forward(model("moe: {gate: silu}"), params), rtol=1e-4, atol=1e-4)


def test_experts_choose_their_tokens_and_no_padding() -> None:
    made = model("moe: {gate: silu, choice: expert}")
    params = arrays(made)
    gates = ref.softmax(params["table.table"][tokens()] @ params["moe.router"])
    want = expected(params, gates, expert_choice(gates, 5, LENGTHS))
    got = forward(made, params, seq_lengths=LENGTHS)
    for row, n in enumerate(LENGTHS):
        np.testing.assert_allclose(got[row, :n], want[row, :n], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("options", ["", ", capacity: 1", ", choice: expert, score: softmax"])
def test_one_expert_is_the_dense_layer(options: str) -> None:
    made = model(f"moe: {{gate: silu, experts: 1, active: 1{options}}}")
    params = arrays(made)
    dense = {k.replace("moe.", "mlp."): x[0] if k.startswith("moe.") else x for k, x in params.items()}
    del dense["mlp.router"]
    more = {"seq_lengths": np.full(ROWS, LENGTH, np.int32)} if "choice" in options else {}
    np.testing.assert_allclose(
        forward(made, params, **more), forward(model("mlp: {gate: silu}"), dense), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("options", "phase", "told"),
    [
        ("active: 5", "forward", "moe chooses 5 of 4 experts"),
        ("capacity: 1.25", "decode", "moe looks ahead in the sequence (seats)"),
        ("choice: expert", "decode", "moe looks ahead in the sequence (choose_tokens)"),
        ("choice: expert, balance: 0.1", "forward", "balance is of tokens that choose"),
    ],
)
def test_refused_by_name(options: str, phase: str, told: str) -> None:
    with pytest.raises(BlockgraphError) as e:
        program(model(f"moe: {{gate: silu, {options}}}"), phase, {"batch": 1, "seq": 1, "capacity": 4})
    assert told in str(e.value)


# -- terms of the training loss
LAYERS = """
blocks:
  layer:
    body:
      - residual:
          - rms_norm
          - moe: {{gate: silu, balance: 0.5, balance_over: {over}, z_loss: 0.25, score: {score}}}
graph: [{{embed: , name: table}}, {{repeat: {{times: 4, cycle: [layer]}}}}, {{rms_norm: , name: last}}, unembed]
"""


def stack(over: str = "row", score: str = "softmax") -> Model:
    return loads(HEAD + LAYERS.format(over=over, score=score), "layers.yaml")


def routed(made: Model, params: dict[str, np.ndarray], ids: np.ndarray) -> list[np.ndarray]:
    """The router's logits of each layer, layer after layer in NumPy."""
    found, x = [], params["table.table"][ids]
    layers = {k.split(".")[-1].split("[")[0]: v for k, v in params.items() if k.startswith("layer.")}
    for i in range(4):
        own = {k: v[i] for k, v in layers.items()}
        h = ref.norm("rms", 1e-6)(x) * own["scale"]
        logits = h @ own["router"]
        found.append(logits)
        scores = ref.softmax(logits) if "softmax" in str(made.spec.blocks) else 1 / (1 + np.exp(-logits))
        chosen = np.argsort(-scores, -1, kind="stable")[..., :2]
        w = np.take_along_axis(scores, chosen, -1)
        gates = np.zeros_like(scores)
        np.put_along_axis(gates, chosen, w / w.sum(-1, keepdims=True), -1)
        every = np.broadcast_to(h[:, None], (h.shape[0], 4, *h.shape[1:]))
        y = experts({f"moe.{k}": own[k] for k in ("gate", "up", "down")}, every)
        x = x + np.einsum("bxse,bsx->bse", y, gates)
    return found


def terms(logits: list[np.ndarray], lengths: np.ndarray, over: str, score: str) -> tuple[float, float]:
    """Load balance and router z, summed over layers; rows count by their positions with a next token."""
    weight = (lengths - 1) / (lengths - 1).sum()
    balance = z = 0.0
    for layer in logits:
        p = ref.softmax(layer) if score == "softmax" else 1 / (1 + np.exp(-layer))
        p = p / p.sum(-1, keepdims=True)
        hits = np.zeros_like(p)
        np.put_along_axis(hits, np.argsort(-p, -1, kind="stable")[..., :2], 1.0, -1)
        real = [slice(0, n) for n in lengths]
        per = [(hits[r, s].mean(0), p[r, s].mean(0)) for r, s in enumerate(real)]
        z += float(sum(w * (np.log(np.exp(layer[r, s]).sum(-1)) ** 2).mean()
                       for r, (w, s) in enumerate(zip(weight, real, strict=True))))  # fmt: skip
        if over == "batch":
            every = (
                np.concatenate([hits[r, s] for r, s in enumerate(real)]),
                np.concatenate([p[r, s] for r, s in enumerate(real)]),
            )
            per = [(every[0].mean(0), every[1].mean(0))] * len(lengths)
        balance += float(sum(w * 4 / 2 * (f * q).sum() for w, (f, q) in zip(weight, per, strict=True)))
    return 0.5 * balance, 0.25 * z


@pytest.mark.parametrize(("over", "score"), [("row", "sigmoid"), ("batch", "softmax")])
def test_terms_of_the_loss(over: str, score: str) -> None:
    made = stack(over, score)
    params, ids = arrays(made), tokens()
    fn = training(made, {"batch": ROWS, "seq": LENGTH}).jitted()
    out = fn(params, {}, {"tokens": ids, "seq_lengths": LENGTHS})[0]
    balance, z = terms(routed(made, params, ids), LENGTHS, over, score)
    np.testing.assert_allclose([out["load_balance"], out["router_z"]], [balance, z], rtol=1e-4)
    np.testing.assert_allclose(out["loss"], out["cross_entropy"] + balance + z, rtol=1e-5)


def test_terms_of_micro_batches_add_up() -> None:
    """Balance in each row, whatever rows stand beside it; gradients too."""
    made = stack()
    params, ids = arrays(made), tokens(4)
    given = {"tokens": ids, "seq_lengths": np.array([10, 4, 7, 2], np.int32)}
    sizes = {"batch": 4, "seq": LENGTH}
    whole, parts = (training(made, sizes, accumulate=n).jitted()(params, {}, given)[0] for n in (1, 2))
    assert set(whole) == set(parts) > {"loss", "cross_entropy", "load_balance", "router_z"}
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, rtol=2e-4, atol=2e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [False, True])
def test_terms_go_through_a_pipeline(at_once: bool) -> None:
    made = stack()
    params, sizes = arrays(made), {"batch": 4, "seq": LENGTH}
    given = {"tokens": tokens(4), "seq_lengths": np.array([10, 4, 7, 2], np.int32)}
    whole = training(made, sizes).jitted()(params, {}, given)[0]
    staged = training_pipeline(made, sizes, stages=Stages(2, 2, at_once=at_once)).run(made.graph)
    parts = bind("train", staged, sizes, Choice()).jitted()(params, {}, given)[0]
    assert set(parts) == set(whole)
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, rtol=2e-4, atol=2e-5, err_msg=name)


def test_other_phases_know_nothing_of_them() -> None:
    made = stack()
    assert [n for n, _ in made.graph.outputs] == ["logits"]
    ops = [n.op for n, _ in made.graph.walk()]
    assert not any(o.name == "one_hot" for o in ops)
