"""Small graphs of one op: built from a function of the builder, run under JAX, differentiated both ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compiler.graph.builder import Builder
from compiler.graph.ir import Graph, Value
from compiler.graph.sizes import Size
from compiler.graph.types import TensorType
from compiler.lower.graph import run
from compiler.lower.registry import Context
from compiler.ops.leaves import Input
from compiler.passes.differentiate import Backward, recompute, spread
from compiler.passes.verify import verify

Build = Callable[..., Value | Sequence[Value]]


def tensor(axes: str, dtype: str = "float32") -> TensorType:
    """``tensor("batch=2 seq=3")``; a word for a size is a symbol."""
    pairs = [a.split("=") for a in axes.split()]
    return TensorType.make([(a, int(s) if s.isdigit() else Size.symbol(s)) for a, s in pairs], dtype)


@dataclass
class Case:
    """One op under test. ``inputs``: "batch=2 seq=3" by name, ":int32" behind for integers; ``values`` gives those
    that are not simply random; ``expect`` is the NumPy reference on the inputs in order."""

    id: str
    inputs: Mapping[str, str]
    build: Build
    expect: Callable[..., Any] | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    atol: float = 2e-5
    differentiable: bool = True
    compiled: bool = False  # run as one program, for ops of many steps
    slow: bool = False  # with `make slow` only

    def types(self) -> dict[str, TensorType]:
        split = {name: text.partition(":") for name, text in self.inputs.items()}
        return {name: tensor(axes, dtype or "float32") for name, (axes, _, dtype) in split.items()}

    def arrays(self, seed: int = 0) -> dict[str, np.ndarray]:
        draw = np.random.default_rng(seed)
        made = {}
        for name, t in self.types().items():
            shape = tuple(int(s.evaluate(self.sizes)) for s in t.sizes)
            made[name] = draw.integers(0, 4, shape).astype(t.dtype) if t.dtype == "int32" else draw.normal(size=shape)
            if name in self.values:
                made[name] = np.broadcast_to(np.asarray(self.values[name]), shape)
            made[name] = made[name].astype(t.dtype)
        return made

    def graph(self) -> Graph:
        return self._built()[0]

    def _built(self) -> tuple[Graph, Builder, list[Value], list[Value]]:
        b = Builder()
        ins = [b.append(Input(name), (), (t,))[0] for name, t in self.types().items()]
        outs = self.build(b, *ins)
        outs = [outs] if isinstance(outs, Value) else list(outs)
        return b.finish([(f"out{i}", v) for i, v in enumerate(outs)]), b, ins, outs

    def run(self, graph: Graph, arrays: Mapping[str, Any]) -> list[Any]:
        def function(leaves: Mapping[str, Any]) -> list[Any]:
            return list(run(graph, Context(self.sizes, leaves)).values())

        return (jax.jit(function) if self.compiled else function)({k: jnp.asarray(x) for k, x in arrays.items()})

    def gradient_graph(self) -> Graph:
        """Outputs: the cotangent of each floating input, for cotangents ``g0``, … of the floating results."""
        forward, b, ins, outs = self._built()
        active = {v.id for v in ins if v.type.dtype.startswith("float")}
        wanted = [v for v in ins if v.id in active]
        spread(forward.nodes, active)
        back = Backward(b, active, recompute)
        for i, v in enumerate(outs):
            if v.type.dtype.startswith("float"):
                back.add(v, b.append(Input(f"g{i}"), (), (v.type,))[0])
        back.walk(forward.nodes)
        graph = b.finish([(f"d{i}", back.grads[v.id]) for i, v in enumerate(wanted) if v.id in back.grads])
        verify(graph, after=self.id)
        return graph

    def gradients(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """By our gradient program, and by jax.vjp of the forward lowering."""
        arrays, forward, back = self.arrays(), self.graph(), self.gradient_graph()
        whole = {k: a for k, a in arrays.items() if not np.issubdtype(a.dtype, np.floating)}
        floats = {k: a for k, a in arrays.items() if k not in whole}
        indices = [i for i, (_, v) in enumerate(forward.outputs) if v.type.dtype.startswith("float")]
        draw = np.random.default_rng(1)
        types = [forward.outputs[i][1].type for i in indices]
        gs = [draw.normal(size=[int(n.evaluate(self.sizes)) for n in t.sizes]).astype(t.dtype) for t in types]

        def pull(floats: Mapping[str, Any], gs: Any) -> Any:
            return jax.vjp(lambda f: [self.run(forward, {**f, **whole})[i] for i in indices], floats)[1](gs)[0]

        theirs = (jax.jit(pull) if self.compiled else pull)(floats, gs)
        ours = self.run(back, {**arrays, **{f"g{i}": g for i, g in zip(indices, gs, strict=True)}})
        assert len(ours) == len(theirs), f"{self.id}: gradients of {len(ours)} of {len(theirs)} inputs"
        return [np.asarray(x) for x in ours], [np.asarray(theirs[k]) for k in floats]


def params(cases: Sequence[Case]) -> list[Any]:
    """For ``pytest.mark.parametrize``."""
    return [pytest.param(c, marks=pytest.mark.slow if c.slow else (), id=c.id) for c in cases]


def close(found: Any, want: Any, atol: float) -> None:
    """Within atol, or within atol times the largest entry."""
    found, want = np.asarray(found), np.asarray(want)
    assert found.shape == want.shape, f"{found.shape} for {want.shape}"
    np.testing.assert_allclose(found, want, rtol=0, atol=atol * max(1.0, float(np.abs(want).max(initial=0))))
