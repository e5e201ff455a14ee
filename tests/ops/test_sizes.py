"""Symbolic sizes: evaluating is a homomorphism, on numbers and on arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.graph.sizes import FUNCTIONS, Size, smaller

NAMES = ("batch", "seq", "capacity")
BASE = st.one_of(st.integers(-5, 50).map(Size.of), st.sampled_from(NAMES).map(Size.symbol))
ENV = st.fixed_dictionaries({n: st.integers(1, 100) for n in NAMES})
OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


def grow(children: st.SearchStrategy[Size]) -> st.SearchStrategy[Size]:
    pair = st.tuples(children, children)
    plain = st.tuples(st.sampled_from(sorted(OPERATIONS)), pair).map(lambda t: OPERATIONS[t[0]](*t[1]))
    opaque = st.tuples(st.sampled_from(["min", "max"]), pair).map(lambda t: Size.opaque(t[0], *t[1]))
    return st.one_of(plain, opaque, st.tuples(children, st.integers(1, 9)).map(lambda t: t[0] // t[1]))


SIZES = st.recursive(BASE, grow, max_leaves=6)


@settings(max_examples=150, deadline=None)
@given(a=SIZES, b=SIZES, env=ENV)
def test_evaluate_is_a_homomorphism(a: Size, b: Size, env: dict[str, int]) -> None:
    x, y = a.evaluate(env), b.evaluate(env)
    for op in OPERATIONS.values():
        assert op(a, b).evaluate(env) == op(x, y)
    assert Size.opaque("min", a, b).evaluate(env) == min(x, y)
    assert (a // 7).evaluate(env) == x // 7
    assert a + b == b + a and a * b == b * a and (a - a) == 0
    assert hash(a + b) == hash(b + a)


@settings(max_examples=60, deadline=None)
@given(a=SIZES, env=ENV)
def test_substitute_then_evaluate(a: Size, env: dict[str, int]) -> None:
    numbers: dict[str, Any] = dict(env)
    assert a.substitute(numbers).constant == a.evaluate(env)
    renamed = a.substitute({"batch": Size.symbol("rows")})
    assert renamed.evaluate({**env, "rows": env["batch"]}) == a.evaluate(env)
    assert a.symbols <= set(NAMES)


@settings(max_examples=60, deadline=None)
@given(a=SIZES, batches=st.lists(st.integers(1, 60), min_size=1, max_size=4), seq=st.integers(1, 60))
def test_arrays_give_what_numbers_give(a: Size, batches: list[int], seq: int) -> None:
    env = {"batch": np.array(batches), "seq": seq, "capacity": 7}
    found = np.broadcast_to(np.asarray(a.evaluate(env)), len(batches))
    assert found.tolist() == [a.evaluate({**env, "batch": n}) for n in batches]


def test_canonical_form() -> None:
    batch, seq = Size.symbol("batch"), Size.symbol("seq")
    assert (batch + seq) * (batch - seq) == batch * batch - seq * seq
    assert (batch * 12) // 4 == batch * 3
    assert smaller(seq, seq) == seq and Size.opaque("min", 3, 5) == 3
    assert str(batch * seq * 2 + 1) == "2*batch*seq + 1"
    with pytest.raises(KeyError):
        seq.evaluate({"batch": 1})
    assert set(FUNCTIONS) == {"floordiv", "min", "max", "block_pairs", "window_pairs"}
