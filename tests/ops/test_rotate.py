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
from compiler.ops.frequencies import NTK, Linear, Llama3, Scaling, Yarn, geometric
from compiler.ops.leaves import Input
from compiler.ops.rotate import Rotate


def exact(position: int, theta: float, channels: int) -> np.ndarray:
    """Angles in (-pi, pi], in extended precision."""
    i = np.arange(channels // 2, dtype=np.longdouble)
    whole = np.longdouble(position) * np.longdouble(theta) ** (-2 * i / channels)
    turn = 2 * np.longdouble("3.14159265358979323846264338327950288")
    return whole - turn * np.round(whole / turn)


def difference(position: int, theta: float, channels: int) -> float:
    found = np.asarray(angles(jnp.asarray([position], jnp.int32), geometric(theta, channels)))[0].astype(np.longdouble)
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


# What transformers 5.24 computes for these options (ROPE_INIT_FUNCTIONS, float32), and its factor on cos and sin.
TRANSFORMERS: list[tuple[Scaling, float, int, list[float], float]] = [
    (Linear(4), 1e4, 8, [0.25, 0.025, 0.0025, 0.00025], 1.0),
    # its dynamic scaling with factor 3 at twice the trained length, where it is NTK-aware with 4
    (NTK(4), 1e4, 8, [1.0, 0.06299605220556259, 0.00396850286051631, 0.0002500000118743628], 1.0),
    (Yarn(4, 64), 1e4, 12, [1.0, 0.13465215265750885, 0.011603971011936665, 0.0025, 0.0005386085831560194,
                            0.00011603973689489067], 1.138629436111989),
    (Yarn(4, 64, 4, 1, 1.5, False), 1e4, 12, [1.0, 0.14546890556812286, 0.011603971011936665, 0.0025,
                                              0.0005386085831560194, 0.00011603973689489067], 1.5),
    (Llama3(8, 1, 4, 512), 5e5, 16, [1.0, 0.193922758102417, 0.02734413370490074, 0.0009115831344388425,
                                     0.00017677668074611574, 3.428102354519069e-05, 6.647869668086059e-06,
                                     1.289173155782919e-06], 1.0),
]  # fmt: skip


@pytest.mark.parametrize(("scaling", "theta", "channels", "expected", "magnitude"), TRANSFORMERS, ids=str)
def test_scaled_frequencies_are_those_of_transformers(
    scaling: Scaling, theta: float, channels: int, expected: list[float], magnitude: float
) -> None:
    np.testing.assert_allclose(scaling.frequencies(theta, channels), expected, rtol=4e-7)
    assert scaling.magnitude == pytest.approx(magnitude)
