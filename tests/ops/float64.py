"""Graphs in float64 from end to end, so that finite differences say something: every float type becomes float64, and
where a lowering asks for float32 it gets float64 too."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np

from compiler.graph.ir import Graph, Node, Value
from compiler.lower.graph import run
from compiler.lower.registry import Context
from compiler.ops.control import Repeat
from compiler.ops.elementwise import Cast
from compiler.ops.linear import Dot

STEP = 1e-5
TOLERANCE = 1e-7  # of the derivative, or of 1 where that is smaller


class _Wide:
    """jax.numpy whose float32 is float64."""

    float32 = jnp.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(jnp, name)


@contextmanager
def float64() -> Iterator[None]:
    modules = [m for name, m in sys.modules.items() if name.startswith("compiler.lower.") and hasattr(m, "jnp")]
    patches = [patch.object(m, "jnp", _Wide()) for m in modules]
    with jax.enable_x64(True):
        for p in patches:
            p.start()
        try:
            yield
        finally:
            for p in patches:
                p.stop()


def _wide(dtype: str) -> str:
    return "float64" if dtype.startswith(("float", "bfloat")) else dtype


def _value(v: Value) -> Value:
    return Value(v.id, v.type.with_dtype(_wide(v.type.dtype)))


def _node(node: Node) -> Node:
    op: Any = node.op
    if isinstance(op, Repeat):
        op = dataclasses.replace(op, body=widened(op.body))
    if isinstance(op, (Cast, Dot)):
        op = dataclasses.replace(op, dtype=_wide(op.dtype))
    return dataclasses.replace(
        node, op=op, operands=tuple(map(_value, node.operands)), results=tuple(map(_value, node.results))
    )


def widened(graph: Graph) -> Graph:
    """The graph with every float type float64."""
    outputs = tuple((name, _value(v)) for name, v in graph.outputs)
    return Graph(tuple(map(_node, graph.nodes)), outputs)


def compiled(graph: Graph, sizes: Mapping[str, int]) -> Callable[[Mapping[str, Any]], dict[str, np.ndarray]]:
    """A widened graph as a function from its inputs to its outputs."""
    function = jax.jit(lambda leaves: run(graph, Context(sizes, leaves)))
    return lambda arrays: {k: np.asarray(x) for k, x in function(dict(arrays)).items()}


def wide_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k: a.astype(np.float64) if np.issubdtype(a.dtype, np.floating) else a for k, a in arrays.items()}


def worst(
    f: Callable[[dict[str, np.ndarray]], float],
    arrays: Mapping[str, np.ndarray],
    gradients: Mapping[str, np.ndarray],
    directions: int = 3,
) -> float:
    """Largest error of a directional derivative, in random directions of one input after the other, against central
    differences."""  # fmt: skip
    draw, error = np.random.default_rng(5), 0.0
    for name, g in gradients.items():
        for _ in range(directions):
            way = draw.normal(size=g.shape)
            ends = [f({**arrays, name: arrays[name] + sign * STEP * way}) for sign in (1, -1)]
            want = (ends[0] - ends[1]) / (2 * STEP)
            error = max(error, abs(float((g * way).sum()) - want) / max(1.0, abs(want)))
    return error
