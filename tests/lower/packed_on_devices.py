"""Run by test_packed_on_devices in a process with eight CPU devices: prompts and further tokens over the packed caches
of a TPU on a mesh, against a session on one device with the caches of a CPU; JSON lines."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np

from compiler.language.model import Model, load
from compiler.parallel.request import Parallel
from compiler.passes.select import Choice
from compiler.targets.types import parse_target
from runtime.meshed import Meshed, Place, meshed
from runtime.session import Session
from runtime.weights.initial import random

TARGET = parse_target("cpu:8")
AS_TPU = replace(Choice.of("cpu"), caches=Choice.of("tpu").caches, streamed=False)
SMALL = {"dtype": "float32", "vocab": 96, "embed": 32, "heads": 8, "head_dim": 8, "mlp": 48, "layers": 2}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "windows, 2 of 4 key heads": ("gemma2-9b", SMALL | {"kv_heads": 4, "window": 8}),
    "1 of 2 key heads, twice": ("smollm2-135m", SMALL | {"kv_heads": 2}),
    "one key head": ("gemma-2b", SMALL | {"kv_heads": 1}),
    "whole heads": ("smollm2-135m", SMALL | {"kv_heads": 2}),
}
PLACES = {
    "windows, 2 of 4 key heads": Parallel("data+tensor", "data=4,model=2"),
    "1 of 2 key heads, twice": Parallel("data+tensor", "data=2,model=4", replicate=("kv_heads",)),
    "one key head": Parallel("data+tensor", "data=4,model=2", replicate=("kv_heads",)),
    "whole heads": Parallel("data+tensor", "data=4,model=2", replicate=("heads",)),
}
BATCH, CAPACITY, CHUNK = 4, 32, 8
LENGTHS = (20, 3, 9, 16)  # of prompts: more than a chunk, and more than a window


def on_mesh(made: Model, parallel: Parallel) -> Meshed:
    with mock.patch.object(Choice, "of", lambda platform: AS_TPU):
        return meshed(made, Place(parallel, TARGET), batch=BATCH, capacity=CAPACITY, chunk=CHUNK)


def logits(made: Model, on: Meshed | None, params: dict[str, Any]) -> np.ndarray:
    session = Session(made, params, batch=BATCH, capacity=CAPACITY, chunk=CHUNK, on=on)
    draw = np.random.default_rng(0)
    found = [session.prefill([draw.integers(0, 96, n).tolist() for n in LENGTHS])]
    found += [session.decode(draw.integers(0, 96, BATCH)) for _ in range(6)]
    return np.stack(found)


def run(name: str) -> dict[str, Any]:
    spec, overrides = MODELS[name]
    made = load(spec, overrides)
    params, on = dict(random(made, 0).arrays), on_mesh(made, PLACES[name])
    caches = sorted({" ".join(t.axes) for label, t in on.decode.states.items() if label != "length"})
    want, got = logits(made, None, params), logits(made, on, params)
    return {"case": name, "worst": float(np.abs(got - want).max() / np.abs(want).max()), "caches": caches}


if __name__ == "__main__":
    for name in MODELS:
        print(json.dumps(run(name)), flush=True)
