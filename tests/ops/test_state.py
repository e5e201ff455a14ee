"""State: what is written, what is kept of it, and that extending in pieces equals the whole."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.graph.builder import Builder
from compiler.graph.ir import Graph
from compiler.lower import attention as lowering
from compiler.lower.graph import run
from compiler.lower.registry import Context
from compiler.ops import attention
from compiler.ops.attention import AttendCached
from compiler.ops.leaves import Input
from compiler.ops.state import After, Append, KeepLast, KeepTail
from tests.ops import reference as ref
from tests.ops.build import Case, close, tensor

ROWS = np.array([2, 5], np.int32)
VALID = np.array([3, 1], np.int32)
WHERE = {"start": "batch=2:int32", "valid": "batch=2:int32"}


def write(op: Any, state: str, new: str, arrays: dict[str, Any]) -> np.ndarray:
    case = Case(op.name, {"state": state, "new": new, **WHERE}, lambda b, *xs: b.one(op, *xs))
    return np.asarray(case.run(case.graph(), {**case.arrays(), **arrays})[0])


@pytest.mark.parametrize("axes", ["batch=2 slots=4 kv_heads=1", "batch=2 kv_heads=1 slots=4"])
@pytest.mark.parametrize("length", [3, 7])  # fewer and more new entries than slots
def test_append_is_a_ring(axes: str, length: int) -> None:
    draw = np.random.default_rng(0)
    old, new = draw.normal(size=(2, 4, 1)).astype("f4"), draw.normal(size=(2, length, 1)).astype("f4")
    valid = np.array([length, 1], np.int32)
    want = old.copy()
    for row in range(2):
        for t in range(valid[row]):
            want[row, (ROWS[row] + t) % 4] = new[row, t]
    heads_first = axes.endswith("slots=4")
    arrays = {"state": old.transpose(0, 2, 1) if heads_first else old, "new": new, "start": ROWS, "valid": valid}
    found = write(Append(), axes, f"batch=2 seq={length} kv_heads=1", arrays)
    close(found.transpose(0, 2, 1) if heads_first else found, want, 0)


def test_keep_last_and_keep_tail() -> None:
    draw = np.random.default_rng(0)
    old, new = draw.normal(size=(2, 3)).astype("f4"), draw.normal(size=(2, 4, 3)).astype("f4")
    valid = np.array([3, 0], np.int32)
    found = write(KeepLast(), "batch=2 rnn=3", "batch=2 seq=4 rnn=3", {"state": old, "new": new, "valid": valid})
    close(found, np.stack([new[0, 2], old[1]]), 0)
    tail = draw.normal(size=(2, 2, 3)).astype("f4")
    arrays = {"state": tail, "new": new, "valid": VALID}
    found = write(KeepTail(), "batch=2 taps=2 rnn=3", "batch=2 seq=4 rnn=3", arrays)
    close(found, np.stack([new[0, 1:3], [tail[1, 1], new[1, 0]]]), 0)


def test_last_valid_and_after() -> None:
    inputs = {"x": "batch=2 seq=4 embed=3", "valid": "batch=2:int32"}
    case = Case("last_valid", inputs, lambda b, x, v: b.last_valid(x, v))
    arrays = {**case.arrays(), "valid": VALID}
    close(case.run(case.graph(), arrays)[0][:, 0], arrays["x"][[0, 1], VALID - 1], 0)
    same = Case("after", {"x": "seq=4", "y": "seq=2"}, lambda b, x, y: b.one(After(), x, y))
    close(same.run(same.graph(), same.arrays())[0], same.arrays()["x"], 0)


def extending(length: int, slots: int, implementation: str, **options: Any) -> Graph:
    """One call of ``length`` positions over a ring: attention, and the ring after it."""
    b = Builder()
    names = {
        "q": f"batch=2 seq={length} heads=2 head_dim=4", "k": f"batch=2 seq={length} kv_heads=1 head_dim=4",
        "v": f"batch=2 seq={length} kv_heads=1 head_dim=4",
        "old_k": f"batch=2 kv_heads=1 slots={slots} head_dim=4",
        "old_v": f"batch=2 kv_heads=1 slots={slots} head_dim=4",
    }  # fmt: skip
    x = {name: b.append(Input(name), (), (tensor(axes),))[0] for name, axes in names.items()}
    start, valid = (b.append(Input(n), (), (tensor("batch=2", "int32"),))[0] for n in ("start", "valid"))
    op = AttendCached(scale=0.5, implementation=implementation, **options)
    out = b.apply(op, x["q"], x["k"], x["v"], x["old_k"], x["old_v"], start)[0]
    return b.finish([
        ("out", out),
        *((f"old_{n}", b.one(Append(), x[f"old_{n}"], x[n], start, valid)) for n in ("k", "v")),
    ])  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    chunk=st.sampled_from([1, 3, 5]),
    window=st.sampled_from([None, 2, 5]),
    softcap=st.sampled_from([None, 3.0]),
    implementation=st.sampled_from(["plain", "blocked", "streamed"]),
)
def test_a_ring_equals_full_attention(
    lengths: tuple[int, int], chunk: int, window: int | None, softcap: float | None, implementation: str
) -> None:
    """Rows of unequal length, extended chunk by chunk; the ring holds the window and wraps round."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK", 4)
        patch.setattr(lowering, "BLOCK", 4)
        draw = np.random.default_rng(sum(lengths))
        total = -(-max(lengths) // chunk) * chunk
        q = draw.normal(size=(2, total, 2, 4)).astype("f4")
        k, v = (draw.normal(size=(2, total, 1, 4)).astype("f4") for _ in range(2))
        slots = window or total
        graph = extending(chunk, slots, implementation, window=window, softcap=softcap)
        step = jax.jit(lambda leaves: run(graph, Context({}, leaves)))
        state = {n: np.zeros((2, 1, slots, 4), np.float32) for n in ("old_k", "old_v")}
        start, outs = np.zeros(2, np.int32), []
        for at in range(0, total, chunk):
            valid = np.clip(np.array(lengths) - at, 0, chunk).astype(np.int32)
            piece = {n: x[:, at : at + chunk] for n, x in (("q", q), ("k", k), ("v", v))}
            found = step({**piece, **state, "start": start, "valid": valid})
            outs.append(np.asarray(found.pop("out")))
            state, start = found, start + valid
        want = ref.attend(q, k, v, scale=0.5, window=window, softcap=softcap)
        for row, n in enumerate(lengths):
            close(np.concatenate(outs, 1)[row, :n], want[row, :n], 2e-5)
