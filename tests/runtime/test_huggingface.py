"""The same numbers as Hugging Face transformers, float32, on tiny random checkpoints: forward, chunked prefill,
token-by-token decode, verify and commit, with rows of unequal length and windows that wrap several times."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from compiler.lower.program import program
from compiler.ops.attention import AttendCached
from compiler.ops.state import HEADS_FIRST, CacheLayout
from compiler.passes.select import Choice
from runtime.generate import generate
from tests.huggingface import CASES, case

TOLERANCE = 1e-4
CAPACITY = 48
PACKED = CacheLayout(heads_first=False, lanes=128)
STATES = ("mamba", "mamba2", "rwkv")  # without caches
SAME = (*STATES, "qwen3_next")  # where what is chosen for a TPU is shown by other cases


@pytest.mark.parametrize("name", [*CASES, "llama_sharded"])
def test_forward(name: str) -> None:
    c = case(name)
    rows, length = c.tokens.shape
    fn = program(c.model, "forward", {"batch": rows, "seq": length}).jitted()
    logits = fn(c.params, {}, {"tokens": c.tokens})[0]["logits"]
    assert c.error(logits) < TOLERANCE


@pytest.mark.parametrize("caches", [HEADS_FIRST, CacheLayout(heads_first=False), PACKED], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_chunked_prefill(name: str, caches: CacheLayout) -> None:
    if caches != HEADS_FIRST and name not in ("recurrent_gemma", "deepseek_v3"):
        pytest.skip("the order of a cache is shown on two families")
    c = case(name)
    rows, length = c.tokens.shape
    chunk = 11  # longer than the window of 8: of more new entries than slots only the last stay
    made = program(c.model, "prefill", {"batch": rows, "seq": chunk, "capacity": CAPACITY}, logits="all",
                   choice=Choice(caches=caches))  # fmt: skip
    fn, state, got = made.jitted(), made.empty_state(), []
    for start in range(0, length, chunk):
        tokens = np.zeros((rows, chunk), np.int32)
        part = c.tokens[:, start : start + chunk]
        tokens[:, : part.shape[1]] = part
        valid = np.clip(c.lengths - start, 0, chunk).astype(np.int32)
        out, state = fn(c.params, state, {"tokens": tokens, "valid": valid})
        got.append(np.asarray(out["logits"])[:, : part.shape[1]])
    assert c.error(np.concatenate(got, 1)) < TOLERANCE
    np.testing.assert_array_equal(state["length"], c.lengths)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("name", CASES)
def test_decode_token_by_token(name: str, platform: str) -> None:
    """Run here as it is selected for the platform: for TPU these small heads lie side by side."""
    if platform != "cpu" and name in SAME:
        pytest.skip("shown on other families")
    c = case(name)
    rows, length = c.tokens.shape
    choice = Choice.of(platform)
    made = program(c.model, "decode", {"batch": rows, "seq": 1, "capacity": CAPACITY}, choice=choice)
    chosen = {n.op.implementation for n, _ in made.graph.walk() if isinstance(n.op, AttendCached)}
    assert chosen == (set() if name in STATES else {"diagonal" if platform == "tpu" else "streamed"})
    fn, state, got = made.jitted(), made.empty_state(), []
    for t in range(length):
        valid = (t < c.lengths).astype(np.int32)
        out, state = fn(c.params, state, {"tokens": c.tokens[:, t : t + 1], "valid": valid})
        got.append(np.asarray(out["logits"]))
    assert c.error(np.concatenate(got, 1)) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "platform"),
    [
        *(
            (name, platform)
            for name in ("gemma2", "recurrent_gemma", "mixtral", "deepseek_v3")
            for platform in ("cpu", "tpu")
        ),
        *(("mamba2", "cpu"), ("rwkv", "cpu")),
        *(pytest.param(name, "cpu", marks=pytest.mark.slow) for name in ("mamba", "qwen3_next")),
    ],
)
def test_verify_and_commit_a_random_part(name: str, platform: str) -> None:
    """Verify leaves the state as it was; commit writes the accepted tokens only."""
    c = case(name)
    rows, length = c.tokens.shape
    sizes = {"batch": rows, "seq": 5, "capacity": CAPACITY}
    choice = Choice.of(platform)
    verify, commit = (program(c.model, phase, sizes, choice=choice) for phase in ("verify", "commit"))
    check, write = jax.jit(verify.function()), commit.jitted()
    state = {**verify.empty_state(), **commit.empty_state()}  # commit alone writes what verify has no need to read
    done, random = np.zeros(rows, int), np.random.default_rng(0)
    worst = 0.0
    while (done < c.lengths).any():
        index = np.minimum(done[:, None] + np.arange(5), length - 1)
        tokens = np.take_along_axis(c.tokens, index, 1)
        out, _ = check(c.params, state, {"tokens": tokens, "valid": np.full(rows, 5, np.int32)})
        accepted = np.minimum(random.integers(0, 6, rows), c.lengths - done)
        expected = np.take_along_axis(c.logits, index[..., None], 1)
        seen = (np.arange(5) < accepted[:, None])[..., None]
        worst = max(worst, float(np.abs(np.where(seen, np.asarray(out["logits"]) - expected, 0)).max()))
        pending = {k: v for k, v in out.items() if k.startswith("pending:")}
        _, state = write({}, state, {**pending, "valid": accepted.astype(np.int32)})
        done += accepted
    assert worst < TOLERANCE
    np.testing.assert_array_equal(state["length"], c.lengths)


@pytest.mark.parametrize(
    "name",
    [
        "recurrent_gemma",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma2", "gpt_neox", *SAME)),
    ],
)
def test_greedy_text_with_unequal_prompts(name: str) -> None:
    """Rows of 40, 23 and 7 tokens generate together; the short one as transformers continues it alone."""
    c = case(name)
    prompts = [list(map(int, row[:n])) for row, n in zip(c.tokens, c.lengths, strict=True)]
    tokens: list[list[int]] = [[] for _ in prompts]
    for t in generate(c.model, c.params, prompts, max_tokens=len(c.greedy), chunk=16):
        tokens[t.row].append(t.id)
    assert tokens[2] == c.greedy.tolist()
    alone = [t.id for t in generate(c.model, c.params, prompts[1:2], max_tokens=len(c.greedy))]
    assert tokens[1] == alone


@pytest.mark.parametrize("phase", ["forward", "prefill"])
@pytest.mark.parametrize("name", ["gemma2", "recurrent_gemma", "mixtral", "deepseek_v3"])
def test_the_implementations_for_long_inputs(name: str, phase: str) -> None:
    """Blocked attention, blocked scan and ragged experts give the same numbers as the plain forms."""
    c = case(name)
    rows, length = c.tokens.shape
    made = program(c.model, phase, {"batch": rows, "seq": length, "capacity": CAPACITY}, logits="all",
                   choice=Choice(scores=0, scan=0, dense_tokens=0))  # fmt: skip
    chosen = {getattr(n.op, "implementation", "") for n, _ in made.graph.walk()}
    assert chosen & {"blocked", "ragged"} and not chosen & {"plain", "dense"}
    inputs = {"tokens": c.tokens, **({"valid": c.lengths.astype(np.int32)} if phase == "prefill" else {})}
    logits = made.jitted()(c.params, made.empty_state(), inputs)[0]["logits"]
    assert c.error(logits) < TOLERANCE


def test_decode_by_doubled_rows() -> None:
    """What GPUs run where a query head has a key head of its own."""
    c = case("gpt_neox")
    rows = c.tokens.shape[0]
    made = program(c.model, "decode", {"batch": rows, "seq": 1, "capacity": CAPACITY}, choice=Choice.of("gpu"))
    assert "doubled" in {getattr(n.op, "implementation", "") for n, _ in made.graph.walk()}
    fn, state, got = made.jitted(), made.empty_state(), []
    for t in range(12):
        valid = (t < c.lengths).astype(np.int32)
        out, state = fn(c.params, state, {"tokens": c.tokens[:, t : t + 1], "valid": valid})
        got.append(np.asarray(out["logits"]))
    seen = c.valid[:, :12, None]
    assert np.abs(np.where(seen, np.concatenate(got, 1) - c.logits[:, :12], 0)).max() < TOLERANCE
