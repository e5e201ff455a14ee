"""Folders of the user's that hold a `runtime.py` or `specs/`: ours find ours, and what that hides is said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SIMULATE = "bg.simulate(bg.load('smollm2-135m'), machine='v5e', phase='decode', batch=1, length=1024)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Names of ours, each of which fails when it is imported; `costmodel/` holds no code, so it can hide nothing."""
    (tmp_path / "specs").mkdir()
    (tmp_path / "costmodel").mkdir()
    for name in ("runtime.py", "specs/__init__.py"):
        (tmp_path / name).write_text("raise RuntimeError('the folder of the user was imported')\n")
    return tmp_path


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_command_finds_its_own_and_says_nothing(folder: Path) -> None:
    done = python(folder, "-m", "blockgraph", "validate", "smollm2-135m")
    assert (done.returncode, done.stderr) == (0, "") and "valid" in done.stdout


def test_a_line_of_python_finds_ours_and_is_told_what_is_hidden(folder: Path) -> None:
    done = python(folder, "-c", f"import blockgraph as bg; {SIMULATE}; import runtime; print(runtime.__file__)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(ROOT / "runtime" / "__init__.py")
    warned = [line for line in done.stderr.splitlines() if "UserWarning" in line]
    hidden = [line.split(" is hidden")[0].split("UserWarning: ")[1] for line in warned]
    assert hidden == [str(folder / "runtime.py"), str(folder / "specs" / "__init__.py")]


def test_a_script_is_told_at_its_own_line(folder: Path) -> None:
    script = folder / "mine.py"
    script.write_text(f"import sys\nimport blockgraph as bg\n{SIMULATE}\n")
    done = python(folder, str(script))
    assert done.returncode == 0 and f"{script}:2: UserWarning" in done.stderr


def test_one_imported_before_ours_is_refused(folder: Path) -> None:
    (folder / "runtime.py").write_text("mine = 1\n")
    done = python(folder, "-c", "import runtime, blockgraph")
    assert done.returncode == 1 and str(folder / "runtime.py") in done.stderr
    assert "was imported before blockgraph, which has a package of that name: rename yours" in done.stderr
