"""Run by test_strategies_on_devices in a process with eight CPU devices: the shipped strategies, alone and combined,
against one device, as JSON lines. Argument: ``fast``, ``slow`` or ``random``."""

from __future__ import annotations

import json
import random as dice
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from compiler.language.model import Model, load
from compiler.parallel import strategy as strategies
from compiler.parallel.resolve import resolve
from compiler.passes.phase import phase_graph
from tests.lower.on_devices import compare

SPECS = Path(__file__).parents[1] / "specs"
SMALL = {"dtype": "float32", "vocab": 96, "embed": 32, "heads": 4, "mlp": 48}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("gemma2-9b", SMALL | {"kv_heads": 4, "head_dim": 8, "layers": 4, "window": 8}),
    "one key head": ("gemma-2b", SMALL | {"kv_heads": 1, "head_dim": 8, "layers": 2}),
    "griffin": ("recurrentgemma-2b", SMALL | {"kv_heads": 1, "head_dim": 8, "rnn": 32, "layers": 3, "window": 4}),
    "experts": ("mixtral-8x7b", SMALL | {"kv_heads": 2, "head_dim": 8, "layers": 2, "experts": 4}),
    "captioner": (str(SPECS / "captioner.yaml"), {}),  # cross-attention
}


@dataclass(frozen=True)
class Case:
    model: str
    strategy: str
    mesh: str
    phase: str = "train"
    replicate: str = ""
    batch: int = 8
    seq: int = 32

    def __str__(self) -> str:
        return f"{self.model}, {self.strategy} ({self.mesh}), {self.phase}"


ALONE = (("data", "data=8"), ("fsdp", "fsdp=4"), ("zero1", "data=4"), ("zero2", "data=4"), ("tensor", "model=2"),
         ("tensor+sequence", "model=2"), ("context", "context=4"))  # fmt: skip
COMBINED = (
    ("data+tensor", "data=4,model=2"), ("fsdp+tensor", "fsdp=4,model=2"), ("fsdp+tensor+sequence", "fsdp=4,model=2"),
    ("data+fsdp", "data=2,fsdp=4"), ("data+fsdp+tensor", "data=2,fsdp=2,model=2"), ("data+context", "data=2,context=4"),
    ("fsdp+context", "fsdp=2,context=4"), ("context+tensor", "context=4,model=2"),
    ("fsdp+context+tensor", "fsdp=2,context=2,model=2"), ("zero1+tensor", "data=4,model=2"),
    ("zero2+tensor+sequence", "data=4,model=2"), ("fsdp+context+tensor+sequence", "fsdp=2,context=2,model=2"),
)  # fmt: skip
REPLICATED = {"one key head": "kv_heads", "griffin": "kv_heads"}


def case(model: str, strategy: str, mesh: str, phase: str = "train") -> Case:
    return Case(model, strategy, mesh, phase, REPLICATED.get(model, "") if "tensor" in strategy else "")


FAST = [
    case("gemma2", "fsdp+tensor+sequence", "fsdp=4,model=2"), case("gemma2", "context", "context=4"),
    case("griffin", "context+tensor", "context=4,model=2"),
    case("one key head", "tensor+sequence", "model=2", "forward"),
    case("gemma2", "zero1", "data=4"), case("gemma2", "tensor+decode-length", "model=2", "decode"),
    case("one key head", "decode-length", "model=4", "decode"), case("griffin", "fsdp", "fsdp=4", "decode"),
    case("captioner", "data+tensor", "data=4,model=2"), case("captioner", "data+context", "data=2,context=4"),
]  # fmt: skip
SLOW = [
    *(case(m, *s, "train") for m in MODELS for s in (*ALONE, *COMBINED)),
    *(case(m, *s, "decode") for m in ("gemma2", "griffin", "one key head", "experts")
      for s in (("data", "data=8"), ("fsdp", "fsdp=4"), ("tensor", "model=2"), ("fsdp+tensor", "fsdp=4,model=2"),
                ("decode-length", "model=4"), ("data+decode-length", "data=2,model=4"))),
]  # fmt: skip


def random_cases(count: int = 12) -> list[Case]:
    """Other meshes, batches and lengths, drawn with a fixed seed."""
    draw, made = dice.Random(0), []
    while len(made) < count:
        mesh = {"fsdp": draw.choice([1, 2, 4]), "context": draw.choice([1, 2, 4]), "model": draw.choice([1, 2])}
        if not 2 <= mesh["fsdp"] * mesh["context"] * mesh["model"] <= 8:
            continue
        batch, seq = mesh["fsdp"] * draw.randint(1, 3), mesh["context"] * mesh["model"] * draw.randint(2, 9)
        strategy, text = "fsdp+context+tensor+sequence", ",".join(f"{a}={n}" for a, n in mesh.items())
        made.append(Case(draw.choice(["gemma2", "griffin"]), strategy, text, "train", "kv_heads", batch, seq))
    return made


CASES = {"fast": FAST, "slow": SLOW, "random": random_cases()}


@cache
def model(name: str) -> Model:
    spec, overrides = MODELS[name]
    return load(spec, overrides)


def run(c: Case) -> dict[str, Any]:
    made = model(c.model)
    sizes = {"batch": c.batch, "seq": 1 if c.phase == "decode" else c.seq, "capacity": max(c.seq, 16), "frames": 6}
    graph = phase_graph(made, "forward" if c.phase == "train" else c.phase).graph
    axes = {a for n, _ in graph.walk() for v in n.results for a in v.axes}
    strategy = strategies.load(c.strategy, replicate=[a for a in c.replicate.split(",") if a in axes])
    plan = resolve(strategy, c.mesh, graph, sizes, training=c.phase == "train")
    return {"case": str(c), **compare(made, c.phase, sizes, plan)[1]}


def main() -> None:
    for c in CASES[sys.argv[1]]:
        print(json.dumps(run(c)), flush=True)


if __name__ == "__main__":
    main()
