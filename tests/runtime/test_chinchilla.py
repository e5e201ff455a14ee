"""Chinchilla in small: gradients are finite, and pieces equal the whole with rows of unequal length."""

from __future__ import annotations

import numpy as np

from compiler.language.model import load
from compiler.lower.program import training
from runtime.weights.initial import random
from tests.runtime.streams import assert_streams, tokens_of

TINY = {"vocab": 40, "embed": 24, "heads": 2, "head_dim": 8, "layers": 3, "dtype": "float32"}


def test_a_small_chinchilla_trains_and_streams() -> None:
    model = load("chinchilla-70b", TINY)
    params = dict(random(model, 1).arrays)
    assert_streams(model, params)
    sizes = {"batch": 2, "seq": 9}
    tokens, lengths = tokens_of(model, (9, 9)), np.array([9, 4], np.int32)
    out = training(model, sizes).jitted()(params, {}, {"tokens": tokens, "seq_lengths": lengths})[0]
    gradients = {k: np.asarray(v) for k, v in out.items() if k.startswith("gradient:")}
    assert len(gradients) == len(params) and np.isfinite(out["loss"])
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in gradients.values())
