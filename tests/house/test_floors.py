"""The floors of the house: imports point down only, jax stays where programs are made and run, files stay small."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BELOW = {
    "blockgraph": {"runtime", "costmodel", "compiler", "specs"},
    "runtime": {"compiler", "specs"},
    "costmodel": {"compiler", "specs"},
    "compiler": {"specs"},
    "specs": set(),
}  # fmt: skip
WITH_JAX = ("compiler/lower/", "compiler/targets/", "runtime/")
NEVER = {"torch", "transformers", "tensorflow", "tests", "pytest"}
LONGEST = 450  # lines
FILES = sorted(p for floor in BELOW for p in (ROOT / floor).rglob("*.py"))
PLACE = "/" + "work"  # no path of the machine that this was written on


@dataclass(frozen=True)
class Use:
    """An import, of the dotted name, wherever in a file it stands."""

    file: str
    line: int
    name: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.name}"

    @property
    def top(self) -> str:
        return self.name.partition(".")[0]


def imports(text: str, file: str) -> Iterator[Use]:
    """Every import of a file: in functions and under TYPE_CHECKING too, relative ones, and by import_module."""
    package = Path(file).parent.parts
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (Use(file, node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (Use(file, node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield Use(file, node.lineno, node.args[0].value)


USES = [use for p in FILES for use in imports(p.read_text(encoding="utf-8"), p.relative_to(ROOT).as_posix())]


def test_imports_are_found_wherever_they_stand() -> None:
    text = """
import a.b, c
from d import e
from . import f
from ..g import h
def inside():
    import i
    importlib.import_module("j.k")
if TYPE_CHECKING:
    from l.m import n
"""
    names = {use.name for use in imports(text, "compiler/lower/x.py")}
    assert names == {"a.b", "c", "d.e", "compiler.lower.f", "compiler.g.h", "i", "j.k", "l.m.n"}
    assert len(USES) > 500 and {use.top for use in USES} > {*BELOW} - {"specs"}


def test_imports_point_down_only() -> None:
    up = [str(u) for u in USES if u.top in BELOW and u.top not in {*BELOW[_floor(u)], _floor(u)}]
    assert not up, "\n".join(up)


def test_only_the_lowering_the_targets_and_the_runtime_import_jax() -> None:
    found = [str(u) for u in USES if u.top in ("jax", "jaxlib") and not u.file.startswith(WITH_JAX)]
    assert not found, "\n".join(found)


def test_the_product_imports_no_other_framework_and_no_test() -> None:
    found = [str(u) for u in USES if u.top in NEVER]
    assert not found, "\n".join(found)


def _floor(use: Use) -> str:
    return use.file.partition("/")[0]


def test_no_file_is_long() -> None:
    tests = [p for p in (ROOT / "tests").rglob("*.py") if "fixtures" not in p.parts]
    lengths = {p.relative_to(ROOT): len(p.read_text(encoding="utf-8").splitlines()) for p in [*FILES, *tests]}
    long = [f"{name}: {n} lines" for name, n in lengths.items() if n > LONGEST]
    assert not long, "\n".join(long)


def test_no_file_of_the_product_names_a_place_on_a_machine() -> None:
    shipped = [p for floor in BELOW for p in (ROOT / floor).rglob("*") if p.suffix in (".py", ".yaml", ".txtpb")]
    others = [ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    found = [str(p.relative_to(ROOT)) for p in [*shipped, *others] if PLACE in p.read_text(encoding="utf-8")]
    assert not found, found


@pytest.mark.parametrize(
    "code",
    [
        "import blockgraph",
        "blockgraph.load('gemma2-9b'); blockgraph.parameters; blockgraph.Model; blockgraph.Compiled",
        "blockgraph.simulate('gemma2-9b', machine='v5e', phase='decode', batch=1, length=8192)",
        "from blockgraph import inspect; inspect.summary(blockgraph.load('recurrentgemma-2b'))",
        "blockgraph.compile; import runtime.weights.load, runtime.text.tokenizer, compiler.targets",
    ],
)
def test_jax_stays_out_of_the_process(code: str) -> None:
    _without_jax(f"import blockgraph; {code}")


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["--help"],
        ["validate", "gemma2-9b"],
        ["show", "gemma2-9b"],
        ["graph", "gemma2-9b", "-o", "gemma.svg"],
        ["diff", "gemma-2b", "gemma2-2b"],
        ["simulate", "gemma2-9b", "--machine", "v5e", "--phase", "decode"],
        ["schema"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_jax_stays_out_of_commands(arguments: list[str], tmp_path: Path) -> None:
    run = f"""
from blockgraph.cli.app import app
try:
    app({arguments!r}, prog_name="blockgraph")
except SystemExit as end:
    assert not end.code, end.code"""
    _without_jax(run, tmp_path)


def _without_jax(code: str, folder: Path = ROOT) -> None:
    told = "import json, sys; print('\\n' + json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{told}"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "blockgraph" in loaded and not loaded & {"jax", "jaxlib"}
