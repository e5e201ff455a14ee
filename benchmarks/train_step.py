"""Step time of the compiled training step against the same model written by hand in JAX, in one run.

    python benchmarks/train_step.py [--steps 12] [--batch 4] [--length 256] [--remat full none] [--out FILE.json]

The model has Gemma 2's layers and 30M parameters. Both start from the same weights and see the same batches (bytes of
Python's own documentation); steps of the two alternate, so that what else the machine does meets both. Printed: seconds
of a step (median after the first), their ratio, the largest difference of the losses, and the loss curve.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import json
import math
import os
import platform
import pydoc_data.topics
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runtime import device

device.prepare()

import jax
import jax.numpy as jnp
import numpy as np

from compiler.language.model import Model, load
from compiler.parallel.request import Request, Training
from compiler.targets.types import parse_target
from runtime.batches import windows
from runtime.train import Trainer
from runtime.weights.initial import random

SIZES = {"vocab": 8192, "embed": 512, "heads": 8, "kv_heads": 4, "head_dim": 64, "mlp": 2304, "layers": 6,
         "window": 64, "dtype": "float32"}  # fmt: skip
KINDS = {
    "pre_attention": "pre_attention.scale", "query": "attention.query", "key": "attention.key",
    "value": "attention.value", "out": "attention.out", "post_attention": "post_attention.scale",
    "pre_mlp": "pre_mlp.scale", "gate": "mlp.gate", "up": "mlp.up", "down": "mlp.down",
    "post_mlp": "post_mlp.scale",
}  # fmt: skip
Tree = Any


# -- the model by hand
def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * (1 + scale)


def rope(x: jax.Array) -> jax.Array:
    """x [batch, seq, heads, head_dim]; the halves of a head are rotated against each other."""
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] * 10_000.0 ** (-jnp.arange(half) / half)
    sin, cos = jnp.sin(angle)[:, None], jnp.cos(angle)[:, None]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def attention(x: jax.Array, p: Tree, window: int | None) -> jax.Array:
    q, k = rope(jnp.einsum("bse,ehd->bshd", x, p["query"])), rope(jnp.einsum("bse,ekd->bskd", x, p["key"]))
    v = jnp.einsum("bse,ekd->bskd", x, p["value"])
    q = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1])
    scores = jnp.einsum("bqkgd,bskd->bkgqs", q * q.shape[-1] ** -0.5, k)
    scores = 50 * jnp.tanh(scores / 50)
    back = jnp.arange(x.shape[1])[:, None] - jnp.arange(x.shape[1])
    seen = (back >= 0) & (back < (window or x.shape[1]))
    weights = jax.nn.softmax(jnp.where(seen, scores, -1e30), -1)
    mixed = jnp.einsum("bkgqs,bskd->bqkgd", weights, v).reshape(*x.shape[:2], -1, q.shape[-1])
    return jnp.einsum("bshd,hde->bse", mixed, p["out"])


def layer(x: jax.Array, p: Tree, window: int | None) -> jax.Array:
    x = x + norm(attention(norm(x, p["pre_attention"]), p, window), p["post_attention"])
    h = norm(x, p["pre_mlp"])
    h = (jax.nn.gelu(h @ p["gate"], approximate=True) * (h @ p["up"])) @ p["down"]
    return x + norm(h, p["post_mlp"])


def loss(p: Tree, tokens: jax.Array, remat: bool) -> jax.Array:
    """Mean next-token cross-entropy of tokens [batch, seq]."""
    x = p["table"][tokens] * math.sqrt(SIZES["embed"])  # type: ignore[arg-type]

    def pair(x: jax.Array, both: tuple[Tree, Tree]) -> tuple[jax.Array, None]:
        local, whole = both
        return layer(layer(x, local, SIZES["window"]), whole, None), None  # type: ignore[arg-type]

    x, _ = jax.lax.scan(jax.checkpoint(pair) if remat else pair, x, (p["local"], p["global"]))
    logits = norm(x, p["final"]) @ p["table"].T
    chosen = jax.nn.log_softmax(30 * jnp.tanh(logits / 30))[:, :-1]
    return -jnp.take_along_axis(chosen, tokens[:, 1:, None], -1).mean()


@partial(jax.jit, donate_argnums=(0, 1), static_argnums=4)
def by_hand(p: Tree, state: Tree, tokens: jax.Array, rate: float, remat: bool) -> tuple[jax.Array, Tree, Tree]:
    """AdamW with the gradients clipped to a norm of 1, as ours."""
    value, g = jax.value_and_grad(loss)(p, tokens, remat)
    size = jnp.sqrt(sum(jnp.sum(x * x) for x in jax.tree.leaves(g)))
    g = jax.tree.map(lambda x: x * jnp.minimum(1.0, 1 / size), g)
    first, second, count = state
    count = count + 1
    first = jax.tree.map(lambda m, x: 0.9 * m + 0.1 * x, first, g)
    second = jax.tree.map(lambda m, x: 0.999 * m + 0.001 * x * x, second, g)

    def moved(w: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
        step = (m / (1 - 0.9**count)) / (jnp.sqrt(v / (1 - 0.999**count)) + 1e-8)
        return w - rate * (step + 1e-4 * w)

    return value, jax.tree.map(moved, p, first, second), (first, second, count)


def hand_params(model: Model) -> Tree:
    """The weights of seed 0 under the names above."""
    arrays = random(model, 0).arrays
    every: dict[str, Tree] = {"table": arrays["embed.table"], "final": arrays["final.scale"]}
    for name, stack in (("local", "[0:"), ("global", "[1:")):
        every[name] = {k: next(a for label, a in arrays.items() if label.startswith(f"layer.{path}{stack}"))
                       for k, path in KINDS.items()}  # fmt: skip
    return jax.tree.map(jnp.asarray, every)


# -- the two side by side
def measure(remat: str, steps: int, batch: int, length: int, rate: float) -> dict[str, Any]:
    model = load("gemma2-2b", SIZES)
    text = np.frombuffer("\n".join(pydoc_data.topics.topics.values()).encode(), np.uint8)
    draw = windows(text, 256, batch, length, 0)
    ours = Trainer(model, Request("train", batch, length, training=Training(remat=remat)), parse_target("cpu"))
    p = hand_params(model)
    state = (jax.tree.map(jnp.zeros_like, p), jax.tree.map(jnp.zeros_like, p), jnp.zeros((), jnp.float32))
    times: dict[str, list[float]] = {"ours": [], "by hand": []}
    losses: dict[str, list[float]] = {"ours": [], "by hand": []}
    warm = 5
    for i in range(steps):
        tokens, now = draw(i), rate * min(1.0, (i + 1) / warm)

        def run_ours(tokens: Any = tokens, now: float = now) -> float:
            return ours.step(tokens, now).loss

        def run_hand(tokens: Any = tokens, now: float = now) -> float:
            nonlocal p, state
            value, p, state = by_hand(p, state, jnp.asarray(tokens), np.float32(now), remat != "none")
            jax.block_until_ready(p)
            return float(value)

        both: list[tuple[str, Callable[[], float]]] = [("ours", run_ours), ("by hand", run_hand)]
        for name, step in both if i % 2 == 0 else both[::-1]:
            started = time.perf_counter()
            losses[name].append(step())
            jax.block_until_ready(ours.params)
            times[name].append(time.perf_counter() - started)
    middle = {k: statistics.median(v[1:]) for k, v in times.items()}
    return {
        "remat": remat, "parameters": model.parameter_count(), "batch": batch, "length": length, "steps": steps,
        "seconds": middle, "ratio": middle["ours"] / middle["by hand"],
        "fastest": {k: min(v[1:]) for k, v in times.items()}, "first": {k: v[0] for k, v in times.items()},
        "largest_loss_difference": max(abs(a - b) for a, b in zip(*losses.values(), strict=True)),
        "losses": losses["ours"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--remat", nargs="+", default=["full", "none"], choices=["full", "none"])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found = []
    for remat in given.remat:
        r = measure(remat, max(2, given.steps), given.batch, given.length, given.lr)
        found.append(r)
        print(f"{r['parameters']:,} parameters, batch {r['batch']} x {r['length']}, remat {remat}, "
              f"{os.cpu_count()} cores of {platform.machine()}")  # fmt: skip
        for name in ("ours", "by hand"):
            print(f"  {name:8} {r['seconds'][name]:.3f} s a step (fastest {r['fastest'][name]:.3f}, "
                  f"first {r['first'][name]:.1f})")  # fmt: skip
        print(f"  ratio {r['ratio']:.3f}; losses differ by {r['largest_loss_difference']:.1e} at most")
        print("  loss " + " ".join(f"{x:.3f}" for x in r["losses"]), flush=True)
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
