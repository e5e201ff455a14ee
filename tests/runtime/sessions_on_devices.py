"""Run in a process with two CPU devices: sessions of Flamingo and Perceiver AR on a mesh against one device, as JSON
lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from compiler.language.model import Model
from compiler.parallel.request import Parallel
from compiler.targets.types import parse_target
from runtime.meshed import Place, meshed
from runtime.session import Session
from tests.runtime import flamingo, perceiver

PLACE = Place(Parallel("tensor", "model=2"), parse_target("cpu:2"))
IMAGES = {"image": 3, "frame": 2}


def of_images(session: Session) -> list[np.ndarray]:
    session.encode(flamingo.inputs(session.model), IMAGES)
    return [session.prefill([flamingo.TOKENS[r, :n].tolist() for r, n in enumerate(flamingo.LENGTHS)])]


def of_latents(session: Session) -> list[np.ndarray]:
    """Past a full cache of latents in both rows."""
    tokens = np.random.default_rng(0).integers(0, 20, (2, 20))
    found = [session.prefill([tokens[0, :9].tolist(), tokens[1, :3].tolist()])]
    return [*found, *(session.decode(tokens[:, 9 + i]) for i in range(6))]


def compare(
    name: str, model: Model, params: dict[str, Any], run: Callable[[Session], list[np.ndarray]], batch: int,
    sizes: dict[str, int],
) -> None:  # fmt: skip
    common: dict[str, Any] = {"batch": batch, "capacity": 24, "chunk": 4, "sizes": sizes}
    alone = np.stack(run(Session(model, params, **common)))
    many = np.stack(run(Session(model, params, on=meshed(model, PLACE, **common), **common)))
    print(json.dumps({"case": name, "worst": float(np.abs(alone - many).max())}), flush=True)


if __name__ == "__main__":
    made = flamingo.tiny(layers=2)
    compare("flamingo", made, flamingo.weights(made), of_images, 4, IMAGES)
    made = perceiver.small("perceiver-ar-pg19", cross_heads=2)
    compare("perceiver", made, perceiver.weights(made), of_latents, 2, {})
