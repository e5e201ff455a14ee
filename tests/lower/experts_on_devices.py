"""Run by test_experts_on_devices in a process with eight CPU devices: sparse experts on one device and on several,
as JSON lines. Argument: ``fast`` or ``slow``."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compiler.language.model import load
from compiler.parallel.plan import CLASSES, Plan, Rules
from compiler.passes.select import Choice
from tests.lower import on_devices

Table = dict[str, Rules]
SPECS = Path(__file__).parents[1] / "specs"


def rules(parameters: Rules, activations: Rules, state: Rules | None = None) -> Table:
    mine = dict.fromkeys(("parameters", "optimiser", "gradients"), parameters)
    return {**mine, "activations": activations, "state": activations if state is None else state}


def together(*tables: Table) -> Table:
    return {kind: {m: axes for t in tables for m, axes in t[kind].items()} for kind in CLASSES}


TENSOR = rules(*[{"model": ("heads", "kv_heads", "mlp", "vocab")}] * 2)
EXPERT = rules({"expert": ("experts",)}, {"expert": ("batch", "experts")}, {"expert": ("batch",)})
DATA = rules({}, {"data": ("batch",)})
FSDP = rules({"fsdp": ("embed", "vocab")}, {"fsdp": ("batch",)})
CONTEXT = rules({}, {"context": ("seq",)}, {"context": ("slots",)})
STRATEGIES: dict[str, tuple[dict[str, int], Table]] = {
    "data": ({"data": 4}, DATA),
    "fsdp": ({"fsdp": 4}, FSDP),
    "tensor": ({"model": 2}, TENSOR),
    "sequence": ({"model": 2}, rules({"model": TENSOR["parameters"]["model"]},
                                     {"model": (*TENSOR["parameters"]["model"], "seq")})),
    "context": ({"context": 4}, CONTEXT),
    "expert": ({"expert": 4}, EXPERT),
    "expert 2": ({"expert": 2}, EXPERT),
    "experts alone": ({"expert": 4}, rules(*[{"expert": ("experts",)}] * 2)),
    "expert tensor": ({"expert": 4, "model": 2}, together(EXPERT, TENSOR)),
    "data expert": ({"data": 2, "expert": 4}, together(DATA, EXPERT)),
    "fsdp expert": ({"fsdp": 2, "expert": 4}, together(FSDP, EXPERT)),
    "context expert": ({"context": 2, "expert": 4}, together(CONTEXT, EXPERT)),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    strategy: str
    phase: str = "train"
    dense: bool = False
    many: bool = False  # four of eight experts for each token, on two shards: less to gather tokens than to exchange
    lopsided: bool = False  # every token chooses the same experts
    kind: str = ""  # of OPTIONS: of a model with seats, or with terms of the loss

    def __str__(self) -> str:
        words = [self.strategy, self.phase, self.kind or ("dense" if self.dense else "ragged")]
        return ", ".join([*words, *["many"] * self.many, *["lopsided"] * self.lopsided])


OPTIONS: dict[str, dict[str, Any]] = {
    "capacity": {"capacity": 0.75},
    "choice": {"choice": "expert"},
    "terms": {"balance": 0.1, "z_loss": 0.01},
    "all": {"capacity": 0.75, "balance": 0.1, "balance_over": "row", "z_loss": 0.01},
}

FAST = [
    Case("tensor"), Case("expert", lopsided=True), Case("expert 2", "forward", many=True),
    Case("expert tensor", "forward"), Case("expert", "decode", dense=True),
    Case("expert", kind="all"), Case("expert", "forward", kind="choice"), Case("context", kind="terms"),
]  # fmt: skip
SLOW = [
    *(Case(s, phase, dense) for s in STRATEGIES for phase in ("forward", "train", "decode") for dense in (False, True)
      if (phase, "context" in s) != ("decode", True)),
    Case("experts alone", lopsided=True), Case("expert 2", lopsided=True), Case("data expert", lopsided=True),
    Case("expert 2", many=True), Case("expert 2", "forward", lopsided=True),
    Case("expert 2", many=True, lopsided=True), Case("expert 2", many=True, dense=True),
    *(Case(s, kind=kind) for s in STRATEGIES for kind in ("capacity", "choice", "terms")),
]  # fmt: skip
CASES = {"fast": FAST, "slow": [c for c in SLOW if c not in FAST]}


def compare(case: Case) -> dict[str, Any]:
    wide = {"experts": 8, "active": 4} if case.many else {"experts": 4}
    small = {"dtype": "float32", "vocab": 96, "embed": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "mlp": 48,
             "layers": 2, **wide}  # fmt: skip
    spec = SPECS / "experts.yaml" if case.kind else "mixtral-8x7b"
    model = load(spec, small | OPTIONS.get(case.kind, {}))
    sizes = {"batch": 8, "seq": 1 if case.phase == "decode" else 16, "capacity": 32}
    choice = Choice() if case.dense else Choice(dense_tokens=0)
    mesh, table = STRATEGIES[case.strategy]
    made, found = on_devices.compare(
        model, case.phase, sizes, Plan(mesh, table), choice, route if case.lopsided else keep
    )
    exchanges = sum(n.op.name == "exchange" for n, _ in made.graph.walk())
    return {"case": str(case), **found, "exchanges": exchanges}


def keep(arrays: dict[str, Any]) -> None:
    """Routers as they are."""


def route(arrays: dict[str, Any]) -> None:
    """A router of zeros chooses the first experts for every token."""
    arrays.update({label: np.zeros_like(x) for label, x in arrays.items() if "router" in label})


def main() -> None:
    for case in CASES[sys.argv[1]]:
        print(json.dumps(compare(case)), flush=True)


if __name__ == "__main__":
    main()
