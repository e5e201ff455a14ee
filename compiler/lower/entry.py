"""What the compile worker calls: one phase of a spec as a jitted function with argument shapes on given devices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from compiler.language.model import load
from compiler.lower.program import Program, program
from compiler.passes.call import sizes_for, whole_prompt
from compiler.passes.select import Choice


@dataclass(frozen=True)
class Built:
    """For the worker: the jitted function, its argument shapes, whether to export, the compiler's options."""

    jitted: Any
    args: tuple[Any, ...]
    export: bool
    compiler_options: Mapping[str, Any]


def build(
    devices: list[Any],
    target: Any,
    *,
    spec: str,
    overrides: str = "{}",
    phase: str,
    batch: int,
    length: int,
    chunk: int | None = None,
    sizes: Mapping[str, int] | None = None,
    logits: str | None = None,
    export: bool = True,
) -> Built:
    """A phase of ``spec`` for one device of ``devices`` (the mesh comes with a later issue)."""
    model = load(spec, json.loads(overrides))
    numbers = sizes_for(phase, batch, length, chunk, sizes)
    made: Program = program(
        model, phase, numbers, logits=logits, fresh=whole_prompt(phase, numbers), choice=Choice.of(target.platform)
    )
    mesh = jax.sharding.Mesh(np.array(devices[:1]), ("device",))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return Built(made.jitted(), made.arguments(whole), export, {})
