"""Random weights by each parameter's own rule, with NumPy alone. A number depends on the seed, the parameter's path
and its layer, not on how a spec's repeats stack the layers."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from compiler.errors import Problem, WeightsError, nearest
from compiler.language.model import Model
from runtime.weights.layout import PER
from runtime.weights.load import NAMES, Weights
from runtime.weights.mapping import layers_of, own_axes

Draw = Callable[[np.random.Generator, int], np.ndarray]  # (generator, count) -> float32 or float64 [count]
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


# name -> (how many numbers it takes, draw)
RULES: dict[str, tuple[int, Callable[..., np.ndarray]]] = {
    "zeros": (0, lambda g, n: np.zeros(n, np.float32)),
    "ones": (0, lambda g, n: np.ones(n, np.float32)),
    "normal": (1, lambda g, n, std: g.standard_normal(n, np.float32) * np.float32(std)),
    "uniform": (2, lambda g, n, a, b: g.uniform(a, b, n)),
    "log_uniform": (2, _log_uniform),
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
    problems = []
    for label, (op, t) in model.parameters.items():
        axes = own_axes(op, t)
        try:
            draw = rule(op.init, axes, op.inputs)
        except KeyError:
            allowed = ("fan_in", *(f"{n}({', '.join('ab'[:c])})" if c else n for n, (c, _) in RULES.items()))
            hint = nearest(op.init, ["fan_in", *RULES])
            problems.append(Problem("unknown-init", f"{label}: no init is called {op.init}", None, allowed, hint))
            continue
        array = np.zeros(tuple(int(s.constant) for s in t.sizes), NAMES[dtype or t.dtype])
        for layer, at in layers_of(op, t):
            digest = hashlib.sha256(f"{op.path} {layer}".encode()).digest()
            generator = np.random.default_rng([seed, *np.frombuffer(digest, "<u4").tolist()])
            index: tuple[Any, ...] = (*at, ...)
            flat = array[index].reshape(-1)  # a view: the axes after the layers lie together
            for start in range(0, flat.size, CHUNK):
                count = min(CHUNK, flat.size - start)
                flat[start : start + count] = draw(generator, count)
        arrays[label] = array
    if problems:
        raise WeightsError(problems)
    return Weights(arrays)
