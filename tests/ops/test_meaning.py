"""Every op's lowering against NumPy, and every gradient program against jax.vjp of that lowering."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.ops.contract import OPS
from compiler.passes.verify import ADDED_BY, verify
from tests.ops.build import Case, close, params
from tests.ops.cases import CASES

TESTED_ELSEWHERE = {  # leaves, regions (tests/passes), collectives (tests/lower), state (test_state)
    "input", "parameter", "argument", "state", "constant", "positions", "distances", "repeat", *ADDED_BY["partition"],
    *ADDED_BY["phase"],
}  # fmt: skip


@pytest.mark.parametrize("case", params([c for c in CASES if c.expect]))
def test_equals_numpy(case: Case) -> None:
    arrays = case.arrays()
    graph = case.graph()
    verify(graph, after=case.id)
    assert case.expect is not None
    want = case.expect(*arrays.values())
    want = want if isinstance(want, tuple) else (want,)
    for found, reference, (_, value) in zip(case.run(graph, arrays), want, graph.outputs, strict=False):
        close(found, reference, case.atol)
        assert str(found.dtype) == value.type.dtype
        assert found.shape == tuple(int(s.evaluate(case.sizes)) for s in value.type.sizes)


@pytest.mark.parametrize("case", params([c for c in CASES if c.differentiable]))
def test_gradient_equals_jax(case: Case) -> None:
    for ours, theirs in zip(*case.gradients(), strict=True):
        close(ours, theirs, case.atol)


def test_every_op_has_a_case() -> None:
    forward = {n.op.name for c in CASES for n in c.graph().nodes}
    back = {n.op.name for c in CASES if c.differentiable for n in c.gradient_graph().nodes}
    gradient_only = {name for name, op in OPS.items() if not op.differentiable}
    assert set(OPS) - TESTED_ELSEWHERE - gradient_only <= forward
    assert gradient_only - TESTED_ELSEWHERE <= back


@pytest.mark.parametrize(("fn", "to_first"), [("max", 1.0), ("min", 1.0)])
def test_equal_values_pass_the_whole_gradient_on(fn: str, to_first: float) -> None:
    case = Case(fn, {"x": "seq=2", "y": "seq=2"}, lambda b, x, y: getattr(b, fn)(x, y))
    one = np.ones(2, np.float32)
    dx, dy = case.run(case.gradient_graph(), {"x": one, "y": one, "g0": one})
    assert (np.asarray(dx) == to_first).all() and (np.asarray(dy) == 1 - to_first).all()


def test_the_bounded_root_has_a_bounded_slope() -> None:
    case = Case("bounded_sqrt", {"x": "seq=3"}, lambda b, x: b.bounded_sqrt(x))
    x = np.array([-1e-3, 0, 1e-12], np.float32)
    (dx,) = case.run(case.gradient_graph(), {"x": x, "g0": np.ones(3, np.float32)})
    assert np.allclose(dx, 1000, rtol=1e-5)


def test_select_stops_what_is_not_finite() -> None:
    """The branch not taken gets 0, also where the cotangent is infinite."""
    case = Case("select", {"x": "seq=2", "y": "seq=2"}, lambda b, x, y: b.select(b.greater(x, 0.0), x, y))
    x = np.array([1, -1], np.float32)
    dx, dy = case.run(case.gradient_graph(), {"x": x, "y": x, "g0": np.array([np.inf, 2], np.float32)})
    assert np.asarray(dx).tolist() == [np.inf, 0] and np.asarray(dy).tolist() == [0, 2]
