"""Choosing tokens: probabilities against values by hand, and draws that do not depend on the rest of the batch."""

from __future__ import annotations

import math

import numpy as np
import pytest

from compiler.errors import BlockgraphError
from runtime.sample import Sampler, Sampling, probabilities

LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.3, 0.15], np.float32))


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0, 1, 0, 0, 0]),
        (Sampling(temperature=1), [0.1, 0.4, 0.05, 0.3, 0.15]),
        (Sampling(temperature=0.5), [1 / 28.5, 16 / 28.5, 0.25 / 28.5, 9 / 28.5, 2.25 / 28.5]),  # squares
        (Sampling(temperature=1, top_k=2), [0, 4 / 7, 0, 3 / 7, 0]),
        (Sampling(temperature=1, top_k=99), [0.1, 0.4, 0.05, 0.3, 0.15]),
        (Sampling(temperature=1, top_p=0.35), [0, 1, 0, 0, 0]),  # the likeliest is always kept
        (Sampling(temperature=1, top_p=0.6), [0, 4 / 7, 0, 3 / 7, 0]),
        (Sampling(temperature=1, top_p=0.8), [0, 8 / 17, 0, 6 / 17, 3 / 17]),
        (Sampling(temperature=1, top_p=0.8, top_k=1), [0, 1, 0, 0, 0]),
        (Sampling(temperature=0.5, top_p=0.9, top_k=4), [0, 16 / 27.25, 0, 9 / 27.25, 2.25 / 27.25]),
        (Sampling(temperature=1e-310), [0, 1, 0, 0, 0]),
    ],
)
def test_probabilities_by_hand(sampling: Sampling, expected: list[float]) -> None:
    p = probabilities(LOGITS, sampling)
    assert p.dtype == np.float64
    np.testing.assert_allclose(p, expected, atol=1e-7)


def test_equal_logits_keep_the_first_ids() -> None:
    tied = np.zeros(4, np.float32)
    assert probabilities(tied, Sampling())[0] == 1
    np.testing.assert_allclose(probabilities(tied, Sampling(temperature=1, top_k=2)), [0.5, 0.5, 0, 0])


def test_impossible_ids_stay_impossible() -> None:
    p = probabilities(np.array([0, -np.inf, 1000], np.float32), Sampling(temperature=100))
    assert p[1] == 0 and p[2] > 0.99 and math.isclose(p.sum(), 1)


def test_greedy_draws_leave_out_the_padding() -> None:
    logits = np.array([[0, 3, 1, 9], [5, 0, 1, 9]], np.float32)
    assert Sampler(Sampling(), 2).draw(logits, limit=3).tolist() == [1, 0]
    assert Sampler(Sampling(), 2).draw(logits).tolist() == [3, 3]
    sampled = Sampler(Sampling(temperature=2), 2)
    assert all(sampled.draw(logits, limit=3).max() < 3 for _ in range(100))


def test_draws_have_the_probabilities() -> None:
    sampler = Sampler(Sampling(temperature=0.5, top_k=3, seed=4), 1)
    counts = np.bincount([int(sampler.draw(LOGITS[None])[0]) for _ in range(4000)], minlength=5)
    p = np.array([0, 16, 0, 9, 2.25]) / 27.25
    assert counts[0] == counts[2] == 0
    assert (np.abs(counts / 4000 - p) < 4 * np.sqrt(p * (1 - p) / 4000) + 1e-12).all()


def test_a_row_does_not_depend_on_the_batch_around_it() -> None:
    steps = np.random.default_rng(0).normal(size=(50, 3, 20)).astype(np.float32)
    sampling = Sampling(temperature=1, top_p=0.9, seed=7)
    three, one = Sampler(sampling, 3), Sampler(sampling, 1)
    others = steps.copy()
    others[:, 1:] = -others[:, 1:]
    changed = Sampler(sampling, 3)
    alone = [int(one.draw(s[:1])[0]) for s in steps]
    together = np.array([three.draw(s) for s in steps])
    assert together[:, 0].tolist() == alone == [int(changed.draw(s)[0]) for s in others]
    same = np.repeat(steps[:, :1], 3, axis=1)
    fresh = Sampler(sampling, 3)
    rows = np.array([fresh.draw(s) for s in same])
    assert (rows[:, 0] != rows[:, 1]).any() and (rows[:, 1] != rows[:, 2]).any()  # streams of their own


def test_a_seed_gives_the_same_draws() -> None:
    def drawn(seed: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=1, seed=seed), 1)
        return [int(sampler.draw(LOGITS[None])[0]) for _ in range(40)]

    assert drawn(1) == drawn(1) != drawn(2)


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1}, {"temperature": math.nan}, {"temperature": math.inf}, {"top_p": 0}, {"top_p": 1.1},
     {"top_p": math.nan}, {"top_k": -1}, {"seed": -1}],
)  # fmt: skip
def test_values_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(BlockgraphError) as caught:
        Sampling(**wrong)  # type: ignore[arg-type]
    (problem,) = caught.value.problems
    assert problem.code == "out-of-range" and problem.message.startswith(next(iter(wrong)))
