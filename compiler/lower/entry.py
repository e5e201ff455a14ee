"""What the compile worker calls: one call of a spec as a jitted function with argument shapes on given devices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from compiler.language.model import load
from compiler.lower.program import Program, bind
from compiler.lower.train import TrainingStep
from compiler.parallel import build as building
from compiler.parallel.request import Request, Wires
from compiler.passes.call import TRAIN


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
    request: Mapping[str, Any],
    wires: Mapping[str, Any] | None = None,
    export: bool = True,
) -> Built:
    """A call of ``spec`` on the mesh that it asks for, or on the first of ``devices``."""
    model, asked = load(spec, json.loads(overrides)), Request.from_json(request)
    found = building.build(model, asked, target, Wires.from_json(wires) if wires else None)
    made = program_of(found, asked.phase, devices)
    if made.mesh is not None:
        return Built(made.jitted(), made.arguments(), export, {})
    mesh = jax.sharding.Mesh(np.array(devices[:1]), ("device",))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return Built(made.jitted(), made.arguments(whole), export, {})


def program_of(found: building.Built, phase: str, devices: list[Any]) -> Program:
    """The program of a built call, on ``devices`` in the order of its layout."""
    made = bind(phase, found.graph, found.sizes, found.choice)
    if phase == TRAIN:
        made = TrainingStep(**vars(made))
    if found.meshed is None:
        return made
    mesh = jax.sharding.Mesh(found.meshed.layout.arrange(devices), tuple(found.meshed.layout.mesh))
    return replace(made, placed=found.meshed.made, mesh=mesh)
