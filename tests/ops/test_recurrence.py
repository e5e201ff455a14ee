"""A recurrence gives one answer, whichever way it runs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.lower import recurrence as lowering
from compiler.ops.recurrence import Recur
from tests.ops import reference as ref
from tests.ops.build import Case, close


@settings(max_examples=5, deadline=None)
@given(length=st.integers(1, 23), block=st.integers(2, 7), reverse=st.booleans(), state=st.booleans(),
       speed=st.sampled_from([1e-4, 0.3, 20.0]))  # fmt: skip
def test_blocked_is_associative_is_a_loop(length: int, block: int, reverse: bool, state: bool, speed: float) -> None:
    """From hardly any decay to forgetting at once."""
    draw = np.random.default_rng(length)
    x = f"batch=2 seq={length} rnn=3"
    values = {"decay": -speed * np.abs(draw.normal(size=(2, length, 3)))}
    inputs = {"x": x, "decay": x} | ({"state": "batch=2 rnn=3"} if state else {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowering, "BLOCK", block)
        for kind in ("step", "associative", "blocked"):
            case = Case(kind, inputs, lambda b, *xs, kind=kind: b.one(Recur("seq", reverse, kind), *xs), values=values)
            arrays = case.arrays()
            want = ref.recur(arrays["x"], arrays["decay"], arrays.get("state"), reverse)
            close(case.run(case.graph(), arrays)[0], want, 1e-5)
