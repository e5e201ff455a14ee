"""The graph against the compiled program: every collective and the FLOPs of specs x strategies x calls x machines.

    python benchmarks/collectives.py [--only WORD ...] [--quick] [--out docs/results]

Writes collectives.md and collectives.json. ``--only`` keeps calls in which every word occurs ("fsdp", "tpu:v5e:2x4"),
``--quick`` a handful; both write nothing unless ``--out`` is given. What was compiled once is not compiled again:
verdicts and programs are kept by the program's hash and the compiler's version, so a run that was cut off goes on where
it was. About 40 minutes on two quiet cores. Needs blockgraph[tpu,gpu]; no accelerator.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import blockgraph as bg
from benchmarks import collectives_page as page
from benchmarks.compile_table import finish, machine
from blockgraph import compiling
from compiler.check import collectives, flops
from compiler.check.hlo import parse as parse_hlo
from compiler.errors import BlockgraphError
from compiler.parallel.request import Request
from compiler.targets import run as run_job
from compiler.targets.types import parse_target

ROOT = Path(__file__).resolve().parents[1]
TARGETS = ("cpu:8", "gpu:h100:1x8", "tpu:v5e:2x4", "tpu:v5p:2x2x2", "tpu:v6e:2x4")
LIMIT = 1800.0  # seconds of one compile, on a busy machine
LENGTHS = {"forward": 1024, "decode": 2048, "train": 1024}
BATCHES = {"forward": 8, "decode": 32, "train": 8}
ALL = ("forward", "decode", "train")


@dataclass(frozen=True)
class Spec:
    """A spec with few layers and a small vocabulary, its widths as they are; at least two trips of its repeat."""

    path: str
    sets: dict[str, Any]
    sizes: dict[str, int] = field(default_factory=dict)


SPECS = {
    "gemma2-2b": Spec("gemma2-2b", {"layers": 4, "vocab": 16384}),
    "gemma2-2b-8": Spec("gemma2-2b", {"layers": 8, "vocab": 16384}),
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

    @property
    def text(self) -> str:
        return f"{self.spec} {self.strategy} {self.mesh} {self.phase} {self.target}"

    @property
    def batch(self) -> int:
        return BATCHES[self.phase]

    @property
    def length(self) -> int:
        return LENGTHS[self.phase]

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"batch": self.batch, "length": self.length}


# strategy, spec, mesh, calls, what is replicated
RUNS: tuple[tuple[str, str, str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("data", "gemma2-2b", "data=8", ("decode", "train"), ()),
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
    ("zero1", "gemma2-2b", "data=8", ("train",), ()),
    ("zero2", "gemma2-2b", "data=8", ("train",), ()),
    ("fsdp", "gemma2-2b", "fsdp=8", ALL, ()),
    ("fsdp", "recurrentgemma-2b", "fsdp=8", ("train",), ()),
    ("fsdp+tensor", "gemma2-2b", "fsdp=4,model=2", ALL, ()),
    ("fsdp+tensor+sequence", "gemma2-2b", "fsdp=4,model=2", ("train",), ()),
    ("pipeline+data", "gemma2-2b-8", "stage=2,data=4", ("train",), ()),
)
QUICK = ("gpu:h100:1x8", "tpu:v5e:2x4")
# of which the automatic style is compiled too
AUTOMATIC = (
    Call("gemma2-2b", "fsdp", "fsdp=8", "train", "tpu:v5e:2x4"),
    Call("gemma2-2b", "fsdp+tensor", "fsdp=4,model=2", "train", "tpu:v5e:2x4"),
    Call("gemma2-2b", "fsdp", "fsdp=8", "train", "tpu:v6e:2x4"),
)


def calls() -> Iterator[Call]:
    for target in TARGETS:
        for strategy, spec, mesh, phases, replicate in RUNS:
            for phase in phases:
                yield Call(spec, strategy, mesh, phase, target, replicate)


def quick(call: Call) -> bool:
    return call.target in QUICK and call.phase in ("decode", "forward") and call.spec != "captioner"


def measure(call: Call, say: Callable[[str], None]) -> dict[str, Any]:
    spec = SPECS[call.spec]
    made = bg.compile(
        bg.load(spec.path, spec.sets), call.target, phase=call.phase, batch=call.batch, length=call.length,
        parallel=call.strategy, mesh=call.mesh, replicate=call.replicate, sizes=spec.sizes, check=True,
        time_limit=LIMIT, progress=say,
    )  # fmt: skip
    return page.row(call.as_json(), made)


def compared(call: Call, say: Callable[[str], None]) -> dict[str, Any]:
    """The call as we compile it and in the automatic style: collectives, those that run beside other work, memory."""
    spec, target = SPECS[call.spec], parse_target(call.target)
    asked = compiling.parallel_of(call.strategy, call.mesh, (), call.replicate, None, target)
    request = Request(call.phase, call.batch, call.length, None, dict(spec.sizes), parallel=asked)
    job = compiling.job_of(bg.load(spec.path, spec.sets), request, target, LIMIT, False)
    found = call.as_json()
    for style, entry in (("ours", job.entry), ("automatic", "benchmarks.automatic:build")):
        with tempfile.TemporaryDirectory(prefix="collectives-") as folder:
            job = dataclasses.replace(job, entry=entry, out=folder, artifacts=("optimised_hlo",))
            result = run_job(job, lambda stage, style=style: say(f"{style}, {stage}"))
            module = parse_hlo(Path(result.files["optimised_hlo"]).read_text(encoding="utf-8"))
        there = collectives(module)
        gathers = {c.name: c for c in there.collectives if c.kind == "all-gather"}
        found[style] = {
            "instructions": there.instructions, "asynchronous": there.asynchronous,
            "gathers": len(gathers), "gathers_asynchronous": sum(c.asynchronous for c in gathers.values()),
            "sent": sum(c.sent * c.count for c in there.collectives),
            "waited": sum(c.sent * c.count for c in there.collectives if not c.asynchronous),
            "temp_bytes": result.memory["temp_bytes"], "flops": flops(module).total,
        }  # fmt: skip
    return found


def sizes_told() -> Iterator[str]:
    for name, spec in SPECS.items():
        yield f"{name} ({', '.join(f'{k} {v}' for k, v in (spec.sets | spec.sizes).items())})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args(arguments)
    kept = [c for c in calls() if all(w in c.text.split() for w in given.only) and (quick(c) or not given.quick)]
    pairs = [c for c in AUTOMATIC if all(w in ["automatic", *c.text.split()] for w in given.only) and not given.quick]
    if not kept and not pairs:
        parser.error(f"no call has all of {given.only}")
    start, count, screen = time.perf_counter(), len(kept) + len(pairs), sys.stderr.isatty()
    found: dict[str, Any] = {"machine": machine(), "rows": [], "automatic": []}
    failed: list[str] = []
    for at, call in enumerate((*kept, *pairs), 1):
        head = f"[{at}/{count} {time.perf_counter() - start:5.0f} s] {call.text}"

        def say(stage: str, head: str = head) -> None:
            print(f"\r\x1b[K{head}: {stage}", end="", file=sys.stderr, flush=True)

        told = say if screen else lambda stage: None
        try:
            if at > len(kept):
                found["automatic"].append(compared(call, told))
                line = "compared with the automatic style"
            else:
                found["rows"].append(row := measure(call, told))
                line = summary(row)
        except BlockgraphError as error:
            line = f"failed: {error}"
            failed.append(f"{call.text}: {error}")
        print("\r\x1b[K" if screen else "", f"{head}: {line}", sep="", file=sys.stderr, flush=True)
    text, partly = page.markdown(found, sizes_told()), bool(given.only or given.quick)
    return finish("collectives", found, text, [*failed, *page.wrong(found)], given.out, partly)


def summary(row: dict[str, Any]) -> str:
    if row["verdict"] != "accepted":
        return str(row["verdict"])
    runs = ", ".join(f"{n} {status}" for status, n in row["runs"].items() if n) or "nothing moves"
    beside = f"asynchronous {row['asynchronous']} of {row['instructions']}"
    ratios = f"bytes {page.bytes_ratio(row):.4f}, FLOPs {page.flops_ratio(row):.4f}"
    return f"{runs}; {ratios}, {beside}, compiled in {row['compile_seconds']:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
