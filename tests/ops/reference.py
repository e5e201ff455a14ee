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
           prefix: Array | None = None, added: Any = None, sinks: Array | None = None,
           segments: tuple[Array, Array] | None = None) -> Array:  # fmt: skip
    """[b t h d], [b s kv d]; ``first``: position of the first query, counted from the first key; ``added``: a function
    of (b, t, s, h) that gives what is added to a score; ``segments``: numbers [b t] and [b s] that must be equal."""
    out = np.zeros((*q.shape[:3], v.shape[-1]))
    group = q.shape[2] // k.shape[2]
    for b, t, h in np.ndindex(*q.shape[:3]):
        seen = [
            s for s in range(k.shape[1])
            if (not causal or s <= first + t or (prefix is not None and s < prefix[b]))
            and (window is None or abs(first + t - s) < window)
            and (chunk is None or (first + t) // chunk == s // chunk)
            and (lengths is None or s < lengths[b])
            and (segments is None or segments[0][b, t] == segments[1][b, s])
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


def route(
    active: int, normalise: bool = True, score: str = "softmax", groups: int = 1, open_: int = 1, by: str = "max",
    scale: float = 1.0,
) -> Any:  # fmt: skip
    def f(logits: Array, correction: Any = 0.0) -> tuple[Array, Array]:
        x = logits.astype(np.float64)
        p = softmax(x) if score == "softmax" else 1 / (1 + np.exp(-x))
        judged = p + correction
        out = np.full(judged.shape, -np.inf)
        size = x.shape[-1] // groups
        for at in np.ndindex(*x.shape[:-1]):  # token by token
            best = [np.sort(judged[at][g * size : (g + 1) * size])[::-1] for g in range(groups)]
            value = [b[0] if by == "max" else b[:2].sum() for b in best]
            for g in np.argsort(value)[::-1][:open_]:
                out[at][g * size : (g + 1) * size] = judged[at][g * size : (g + 1) * size]
        chosen = np.argsort(-out, -1, kind="stable")[..., :active]
        weights = np.take_along_axis(p, chosen, -1)
        return scale * (weights / weights.sum(-1, keepdims=True) if normalise else weights), chosen

    return f


def mixture(x: Array, weights: Array, chosen: Array, w: Array) -> Array:
    """x [b t i], w [e i o]: the chosen experts' products, weighted and added."""
    out = np.zeros((*x.shape[:2], w.shape[-1]))
    for b, t, k in np.ndindex(*chosen.shape):
        out[b, t] += weights[b, t, k] * (x[b, t].astype(np.float64) @ w[chosen[b, t, k]].astype(np.float64))
    return out


def pads(n: int, size: int, stride: int, padding: Any, dilation: int = 1) -> tuple[int, int]:
    """Zeros before and after for "same" (as many windows as strides begin), "valid", or a number on both sides."""
    if isinstance(padding, int):
        return padding, padding
    missing = max((-(-n // stride) - 1) * stride + (size - 1) * dilation + 1 - n, 0) if padding == "same" else 0
    return missing // 2, missing - missing // 2


def patches(x: Array, size: int, stride: int, padding: Any, dilation: int = 1, fill: float = 0.0) -> Array:
    """[b h w c] -> [b h' w' size size c]: what each window sees."""
    sides = [pads(n, size, stride, padding, dilation) for n in x.shape[1:3]]
    x = np.pad(x.astype(np.float64), [(0, 0), *sides, (0, 0)], constant_values=fill)
    reach = (size - 1) * dilation + 1
    h, w = ((n - reach) // stride + 1 for n in x.shape[1:3])
    out = np.zeros((x.shape[0], h, w, size, size, x.shape[3]))
    for i, j in np.ndindex(h, w):
        y, z = i * stride, j * stride
        out[:, i, j] = x[:, y : y + reach : dilation, z : z + reach : dilation]
    return out


def conv(x: Array, kernel: Array, stride: int = 1, padding: Any = "same", groups: int = 1, dilation: int = 1) -> Array:
    """x [b h w c], kernel [k k c/groups out], groups one after the other in both c and out."""
    seen = patches(x, kernel.shape[0], stride, padding, dilation)
    parts = zip(np.split(seen, groups, -1), np.split(kernel.astype(np.float64), groups, -1), strict=True)
    return np.concatenate([np.einsum("bhwijc,ijco->bhwo", a, k) for a, k in parts], -1)


def pool(x: Array, kind: str, size: int, stride: int, padding: Any = "same") -> Array:
    """x [b h w c]: windows that see no padding."""
    seen = patches(x, size, stride, padding, fill=np.nan)
    return (np.nanmean if kind == "mean" else np.nanmax)(seen, (3, 4))
