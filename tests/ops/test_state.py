"""State: what is written, what is kept of it, and that extending in pieces equals the whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.graph.builder import Builder
from compiler.graph.ir import Graph
from compiler.graph.sizes import Size
from compiler.lower import attention as lowering
from compiler.lower.graph import run
from compiler.lower.registry import Context
from compiler.ops import attention
from compiler.ops.attention import AttendCached
from compiler.ops.bias import Bias, Buckets, Relative, Slopes
from compiler.ops.latest import LatestCount, LatestHeld
from compiler.ops.leaves import Input
from compiler.ops.state import After, Append, CacheLayout, KeepLast, KeepTail, slots_of
from compiler.passes.select import Choice
from tests.ops import latest_cases
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


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("length", [3, 7])
def test_append_to_a_packed_cache(length: int, together: int) -> None:
    draw = np.random.default_rng(0)
    old, new = draw.normal(size=(2, 4, 2, 3)).astype("f4"), draw.normal(size=(2, length, 2, 3)).astype("f4")
    valid = np.array([length, 1], np.int32)
    want = old.copy()
    for row in range(2):
        for t in range(valid[row]):
            want[row, (ROWS[row] + t) % 4] = new[row, t]
    state = f"batch=2 slot_rows={4 // together} lanes={together * 6}"
    arrays = {"state": old.reshape(2, 4 // together, -1), "new": new, "start": ROWS, "valid": valid}
    found = write(Append(), state, f"batch=2 seq={length} kv_heads=2 head_dim=3", arrays)
    close(found.reshape(2, 4, 2, 3), want, 0)


def kept(kv: int, dim: int, slots: int, caches: CacheLayout, dtype: str = "float32") -> list[str]:
    new = tensor(f"batch=b seq=t kv_heads={kv} head_dim={dim}", dtype)
    return [str(t) for t in caches.types([new, new], "seq", "kv_heads", Size.of(slots))]


def test_which_heads_lie_side_by_side() -> None:
    """Those that do not fill tiles of 8 (or 1, 2, 4) rows of 128 columns; as few slots to a row as fill them."""
    tpu, cpu = Choice.of("tpu").caches, Choice.of("cpu").caches
    full = [(1, 256), (4, 256), (8, 128), (16, 128), (2, 128)]
    found = {(kv, d): kept(kv, d, 4097, tpu)[0] for kv, d in full}
    assert found == {(kv, d): str(tensor(f"batch=b slots=4097 kv_heads={kv} head_dim={d}")) for kv, d in full}
    rows = {
        (12, 64): (4104, 768),
        (3, 64): (2056, 384),
        (1, 64): (2056, 128),
        (8, 80): (4104, 640),
        (5, 80): (520, 3200),
    }
    for (kv, d), (count, lanes) in rows.items():
        assert kept(kv, d, 4097, tpu) == [str(tensor(f"batch=b slot_rows={count} lanes={lanes}"))] * 2
        assert kept(kv, d, 4097, cpu)[0] == str(tensor(f"batch=b kv_heads={kv} slots=4097 head_dim={d}"))
    key, value = (tensor(f"batch=b seq=t kv_heads=3 head_dim={d}") for d in (64, 128))
    both = tpu.types([key, value], "seq", "kv_heads", Size.of(4096))  # one number of slots serves both
    assert [slots_of(cache, new, "seq") for cache, new in zip(both, (key, value), strict=True)] == [4096, 4096]


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


@pytest.mark.parametrize("length", [2, 5])  # fewer and more new entries than are kept
def test_the_latest_that_are_held(length: int) -> None:
    """Of rows that begin, that have few entries and that have many; the first one first."""
    draw, keep = np.random.default_rng(0), 4
    start, valid = np.array([0, 1, 6], np.int32), np.array([length, 1, 2], np.int32)
    x, tail = draw.normal(size=(3, length, 2)).astype("f4"), draw.normal(size=(3, keep, 2)).astype("f4")
    op, count = LatestHeld(Size.of(keep)), LatestCount(Size.of(keep))
    inputs = {"x": f"batch=3 seq={length} embed=2", "tail": f"batch=3 taps={keep} embed=2",
              "start": "batch=3:int32", "valid": "batch=3:int32"}  # fmt: skip
    case = Case("latest_held", inputs, lambda b, x, t, s, v: (b.one(op, x, t, s, v), *b.apply(count, s, v)))
    found, first, made = case.run(case.graph(), {"x": x, "tail": tail, "start": start, "valid": valid})
    for row, want in enumerate(latest_cases.held(tail, x, start, valid, keep)):
        close(found[row, : len(want)], want, 0)
        assert (first[row], made[row]) == (start[row] + valid[row] - len(want), len(want))
    nothing = case.run(case.graph(), {"x": x, "tail": tail, "start": start, "valid": np.zeros(3, np.int32)})
    assert not np.asarray(nothing[2]).any()


@pytest.mark.parametrize("implementation", ["plain", "blocked"])
def test_queries_that_begin_before_the_call(implementation: str) -> None:
    """The last 4 positions of each row look at the cache and at this call's keys, at none behind themselves."""
    draw, lengths, start = np.random.default_rng(0), np.array([9, 6]), np.array([6, 3], np.int32)
    k, v = (draw.normal(size=(2, 9, 2, 4)).astype("f4") for _ in range(2))
    q = draw.normal(size=(2, 4, 4, 4)).astype("f4")
    b = Builder()
    names = {"q": "batch=2 recent=4 heads=4 head_dim=4", "k": "batch=2 seq=3 kv_heads=2 head_dim=4",
             "v": "batch=2 seq=3 kv_heads=2 head_dim=4", "old_k": "batch=2 kv_heads=2 slots=9 head_dim=4",
             "old_v": "batch=2 kv_heads=2 slots=9 head_dim=4"}  # fmt: skip
    x = [b.append(Input(name), (), (tensor(axes),))[0] for name, axes in names.items()]
    rows = [b.append(Input(name), (), (tensor("batch=2", "int32"),))[0] for name in ("start", "first")]
    op = AttendCached("recent", "seq", scale=0.5, placed=True, implementation=implementation)
    graph = b.finish([("out", b.apply(op, *x, *rows)[0])])
    new = [np.stack([y[r, start[r] : start[r] + 3] for r in range(2)]) for y in (k, v)]
    old = [np.stack([np.where(np.arange(9)[:, None, None] < start[r], y[r], 9.0) for r in range(2)]) for y in (k, v)]
    arrays = dict(zip(names, [q, *new, *(y.transpose(0, 2, 1, 3).astype("f4") for y in old)], strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowering, "BLOCK", 4)
        found = run(graph, Context({}, {**arrays, "start": start, "first": (lengths - 4).astype(np.int32)}))["out"]
    for row in range(2):
        want = ref.attend(q[row, None], k[row, None, : lengths[row]], v[row, None, : lengths[row]], scale=0.5,
                          first=int(lengths[row]) - 4)  # fmt: skip
        close(found[row], want[0], 2e-5)


def extending(
    length: int, cache: str, implementation: str, extra: Mapping[str, str] | None = None, **options: Any
) -> Graph:
    """One call of ``length`` positions over a ring: attention, and the ring after it. ``extra``: operands more."""
    b = Builder()
    names = {
        "q": f"batch=2 seq={length} heads=4 head_dim=4", "k": f"batch=2 seq={length} kv_heads=2 head_dim=4",
        "v": f"batch=2 seq={length} kv_heads=2 head_dim=4", "old_k": cache, "old_v": cache, **(extra or {}),
    }  # fmt: skip
    x = {name: b.append(Input(name), (), (tensor(axes),))[0] for name, axes in names.items()}
    start, valid = (b.append(Input(n), (), (tensor("batch=2", "int32"),))[0] for n in ("start", "valid"))
    op = AttendCached(scale=0.5, implementation=implementation, **options)
    out = b.apply(op, x["q"], x["k"], x["v"], x["old_k"], x["old_v"], start, *(x[n] for n in extra or ()))[0]
    return b.finish([
        ("out", out),
        *((f"old_{n}", b.one(Append(), x[f"old_{n}"], x[n], start, valid)) for n in ("k", "v")),
    ])  # fmt: skip


BIASES: dict[str, Bias] = {"slopes": Slopes(), "buckets": Buckets(4, 6), "relative": Relative()}
EXTRA = {
    "slopes": "heads=4", "table": "buckets=4 heads=4", "position_queries": "batch=2 seq={chunk} heads=4 head_dim=4",
    "position_keys": "distance={slots} heads=4 head_dim=4",
}  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    chunk=st.sampled_from([1, 3, 5]),
    window=st.sampled_from([None, 2, 5]),
    softcap=st.sampled_from([None, 3.0]),
    together=st.sampled_from([0, 1, 2, 4]),
    implementation=st.sampled_from(["plain", "blocked", "streamed", "diagonal"]),
    by=st.sampled_from(["nothing", "slopes", "buckets", "relative", "chunk"]),
)
def test_a_ring_equals_full_attention(
    lengths: tuple[int, int], chunk: int, window: int | None, softcap: float | None, together: int, implementation: str,
    by: str,
) -> None:  # fmt: skip
    """Rows of unequal length, extended chunk by chunk; the ring holds the window and wraps round. ``together``: slots
    of one row of a packed cache, 0 where it is not packed. ``by``: what positions say besides."""
    together = max(together, 1) if implementation == "diagonal" else together
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK", 4)
        patch.setattr(lowering, "BLOCK", 4)
        draw = np.random.default_rng(sum(lengths))
        total = -(-max(lengths) // chunk) * chunk
        q = draw.normal(size=(2, total, 4, 4)).astype("f4")
        k, v = (draw.normal(size=(2, total, 2, 4)).astype("f4") for _ in range(2))
        options: dict[str, Any] = {"window": window, "softcap": None if by == "relative" else softcap}
        slots = window or total
        if by == "chunk":
            options["chunk"], slots = 4, min(4, slots)
        biased = BIASES.get(by)
        extra = {name: EXTRA[name].format(chunk=chunk, slots=slots) for name in (biased.operands if biased else ())}
        shapes = {n: [int(s.constant) for s in tensor(axes).sizes] for n, axes in extra.items()}
        rest = {n: draw.normal(size=s).astype("f4") for n, s in shapes.items()}
        asks = draw.normal(size=(2, total, 4, 4)).astype("f4")
        cache = f"batch=2 kv_heads=2 slots={slots} head_dim=4"
        if together:
            cache = f"batch=2 slot_rows={-(-slots // together)} lanes={together * 8}"
        graph = extending(chunk, cache, implementation, extra, bias=biased, **options)
        step = jax.jit(lambda leaves: run(graph, Context({}, leaves)))
        shape = [int(s.constant) for s in tensor(cache).sizes]
        state = {n: np.zeros(shape, np.float32) for n in ("old_k", "old_v")}
        start, outs = np.zeros(2, np.int32), []
        for at in range(0, total, chunk):
            valid = np.clip(np.array(lengths) - at, 0, chunk).astype(np.int32)
            piece = {n: x[:, at : at + chunk] for n, x in (("q", q), ("k", k), ("v", v))} | rest
            if by == "relative":
                piece["position_queries"] = asks[:, at : at + chunk]
            found = step({**piece, **state, "start": start, "valid": valid})
            outs.append(np.asarray(found.pop("out")))
            state, start = found, start + valid
        added: dict[str, Any] = {
            "slopes": lambda b, t, s, h: -rest["slopes"][h] * (t - s),
            "buckets": lambda b, t, s, h: rest["table"][ref.bucket(t - s, 4, 6, False), h],
            "relative": lambda b, t, s, h: 0.5 * float(asks[b, t, h] @ rest["position_keys"][t - s, h]),
        }
        want = ref.attend(q, k, v, scale=0.5, added=added.get(by), **options)
        for row, n in enumerate(lengths):
            close(np.concatenate(outs, 1)[row, :n], want[row, :n], 2e-5)
