"""A small NFNet, and the same network in NumPy, from the paper (arXiv:2102.06171); scaled as the code does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from compiler.language.model import Model, load
from runtime.weights.initial import random
from tests.ops import reference as ref

Array = np.ndarray
SMALL = {"dtype": "float32", "resolution": 32, "classes": 5, "width1": 16, "width2": 16, "width3": 24, "width4": 32,
         "group_width": 4}  # fmt: skip
ALPHA, GAMMA, GROUP = 0.2, 1.7015043497085571, 4


def tiny(depth: int = 1) -> Model:
    return load("nfnet-f0", SMALL | {"depth": depth})


def weights(model: Model, seed: int = 0) -> dict[str, Array]:
    """Random, the gains and biases that begin at 0 or 1 too."""
    draw = np.random.default_rng(seed)
    return {k: (a + 0.3 * draw.normal(size=a.shape)).astype(a.dtype) for k, a in random(model, seed).arrays.items()}


def act(x: Array) -> Array:
    """gelu by its tanh approximation, times gamma: variance 1 of a unit Gaussian."""
    return GAMMA * 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


class Numpy:
    """The network of table 1 with small widths; ``given`` by label, layers of a repeat stacked; ``group``: channels of
    one group."""

    def __init__(self, given: Mapping[str, Array], depth: int, widths: tuple[int, ...], group: int = GROUP) -> None:
        self.given, self.depth, self.widths, self.group = given, depth, widths, group

    def weight(self, path: str, layer: int | None = None) -> Array:
        stacked = {k: a for k, a in self.given.items() if k.partition("[")[0] == path}
        for label, array in stacked.items():
            if layer is None:
                return array.astype(np.float64)
            start, *rest = (int(n) for n in label.partition("[")[2].rstrip("]").split(":"))
            if not rest and start == layer:
                return array.astype(np.float64)
            if rest and start <= layer < rest[0]:
                return array[layer - start].astype(np.float64)
        raise KeyError(path)

    def conv(self, x: Array, path: str, stride: int = 1, groups: int = 1, layer: int | None = None) -> Array:
        """Section 2: W^ = (W - mean) / (sqrt(N) * sigma), N the fan-in, by output channel; then gain and bias."""
        w = self.weight(f"{path}.kernel", layer)
        fan_in = np.prod(w.shape[:3])
        mean, var = w.mean((0, 1, 2)), w.var((0, 1, 2))
        w = self.weight(f"{path}.gain", layer) * (w - mean) / np.sqrt(np.maximum(fan_in * var, 1e-4))
        return ref.conv(x, w, stride, "same", groups) + self.weight(f"{path}.bias", layer)

    def branch(self, x: Array, path: str, width: int, stride: int, layer: int | None) -> Array:
        groups = width // 2 // self.group
        y = act(self.conv(x, f"{path}.conv0", layer=layer))
        y = act(self.conv(y, f"{path}.conv1", stride, groups, layer))
        y = act(self.conv(y, f"{path}.conv1b", 1, groups, layer))
        y = self.conv(y, f"{path}.conv2", layer=layer)
        se = f"{path}.squeeze_excite"
        h = y.mean((1, 2)) @ self.weight(f"{se}.squeeze.weight", layer) + self.weight(f"{se}.squeeze.bias", layer)
        h = np.maximum(h, 0) @ self.weight(f"{se}.excite.weight", layer) + self.weight(f"{se}.excite.bias", layer)
        y = 2 / (1 + np.exp(-h))[:, None, None] * y
        return ALPHA * self.weight(f"{path}.skip_gain.gain", layer) * y

    def features(self, x: Array) -> Array:
        for i, stride in enumerate((2, 1, 1, 2)):
            x = self.conv(x if i == 0 else act(x), f"stem{i}", stride)
        variance = 1.0
        for s, (width, blocks, stride) in enumerate(zip(self.widths, (1, 2, 6, 3), (1, 2, 2, 2), strict=True), 1):
            y = act(x) / np.sqrt(variance)
            skip = ref.pool(y, "mean", 2, 2) if stride > 1 else y
            skip = self.conv(skip, f"stage{s}.transition.shortcut")
            x = skip + self.branch(y, f"stage{s}.transition.branch", width, stride, None)
            variance = 1 + ALPHA**2
            for layer in range(blocks * self.depth - 1):
                y = act(x) / np.sqrt(variance)
                x = x + self.branch(y, f"stage{s}.block.branch", width, 1, layer)
                variance += ALPHA**2
        return act(self.conv(x, "final"))

    def forward(self, x: Array) -> dict[str, Array]:
        features = self.features(x)
        logits = features.mean((1, 2)) @ self.weight("classifier.weight") + self.weight("classifier.bias")
        return {"features": features, "logits": logits}


def reference(model: Model, given: Mapping[str, Array], x: Array) -> dict[str, Any]:
    args = model.args
    return Numpy(given, int(args["depth"]), tuple(int(args[f"width{i}"]) for i in (1, 2, 3, 4))).forward(x)
