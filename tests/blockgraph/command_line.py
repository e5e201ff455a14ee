"""What the tests of the command line share: a small spec, and ways to run a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

ROOT = Path(__file__).resolve().parents[2]
TINY = """\
name: tiny
paper: "nobody, table 1"
dims: {vocab: 1000, embed: 16, heads: 4, kv_heads: 2, head_dim: 4, mlp: 32}
args: {layers: 6, window: 8}
sources: {dims.embed: counted by hand}
assumed: {args.window: a guess}
blocks:
  norm: {body: [{rms_norm: {eps: 1e-6}}]}
  layer:
    args: {window: null}
    body:
      - residual: [{norm: , name: before}, {attention: {window: window, position: {rope: {theta: 10_000}}}}]
      - residual: [{norm: , name: between}, {mlp: {gate: silu}}]
graph:
  - embed
  - repeat: {times: layers, cycle: [{layer: {window: window}}, layer]}
  - {norm: , name: final}
  - unembed
"""


def run(*arguments: str | Path) -> Result:
    """A command in this process."""
    from blockgraph.cli.app import app

    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="blockgraph")


def run_json(*arguments: str | Path, code: int = 0) -> Any:
    """The JSON document that a command prints."""
    result = run(*arguments, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def process(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command as people start it."""
    return subprocess.run(
        [sys.executable, "-m", "blockgraph", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd or ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        timeout=120,
        check=False,
    )
