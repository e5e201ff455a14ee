"""Programs for the compile jobs of the tests."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from compiler.errors import Problem, SpecError


@dataclass
class Built:
    jitted: Any
    args: tuple[Any, ...]
    export: bool = False


def update(*, devices: list[Any], target: Any, size: int = 512, turned: bool = False) -> Built:
    """A matrix product, and a donated buffer that takes its sum; rows over all devices."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    assert len(devices) == target.devices
    mesh = Mesh(np.array(devices[::-1] if turned else devices), ("rows",))
    rows, whole = NamedSharding(mesh, PartitionSpec("rows")), NamedSharding(mesh, PartitionSpec())

    def step(state: Any, weights: Any) -> Any:
        return state + jnp.tanh(state @ weights)

    jitted = jax.jit(step, in_shardings=(rows, whole), out_shardings=rows, donate_argnums=0)
    state = jax.ShapeDtypeStruct((size, size), jnp.bfloat16, sharding=rows)
    weights = jax.ShapeDtypeStruct((size, size), jnp.bfloat16, sharding=whole)
    return Built(jitted, (state, weights), export=True)


def sleeps(*, devices: list[Any], target: Any, seconds: float, marker: str) -> Built:
    """Never gets to a program within its time limit, and has a child of its own."""
    import pathlib
    import subprocess

    child = subprocess.Popen(["sleep", str(seconds)])
    pathlib.Path(marker).write_text(str(child.pid))
    time.sleep(seconds)
    return update(devices=devices, target=target)


def wrong_spec(*, devices: list[Any], target: Any) -> Built:
    print("printed by the entry")  # must not be taken for the worker's own words
    raise SpecError(Problem("unknown-op", "there is no op 'foo'", None, ("bar",), "bar"))


def broken(*, devices: list[Any], target: Any) -> Built:
    raise ValueError("seven is not eight")


def dies(*, devices: list[Any], target: Any) -> Built:
    import os
    import sys

    print("last words", file=sys.stderr, flush=True)
    os.abort()
