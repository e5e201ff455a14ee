"""A small Flamingo, and the same model in NumPy from arXiv:2204.14198, image by image and token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import erf
from pathlib import Path
from typing import Any

import numpy as np

from compiler.language.model import Model, load
from runtime.weights.initial import random
from tests.lower.nfnet import Numpy as NFNet

Array = np.ndarray
TINY = Path(__file__).parents[1] / "specs" / "flamingo_tiny.yaml"
IMAGE = 48  # the marker
LENGTHS = np.array([9, 11, 7, 10], np.int32)
IMAGES = np.array([0, 1, 1, 3], np.int32)  # of each row
TOKENS = np.array([
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0],
    [1, 2, 3, IMAGE, 5, 6, 7, 8, 9, 10, 11],
    [IMAGE, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0],
    [1, 2, IMAGE, IMAGE, 5, 6, 7, IMAGE, 9, 10, 0],
], np.int32)  # fmt: skip
FRAMES = np.array([[1, 1, 1], [2, 1, 1], [1, 1, 1], [1, 2, 1]], np.int32)  # of each image


def tiny(**overrides: Any) -> Model:
    return load(TINY, overrides)


def weights(model: Model, seed: int = 0) -> dict[str, Array]:
    """Random, what begins at 0 or 1 too: gates, gains, biases."""
    draw = np.random.default_rng(seed)
    return {k: (a + 0.3 * draw.normal(size=a.shape)).astype(a.dtype) for k, a in random(model, seed).arrays.items()}


def inputs(model: Model, places: int = 3, frames: int = 2) -> dict[str, Array]:
    """Rows with none, one, one at once, and several images; what is behind their number is noise."""
    side = int(model.args["resolution"])
    images = np.random.default_rng(1).normal(size=(4, places, frames, side, side, 3)).astype(np.float32)
    return {"images": images, "image_lengths": IMAGES, "frame_lengths": FRAMES[:, :places]}


def norm(x: Array, scale: Array, bias: Array | None = None) -> Array:
    """RMSNorm, or LayerNorm where there is a bias."""
    if bias is None:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale + bias


def softmax(x: Array) -> Array:
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def squared_relu(x: Array) -> Array:
    return np.maximum(x, 0) ** 2


def gelu(x: Array) -> Array:
    return x * (1 + np.vectorize(erf)(x / 2**0.5)) / 2


class Flamingo:
    """``given`` by label: layers of one repeat are stacked, the last group stands alone."""

    def __init__(self, given: Mapping[str, Array]) -> None:
        self.given = {k: np.asarray(a, np.float64) for k, a in given.items()}

    def layer(self, path: str, *at: int) -> dict[str, Array]:
        """The weights below a path, of one layer."""
        found = {}
        for label, array in self.given.items():
            name, _, stack = label.partition("[")
            stacked = ":" in stack
            if name.startswith(f"{path}.") and (not at or stacked == (at[0] < 2)):
                found[name.removeprefix(f"{path}.")] = array[at] if stacked else array
        return found

    def vision(self, images: Array) -> Array:
        """[n, height, width, 3] -> [n, h, w, channel]"""
        own = {k.removeprefix("vision."): a for k, a in self.given.items() if k.startswith("vision.")}
        return NFNet(own, 1, (16, 32, 96, 96), group=8).features(images.astype(np.float64))

    def attend(self, w: Mapping[str, Array], x: Array, seen: Array, mask: Array | None = None) -> Array:
        """x [queries, width] looks at ``seen`` [keys, width]; ``mask`` [queries, keys]: what it may see."""
        out = np.zeros_like(x)
        if not len(seen):
            return out
        for h in range(w["query"].shape[1]):
            q, k, v = x @ w["query"][:, h], seen @ w["key"][:, h], seen @ w["value"][:, h]
            scores = q @ k.T / q.shape[1] ** 0.5
            p = softmax(scores if mask is None else np.where(mask, scores, -np.inf))
            out += p @ v @ w["out"][h]
        return out

    def resampler(self, features: Array) -> Array:
        """Figure 5. [frame, h, w, channel] of one image -> [latents, width of the language model]"""
        w = self.layer("resampler")
        x = features @ w["project.weight"] + w["time.table"][: len(features), None, None]
        x, latents = x.reshape(-1, x.shape[-1]), w["latents.rows"]
        for i in range(2):
            own = {k.removeprefix("resampler_layer."): a[i] for k, a in w.items() if k.startswith("resampler_layer.")}
            of_latents = norm(latents, own["pre_latents.scale"], own["pre_latents.bias"])
            of_features = norm(x, own["pre_features.scale"], own["pre_features.bias"])
            attention = {n: own[f"attention.{n}"] for n in ("query", "key", "value", "out")}
            latents = latents + self.attend(attention, of_latents, np.concatenate([of_features, of_latents]))
            h = norm(latents, own["pre_mlp.scale"], own["pre_mlp.bias"])
            latents = latents + squared_relu(h @ own["mlp.up"]) @ own["mlp.down"]
        return np.asarray(norm(latents, w["final.scale"], w["final.bias"]) @ self.given["to_text.weight"])

    def gated(self, group: int, x: Array, media: Sequence[Array], last: Sequence[int]) -> Array:
        """Figure 4, and section 2.4: token t looks at the latents of image ``last[t]``, from 1 on; at 0 at none."""
        w = self.layer("group.gated_cross", group)
        cross = {n: w[f"cross.{n}"] for n in ("query", "key", "value", "out")}
        y = norm(x, w["pre_cross.scale"])
        seen = [self.attend(cross, y[t, None], media[n - 1] if n else y[:0])[0] for t, n in enumerate(last)]
        x = x + np.tanh(w["cross_gate.gain"]) * np.stack(seen)
        h = norm(x, w["pre_dense.scale"])
        return np.asarray(x + np.tanh(w["dense_gate.gain"]) * (squared_relu(h @ w["dense.up"]) @ w["dense.down"]))

    def lm_layer(self, group: int, inner: int, x: Array) -> Array:
        """Chinchilla's, with the positions of arXiv:1901.02860, section 3.3."""
        w = self.layer("group.lm_layer", group, inner)
        e, gaps = norm(x, w["pre_attention.scale"]), np.arange(len(x))[:, None] - np.arange(len(x))
        width, out = x.shape[1], np.zeros_like(x)
        turns = gaps[..., None] / 10_000 ** (np.arange(0, width, 2) / width)
        far = np.concatenate([np.sin(turns), np.cos(turns)], -1)
        for h in range(w["attention.query"].shape[1]):
            q, k, v = (e @ w[f"attention.{n}"][:, h] for n in ("query", "key", "value"))
            by_content = (q + w["attention.content_bias"][h]) @ k.T
            by_place = np.einsum("id,ijd->ij", q + w["attention.position_bias"][h], far @ w["attention.position"][:, h])
            scores = (by_content + by_place) / q.shape[1] ** 0.5
            out += softmax(np.where(gaps >= 0, scores, -np.inf)) @ v @ w["attention.out"][h]
        x = x + out
        return np.asarray(x + gelu(norm(x, w["pre_mlp.scale"]) @ w["mlp.up"]) @ w["mlp.down"])

    def forward(self, tokens: Array, images: Array, frames: Array) -> Array:
        """One row: tokens [length], its images [n, frame, height, width, 3], how many frames each has -> logits."""
        media = [self.resampler(self.vision(x[:n])) for x, n in zip(images, frames, strict=True)]
        last = [int(n) for n in np.cumsum(tokens == IMAGE)]
        x = self.given["embed.table"][tokens]
        for layer in range(5):
            group, inner = divmod(layer, 2)
            x = self.gated(group, x, media, last) if inner == 0 else x
            x = self.lm_layer(group, inner, x)
        return np.asarray(norm(x, self.given["final.scale"]) @ self.given["embed.table"].T)
