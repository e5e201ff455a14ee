"""Run by test_strategies_on_devices in a process with eight CPU devices: the shipped strategies, alone and combined,
against one device, as JSON lines. Argument: a list of ``CASES``."""

from __future__ import annotations

import json
import random as dice
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from compiler.language.model import Model, load
from compiler.ops import zigzag
from compiler.parallel import strategy as strategies
from compiler.parallel.mesh import parse
from compiler.parallel.resolve import resolve
from compiler.passes.phase import phase_graph
from compiler.passes.stages import Stages, stage
from tests.lower.on_devices import compare

SPECS = Path(__file__).parents[1] / "specs"
SMALL: dict[str, Any] = {"dtype": "float32", "vocab": 96, "embed": 32, "heads": 4, "mlp": 48}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("gemma2-9b", SMALL | {"kv_heads": 4, "head_dim": 8, "layers": 4, "window": 8}),
    "one key head": ("gemma-2b", SMALL | {"kv_heads": 1, "head_dim": 8, "layers": 2}),
    "griffin": ("recurrentgemma-2b", SMALL | {"kv_heads": 1, "head_dim": 8, "rnn": 32, "layers": 3, "window": 4}),
    "experts": ("mixtral-8x7b", SMALL | {"kv_heads": 2, "head_dim": 8, "layers": 2, "experts": 4}),
    "captioner": (str(SPECS / "captioner.yaml"), {}),  # cross-attention
    "one head": ("gemma-2b", SMALL | {"heads": 1, "kv_heads": 1, "head_dim": 8, "embed": 8, "mlp": 8, "layers": 1}),
    "gemini": ("gemini-1", SMALL | {"text": 24, "codes": 72, "head_dim": 8, "layers": 2, "side": 28, "images": 2,
                                    "usm": 6, "vision": 16, "vision_heads": 2, "vision_mlp": 24, "vision_layers": 2}),
    "few bits": ("gemma2-9b", SMALL | {"kv_heads": 4, "head_dim": 16, "embed": 64, "mlp": 128, "layers": 2, "window": 8,
                                       "weights": "int4"}),
    "few bits, experts": ("mixtral-8x7b", SMALL | {"kv_heads": 2, "head_dim": 16, "embed": 64, "mlp": 64, "layers": 2,
                                                   "experts": 4, "weights": "int8"}),
    "latent": ("deepseek-v3", SMALL | {"head_dim": 8, "rotary_dim": 4, "value_dim": 8, "rank": 16, "query_rank": 16,
                                       "layers": 3, "dense": 1, "dense_mlp": 64, "experts": 8, "active": 2, "groups": 4,
                                       "active_groups": 2}),
    "positions": (str(SPECS / "positions.yaml"), SMALL | {"kv_heads": 4}),  # biases by position
    "perceiver": ("perceiver-ar-music", SMALL | {"wide": 48, "cross_heads": 4, "latents": 16, "keep": 12, "layers": 2,
                                                 "context": 32, "rotated": 0.5}),
    "flamingo": (str(SPECS / "flamingo_tiny.yaml"), {}),  # images of varying number, parts that are frozen
}  # fmt: skip
WIDE = {"dtype": "float32", "vocab": 96, "embed": 32, "layers": 2}
HEADS = WIDE | {"heads": 4, "key_dim": 6, "head_dim": 8, "mlp": 48}
NORMAL = {"eps": 1e-2}  # heads this narrow often read almost nothing, and their norm makes rounding visible
RECURRENT: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("mamba", WIDE | {"state": 6, "rank": 4}),
    "mamba2": ("mamba2", WIDE | {"state": 6, "head_dim": 16}),
    "retnet": ("retnet", HEADS | NORMAL), "gla": ("gla", HEADS | NORMAL | {"rank": 4}),
    "linear transformer": ("linear-transformer", HEADS | {"context": 40}), "rwkv4": ("rwkv4", WIDE | {"mlp": 48}),
    "rwkv7": ("rwkv7", WIDE | {"heads": 4, "head_dim": 8, "mlp": 48, "layers": 3,
                               "decay_rank": 4, "rate_rank": 4, "value_rank": 4, "gate_rank": 4}),
    "qwen3-next": ("qwen3-next-80b-a3b", SMALL | NORMAL | {"kv_heads": 2, "head_dim": 8, "key_heads": 4, "key_dim": 6,
                                                           "value_dim": 8, "experts": 4, "active": 2, "layers": 4}),
}  # fmt: skip
MODELS |= RECURRENT


@dataclass(frozen=True)
class Case:
    model: str
    strategy: str
    mesh: str
    phase: str = "train"
    replicate: str = ""
    batch: int = 8
    seq: int = 32
    micro: int = 0  # of a pipeline
    rounds: int = 1
    at_once: bool = False
    layers: int | None = None
    balanced: bool = False  # the causal ring shares out its work, however little there is

    def stages(self) -> Stages | None:
        """One stage for each device of the mesh axis ``stage``."""
        return Stages(parse(self.mesh).sizes["stage"], self.micro, self.rounds, self.at_once) if self.micro else None

    def __str__(self) -> str:
        order = "1f1b" if self.at_once else f"{self.rounds} rounds"
        pipe = f", {self.micro} micro-batches, {order}" if self.micro else ""
        how = ", balanced" if self.balanced else ""
        return f"{self.model}, {self.strategy} ({self.mesh}), {self.phase}{pipe}{how}"


ALONE = (("data", "data=8"), ("fsdp", "fsdp=4"), ("zero1", "data=4"), ("zero2", "data=4"), ("tensor", "model=2"),
         ("tensor+sequence", "model=2"), ("context", "context=4"))  # fmt: skip
COMBINED = (
    ("data+tensor", "data=4,model=2"), ("fsdp+tensor", "fsdp=4,model=2"), ("fsdp+tensor+sequence", "fsdp=4,model=2"),
    ("data+fsdp", "data=2,fsdp=4"), ("data+fsdp+tensor", "data=2,fsdp=2,model=2"), ("data+context", "data=2,context=4"),
    ("fsdp+context", "fsdp=2,context=4"), ("context+tensor", "context=4,model=2"),
    ("fsdp+context+tensor", "fsdp=2,context=2,model=2"), ("zero1+tensor", "data=4,model=2"),
    ("zero2+tensor+sequence", "data=4,model=2"), ("fsdp+context+tensor+sequence", "fsdp=2,context=2,model=2"),
)  # fmt: skip
REPLICATED = {"one key head": "kv_heads", "gemini": "kv_heads", "griffin": "kv_heads"}


PIPED = [
    Case("gemma2", "pipeline", "stage=2", micro=4), Case("gemma2", "pipeline", "stage=2", "forward", micro=2, layers=8),
    Case("gemma2", "pipeline", "stage=2", micro=4, rounds=2, layers=8),
    Case("griffin", "pipeline+data", "stage=2,data=2", micro=4, layers=6),
    Case("experts", "pipeline", "stage=4", micro=8, layers=4), Case("captioner", "pipeline", "stage=2", micro=2),
    Case("gemma2", "pipeline+fsdp+tensor", "stage=2,fsdp=2,model=2", micro=2, layers=8),
    Case("gemma2", "pipeline+tensor+sequence", "stage=2,model=2", micro=2, rounds=2, layers=16),
    Case("gemma2", "pipeline+context", "stage=2,context=4", micro=2, layers=8),
    Case("one key head", "pipeline+zero1", "stage=4,data=2", micro=4, layers=8),
    Case("experts", "pipeline+expert", "stage=2,expert=2", micro=2, layers=4),
    Case("positions", "pipeline+tensor", "stage=2,model=2", micro=2, layers=4),
    Case("gemma2", "pipeline", "stage=2", micro=4, at_once=True, layers=8),
    Case("griffin", "pipeline+data", "stage=4,data=2", micro=4, at_once=True, layers=12),
    Case("experts", "pipeline", "stage=4", micro=8, at_once=True, layers=4),
    Case("gemma2", "pipeline+fsdp+tensor", "stage=2,fsdp=2,model=2", micro=4, at_once=True, layers=8),
    Case("one key head", "pipeline+zero1", "stage=4,data=2", micro=4, at_once=True, layers=8),
]  # fmt: skip


BALANCED = [
    *(Case("experts", "context", f"context={n}", seq=128, balanced=True) for n in (2, 4, 8)),
    Case("gemma2", "context", "context=8", balanced=True),
    Case("gemma2", "context", "context=8", "forward", balanced=True),
    Case("one key head", "context+tensor", "context=4,model=2", replicate="kv_heads", seq=128, balanced=True),
    Case("experts", "data+context", "data=2,context=4", balanced=True),
    Case("gemma2", "pipeline+context", "stage=2,context=4", micro=2, layers=8, seq=128, balanced=True),
]


LONG = [Case("one head", "context", "context=8", "forward", batch=1, seq=65_536)]


def case(model: str, strategy: str, mesh: str, phase: str = "train") -> Case:
    return Case(model, strategy, mesh, phase, REPLICATED.get(model, "") if "tensor" in strategy else "")


FAST = [
    case("gemma2", "fsdp+tensor+sequence", "fsdp=4,model=2"), case("gemma2", "context", "context=4"),
    case("griffin", "context+tensor", "context=4,model=2"),
    case("one key head", "tensor+sequence", "model=2", "forward"),
    case("gemma2", "zero1", "data=4"), case("one key head", "decode-length", "model=4", "decode"),
    case("captioner", "data+context", "data=2,context=4", "forward"), PIPED[2], PIPED[11], BALANCED[1],
    case("positions", "context", "context=4"),
    case("retnet", "data+context", "data=2,context=4", "forward"), case("qwen3-next", "tensor", "model=2", "decode"),
    case("latent", "tensor+decode-length", "model=2", "decode"),
    case("gemini", "data+tensor", "data=2,model=2"), case("few bits", "fsdp+tensor", "fsdp=2,model=2", "forward"),
]  # fmt: skip
SLOW = [
    *(case(m, *s, "train") for m in MODELS if m not in {*RECURRENT, "flamingo", "perceiver"} and "few" not in m
      for s in (*ALONE, *COMBINED)),
    *(Case("flamingo", *s, batch=4, seq=16) for s in (
        ("data+tensor", "data=2,model=2"), ("fsdp+tensor", "fsdp=2,model=2"), ("context", "context=4"),
        ("tensor+sequence", "model=2"))),
    *(Case("perceiver", *s) for s in (("data+tensor", "data=4,model=2"), ("fsdp+tensor", "fsdp=4,model=2"),
                                      ("context", "context=4"), ("tensor+sequence", "model=2"))),
    *(Case("perceiver", "tensor", "model=2", phase, seq=24) for phase in ("prefill", "decode")),
    Case("flamingo", "data+tensor", "data=4,model=2", "encode"), Case("flamingo", "tensor", "model=2", "decode"),
    # the gradients of Qwen3-Next's decays cancel so far that the last bit of a weight moves them by 3e-5 of the largest
    *(case(m, *s, "forward" if m == "qwen3-next" else "train") for m in RECURRENT
      for s in (("data", "data=8"), ("tensor", "model=2"), ("context", "context=4"), COMBINED[8])),
    *(case(m, *s, "decode") for m in ("gemma2", "griffin", "one key head", "experts", "positions", "latent", "few bits",
                                       "few bits, experts")
      for s in (("data", "data=8"), ("fsdp", "fsdp=4"), ("tensor", "model=2"), ("fsdp+tensor", "fsdp=4,model=2"),
                ("decode-length", "model=4"), ("data+decode-length", "data=2,model=4"))),
    case("latent", "fsdp+tensor", "fsdp=4,model=2", "forward"), case("griffin", "fsdp", "fsdp=4", "decode"),
    case("mamba2", "fsdp+context+tensor", "fsdp=2,context=2,model=2"),
    case("gemma2", "tensor+decode-length", "model=2", "decode"),
    case("captioner", "data+context", "data=2,context=4"), *PIPED, *BALANCED,
    *(case(m, *s, "decode") for m in RECURRENT for s in (("data", "data=8"), ("tensor", "model=2"))),
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


CASES = {"fast": FAST, "slow": SLOW, "random": random_cases(), "long": LONG}


@cache
def model(name: str, layers: int | None = None) -> Model:
    spec, overrides = MODELS[name]
    return load(spec, overrides | ({} if layers is None else {"layers": layers}))


def run(c: Case) -> dict[str, Any]:
    zigzag.ALWAYS = c.balanced
    made, stages = model(c.model, c.layers), c.stages()
    seq = 1 if c.phase in ("decode", "encode") else c.seq
    sizes = {"batch": c.batch, "seq": seq, "capacity": max(c.seq, 16), "frames": 6, "image": 2, "frame": 2}
    graph = phase_graph(made, "forward" if c.phase == "train" else c.phase).graph
    if stages is not None:
        graph = stage(graph, stages, sizes)
    axes = {a for n, _ in graph.walk() for v in n.results for a in v.axes}
    strategy = strategies.load(c.strategy, replicate=[a for a in c.replicate.split(",") if a in axes])
    plan = resolve(strategy, c.mesh, graph, sizes, training=c.phase == "train")

    def edit(arrays: dict[str, Any]) -> None:
        """States as layers leave them: some are divided by, sums of positive weights."""
        for label in arrays.keys() - made.parameters.keys() if c.model in RECURRENT else ():
            arrays[label] = abs(arrays[label])
        if c.model == "perceiver":  # logits begin at zero, and half of the inputs count
            arrays["unembed.out"] = arrays["unembed.out"] + 0.1 * np.random.default_rng(1).normal(size=(32, 96)).astype(
                "f4"
            )
            if "seq_lengths" in arrays:  # beyond where the latents begin
                arrays["seq_lengths"] = arrays["seq_lengths"] + 14
            for label in [k for k in arrays if k.startswith("kept:")]:
                arrays[label] = arrays[label] % 2
        if c.model == "flamingo":  # markers, and gates that are open
            for start in (1, 4) if "tokens" in arrays else ():
                arrays["tokens"][start // 4 :: start, start : start + 1] = made.args["image_token"]
            for label in [k for k in arrays if "_gate.gain" in k]:
                arrays[label] = arrays[label] + 0.5

    return {"case": str(c), **compare(made, c.phase, sizes, plan, stages=stages, edit=edit)[1]}


def main() -> None:
    for c in CASES[sys.argv[1]]:
        print(json.dumps(run(c)), flush=True)


if __name__ == "__main__":
    main()
