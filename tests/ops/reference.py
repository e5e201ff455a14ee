"""NumPy meanings of the larger ops, written as loops in float64 and as plainly as can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray


def softmax(x: Array, axis: int = -1) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def norm(kind: str, eps: float) -> Any:
    def f(x: Array) -> Array:
        x = x.astype(np.float64)
        if kind == "layer":
            x = x - x.mean(-1, keepdims=True)
        total = (x**2).sum(-1, keepdims=True) if kind == "l2" else (x**2).mean(-1, keepdims=True)
        return x / np.sqrt(total + eps)

    return f


def attend(q: Array, k: Array, v: Array, *, scale: float, causal: bool = True, window: int | None = None,
           softcap: float | None = None, lengths: Array | None = None, first: int = 0, chunk: int | None = None,
           prefix: Array | None = None, added: Any = None, sinks: Array | None = None) -> Array:  # fmt: skip
    """[b t h d], [b s kv d]; ``first``: position of the first query, counted from the first key; ``added``: a function
    of (b, t, s, h) that gives what is added to a score."""
    out = np.zeros((*q.shape[:3], v.shape[-1]))
    group = q.shape[2] // k.shape[2]
    for b, t, h in np.ndindex(*q.shape[:3]):
        seen = [
            s for s in range(k.shape[1])
            if (not causal or s <= first + t or (prefix is not None and s < prefix[b]))
            and (window is None or abs(first + t - s) < window)
            and (chunk is None or (first + t) // chunk == s // chunk)
            and (lengths is None or s < lengths[b])
        ]  # fmt: skip
        if seen:
            scores = (k[b, seen, h // group].astype(np.float64) @ q[b, t, h].astype(np.float64)) * scale
            scores = np.tanh(scores / softcap) * softcap if softcap else scores
            scores = scores + [added(b, t, s, h) for s in seen] if added else scores
            values = v[b, seen, h // group].astype(np.float64)
            if sinks is not None:
                scores, values = np.append(scores, sinks[h]), np.concatenate([values, np.zeros((1, v.shape[-1]))])
            out[b, t, h] = softmax(scores) @ values
    return out


def bucket(gap: int, count: int, distance: int, ahead: bool) -> int:
    """T5's bucket of a gap (query's place less key's), as its published code computes it."""
    base = 0
    if ahead:
        count //= 2
        base, gap = (count, -gap) if gap < 0 else (0, gap)
    gap, exact = max(gap, 0), count // 2
    if gap < exact:
        return base + gap
    far = exact + int(np.log(gap / exact) / np.log(distance / exact) * (count - exact) + 1e-9)
    return base + min(far, count - 1)


def recur(value: Array, decay: Array, state: Array | None = None, reverse: bool = False) -> Array:
    """[b t c]"""
    value, decay = value.astype(np.float64), np.exp(decay.astype(np.float64))
    h = np.zeros_like(value[:, 0]) if state is None else state.astype(np.float64)
    out = np.zeros_like(value)
    steps = range(value.shape[1])
    for t in reversed(steps) if reverse else steps:
        h = decay[:, t] * h + value[:, t]
        out[:, t] = h
    return out


def short_conv(x: Array, kernel: Array, tail: Array | None = None, reverse: bool = False) -> Array:
    """x [b t c], kernel [c taps], tail [b taps-1 c]."""
    taps = kernel.shape[1]
    x = x[:, ::-1] if reverse else x
    before = np.zeros((x.shape[0], taps - 1, x.shape[2])) if tail is None else tail[:, ::-1] if reverse else tail
    joined = np.concatenate([before, x], 1).astype(np.float64)
    y = sum(joined[:, k : k + x.shape[1]] * kernel[:, k] for k in range(taps))
    return y[:, ::-1] if reverse else y


def rotate(x: Array, positions: Array, frequencies: Sequence[float], pairs: str, magnitude: float = 1.0) -> Array:
    """x [b t h d], positions [b t]; radians a position for each pair."""
    out = x.astype(np.float64).copy()
    half = len(frequencies)
    for i, frequency in enumerate(frequencies):
        angle = (positions.astype(np.float64) * frequency)[..., None]
        a, b = (i, i + half) if pairs == "half" else (2 * i, 2 * i + 1)
        out[..., a] = (x[..., a] * np.cos(angle) - x[..., b] * np.sin(angle)) * magnitude
        out[..., b] = (x[..., b] * np.cos(angle) + x[..., a] * np.sin(angle)) * magnitude
    return out


def route(active: int, normalise: bool) -> Any:
    def f(logits: Array) -> tuple[Array, Array]:
        p = softmax(logits.astype(np.float64))
        chosen = np.argsort(-p, -1, kind="stable")[..., :active]
        weights = np.take_along_axis(p, chosen, -1)
        return weights / weights.sum(-1, keepdims=True) if normalise else weights, chosen

    return f


def mixture(x: Array, weights: Array, chosen: Array, w: Array) -> Array:
    """x [b t i], w [e i o]: the chosen experts' products, weighted and added."""
    out = np.zeros((*x.shape[:2], w.shape[-1]))
    for b, t, k in np.ndindex(*chosen.shape):
        out[b, t] += weights[b, t, k] * (x[b, t].astype(np.float64) @ w[chosen[b, t, k]].astype(np.float64))
    return out
