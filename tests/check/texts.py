"""Small HLO texts for the tests, and the ones that compilers wrote (tests/fixtures/make_hlo_fixtures.py)."""

from __future__ import annotations

import gzip
from pathlib import Path

from tests.check.programs import COLUMNS, ROWS, TRIPS

FOLDER = Path(__file__).resolve().parents[1] / "fixtures" / "hlo"
VERSIONS = sorted({p.name.partition(".jax-")[2].removesuffix(".txt.gz") for p in FOLDER.glob("*.gz")})
ADD = """%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0), metadata={op_name="while/body/layer/reduce_scatter"}
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}
"""


def computation(name: str, *lines: str) -> str:
    return "\n".join([f"%{name} () -> f32[] {{", *(f"  {line}" for line in lines), "}", ""])


def module(*lines: str, before: str = "", devices: int = 8) -> str:
    """A module whose entry has these lines, on a line each."""
    entry = "\n".join(f"  {line}" for line in lines)
    return f"HloModule m, num_partitions={devices}\n\n{before}\nENTRY %main () -> f32[] {{\n{entry}\n}}\n"


def fixture(name: str, version: str) -> str:
    return gzip.decompress((FOLDER / f"{name}.jax-{version}.txt.gz").read_bytes()).decode()


def loop(condition: list[str], body: list[str], start: list[str], config: str = "", inside: str = "") -> str:
    """A module whose entry is one while; ``body`` and ``condition`` have the parameter %p."""
    before = inside + computation("body", *body) + computation("condition", *condition)
    shape = "(s32[], f32[8], s32[])"
    last = f"ROOT %w = {shape} while(%start), condition=%condition, body=%body{config}"
    return module(*start, last, before=ADD + before)


# (kind, axes, whole rows, by) of each scope in programs.collectives.
COLLECTIVES = {
    "reduce_model": ("all-reduce", ("model",), ROWS, None),
    "gather_model": ("all-gather", ("model",), 4 * ROWS, None),
    "scatter_model": ("reduce-scatter", ("model",), 4 * ROWS, None),
    "exchange_model": ("all-to-all", ("model",), ROWS, None),
    "rotate_model": ("collective-permute", ("model",), ROWS, 1),
    "gather_data": ("all-gather", ("data",), 2 * ROWS, None),
    "scatter_data": ("reduce-scatter", ("data",), 2 * ROWS, None),
    "reduce_both": ("all-reduce", ("data", "model"), ROWS, None),
}
GROUPS = {("model",): 4, ("data",): 2, ("data", "model"): 8}
WIDTH = {"bfloat16": 2, "float32": 4}


def asked(dtype: str) -> dict[str, tuple[str, tuple[str, ...], int, int, int | None]]:
    """(kind, axes, bytes, count, by) by scope."""
    return {
        scope: (kind, axes, rows * COLUMNS * WIDTH[dtype], TRIPS, by)
        for scope, (kind, axes, rows, by) in COLLECTIVES.items()
    }
