"""What every test runs under: the CPU, a cache of verdicts of its own, the same random cases on every CI run."""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest
from hypothesis import settings

from tests.children import QUICK

# Before anything imports JAX. The compilers for TPU and GPU run in child processes, which choose for themselves.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", QUICK)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # without an accelerator, its plugins' C++ says so on stderr

for name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR"):  # golden texts are of a pipe; workers of xdist set a width
    os.environ.pop(name, None)

settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")

CACHE = "BLOCKGRAPH_CACHE"
_MADE: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    """Compiled programs are not taken from, or left in, the cache of the person who runs the tests."""
    if CACHE not in os.environ:
        _MADE.append(tempfile.mkdtemp(prefix="blockgraph-tests-"))
        os.environ[CACHE] = _MADE[0]  # the workers of xdist share it


def pytest_unconfigure(config: pytest.Config) -> None:
    for folder in _MADE:
        shutil.rmtree(folder, ignore_errors=True)
