"""The published families in small: gradients are finite, and pieces equal the whole with rows of unequal length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compiler.language.model import load
from compiler.lower.program import training
from runtime.weights.initial import random
from tests.runtime.streams import assert_streams, tokens_of

TINY: dict[str, Any] = {"vocab": 40, "embed": 24, "heads": 2, "head_dim": 8, "layers": 3, "dtype": "float32"}
FAMILIES: dict[str, dict[str, Any]] = {
    "chinchilla-70b": {}, "gpt3": {"context": 26}, "palm": {}, "lamda": {"buckets": 8}}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_a_small_one_trains_and_streams(name: str) -> None:
    model = load(name, TINY | FAMILIES[name])
    params = dict(random(model, 1).arrays)
    assert_streams(model, params)
    tokens, lengths = tokens_of(model, (9, 9)), np.array([9, 4], np.int32)
    step = training(model, {"batch": 2, "seq": 9}).jitted()
    out = step(params, {}, {"tokens": tokens, "seq_lengths": lengths})[0]
    gradients = {k: np.asarray(v) for k, v in out.items() if k.startswith("gradient:")}
    assert len(gradients) == len(params) and np.isfinite(out["loss"])
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in gradients.values())
