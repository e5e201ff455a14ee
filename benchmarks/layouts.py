"""The papers' own layouts, compiled by the real TPU compiler: memory, FLOPs and collectives of one chip.

    python benchmarks/layouts.py [--only WORD ...] [--out docs/results] [--fresh]

Writes layouts.md and layouts.json. ``--only`` keeps rows in which every word occurs ("27B", "decode") and writes
nothing unless ``--out`` is given; ``--fresh`` asks the compiler again instead of its stored verdicts.
Needs blockgraph[tpu]; no accelerator.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import blockgraph as bg
from benchmarks import collectives_page as page
from benchmarks.compile_table import GIB, finish, machine
from compiler.errors import BlockgraphError
from compiler.parallel.request import Training
from costmodel.machines import machine as card

LIMIT = 1800.0  # seconds of one compile, on a busy machine


@dataclass(frozen=True)
class Row:
    name: str
    source: str
    spec: str
    phase: str
    target: str
    strategy: str
    mesh: str
    batch: int
    length: int
    chunk: int | None = None

    @property
    def text(self) -> str:
        return f"{self.name} {self.phase} {self.target}"

    @property
    def training(self) -> Training | None:
        return Training(remat="full") if self.phase == "train" else None


GEMMA2, SAMPLING = "arXiv:2408.00118, table 3", "arXiv:2302.01318, section 5 and table of hyper-parameters"
ROWS = (
    Row("Gemma 7B", "16 model x 16 data on one v5e pod (arXiv:2403.08295, section 3)", "gemma-7b", "train",
        "tpu:v5e:16x16", "fsdp+tensor+sequence", "fsdp=16,model=16", 16, 8192),
    Row("Gemma 2 27B", f"768 data x 8 model ({GEMMA2})", "gemma2-27b", "train", "tpu:v5p:8x24x32",
        "fsdp+tensor+sequence", "fsdp=768,model=8", 768, 8192),
    Row("Gemma 2 9B", f"1024 data x 4 model ({GEMMA2})", "gemma2-9b", "train", "tpu:v4:8x16x32",
        "data+fsdp+tensor+sequence", "data=2,fsdp=512,model=4", 1024, 8192),
    *(Row("Chinchilla 70B", f"16 chips ({SAMPLING})", "chinchilla-70b", phase, "tpu:v4:2x2x4", "tensor", "model=16", 1,
          2048, chunk) for phase, chunk in (("decode", None), ("verify", 5))),
    Row("its 4B draft", f"16 chips ({SAMPLING})", "chinchilla-draft-4b", "decode", "tpu:v4:2x2x4", "tensor", "model=16",
        1, 2048),
)  # fmt: skip


def measure(row: Row, say: Any) -> dict[str, Any]:
    start = time.perf_counter()
    made = bg.compile(
        row.spec, row.target, phase=row.phase, batch=row.batch, length=row.length, chunk=row.chunk,
        parallel=row.strategy, mesh=row.mesh, training=row.training, check=True, time_limit=LIMIT, progress=say,
    )  # fmt: skip
    wall, result, checked = time.perf_counter() - start, made.result, made.checked
    usable = card(row.target.split(":")[1]).usable_hbm_bytes
    found = {**asdict(row), "verdict": result.verdict, "message": result.message, "memory": result.memory,
             "usable_bytes": None if usable is None else int(usable),
             "seconds": result.seconds, "wall_seconds": round(wall, 1), "stored": result.cached,
             "versions": result.versions, "notes": list(result.notes)}  # fmt: skip
    if made.figures is not None:
        found["device"] = made.figures.as_json()
    if checked is not None:
        told = page.row({}, made)
        found |= {"runs": told["runs"], "sent": told["sent"], "exceptions": told["exceptions"],
                  "flops": {"graph": checked.ours, "program": checked.program.total}}  # fmt: skip
    return found


def needed(row: dict[str, Any]) -> float:
    """Bytes of one chip while the program runs: arguments, working memory, results of their own."""
    m = row["memory"]
    return float(m["argument_bytes"] + m["temp_bytes"] + m["output_bytes"] - m["alias_bytes"])


def gib(value: float | None) -> str:
    return "–" if value is None else f"{value / GIB:.2f}"


def markdown(found: dict[str, Any]) -> str:
    host = found["machine"]
    versions: dict[str, str] = next((r["versions"] for r in found["rows"] if "versions" in r), {})
    told = f"{', '.join(f'{k} {v}' for k, v in versions.items())}; {host['cores']} cores, no accelerator"
    columns = ("model", "layout", "call", "batch x length", "arguments", "working", "needs", "chip",
               "sent by the graph's collectives (program / graph)",
               "FLOPs of the graph (program / graph)")  # fmt: skip
    lines = [
        "# The papers' layouts, compiled here", "",
        f"Made by `python benchmarks/layouts.py` with the TPU compiler alone ({told}).",
        "Training: one step, bfloat16 weights, AdamW with float32 moments and master weights, full rematerialisation.",
        "GiB of one chip, as the compiler gives them; *needs*: arguments, working memory and results of their own.",
        "FLOPs, and bytes that a chip sends, are those of one chip in one call; what XLA changes of what is",
        "asked, and why, `compile --check` tells ([check](../check.md)).", "",
        f"| {' | '.join(columns)} |", "|---" * len(columns) + "|",
    ]  # fmt: skip
    for r in found["rows"]:
        layout = f"{r['target'].removeprefix('tpu:')}, {r['strategy']}, {r['mesh']}"
        head = f"| {r['name']} | {layout} | {r['phase']} | {r['batch']:,} x {r['length']:,} |"
        if r["verdict"] != "accepted":
            lines.append(f"{head} {r['verdict']}: {r['message']} |||||")
            continue
        m, sent = r["memory"], r["sent"]
        moved = f"{sent['expected'] / 1e9:,.3g} GB ({sent['found'] / sent['expected']:.3f})"
        ratio = r["flops"]["program"] / r["flops"]["graph"]
        lines.append(f"{head} {gib(m['argument_bytes'])} | {gib(m['temp_bytes'])} | {gib(needed(r))} | "
                     f"{gib(r['usable_bytes'])} | {moved} | {r['flops']['graph']:.4g} ({ratio:.4f}) |")  # fmt: skip
    lines += ["", *(line for r in found["rows"] for line in more(r))]
    sources = dict.fromkeys(f"{r['name']}: {r['source']}." for r in found["rows"])
    return "\n".join([*lines, "", *sources]) + "\n"


def more(row: dict[str, Any]) -> Iterator[str]:
    """Why a program sends more than was asked for, where that is more than a hundredth."""
    causes: dict[str, float] = {}
    for e in row.get("exceptions", ()):
        causes[e["cause"]] = causes.get(e["cause"], 0.0) + e["sent_found"] - e["sent"]
    for cause, extra in causes.items():
        if extra > 0.01 * row["sent"]["expected"]:
            yield f"- {row['name']} sends {extra / 1e9:.3g} GB more: {cause or 'not known why'}."


def wrong(found: dict[str, Any]) -> list[str]:
    """Rows that are not as wanted: refused, or larger than the chip."""
    faults = []
    for r in found["rows"]:
        text = f"{r['name']} {r['phase']}"
        if r["verdict"] != "accepted":
            faults.append(f"{text}: {r['verdict']}: {r['message']}")
        elif r["usable_bytes"] is not None and needed(r) > r["usable_bytes"]:
            faults.append(f"{text} needs {gib(needed(r))} GiB of {gib(r['usable_bytes'])}")
    return faults


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--fresh", action="store_true")
    given = parser.parse_args(arguments)
    kept = [row for row in ROWS if all(word in row.text.split() for word in given.only)]
    if not kept:
        parser.error(f"no row has all of {given.only}")
    found: dict[str, Any] = {"machine": machine(), "rows": []}
    with tempfile.TemporaryDirectory(prefix="layouts-") as folder:
        if given.fresh:
            os.environ["BLOCKGRAPH_CACHE"] = folder
        for at, row in enumerate(kept, 1):
            print(f"[{at}/{len(kept)}] {row.text}", file=sys.stderr, flush=True)
            try:
                found["rows"].append(measure(row, lambda stage: print(f"  {stage}", file=sys.stderr, flush=True)))
            except BlockgraphError as error:
                found["rows"].append({**asdict(row), "verdict": "no verdict", "message": str(error)})
    return finish("layouts", found, markdown(found), wrong(found), given.out, bool(given.only))


if __name__ == "__main__":
    sys.exit(main())
