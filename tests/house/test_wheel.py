"""The wheel: what it holds, and that it works alone, from a folder that has files of the same names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest

from compiler.errors import TargetError
from compiler.targets import environment, parse_target

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("blockgraph", "runtime", "costmodel", "compiler", "specs", "pyproject.toml", "README.md")
TINY = "smollm2-135m --set layers=2 --set vocab=128 --set embed=144 --set mlp=64"
COMPILE = f"compile {TINY} --phase decode --length 64 --out out --json --target"
TRAPS = ("runtime.py", "specs/__init__.py", "compiler/__init__.py", "costmodel/__init__.py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves a build/ beside what it builds, and takes in what an old one holds."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).is_file():
            shutil.copy(ROOT / name, source / name)
    (source / "tests").mkdir()
    (source / "tests" / "__init__.py").touch()
    run(
        out,
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        str(source),
    )
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of its own with the wheel in it; it sees the packages installed here, not this project."""
    home = tmp_path_factory.mktemp("environment")
    run(home, sys.executable, "-m", "venv", "--without-pip", str(home / "venv"))
    made = home / "venv" / "bin" / "python"
    said = run(home, made, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    site = Path(said.strip())
    run(
        home,
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(made),
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        str(wheel),
    )
    here = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    (site / "here.pth").write_text(
        "".join(f"{folder}\n" for folder in here)
    )  # a plain line: .pth files there are not read
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder in which each name of ours is taken by a module that cannot be imported."""
    for name in TRAPS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise RuntimeError('a file of the working folder was imported')\n")
    return tmp_path


def run(folder: Path, *command: str | Path) -> str:
    """A command with nothing of this process's Python settings; its output."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST_", "JAX_", "XLA_"))}
    environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "BLOCKGRAPH_CACHE": str(folder / "cache")}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_wheel_holds_the_project_and_its_data_and_no_tests(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    for pattern in ("specs/**/*.yaml", "compiler/targets/gpu/*.txtpb", *(f"{f}/**/*.py" for f in SOURCES[:5])):
        wanted = {p.relative_to(ROOT).as_posix() for p in ROOT.glob(pattern)}
        assert wanted and wanted <= held, (pattern, wanted - held)
    tops = {name.partition("/")[0] for name in held}
    assert tops == {*SOURCES[:5], next(t for t in tops if t.endswith(".dist-info"))}


def test_the_installed_package_is_the_wheel(python: Path, folder: Path) -> None:
    code = "import compiler, blockgraph; print(compiler.__file__); print(blockgraph.__file__)"
    files = [Path(line) for line in run(folder, python, "-P", "-c", code).split()]
    assert all(python.parents[1] in p.parents for p in files)


def test_commands(python: Path, folder: Path) -> None:
    assert "gemma2-9b" in run(folder, python.with_name("blockgraph"), "list")
    assert "9,242,164,736 parameters" in run(folder, python, "-m", "blockgraph", "validate", "gemma2-9b")
    run(folder, python, "-m", "blockgraph", "graph", "gemma2-9b", "-o", "gemma.svg")
    assert "</svg>" in (folder / "gemma.svg").read_text()


def test_the_api(python: Path, folder: Path) -> None:
    asked = "machine='v5e', phase='decode', batch=1, length=8192"
    code = f"import blockgraph as bg; bg.simulate(bg.load('gemma2-9b'), {asked})"
    run(folder, python, "-c", code)
    script = folder / "mine.py"
    script.write_text(code)
    run(folder, python, str(script))


def test_a_compile_in_its_child_process(python: Path, folder: Path) -> None:
    assert compiled(python, folder, "cpu")["verdict"] == "accepted"
    assert (folder / "out" / "artifact.jaxexport").is_file()


@pytest.mark.parametrize("target", ["tpu:v5e", "gpu:h100"])
def test_other_targets_where_their_compilers_are_here(python: Path, folder: Path, target: str) -> None:
    try:
        environment.check_installed(parse_target(target))
    except TargetError as error:
        pytest.skip(str(error))
    assert compiled(python, folder, target)["verdict"] == "accepted"


def compiled(python: Path, folder: Path, target: str) -> Any:
    return json.loads(run(folder, python, "-m", "blockgraph", *COMPILE.split(), target))
