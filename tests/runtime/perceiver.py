"""Perceiver AR in NumPy from arXiv:2202.07765 (section 3, appendix C), latent by latent; small sizes of its specs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from compiler.language.model import Model, load
from runtime.weights.initial import random

Array = np.ndarray
SMALL: dict[str, Any] = {"dtype": "float32", "vocab": 20, "embed": 16, "heads": 2, "latents": 6, "keep": 4, "layers": 2}
MODELS: dict[str, dict[str, Any]] = {
    "perceiver-ar-imagenet": SMALL | {"side": 2},
    "perceiver-ar-copy": SMALL,
    "perceiver-ar-pg19": SMALL | {"wide": 24, "cross_heads": 3, "context": 32},
    "perceiver-ar-music": SMALL | {"wide": 16, "cross_heads": 1, "context": 32, "rotated": 0.5},
}


def small(name: str, **overrides: Any) -> Model:
    return load(name, MODELS[name] | overrides)


def weights(model: Model, seed: int = 0) -> dict[str, Array]:
    draw = np.random.default_rng(seed)
    return {k: (a + 0.3 * draw.normal(size=a.shape)).astype(a.dtype) for k, a in random(model, seed).arrays.items()}


def norm(x: Array, w: Mapping[str, Array], name: str) -> Array:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.scale"] + w[f"{name}.bias"]


class Perceiver:
    """The model of a spec with weights by label."""

    def __init__(self, model: Model, given: Mapping[str, Array]) -> None:
        self.args, self.name = model.args, model.name
        self.given = {k: np.asarray(a, np.float64) for k, a in given.items()}

    def below(self, path: str, layer: int | None = None) -> dict[str, Array]:
        found = {k.partition("[")[0]: a for k, a in self.given.items() if k.startswith(f"{path}.")}
        return {k.removeprefix(f"{path}."): a if layer is None else a[layer] for k, a in found.items()}

    def inputs(self, tokens: Array) -> Array:
        """[length, width]: embeddings, with positions where they are absolute."""
        x, p = self.given["embed.table"][tokens], np.arange(len(tokens))
        if self.name.endswith("imagenet"):
            w, side = self.below("places"), self.args["side"]
            pixel = np.maximum(p - 1, 0)
            for table, index in (("column", pixel // 3 % side), ("row", pixel // (3 * side) % side),
                                 ("colour", pixel % 3)):  # fmt: skip
                x = x + w[f"{table}.table"][np.where(p == 0, 0, index + 1)]
        if self.name.endswith("copy"):
            half = x.shape[1] // 2
            turns = p[:, None] * np.exp(-np.arange(half) * np.log(10_000) / (half - 1))
            x = x + np.concatenate([np.sin(turns), np.cos(turns)], 1)
        return np.asarray(x)

    def turned(self, x: Array, positions: Array) -> Array:
        """[positions, channels] of one head: rotary on a part of the channels, wavelengths up to the context."""
        if "rotated" not in self.args:
            return x
        n = round(self.args["rotated"] * x.shape[1])
        turns = positions[:, None] / self.args["context"] ** (np.arange(n // 2) / (n // 2 - 1))
        even, odd, cos, sin = x[:, 0:n:2], x[:, 1:n:2], np.cos(turns), np.sin(turns)
        out = x.copy()
        out[:, 0:n:2], out[:, 1:n:2] = even * cos - odd * sin, odd * cos + even * sin
        return out

    def attend(self, w: Mapping[str, Array], q: Array, kv: Array, at: Array, kept: Array | None = None) -> Array:
        """Latents at the positions ``at`` look at inputs or latents, of which the last is at the last position: at none
        behind its own, and at none that is not ``kept``."""
        places = at[-1] - np.arange(len(kv))[::-1]
        seen = places <= at[:, None]
        seen = seen if kept is None else seen & (kept > 0)
        out = np.zeros_like(q)
        for h in range(w["attention.query"].shape[1]):
            heads = [x @ w[f"attention.{n}"][:, h] + w[f"attention.{n}_bias"][h]
                     for n, x in (("query", q), ("key", kv), ("value", kv))]  # fmt: skip
            scores = self.turned(heads[0], at) @ self.turned(heads[1], places).T / heads[0].shape[1] ** 0.5
            p = np.where(seen, np.exp(scores - scores.max(-1, keepdims=True)), 0)
            out = out + p / np.maximum(p.sum(-1, keepdims=True), 1e-30) @ heads[2] @ w["attention.out"][h]
        return np.asarray(out + w["attention.out_bias"])

    def dense(self, w: Mapping[str, Array], x: Array) -> Array:
        h = norm(x, w, "dense.pre_mlp") @ w["dense.mlp.up"] + w["dense.mlp.up_bias"]
        return np.asarray(x + np.maximum(h, 0) ** 2 @ w["dense.mlp.down"] + w["dense.mlp.down_bias"])

    def forward(self, tokens: Array, latents: int, kept: Array | None = None) -> Array:
        """Logits [latents, vocab] of the last positions of one row."""
        x = self.inputs(tokens)
        at = np.arange(len(tokens) - latents, len(tokens))
        z = x[-latents:] @ self.given["latents.weight"] + self.given["latents.bias"]
        w = self.below("cross_attend")
        z = z + self.attend(w, norm(z, w, "pre_latents"), norm(x, w, "pre_inputs"), at, kept)
        z = self.dense(w, z)
        for layer in range(2):
            w = self.below("layer", layer)
            h = norm(z, w, "pre_attention")
            z = self.dense(w, z + self.attend(w, h, h, at))
        return np.asarray(norm(z, self.given, "final") @ self.given["unembed.out"] + self.given["unembed.out_bias"])
