"""Linear attention layers position by position in NumPy float64, from the papers' equations; ``w`` holds a layer's
weights by their names in the spec. Rows alone, [length, width]."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Array = np.ndarray
Weights = Mapping[str, Array]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def gelu(x: Array) -> Array:
    from math import erf

    return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))


def layer_norm(x: Array, eps: float) -> Array:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def rms_norm(x: Array, eps: float) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def to_heads(x: Array, w: Array) -> Array:
    """[length, width] by [width, heads, channels]."""
    return np.einsum("te,ehd->thd", x, w)


def from_heads(x: Array, w: Array) -> Array:
    return np.einsum("thd,hde->te", x, w)


def retention(x: Array, w: Weights, theta: float = 10_000) -> Array:
    """Retentive Network, equations 6 to 8, in the parallel form: (Q K' o D) V with D = gamma ** (n - m)."""
    q, k, v = (to_heads(x, w[n]) for n in ("query", "key", "value"))
    length, heads, width = q.shape
    turn = np.exp(1j * np.arange(length)[:, None] * theta ** (-np.arange(0, width, 2) / width))[:, None]

    def turned(y: Array) -> Array:  # pairs of neighbours are complex numbers
        z = (y[..., 0::2] + 1j * y[..., 1::2]) * turn
        return np.stack([z.real, z.imag], -1).reshape(y.shape)

    q, k = turned(q), turned(k) / np.sqrt(width)
    out = np.zeros_like(v)
    for h in range(heads):
        gamma = 1 - 2.0 ** (-5 - h)
        gap = np.arange(length)[:, None] - np.arange(length)
        out[:, h] = (q[:, h] @ k[:, h].T * np.where(gap >= 0, gamma ** np.maximum(gap, 0), 0)) @ v[:, h]
    return from_heads(silu(to_heads(x, w["gate"])) * layer_norm(out, 1e-5), w["out"])


def gla(x: Array, w: Weights) -> Array:
    """Gated Linear Attention, equation 3 and section 4.4."""
    q, k, v = (to_heads(x, w[n]) for n in ("query", "key", "value"))
    alpha = sigmoid(to_heads(x @ w["to_rate"], w["rate"]) + w["rate_bias"]) ** (1 / 16)
    out, state = np.zeros_like(v), np.zeros((*k.shape[1:], v.shape[-1]))
    for t in range(len(x)):
        state = alpha[t][..., None] * state + k[t][..., None] * v[t][:, None]
        out[t] = np.einsum("hk,hkv->hv", q[t] / np.sqrt(k.shape[-1]), state)
    gate = silu(to_heads(x, w["gate"]) + w["gate_bias"])
    return from_heads(gate * rms_norm(out, 1e-5) * w["norm_scale"], w["out"])


def linear_attention(x: Array, w: Weights) -> Array:
    """Transformers are RNNs, equations 7 to 9, as attention: weights phi(q) phi(k) over their sum."""
    q, k, v = (to_heads(x, w[n]) for n in ("query", "key", "value"))

    def phi(y: Array) -> Array:
        return np.where(y > 0, y + 1, np.exp(y))

    weights = np.tril(np.einsum("thd,shd->hts", phi(q), phi(k)))
    return from_heads(np.einsum("hts,shv->thv", weights / weights.sum(-1, keepdims=True), v), w["out"])


def rwkv7(x: Array, value: Array, w: Weights) -> Array:
    """RWKV-7, equations 4 to 18; ``value`` [length, heads, head_dim] is mixed with the first layer's already."""
    change = np.concatenate([np.zeros((1, x.shape[1])), x[:-1]]) - x
    r, k = (to_heads(x + change * w[f"mix_{n}"], w[n]) for n in ("query", "key"))
    low = x + change * w["mix_decay"]
    decay = np.exp(-np.exp(-0.5) * sigmoid(to_heads(np.tanh(low @ w["to_decay"]), w["decay"]) + w["decay_bias"]))
    a = sigmoid(to_heads((x + change * w["mix_rate"]) @ w["to_rate"], w["rate"]) + w["rate_bias"])
    gate = to_heads(sigmoid((x + change * w["mix_gate"]) @ w["to_gate"]), w["gate"])
    kappa = k * w["erase_scale"]
    kappa = kappa / np.linalg.norm(kappa, axis=-1, keepdims=True)
    written = k * (1 + (a - 1) * w["rate_scale"])
    out, state = np.zeros_like(value), np.zeros((r.shape[1], value.shape[-1], r.shape[-1]))  # rows are values here
    for t in range(len(x)):
        for h in range(r.shape[1]):
            transition = np.diag(decay[t, h]) - np.outer(kappa[t, h], a[t, h] * kappa[t, h])
            state[h] = state[h] @ transition + np.outer(value[t, h], written[t, h])
            out[t, h] = state[h] @ r[t, h]
    own = (r * w["bonus"] * written).sum(-1, keepdims=True) * value
    y = layer_norm(out, 64e-5) * w["norm_scale"] + w["norm_bias"] + own
    return from_heads(y * gate, w["out"])


def rwkv7_value(x: Array, w: Weights, first: Array | None) -> Array:
    """Equations 7 and 8: the first layer's values, then those that lean on them."""
    mixed = x + (np.concatenate([np.zeros((1, x.shape[1])), x[:-1]]) - x) * w["mix"]
    value = to_heads(mixed, w["value"])
    if first is None:
        return value
    return value + (first - value) * sigmoid(to_heads(mixed @ w["to_share"], w["share"]) + w["share_bias"])


def rwkv7_channels(x: Array, w: Weights) -> Array:
    change = np.concatenate([np.zeros((1, x.shape[1])), x[:-1]]) - x
    return np.maximum((x + change * w["mix"]) @ w["key"], 0) ** 2 @ w["value"]


class Model:
    """A model's weights by layer and path."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = {k: np.asarray(v, np.float64) for k, v in params.items()}

    def at(self, path: str, layer: int | None = None) -> Weights:
        """Those under a path: {what follows it: array}."""
        found = {}
        for label, array in self.params.items():
            own, _, layers = label.partition("[")
            if own.startswith(path + ".") and bool(layers) == (layer is not None):
                found[own.removeprefix(path + ".")] = array if layer is None else array[layer]
        return found

    def norm(self, x: Array, path: str, layer: int | None = None, kind: str = "layer") -> Array:
        w = self.at(path, layer)
        y = layer_norm(x, 1e-5) if kind == "layer" else rms_norm(x, 1e-5)
        return y * w["scale"] + w.get("bias", 0)

    def mlp(self, x: Array, layer: int) -> Array:
        w = self.at("layer.mlp", layer)
        up = x @ w["up"] + w.get("up_bias", 0)
        up = silu(x @ w["gate"]) * up if "gate" in w else gelu(up)
        return up @ w["down"] + w.get("down_bias", 0)

    def logits(self, x: Array) -> Array:
        if "unembed.out" in self.params:
            return x @ self.params["unembed.out"]
        return x @ self.params["embed.table"].T


def _plain(mixer: Callable[[Array, Weights], Array], path: str, pre: str, norm: str = "layer") -> Any:
    """Layers of a mixer and an MLP, norms in front of both."""

    def run(params: Mapping[str, Any], tokens: Array, layers: int) -> Array:
        m = Model(params)
        x = m.params["embed.table"][tokens]
        if "position.table" in m.params:
            x = x + m.params["position.table"][: len(tokens)]
        for i in range(layers):
            x = x + mixer(m.norm(x, f"layer.{pre}", i, norm), m.at(f"layer.{path}", i))
            x = x + m.mlp(m.norm(x, "layer.pre_mlp", i, norm), i)
        return m.logits(m.norm(x, "final", None, norm))

    return run


def _rwkv7(params: Mapping[str, Any], tokens: Array, layers: int) -> Array:
    m = Model(params)
    x = m.norm(m.params["embed.table"][tokens], "first_norm")
    h = m.norm(x, "first_pre_time")
    first = rwkv7_value(h, m.at("first"), None)
    x = x + rwkv7(h, first, m.at("first_time"))
    x = x + rwkv7_channels(m.norm(x, "first_pre_channel"), m.at("first_channel"))
    for i in range(layers - 1):
        h = m.norm(x, "layer.pre_time", i)
        x = x + rwkv7(h, rwkv7_value(h, m.at("layer.value", i), first), m.at("layer.time", i))
        x = x + rwkv7_channels(m.norm(x, "layer.pre_channel", i), m.at("layer.channel", i))
    return m.logits(m.norm(x, "final"))


REFERENCES: dict[str, Any] = {
    "retnet": _plain(retention, "retention", "pre_retention"), "gla": _plain(gla, "gla", "pre_mix", "rms"),
    "linear-transformer": _plain(linear_attention, "linear_attention", "pre_mix"), "rwkv7": _rwkv7,
}  # fmt: skip
