"""The graph against the compiled program: every collective and the FLOPs of specs x strategies x calls x machines.

    python benchmarks/collectives.py [--only WORD ...] [--quick] [--jobs N] [--out docs/results]

Writes collectives.md and collectives.json. ``--only`` keeps calls in which every word occurs ("fsdp", "tpu:v5e", "train")
and ``--quick`` a handful; both write nothing unless ``--out`` is given. What was compiled once is not compiled again (the
verdicts and programs of ``blockgraph compile`` are kept by the program's hash and the compiler's version), so that a run
that was cut off goes on where it was. Needs blockgraph[tpu,gpu]; no accelerator.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import blockgraph as bg
# PAGE
# from benchmarks.compile_table import machine, write

ROOT = Path(__file__).resolve().parents[1]
TARGETS = ("cpu:8", "gpu:h100:1x8", "tpu:v5e:2x4", "tpu:v5p:2x2x2", "tpu:v6e:2x4")
LIMIT = 1800.0  # seconds of one compile, on a busy machine
LENGTHS = {"forward": 1024, "decode": 2048, "train": 1024}
ALL = ("forward", "decode", "train")


@dataclass(frozen=True)
class Spec:
    """A spec with few layers and a small vocabulary, its widths as they are; at least two trips of its repeat."""

    path: str
    sets: dict[str, Any]
    sizes: dict[str, int] = field(default_factory=dict)


SPECS = {
    "gemma2-2b": Spec("gemma2-2b", {"layers": 4, "vocab": 16384}),
    "gemma-7b": Spec("gemma-7b", {"layers": 2, "vocab": 16384}),
    "recurrentgemma-2b": Spec("recurrentgemma-2b", {"layers": 6, "vocab": 16000}),
    "mixtral": Spec("mixtral-8x7b", {"layers": 2, "vocab": 16000, "embed": 1024, "heads": 16, "mlp": 3584}),
    "captioner": Spec(
        str(ROOT / "tests/specs/captioner.yaml"),
        {"vocab": 8192, "embed": 1024, "heads": 8, "kv_heads": 4, "head_dim": 128, "mlp": 4096, "feature": 512,
         "dtype": "bfloat16"}, {"frames": 256},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    spec: str
    strategy: str
    mesh: str
    phase: str
    target: str
    replicate: tuple[str, ...] = ()
    batch: int = 8

    @property
    def text(self) -> str:
        return f"{self.spec} {self.strategy} {self.mesh} {self.phase} {self.target}"


# strategy, spec, mesh, calls, what is replicated
RUNS: tuple[tuple[str, str, str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("data", "gemma2-2b", "data=8", ("decode", "train"), ()),
    ("zero1", "gemma2-2b", "data=8", ("train",), ()),
    ("zero2", "gemma2-2b", "data=8", ("train",), ()),
    ("fsdp", "gemma2-2b", "fsdp=8", ALL, ()),
    ("fsdp", "recurrentgemma-2b", "fsdp=8", ("train",), ()),
    ("tensor", "gemma-7b", "model=8", ALL, ()),
    ("tensor", "gemma2-2b", "model=8", ("train",), ("kv_heads",)),
    ("tensor+sequence", "gemma-7b", "model=8", ("forward", "train"), ()),
    ("tensor+decode-length", "gemma2-2b", "model=8", ("decode",), ("kv_heads",)),
    ("data+tensor", "recurrentgemma-2b", "data=4,model=2", ALL, ("kv_heads",)),
    ("data+tensor", "captioner", "data=4,model=2", ALL, ()),
    ("context", "gemma2-2b", "context=8", ALL, ()),
    ("context", "recurrentgemma-2b", "context=8", ("forward", "train"), ()),
    ("data+context", "captioner", "data=2,context=4", ("train",), ()),
    ("expert", "mixtral", "expert=8", ALL, ()),
    ("expert+tensor", "mixtral", "expert=4,model=2", ("forward", "train"), ()),
    ("fsdp+tensor", "gemma2-2b", "fsdp=4,model=2", ALL, ()),
    ("fsdp+tensor+sequence", "gemma2-2b", "fsdp=4,model=2", ("train",), ()),
)


def calls() -> Iterator[Call]:
    for target in TARGETS:
        for strategy, spec, mesh, phases, replicate in RUNS:
            for phase in phases:
                yield Call(spec, strategy, mesh, phase, target, replicate)


def measure(call: Call, say: Callable[[str], None]) -> dict[str, Any]:
    spec = SPECS[call.spec]
    model = bg.load(spec.path, spec.sets)
    made = bg.compile(
        model, call.target, phase=call.phase, batch=call.batch, length=LENGTHS[call.phase], parallel=call.strategy,
        mesh=call.mesh, replicate=call.replicate, sizes=spec.sizes, check=True, time_limit=LIMIT, progress=say,
    )  # fmt: skip
    return page.row(call.__dict__ | {"length": LENGTHS[call.phase]}, made)
