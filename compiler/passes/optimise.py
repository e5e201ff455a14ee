"""Optimise: the optimiser's update as ops. Gradients become new parameters and new optimiser state.

The state of a parameter is a leaf like a cache: ``<label>:first`` and ``<label>:second`` are its moments,
``<label>:master`` its copy in the wider dtype where the parameter itself is narrower; ``step`` counts updates. New
values leave as outputs ``state:<label>`` and ``parameter:<label>``, which the lowering writes over the old ones.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from compiler.errors import Problem, SpecError
from compiler.graph.builder import Builder
from compiler.graph.ir import Graph, Value
from compiler.graph.types import DTYPE_BITS, TensorType
from compiler.ops.leaves import Input, Parameter, State
from compiler.passes.differentiate import extend

KIND = "optimiser"
GRADIENT = "gradient:"
STEP = "step"
FLOAT = "float32"  # of every computation of the update

Moments = dict[str, Value]


@dataclass(frozen=True)
class Optimiser:
    """What every optimiser has. ``clip``: the largest global norm of the gradients, which are scaled down to it
    (Pascanu et al., arXiv:1211.5063, algorithm 1). ``master``: dtype of the copy kept of narrower parameters."""

    clip: float | None = None
    master: str = "float32"

    @abstractmethod
    def moments(self) -> Mapping[str, str]:
        """Names and dtypes of the state that each parameter has."""

    @abstractmethod
    def update(
        self, b: Builder, g: Value, p: Value, old: Moments, count: Value, weight: Weight
    ) -> tuple[Value, Moments]:
        """The step to be taken, before the learning rate, and the new moments; all float32. ``count``: which
        update this is, from 1."""


@dataclass(frozen=True)
class Weight:
    """A parameter that is updated."""

    op: Parameter
    value: Value

    @property
    def is_matrix(self) -> bool:
        """Whether it maps axes to axes: neither a bias nor a gain."""
        own = self.value.type.axes[sum(1 for s in self.op.stack if s.count > 1) :]
        return len(own) > 1 if self.op.inputs is None else self.op.inputs > 0


@dataclass(frozen=True)
class AdamW(Optimiser):
    """Adam with decoupled weight decay (Loshchilov & Hutter, arXiv:1711.05101, algorithm 2) and bias correction;
    the numbers of optax.adamw. ``decay``: whether all parameters decay, or matrices only. A second moment in bfloat16
    barely moves while beta2 is near 1: an increment of less than 1/256 is rounded away."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 1e-4
    decay: Literal["all", "matrices"] = "all"
    first: str = "float32"
    second: str = "float32"

    def moments(self) -> Mapping[str, str]:
        return {"first": self.first, "second": self.second}

    def update(
        self, b: Builder, g: Value, p: Value, old: Moments, count: Value, weight: Weight
    ) -> tuple[Value, Moments]:
        first = b.add(b.mul(g, 1 - self.beta1), b.mul(old["first"], self.beta1))
        second = b.add(b.mul(b.square(g), 1 - self.beta2), b.mul(old["second"], self.beta2))
        corrected = [
            b.div(moment, b.sub(1.0, b.power(beta, count)))
            for moment, beta in ((first, self.beta1), (second, self.beta2))
        ]
        step = b.div(corrected[0], b.add(b.sqrt(corrected[1]), self.eps))
        if self.weight_decay and (self.decay == "all" or weight.is_matrix):
            step = b.add(step, b.mul(p, self.weight_decay))
        return step, {"first": first, "second": second}


@dataclass(frozen=True)
class SGD(Optimiser):
    """Plain gradient descent; with ``momentum`` the step is a decaying sum of gradients (optax.sgd)."""

    momentum: float = 0.0
    first: str = "float32"

    def moments(self) -> Mapping[str, str]:
        return {"first": self.first} if self.momentum else {}

    def update(
        self, b: Builder, g: Value, p: Value, old: Moments, count: Value, weight: Weight
    ) -> tuple[Value, Moments]:
        if not self.momentum:
            return g, {}
        first = b.add(g, b.mul(old["first"], self.momentum))
        return first, {"first": first}


def optimise(graph: Graph, optimiser: Optimiser) -> Graph:
    """The graph whose outputs ``gradient:<label>`` have become ``gradient_norm`` (before clipping), ``state:<label>``
    and ``parameter:<label>``. The learning rate is the input ``learning_rate``, a float32 scalar."""
    _check(optimiser)
    grads = {name.removeprefix(GRADIENT): v for name, v in graph.outputs if name.startswith(GRADIENT)}
    nodes = {n.op.label: n for n in graph.nodes if isinstance(n.op, Parameter)}
    b = extend(graph)
    with b.at("optimise"):
        rate = b.append(Input("learning_rate"), (), (TensorType((), (), FLOAT),))[0]
        before = b.append(State(STEP, KIND), (), (TensorType((), (), "int32"),))[0]
        step = b.add(before, b.constant(1, "int32"))
        count = b.cast(step, FLOAT)
        wide = {label: b.cast(g, FLOAT) for label, g in grads.items()}
        norm = _global_norm(b, wide)
        if optimiser.clip is not None:  # as optax.clip_by_global_norm: untouched below the limit
            factor = b.select(b.greater(optimiser.clip, norm), 1.0, b.div(optimiser.clip, norm))
            wide = {label: b.mul(g, factor) for label, g in wide.items()}
    outputs = [(name, v) for name, v in graph.outputs if not name.startswith(GRADIENT)]
    outputs += [("gradient_norm", norm), (f"state:{STEP}", step)]
    for label, g in wide.items():
        weight = Weight(nodes[label].op, nodes[label].result)  # type: ignore[arg-type]
        with b.at(weight.op.path):
            outputs += _updated(b, optimiser, weight, g, rate, count)
    return b.finish(outputs)


def _updated(
    b: Builder, optimiser: Optimiser, weight: Weight, g: Value, rate: Value, count: Value
) -> list[tuple[str, Value]]:
    """New moments, master copy and value of one parameter."""
    label, t = weight.op.label, weight.value.type
    kept = dict(optimiser.moments())
    has_master = DTYPE_BITS[optimiser.master] > DTYPE_BITS[t.dtype]
    if has_master:
        kept["master"] = optimiser.master
    old = {n: b.append(State(f"{label}:{n}", KIND), (), (t.with_dtype(d),))[0] for n, d in kept.items()}
    p = b.cast(old["master"] if has_master else weight.value, FLOAT)
    step, new = optimiser.update(b, g, p, {n: b.cast(old[n], FLOAT) for n in optimiser.moments()}, count, weight)
    p = b.sub(p, b.mul(step, rate))
    if has_master:
        new["master"] = p
    found = [(f"state:{label}:{n}", b.cast(v, kept[n])) for n, v in new.items()]
    return [*found, (f"parameter:{label}", b.cast(p, t.dtype))]


def _global_norm(b: Builder, grads: Mapping[str, Value]) -> Value:
    """The root of the sum of all squares."""
    total = b.constant(0.0, FLOAT)
    for g in grads.values():
        square = b.square(g)
        total = b.add(total, b.reduce(square, "sum", square.axes) if square.axes else square)
    return b.sqrt(total)


def _check(optimiser: Optimiser) -> None:
    for what, dtype in {**optimiser.moments(), "master": optimiser.master}.items():
        if dtype not in ("float32", "bfloat16"):
            message = f"the optimiser's {what} is kept in float32 or bfloat16, not {dtype}"
            raise SpecError(Problem("unknown-dtype", message, None, ("float32", "bfloat16")))


__all__ = ["SGD", "AdamW", "Optimiser", "optimise"]
