"""The recipes: their Python runs as it stands on the page, and says what the page says."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest

import blockgraph as bg
import compiler.lower.graph  # noqa: F401  (registers every lowering)
from compiler.errors import SpecError
from compiler.language.block import KINDS, kinds
from compiler.language.model import Model, loads
from compiler.lower.program import program, training
from compiler.lower.registry import LOWERINGS
from compiler.ops.contract import FUNCTIONS, OPS
from compiler.passes import verify
from costmodel.machines import machine
from costmodel.simulate import simulate
from runtime.session import Session
from runtime.weights.initial import random
from tests.docs.pages import examples, named

TOKENS = np.random.default_rng(0).integers(0, 40, (2, 11)).astype(np.int32)
TINY = """name: t
dims: {vocab: 40, embed: 16, heads: 2, kv_heads: 1, head_dim: 8}
dtypes: {params: float32, compute: float32}
"""


@pytest.fixture
def registries() -> Iterator[None]:
    """What an example registers is taken back."""
    kinds()
    tables: tuple[dict[Any, Any], ...] = (KINDS, OPS, FUNCTIONS, LOWERINGS)
    before = [dict(t) for t in tables]
    yield
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)


def run(name: str, monkeypatch: pytest.MonkeyPatch, **known: Any) -> ModuleType:
    """The page's code as a module."""
    example = named(name)
    module = ModuleType(f"docs_{name}")
    module.__dict__.update(known)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(example.text, str(example), "exec"), module.__dict__)
    return module


def forward(m: Model, params: dict[str, Any], tokens: np.ndarray) -> np.ndarray:
    made = program(m, "forward", {"batch": tokens.shape[0], "seq": tokens.shape[1]})
    inputs = {"tokens": tokens, "seq_lengths": np.full(len(tokens), tokens.shape[1], np.int32)}
    given = {k: v for k, v in inputs.items() if k in made.inputs}
    return np.asarray(made.jitted()(params, {}, given)[0]["logits"])


def decode_equals_forward(m: Model, params: dict[str, Any], tokens: np.ndarray = TOKENS) -> np.ndarray:
    """Prefill in chunks, then token by token; the logits of the last positions."""
    whole = forward(m, params, tokens)
    session = Session(m, params, batch=len(tokens), capacity=tokens.shape[1], chunk=3)
    got = [session.prefill([list(map(int, row[:7])) for row in tokens])]
    got += [session.decode(tokens[:, t]) for t in range(7, tokens.shape[1])]
    np.testing.assert_allclose(np.stack(got, 1), whole[:, 6:], atol=1e-4)
    return whole


def test_a_block_in_yaml() -> None:
    """The spec with norms over all heads: numbers of a plain NumPy reading of the paper, and decode equals forward."""
    tiny = {"dtype": "float32", "vocab": 40, "embed": 16, "heads": 4, "kv_heads": 2, "mlp": 24, "layers": 2}
    m = loads(named("olmo2", "yaml").text, overrides=tiny)
    params = dict(random(m, 3).arrays)
    draw = np.random.default_rng(1)
    params = {k: v + draw.normal(0, 0.1, v.shape).astype(np.float32) for k, v in params.items()}
    logits = decode_equals_forward(m, params)
    np.testing.assert_allclose(logits, _olmo(params, TOKENS, heads=4, kv=2, theta=500_000, eps=1e-6), atol=1e-4)


def _olmo(p: dict[str, np.ndarray], tokens: np.ndarray, heads: int, kv: int, theta: float, eps: float) -> np.ndarray:
    def rms(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale

    def turn(x: np.ndarray) -> np.ndarray:  # [batch, seq, heads, d], halves
        half = x.shape[-1] // 2
        angle = np.arange(x.shape[1])[:, None, None] * theta ** (-np.arange(half) / half)
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)

    p = {k: v.astype(np.float64) for k, v in p.items()}
    layers = {k.split("[")[0].removeprefix("layer."): v for k, v in p.items() if k.startswith("layer.")}
    x, n = p["embed.table"][tokens], tokens.shape[1]
    for i in range(2):
        w = {k: v[i] for k, v in layers.items()}
        flat = {k: w[f"attention.{k}"].reshape(x.shape[-1], -1) for k in ("query", "key", "value")}
        q = rms(x @ flat["query"], w["attention.query_norm"].reshape(-1)).reshape(*x.shape[:2], heads, -1)
        k = rms(x @ flat["key"], w["attention.key_norm"].reshape(-1)).reshape(*x.shape[:2], kv, -1)
        v = (x @ flat["value"]).reshape(*x.shape[:2], kv, -1)
        k, v = (np.repeat(y, heads // kv, 2) for y in (turn(k), v))
        scores = np.einsum("bqhd,bkhd->bhqk", turn(q), k) / np.sqrt(q.shape[-1])
        scores = np.where(np.tril(np.ones((n, n), bool)), scores, -np.inf)
        weight = np.exp(scores - scores.max(-1, keepdims=True))
        read = np.einsum("bhqk,bkhd->bqhd", weight / weight.sum(-1, keepdims=True), v)
        y = np.einsum("bqhd,hde->bqe", read, w["attention.out"])
        x = x + rms(y, w["post_attention.scale"])
        gate = x @ w["mlp.gate"]
        y = (gate / (1 + np.exp(-gate)) * (x @ w["mlp.up"])) @ w["mlp.down"]
        x = x + rms(y, w["post_mlp.scale"])
    return rms(x, p["final.scale"]) @ p["unembed.out"]


def test_a_selective_scan_in_yaml() -> None:
    """The language page's state-space block, against a loop over positions."""
    m = loads(named("mamba", "yaml").text, overrides={"dtype": "float32", "vocab": 40, "embed": 16, "layers": 2})
    draw = np.random.default_rng(2)
    params = {k: v + draw.normal(0, 0.1, v.shape).astype(np.float32) for k, v in random(m, 5).arrays.items()}
    logits = decode_equals_forward(m, params)

    def silu(x: np.ndarray) -> np.ndarray:
        return x / (1 + np.exp(-x))

    p = {k.split("[")[0].split(".")[-1]: v.astype(np.float64) for k, v in params.items() if k.startswith("layer.mixer")}
    scales = params["layer.pre.scale[0:2:1]"].astype(np.float64)
    x = params["embed.table"][TOKENS].astype(np.float64)
    for i in range(2):
        w = {k: v[i] for k, v in p.items()}
        u = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scales[i]
        wide = np.pad(u @ w["enter"], ((0, 0), (3, 0), (0, 0)))
        c = silu(sum(wide[:, t : t + x.shape[1]] * w["kernel"][:, t] for t in range(4)) + w["kernel_bias"])
        step = np.log1p(np.exp(c @ w["to_step"] @ w["step"] + w["step_bias"]))
        b_, c_ = c @ w["write"], c @ w["read"]
        h, ys = np.zeros((*c.shape[::2], b_.shape[-1])), []
        for t in range(x.shape[1]):
            h = np.exp(-step[:, t, :, None] * np.exp(w["decay"])) * h + (step * c)[:, t, :, None] * b_[:, t, None]
            ys.append((h * c_[:, t, None]).sum(-1))
        y = (np.stack(ys, 1) + w["skip"] * c) * silu(u @ w["gate"])
        x = x + y @ w["out"]
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * params["final.scale"]
    np.testing.assert_allclose(logits, x @ params["embed.table"].T, atol=1e-4)


def test_a_block_kind(registries: None, monkeypatch: pytest.MonkeyPatch) -> None:
    run("block_kind", monkeypatch)
    m = loads(TINY + "graph: [embed, {token_shift: {by: 2, share: 0.5}}, unembed]\n")
    params = dict(random(m, 0).arrays)
    x = params["embed.table"][TOKENS]
    before = np.pad(x, ((0, 0), (2, 0), (0, 0)))[:, :-2, :8]
    x[..., :8] += params["token_shift.mix"] * (before - x[..., :8])
    np.testing.assert_allclose(decode_equals_forward(m, params), x @ params["unembed.out"], atol=1e-5)
    short = loads(TINY + "graph: [embed, {token_shift: 3}, {residual: [{token_shift: , name: b}]}, unembed]\n")
    decode_equals_forward(short, dict(random(short, 0).arrays))
    with pytest.raises(SpecError, match="token_shift has no option shaer"):
        loads(TINY + "graph: [embed, {token_shift: {shaer: 0.5}}, unembed]\n")


def test_an_op(registries: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its numbers, its state, its cost and its gradient."""
    op = run("op", monkeypatch)
    run("lowering", monkeypatch, Cumulate=op.Cumulate)
    monkeypatch.setitem(verify.ADDED_BY, "elaborate", verify.ADDED_BY["elaborate"] | {"cumulate"})
    text = "blocks: {total: {params: {w: embed}, program: {output: cumulate(input * w) * 0.1}}}\n"
    graphs = ["[embed, total, unembed]", "[embed, {repeat: {times: 3, cycle: [{residual: [total]}]}}, unembed]"]
    plain, layered = (loads(TINY + text + f"graph: {g}\n") for g in graphs)
    params = dict(random(plain, 0).arrays)
    sums = np.cumsum(params["embed.table"][TOKENS] * params["total.w"], 1) * 0.1
    np.testing.assert_allclose(decode_equals_forward(plain, params), sums @ params["unembed.out"], atol=1e-5)
    params = dict(random(layered, 0).arrays)
    decode_equals_forward(layered, params)

    made = training(layered, {"batch": 2, "seq": 11})
    inputs = {"tokens": TOKENS, "seq_lengths": np.full(2, 11, np.int32)}
    found = made.jitted()(params, {}, inputs)[0]
    loss = program(layered, "forward", {"batch": 2, "seq": 11}).function()

    def mean(p: dict[str, Any]) -> Any:
        logp = jax.nn.log_softmax(loss(p, {}, inputs)[0]["logits"][:, :-1])
        return -jax.numpy.take_along_axis(logp, TOKENS[:, 1:, None], -1).mean()

    for label, expected in jax.grad(mean)(params).items():
        np.testing.assert_allclose(found[f"gradient:{label}"], expected, atol=1e-5)


def test_a_machine(tmp_path: Path) -> None:
    path = tmp_path / "small-card.yaml"
    path.write_text(named("machine", "yaml").text)
    assert machine(path).hbm_bytes == 24e9
    simulate(loads(TINY + "graph: [embed, unembed]\n"), str(path))


def test_the_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    layer = "blocks: {layer: {body: [{residual: [rms_norm, {attention: {position: rope}}]}]}}\n"
    (tmp_path / "m.yaml").write_text(TINY + layer + "graph: [embed, {repeat: {times: 2, cycle: [layer]}}, unembed]\n")
    monkeypatch.chdir(tmp_path)
    bg.compile(bg.load(str(tmp_path / "m.yaml")), "cpu", phase="decode", batch=2, length=32, out=tmp_path / "out")
    assert {"artifact.jaxexport", "stablehlo.txt", "optimised_hlo.txt", "summary.json"} <= set(os.listdir("out"))
    run("artifact", monkeypatch)
    assert "'logits': (2, 1, 40)" in capsys.readouterr().out


def test_python_without_a_test_is_valid() -> None:
    for example in examples("python"):
        compile(example.text, str(example), "exec")
