"""A session: unequal prompts in chunks equal solo runs; what it cannot take is refused before its state changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from compiler.errors import BlockgraphError
from runtime.generate import generate
from runtime.session import Session
from tests.huggingface import case

FAMILIES = ["gemma2", "recurrent_gemma"]


def session(name: str = "llama_tied", **options: Any) -> Session:
    c = case(name)
    return Session(c.model, c.params, **{"batch": 2, "capacity": 16, "chunk": 4, **options})


@pytest.mark.parametrize("name", FAMILIES)
def test_unequal_prompts_in_chunks_equal_solo_runs(name: str) -> None:
    """Three prompts over several calls, then three steps, the second row resting in the middle one."""
    c = case(name)
    prompts = [list(map(int, row[:n])) for row, n in zip(c.tokens, c.lengths, strict=True)]
    together = Session(c.model, c.params, batch=3, capacity=48, chunk=7)
    logits = together.prefill(prompts)
    for row, prompt in enumerate(prompts):  # c.logits are solo runs
        np.testing.assert_allclose(logits[row], c.logits[row, len(prompt) - 1], atol=1e-4)
    alone = Session(c.model, c.params, batch=1, capacity=48, chunk=len(prompts[1]))
    alone.prefill(prompts[1:2])
    for step, on in enumerate((True, False, True)):
        made = together.decode([5 + step, 8 + step, 11 + step], np.array([True, on, True]))
        if on:
            np.testing.assert_allclose(made[1], alone.decode([8 + step])[0], atol=1e-4)
    assert together.lengths.tolist() == [43, 25, 10]
    np.testing.assert_array_equal(together.state["length"], together.lengths)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_in_two_prefills_equals_one(name: str) -> None:
    c = case(name)
    prompt = list(map(int, c.tokens[0]))
    twice = Session(c.model, c.params, batch=1, capacity=48, chunk=9)
    np.testing.assert_allclose(twice.prefill([prompt[:21]])[0], c.logits[0, 20], atol=1e-4)
    np.testing.assert_allclose(twice.prefill([prompt[21:]])[0], c.logits[0, 39], atol=1e-4)


REFUSALS: list[tuple[Callable[[Session], Any], str, str]] = [
    (lambda s: s.prefill([[1] * 5, [1] * 17]), "out-of-capacity", "20 positions in a session of 16"),
    (lambda s: s.prefill([[1], []]), "empty-prompt", "needs 2 prompts of at least one token each"),
    (lambda s: s.prefill([]), "empty-prompt", "needs 2 prompts of at least one token each"),
    (lambda s: s.prefill([[1]] * 3), "empty-prompt", "needs 2 prompts of at least one token each"),
    (lambda s: s.prefill([[1], [2, 80]]), "out-of-range", "smollm2-135m has no token 80"),
    (lambda s: s.decode([1, -1]), "out-of-range", "smollm2-135m has no token -1"),
    (lambda s: s.decode([1, 2**40]), "out-of-range", "smollm2-135m has no token 1099511627776"),
    (lambda s: s.decode([1]), "out-of-range", "1 tokens for 2 rows"),
]


def test_what_is_refused_changes_nothing() -> None:
    asked, fresh = session(), session()
    for s in (asked, fresh):
        s.prefill([[1, 2, 3], [4, 5, 6]])
    for call, code, message in REFUSALS:
        with pytest.raises(BlockgraphError) as caught:
            call(asked)
        (problem,) = caught.value.problems
        assert (problem.code, problem.message) == (code, message)
        assert asked.lengths.tolist() == [3, 3] == asked.state["length"].tolist()
    np.testing.assert_array_equal(asked.decode([7, 8]), fresh.decode([7, 8]))


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"capacity": 0}, {"chunk": 0}])
def test_sizes_below_one(wrong: dict[str, int]) -> None:
    with pytest.raises(BlockgraphError) as caught:
        session(**wrong)
    assert caught.value.problems[0].message == f"a session's {next(iter(wrong))} = 0"


def test_parameters_that_do_not_fit_are_all_named() -> None:
    c = case("llama_tied")
    params = dict(c.params)
    params["embed.table"] = params["embed.table"][:5]
    del params["final.scale"]
    with pytest.raises(BlockgraphError) as caught:
        Session(c.model, params, batch=1, capacity=4)
    found = {p.code: p.message for p in caught.value.problems}
    assert found == {
        "misshaped-tensor": "embed.table is [5, 24], smollm2-135m needs [80, 24]",
        "missing-tensor": "the weights lack final.scale [24]",
    }


def test_generation_needs_prompts_and_room() -> None:
    c = case("llama_tied")
    for options, code in (
        ({"prompts": []}, "empty-prompt"),
        ({"prompts": [[1], []]}, "empty-prompt"),
        ({"prompts": [[1]], "max_tokens": 0}, "out-of-range"),
        ({"prompts": [[1, 2, 3]], "max_tokens": 9, "capacity": 8}, "out-of-capacity"),
    ):
        with pytest.raises(BlockgraphError) as caught:
            list(generate(c.model, c.params, **options))  # type: ignore[arg-type]
        assert caught.value.problems[0].code == code


def test_a_stop_token_ends_its_row_only() -> None:
    c = case("llama_tied")
    prompts = [[3, 4, 5], [6, 7]]
    free: list[list[int]] = [[], []]
    for t in generate(c.model, c.params, prompts, max_tokens=8):
        free[t.row].append(t.id)
    stop = next(i for i in free[0][1:] if i not in free[1] and i != free[0][0])
    got = list(generate(c.model, c.params, prompts, max_tokens=8, stop={stop}))
    cut = free[0].index(stop)
    assert [(t.id, t.done) for t in got if t.row == 0] == [(i, False) for i in free[0][:cut]] + [(-1, True)]
    assert [t.id for t in got if t.row == 1] == free[1]
