"""Rotary angles do not lose their digits at large positions."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.graph.builder import Builder
from compiler.graph.sizes import BATCH, SEQ
from compiler.graph.types import TensorType, TypeProblem
from compiler.lower.rotate import angles
from compiler.ops.leaves import Input
from compiler.ops.rotate import Rotate


def exact(position: int, theta: float, channels: int) -> np.ndarray:
    """Angles in (-pi, pi], in extended precision."""
    i = np.arange(channels // 2, dtype=np.longdouble)
    whole = np.longdouble(position) * np.longdouble(theta) ** (-2 * i / channels)
    turn = 2 * np.longdouble("3.14159265358979323846264338327950288")
    return whole - turn * np.round(whole / turn)


def difference(position: int, theta: float, channels: int) -> float:
    found = np.asarray(angles(jnp.asarray([position], jnp.int32), theta, channels))[0].astype(np.longdouble)
    gap = np.abs(found - exact(position, theta, channels))
    return float(np.minimum(gap, 2 * np.pi - gap).max())


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0, 1e6])
@pytest.mark.parametrize("position", [0, 1, 8191, 10_000_000, 2**31 - 1])
def test_exact_at_any_position(position: int, theta: float) -> None:
    """float32 alone would be off by 0.56 at ten million."""
    # a turn in 32 bits of fraction and float64 frequencies: 2**31 positions cost 2e-7 of the 64-bit frequency
    assert difference(position, theta, 128) < (1e-6 if position <= 10_000_000 else 3e-6)


@settings(max_examples=30, deadline=None)
@given(position=st.integers(0, 20_000_000), channels=st.sampled_from([2, 64, 256]))
def test_exact_everywhere(position: int, channels: int) -> None:
    assert difference(position, 10_000.0, channels) < 1e-6


@pytest.mark.parametrize(("fraction", "channels"), [(0.29, 58), (0.1, 20), (1.0, 200), (1 / 3, None), (0.005, None)])
def test_a_fraction_is_an_even_number_of_channels(fraction: float, channels: int | None) -> None:
    """29% of 200 is 58 although the product of floats lies below it; what is no even number is refused."""
    b = Builder()
    x = b.append(Input("x"), (), (TensorType.make([("batch", BATCH), ("seq", SEQ), ("head_dim", 200)], "float32"),))[0]
    if channels is None:
        with pytest.raises(TypeProblem, match="of head_dim = 200 is"):
            b.rotate(x, fraction=fraction)
        return
    made = b.rotate(x, fraction=fraction)
    (node,) = [n for n in b.nodes if n.results and n.results[0] is made]
    assert isinstance(node.op, Rotate) and node.op.channels == channels
