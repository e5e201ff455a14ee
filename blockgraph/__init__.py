"""Blockgraph: one YAML spec of a model becomes a graph, programs for the real compilers, and a hardware plan.

>>> import blockgraph as bg
>>> m = bg.load("gemma2-9b")
>>> bg.compile(m, target="tpu:v5p:1x1x1", phase="decode", batch=4, length=8192)
>>> bg.simulate(m, machine="v5e", phase="decode", batch=1, length=8192)
"""

from __future__ import annotations

import importlib
from typing import Any

from blockgraph import house

__version__ = "0.1.0"

house.secure()


VERBS = (
    "BlockgraphError",
    "Compiled",
    "Model",
    "Piece",
    "Training",
    "compile",
    "diff",
    "explain",
    "export",
    "generate",
    "graph",
    "import_config",
    "load",
    "loads",
    "machines",
    "parameters",
    "schema",
    "show",
    "simulate",
    "specs",
    "trace",
    "validate",
)


def __getattr__(name: str) -> Any:
    if name in VERBS:
        return getattr(importlib.import_module("blockgraph.api"), name)
    raise AttributeError(f"module 'blockgraph' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*VERBS, "__version__"])
