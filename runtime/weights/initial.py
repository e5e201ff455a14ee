"""Random weights by each parameter's own rule, with NumPy alone. A number depends on the seed, the parameter's path
and its layer, not on how a spec's repeats stack the layers."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from compiler.errors import Problem, WeightsError, nearest
from compiler.language.model import Model
from runtime import memory
from runtime.weights.layout import PER
from runtime.weights.load import NAMES, Weights
from runtime.weights.mapping import layers_of, own_axes

Draw = Callable[[np.random.Generator, int], np.ndarray]  # (generator, count) -> float32 or float64 [count]
Box = tuple[tuple[int, int], ...]  # for each axis: first entry, one past the last
CHUNK = 1 << 22  # elements drawn at once


def _log_uniform(g: np.random.Generator, n: int, a: float, b: float) -> np.ndarray:
    return np.exp(g.uniform(math.log(a), math.log(b), n))


def _softplus_inverse(y: np.ndarray) -> np.ndarray:
    """x with log(1 + exp(x)) = y, for y > 0."""
    return y + np.log(-np.expm1(-y))


def _rg_lru(g: np.random.Generator, n: int) -> np.ndarray:
    """The decay of Griffin (arXiv:2402.19427, appendix A; the authors' a_param): exp(-softplus(x)), which the block
    raises to its power c, has a square uniform in [0.9^2, 0.999^2]."""
    squared = g.uniform(0.9**2, 0.999**2, n)
    return _softplus_inverse(-0.5 * np.log(squared))


WITH_AXES = ("fan_in", "log_counts")  # rules that read the axes
# name -> (how many numbers it takes, draw)
RULES: dict[str, tuple[int, Callable[..., np.ndarray]]] = {
    "zeros": (0, lambda g, n: np.zeros(n, np.float32)),
    "ones": (0, lambda g, n: np.ones(n, np.float32)),
    "normal": (1, lambda g, n, std: g.standard_normal(n, np.float32) * np.float32(std)),
    "uniform": (2, lambda g, n, a, b: g.uniform(a, b, n)),
    "log_uniform": (2, _log_uniform),
    "log_of_uniform": (2, lambda g, n, a, b: np.log(g.uniform(a, b, n))),
    "inverse_softplus_log_uniform": (2, lambda g, n, a, b: _softplus_inverse(_log_uniform(g, n, a, b))),
    "rg_lru": (0, _rg_lru),
}


def rule(init: str, axes: list[tuple[str, int]], inputs: int | None) -> Draw:
    """What an init says for a tensor of these axes (without layers); ``inputs`` of them are a linear map's inputs.
    Raises KeyError."""
    name, _, rest = init.replace(" ", "").partition("(")
    if name == "fan_in":
        ins = axes[-1:] if inputs is None else [(a, n) for a, n in axes[:inputs] if a not in PER]
        std = 1 / math.sqrt(math.prod(n for _, n in ins) or 1)
        return lambda g, n: g.standard_normal(n, np.float32) * np.float32(std)
    if name == "log_counts" and not rest:  # log 1, log 2, … along the last axis (S4D-real, arXiv:2206.11893, eq. 9)
        return lambda g, n: np.resize(np.log(np.arange(1, axes[-1][1] + 1)), n)
    count, draw = RULES[name]
    match = re.fullmatch(r"([^()]*)\)", rest) if rest else None
    try:
        numbers = [float(x) for x in match[1].split(",")] if match and match[1] else []
    except ValueError:
        raise KeyError(init) from None
    if len(numbers) != count or (rest and match is None):
        raise KeyError(init)
    return lambda g, n: draw(g, n, *numbers)


def random(model: Model, seed: int, dtype: str | None = None) -> Weights:
    """Random weights of a model; the same seed gives the same bits."""
    arrays: dict[str, np.ndarray] = {}
    types = {k: t.with_dtype(dtype or t.dtype) for k, (_, t) in model.parameters.items()}
    memory.require_bytes(model.name, {"parameters": memory.held(types)}, memory.free_bytes())
    for label, draw in _draws(model).items():
        _, t = model.parameters[label]
        array = np.zeros(tuple(int(s.constant) for s in t.sizes), NAMES[dtype or t.dtype])
        for at, generator in _layers(model, label, seed):
            index: tuple[Any, ...] = (*at, ...)
            layer = array[index]
            _fill(layer.reshape(-1), draw, generator, layer.shape)  # a view: axes after the layers lie together
        arrays[label] = array
    return Weights(arrays)


def random_boxes(
    model: Model, label: str, seed: int, boxes: Sequence[Box], dtype: str | None = None
) -> dict[Box, np.ndarray]:
    """Some boxes, (first, one past the last) for each axis, of the parameter that ``random`` gives, to the bit. One
    layer is drawn at a time, and only layers that a box reaches into; a layer is drawn whole, as its numbers follow
    one another."""
    op, t = model.parameters[label]
    draw, kind = _draws(model, label)[label], NAMES[dtype or t.dtype]
    shape = tuple(n for _, n in own_axes(op, t))
    held = {box: np.zeros(tuple(b - a for a, b in box), kind) for box in boxes}
    for at, generator in _layers(model, label, seed):
        reached = [b for b in held if all(a <= i < z for i, (a, z) in zip(at, b, strict=False))]
        if not reached:
            continue
        layer = np.zeros(shape, kind)
        _fill(layer.reshape(-1), draw, generator, shape)
        for box in reached:
            inner = tuple(slice(a, z) for a, z in box[len(at) :])
            where: tuple[Any, ...] = (*(i - a for i, (a, _) in zip(at, box, strict=False)), ...)
            held[box][where] = layer[inner]
    return held


def random_onto(
    model: Model, seed: int, shardings: Mapping[str, Any], labels: Iterable[str] | None = None
) -> dict[str, Any]:
    """The arrays of ``random`` on devices, a parameter at a time; each process makes only what its own devices hold.
    ``shardings`` by label; a label without one lies on the first device."""
    from runtime.weights import parts

    found = {}
    for label in labels if labels is not None else model.parameters:
        shape = tuple(int(s.constant) for s in model.parameters[label][1].sizes)
        sharding = shardings.get(label) or parts.one_device()
        held = random_boxes(model, label, seed, parts.boxes(shape, sharding))
        found[label] = parts.placed(shape, sharding, held)
    return found


def _draws(model: Model, only: str | None = None) -> dict[str, Draw]:
    """How each parameter is drawn. Raises WeightsError naming every init that is unknown."""
    found: dict[str, Draw] = {}
    problems = []
    for label, (op, t) in model.parameters.items():
        if only is not None and label != only:
            continue
        try:
            found[label] = rule(op.init, own_axes(op, t), op.inputs)
        except KeyError:
            allowed = (*WITH_AXES, *(f"{n}({', '.join('ab'[:c])})" if c else n for n, (c, _) in RULES.items()))
            hint = nearest(op.init, [*WITH_AXES, *RULES])
            problems.append(Problem("unknown-init", f"{label}: no init is called {op.init}", None, allowed, hint))
    if problems:
        raise WeightsError(problems)
    return found


def _layers(model: Model, label: str, seed: int) -> Iterator[tuple[tuple[int, ...], np.random.Generator]]:
    """(index into the leading axes, the numbers' own stream) of each layer of a parameter."""
    op, t = model.parameters[label]
    for layer, at in layers_of(op, t):
        digest = hashlib.sha256(f"{op.path} {layer}".encode()).digest()
        yield at, np.random.default_rng([seed, *np.frombuffer(digest, "<u4").tolist()])


def _fill(flat: np.ndarray, draw: Draw, generator: np.random.Generator, shape: Sequence[int]) -> None:
    """Whole rows at a time, as a rule may count along the last axis."""
    row = shape[-1] if shape else 1
    step = max(row, CHUNK - CHUNK % max(row, 1))
    for start in range(0, flat.size, step):
        count = min(step, flat.size - start)
        flat[start : start + count] = draw(generator, count)
