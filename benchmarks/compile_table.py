"""What the real compilers say of the shipped models, and whether the time to trace and lower is flat in depth.

    python benchmarks/compile_table.py [--only WORD ...] [--out docs/results] [--fresh]

Writes compile.md and compile.json. ``--only`` keeps rows in which every word occurs ("gemma2-2b tpu", "flat"), and then
writes nothing unless ``--out`` is given. ``--fresh`` asks the compilers again instead of their stored verdicts.
Needs blockgraph[tpu,gpu]; no accelerator.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import blockgraph as bg
from compiler.passes.phase import phase_graph

LENGTH = 8192
GIB = 2**30
REPEATS = 3
LIMIT_SECONDS, LIMIT_RATIO = 5.0, 1.3
DEEP, SHALLOW = 46, 4


@dataclass(frozen=True)
class Row:
    spec: str
    phase: str
    batch: int
    target: str
    expected: str = "accepted"

    @property
    def text(self) -> str:
        return f"{self.spec} {self.phase} batch {self.batch} {self.target}"


ROWS = (
    Row("gemma2-27b", "prefill", 1, "tpu:v5p:1x1x1"),
    Row("gemma2-27b", "decode", 8, "tpu:v5p:1x1x1"),
    Row("gemma2-27b", "prefill", 1, "tpu:v5e:1x1", "refused"),
    Row("gemma2-27b", "decode", 1, "tpu:v5e:1x1", "refused"),
    Row("gemma2-9b", "prefill", 1, "tpu:v6e:1x1"),
    Row("gemma2-9b", "decode", 4, "tpu:v6e:1x1"),
    Row("recurrentgemma-9b", "decode", 8, "tpu:v4:1x1x1"),
    Row("smollm2-135m", "decode", 8, "tpu:v5e:1x1"),
    *(
        Row("gemma2-2b", phase, batch, target)
        for target in ("tpu:v5e:1x1", "gpu:h100:1x1")
        for phase, batch in (("forward", 1), ("prefill", 1), ("decode", 8))
    ),
)


def cache_bytes(model: Any, batch: int) -> int:
    """The state that streaming phases keep between calls."""
    total = 0
    for _, t in phase_graph(model, "decode").states().values():
        count = math.prod(int(s.evaluate({"batch": batch, "seq": 1, "capacity": LENGTH})) for s in t.sizes)
        total += count * {"bfloat16": 2, "float32": 4, "int32": 4}[t.dtype]
    return total


def measure(row: Row, say: Callable[[str], None], folder: Path) -> dict[str, Any]:
    model = bg.load(row.spec)
    made = bg.compile(model, row.target, phase=row.phase, batch=row.batch, length=LENGTH, out=folder, export=False,
                      progress=say)  # fmt: skip
    r = made.result
    return {
        "spec": row.spec, "phase": row.phase, "batch": row.batch, "length": LENGTH, "target": row.target,
        "verdict": r.verdict, "expected": row.expected, "refused_by": r.refused_by, "message": r.message,
        "argument_bytes": r.memory.get("argument_bytes"), "temp_bytes": r.memory.get("temp_bytes"),
        "peak_bytes": r.memory.get("peak_bytes"), "alias_bytes": r.memory.get("alias_bytes"),
        "output_bytes": r.memory.get("output_bytes"),
        "needed_bytes": r.needed_bytes, "available_bytes": r.available_bytes,
        "cache_bytes": 0 if row.phase == "forward" else cache_bytes(model, row.batch),
        "seconds": r.seconds, "trace_lower_seconds": round(r.seconds["trace"] + r.seconds["lower"], 3),
        "compile_seconds": r.seconds.get("compile"), "verdict_stored": r.cached, "versions": r.versions,
    }  # fmt: skip


def flatness(phase: str, say: Callable[[str], None], folder: Path) -> dict[str, Any]:
    """Median seconds of trace + lower at both depths, taken in turn; the verdict itself is stored after the first."""
    times: dict[int, list[float]] = {DEEP: [], SHALLOW: []}
    graphs: dict[int, list[float]] = {DEEP: [], SHALLOW: []}
    for turn in range(REPEATS):
        for layers in times:
            say(f"{layers} layers, {turn + 1} of {REPEATS}")
            model = bg.load("gemma2-27b", {"layers": layers})
            seconds = bg.compile(model, "tpu:v5p:1x1x1", phase=phase, batch=1, length=LENGTH, out=folder,
                                 export=False).result.seconds  # fmt: skip
            times[layers].append(round(seconds["trace"] + seconds["lower"], 3))
            graphs[layers].append(seconds["build"])
    deep, shallow = (statistics.median(times[n]) for n in (DEEP, SHALLOW))
    return {
        "spec": "gemma2-27b", "phase": phase, "batch": 1, "length": LENGTH, "target": "tpu:v5p:1x1x1",
        "layers": [DEEP, SHALLOW], "seconds": [times[DEEP], times[SHALLOW]], "median_seconds": [deep, shallow],
        "graph_median_seconds": [statistics.median(graphs[n]) for n in (DEEP, SHALLOW)],
        "ratio": round(deep / shallow, 3), "limits": {"seconds": LIMIT_SECONDS, "ratio": LIMIT_RATIO},
    }  # fmt: skip


def machine() -> dict[str, Any]:
    names = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12")
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), "system": platform.system(),
            "processor": processor(), "versions": versions}  # fmt: skip


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def gib(count: int | None) -> str:
    return "" if count is None else f"{count / GIB:.3f}"


def compiler(row: dict[str, Any]) -> str:
    names = {"tpu": "libtpu", "gpu": "jax-cuda12-plugin", "cpu": "jaxlib"}
    name = names[row["target"].split(":")[0]]
    return f"{name} {row['versions'][name]}"


def markdown(found: dict[str, Any]) -> str:
    m = found["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in m["versions"].items())
    lines = [
        "# Verdicts of the real compilers",
        "",
        f"Machine: {m['cores']} cores ({m['processor']}), {m['system']}, python {m['python']}, {versions}. "
        f"No accelerator took part. Made by `python benchmarks/compile_table.py`.",
        "",
        f"Length {LENGTH}: positions of the call for prefill and forward, room of the cache for decode. bfloat16 "
        "weights and cache, one device. GiB as the compiler reports them; the cache's by our count. Compile seconds "
        "are of the first compile where a verdict was stored.",
        "",
        "| spec | phase | batch | target | verdict | arguments | temp | peak | cache | spec to graph s "
        "| trace + lower s | compile s | compiler |",
        "|---|---|--:|---|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for r in found["rows"]:
        verdict = r["verdict"]
        if verdict == "refused":
            verdict += f" ({r['refused_by']}): needs {gib(r['needed_bytes'])}, has {gib(r['available_bytes'])}"
        cells = (r["spec"], r["phase"], r["batch"], r["target"], verdict, *(gib(r[f"{k}_bytes"]) for k in
                 ("argument", "temp", "peak", "cache")), f"{r['seconds']['build']:.2f}",
                 f"{r['trace_lower_seconds']:.2f}", f"{r['compile_seconds']:.1f}",
                 compiler(r))  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    refused = [r for r in found["rows"] if r["verdict"] == "refused"]
    if refused:
        lines += ["", "What the compilers said where they refused (first line):", ""]
    for r in refused:
        first = next(line.strip() for line in r["message"].splitlines() if line.strip())
        lines.append(f"- {r['spec']} {r['phase']} on {r['target']}: `{first[:300]}`")
    if found["flatness"]:
        lines += [
            "",
            "## Trace and lower: flat in depth",
            "",
            f"gemma2-27b with {DEEP} layers and with {SHALLOW}, median of {REPEATS}. Wanted: below "
            f"{LIMIT_SECONDS:g} s, ratio below {LIMIT_RATIO}. Beside it the time from the spec to the phase's graph.",
            "",
            f"| phase | {DEEP} layers, s | {SHALLOW} layers, s | ratio | spec to graph, {DEEP}: s | {SHALLOW}: s |",
            "|---|--:|--:|--:|--:|--:|",
        ]
    for f in found["flatness"]:
        cells = (f["phase"], *(f"{x:.2f}" for x in (*f["median_seconds"], f["ratio"], *f["graph_median_seconds"])))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def wrong(found: dict[str, Any]) -> list[str]:
    """What is not as it should be, a line each."""
    lines = []
    for r in found["rows"]:
        name = f"{r['spec']} {r['phase']} on {r['target']}"
        if r["verdict"] != r["expected"]:
            lines.append(f"{name}: {r['verdict']}, {r['expected']} was expected")
        if r["trace_lower_seconds"] >= LIMIT_SECONDS:
            lines.append(f"{name}: {r['trace_lower_seconds']} s to trace and lower")
        if r["phase"] == "decode" and r["verdict"] == "accepted" and r["temp_bytes"] >= 0.15 * r["cache_bytes"]:
            lines.append(f"{name}: temporary memory is {r['temp_bytes'] / r['cache_bytes']:.0%} of the cache")
    lines += [f"{f['phase']}: ratio {f['ratio']}" for f in found["flatness"] if f["ratio"] >= LIMIT_RATIO]
    return lines


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--fresh", action="store_true")
    given = parser.parse_args(arguments)
    kept = [r for r in ROWS if all(w in r.text.split() or w in r.text for w in given.only)]
    flat = [p for p in ("decode", "prefill") if all(w in f"flat flatness gemma2-27b {p}" for w in given.only)]
    if not kept and not flat:
        parser.error(f"no row has all of {given.only}")
    start, count, at = time.perf_counter(), len(kept) + len(flat), 0
    found: dict[str, Any] = {"machine": machine(), "rows": [], "flatness": []}
    with tempfile.TemporaryDirectory(prefix="compile-table-") as temporary:
        if given.fresh:
            os.environ["BLOCKGRAPH_CACHE"] = f"{temporary}/verdicts"

        def announce(text: str) -> Callable[[str], None]:
            head = f"[{at}/{count} {time.perf_counter() - start:4.0f} s] {text}"

            def say(stage: str) -> None:
                print(f"\r\x1b[K{head}: {stage}" if sys.stderr.isatty() else f"{head}: {stage}",
                      end="" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)  # fmt: skip

            return say

        for row in kept:
            at += 1
            found["rows"].append(measure(row, announce(row.text), Path(temporary) / "row"))
        for phase in flat:
            at += 1
            found["flatness"].append(flatness(phase, announce(f"flat in depth, {phase}"), Path(temporary) / "flat"))
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    return finish("compile", found, markdown(found), wrong(found), given.out, bool(given.only))


def finish(name: str, found: Any, text: str, faults: Sequence[str], out: Path | None, partly: bool) -> int:
    """Prints a page; writes it and its data, by default into docs/results where nothing was left out. Gives the exit
    code: 1 where something is not as wanted."""
    print(text)
    out = out or (None if partly else Path(__file__).resolve().parents[1] / "docs" / "results")
    if out is not None:
        write(out / f"{name}.md", text)
        write(out / f"{name}.json", json.dumps(found, indent=1) + "\n")
        print(f"written to {out}", file=sys.stderr)
    for line in faults:
        print(f"not as wanted: {line}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
