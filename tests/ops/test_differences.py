"""Every gradient program against central differences in float64: each op alone, and every block kind in a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compiler.graph.ir import Graph
from compiler.language.block import kinds
from compiler.language.forms import FORMS
from compiler.language.model import loads
from compiler.lower.graph import run
from compiler.lower.registry import Context
from compiler.ops.contract import OPS
from compiler.ops.leaves import Leaf
from compiler.passes.differentiate import differentiate
from compiler.passes.loss import Chunk, next_token_loss
from compiler.passes.phase import phase_graph
from compiler.passes.select import Choice, select
from compiler.passes.verify import ADDED_BY
from runtime.weights.initial import random
from tests.ops.build import Case, params
from tests.ops.cases import CASES
from tests.ops.float64 import TOLERANCE, compiled, float64, wide_arrays, widened, worst

DIFFERENTIABLE = [c for c in CASES if c.differentiable and c.id != "stop_gradient"]

HEAD = """
name: tiny
dims: {vocab: 11, embed: 8, mlp: 12, heads: 2, kv_heads: 1, head_dim: 4, rnn: 6, experts: 4, active: 2}
dtypes: {params: float32, compute: float32}
graph:
  - {embed: {scale: 2.0}, name: table}
"""
LAST = "  - {unembed: {tied: table, softcap: 4.0}}\n"
BLOCKS = {
    "attention": [
        "attention: {position: rope, window: 3, softcap: 5.0, bias: true, qk_norm: {eps: 0.001}}",
        "attention: {position: {buckets: {count: 4, distance: 3}}, sinks: true, out_gate: {by: head}}, name: second",
        "attention: {position: alibi, chunk: 3, out_gate: {act: silu}}, name: third",
        "attention: {position: transformer_xl}, name: fourth",
    ],
    "conv": ["conv: {to: embed, kernel: 3, groups: 2, bias: true, over: seq}"],
    "embed": [],
    "fill": ["linear: {to: embed}, name: features", "fill: 3, from: {input: table, features: features, ids: tokens}"],
    "gain": ["gain: {act: tanh}"],
    "latest": [
        "latest: {count: 3}, name: last",
        "attention: {over: recent, position: {rope: {fraction: 0.5}}}, from: {input: last, context: table}",
    ],
    "latent_attention": ["latent_attention: {rank: 6, rotary_dim: 2, value_dim: 3, query_rank: 5}"],
    "layer_norm": ["layer_norm: {bias: true}"],
    "linear": ["linear: {to: embed, bias: true}"],
    "merge": ["merge: {axes: embed, to: mlp}", "linear: {to: embed}"],
    "mlp": ["mlp: {gate: gelu_tanh, bias: true}"],
    "model": [
        "model: {spec: smollm2-135m, set: {vocab: 11, embed: 8, mlp: 12, heads: 2, kv_heads: 1, head_dim: 4, "
        "layers: 1}}, from: tokens, name: inner",
        "linear: {to: embed}",
    ],
    "moe": [
        "moe: {gate: silu}",
        "moe: {act: tanh, capacity: 0.75, score: sigmoid, balance: 0.5, z_loss: 0.1}, name: second",
        "moe: {gate: gelu_tanh, choice: expert}, name: third",
    ],
    "pool": ["pool: {by: max, window: 3, stride: 1, over: seq}"],
    "rg_lru": ["linear: {to: rnn}", "rg_lru: {blocks: heads}", "linear: {to: embed}, name: back"],
    "position_table": ["position_table: 8"],
    "sinusoid": ["sinusoid: {pairs: half}"],
    "rms_norm": ["rms_norm: {offset: 1.0}"],
    "scale": ["scale: 0.5"],
    "short_conv": ["short_conv: {width: 3, bias: true}"],
    "softcap": ["softcap: 2.0"],
    "unembed": [],
    "identity": ["residual: [identity]"],
    "residual": ["residual: [{mlp: {act: relu}}]"],
    "sum": ["sum: [[identity], [tanh]]"],
    "product": ["product: [[{linear: {to: embed}, name: a}], [{linear: {to: embed}, name: b}, tanh]]"],
    "concat": ["concat: {axis: embed, of: [[identity], [tanh]]}", "linear: {to: embed}"],
    "repeat": ["repeat: {times: 3, cycle: [{residual: [rms_norm, {mlp: {gate: silu}}]}]}"],
}  # fmt: skip
SIZES = {"batch": 2, "seq": 5}


# Many products by many small steps: half a minute together, with `make slow`.
LONG = {
    "attend_relative_blocked", "attend_buckets", "attend_dense", "attend_chunks_both_ways", "attend_both_ways_tiles",
    "attend_cross_blocked", "linear_attend_gated_delta_chunked_7_state_ends", "linear_attend_rwkv7_chunked_10",
}  # fmt: skip


@pytest.mark.parametrize("case", params([replace(c, slow=c.slow or c.id in LONG) for c in DIFFERENTIABLE]))
def test_an_op_s_gradient_equals_differences(case: Case) -> None:
    forward, back = widened(case.graph()), widened(case.gradient_graph())
    arrays = wide_arrays(case.arrays())
    names = [name for name, t in case.types().items() if t.dtype.startswith("float")]
    with float64():
        draw = np.random.default_rng(1)
        outputs = compiled(forward, case.sizes)
        outs = outputs(arrays).values()
        gs = {f"g{i}": draw.normal(size=y.shape) for i, y in enumerate(outs) if np.issubdtype(y.dtype, np.floating)}

        def f(at: dict[str, np.ndarray]) -> float:
            ys = list(outputs(at).values())
            return float(sum((ys[int(name[1:])] * g).sum() for name, g in gs.items()))

        found = compiled(back, case.sizes)({**arrays, **gs})
        gradients = {names[int(name[1:])]: g for name, g in found.items()}
        assert all(g.dtype == np.float64 for g in gradients.values())
        assert worst(f, arrays, gradients) < TOLERANCE


def loss_graph(kind: str, chunk: Chunk | None = None, choice: Choice = Choice()) -> tuple[Graph, dict[str, Any]]:
    """A model around one block kind: its loss graph, its parameters and inputs."""
    model = loads(HEAD + "".join(f"  - {{{node}}}\n" for node in BLOCKS[kind]) + LAST, f"{kind}.yaml")
    draw = np.random.default_rng(2)
    arrays = {k: a + 0.1 * draw.normal(size=a.shape) for k, a in random(model, 3).arrays.items()}
    arrays["tokens"] = draw.integers(0, 11, (2, 5)).astype(np.int32)
    arrays["seq_lengths"] = np.array([5, 3], np.int32)
    graph = next_token_loss(phase_graph(model, "forward").graph, sizes=SIZES, chunk=chunk)
    return select(graph, SIZES, choice), wide_arrays(arrays)


def model_error(graph: Graph, arrays: dict[str, np.ndarray]) -> float:
    forward, back = widened(graph), widened(differentiate(graph))
    with float64():

        @jax.jit
        def loss(leaves: dict[str, Any]) -> Any:
            return run(forward, Context(SIZES, leaves))["loss"]

        gradient = jax.jit(lambda leaves: run(back, Context(SIZES, leaves)))
        found = gradient({k: jnp.asarray(a) for k, a in arrays.items()})
        gradients = {k.removeprefix("gradient:"): np.asarray(g) for k, g in found.items() if k.startswith("gradient:")}
        assert set(gradients) == set(arrays) - {"tokens", "seq_lengths"}
        return worst(lambda at: float(loss(at)), arrays, gradients, directions=2)


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_s_gradient_equals_differences(kind: str) -> None:
    assert model_error(*loss_graph(kind)) < TOLERANCE


def test_ragged_experts_and_chunks_equal_differences() -> None:
    assert model_error(*loss_graph("moe", choice=Choice(dense_tokens=0))) < TOLERANCE
    assert model_error(*loss_graph("repeat", chunk=Chunk(positions=2))) < TOLERANCE


def test_every_block_kind_and_form_has_a_model() -> None:
    assert set(kinds()) | set(FORMS) == set(BLOCKS)


def test_every_op_has_differences() -> None:
    """Leaves take nothing; collectives are made after differentiation, and what writes state has no way back."""
    forward = {n.op.name for c in DIFFERENTIABLE for n, _ in c.graph().walk()} | {"repeat"}
    back = {n.op.name for c in DIFFERENTIABLE for n, _ in c.gradient_graph().walk()}
    elsewhere = {*ADDED_BY["partition"], *ADDED_BY["phase"], "positions", "distances", "stop_gradient"}
    ops = {name: op for name, op in OPS.items() if not issubclass(op, Leaf) and name not in elsewhere}
    assert {name for name, op in ops.items() if op.differentiable} <= forward
    assert {name for name, op in ops.items() if not op.differentiable} <= back


def test_stop_gradient_stops_it() -> None:
    case = next(c for c in CASES if c.id == "stop_gradient")  # x times a stopped x: half of what differences say
    ((ours,), _) = case.gradients()
    np.testing.assert_allclose(ours, case.arrays()["x"] * np.random.default_rng(1).normal(size=3), rtol=1e-5)
