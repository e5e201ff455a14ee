"""Memory is looked at before it is taken: what does not fit is refused with both numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blockgraph import training
from compiler.language.model import loads
from runtime import memory
from runtime.memory import OutOfMemory
from tests.runtime.training import SPEC

GIB = 2**30


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, value in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(str(value))
    return root


def test_free_memory_is_the_least_that_the_machine_and_its_groups_leave(tmp_path: Path) -> None:
    info = {"proc/meminfo": f"MemTotal: 9 kB\nMemAvailable:   {8 * GIB // 1024} kB\n"}
    assert memory.free_bytes(tree(tmp_path / "none", info)) == 8 * GIB
    new = {"proc/self/cgroup": "0::/jobs/mine\n", "sys/fs/cgroup/jobs/memory.max": 4 * GIB,
           "sys/fs/cgroup/jobs/memory.current": 3 * GIB, "sys/fs/cgroup/jobs/memory.stat": f"inactive_file {GIB}\n",
           "sys/fs/cgroup/jobs/mine/memory.max": "max", "sys/fs/cgroup/jobs/mine/memory.current": GIB}  # fmt: skip
    assert memory.free_bytes(tree(tmp_path / "new", info | new)) == 2 * GIB
    old = {"proc/self/cgroup": "3:cpu:/x\n2:memory:/docker/x\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": 3 * GIB,
           "sys/fs/cgroup/memory/memory.usage_in_bytes": GIB}  # fmt: skip
    assert memory.free_bytes(tree(tmp_path / "old", info | old)) == 2 * GIB
    assert memory.free_bytes(tree(tmp_path / "unknown", {"proc/x": ""})) is None


def test_a_training_that_does_not_fit_is_refused_before_it_draws_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loads(SPEC)
    held = sum(int(t.bytes.constant) for _, t in model.parameters.values())

    def prepare() -> Any:
        return training.prepare(model, steps=1, synthetic=True, batch=2, length=8)

    monkeypatch.setattr(memory, "free_bytes", lambda: 3.0 * held - 1)  # two moments, of what is as wide
    with pytest.raises(OutOfMemory, match=r"tiny-llama needs at least .* of parameters and .* is free"):
        prepare()
    monkeypatch.setattr(memory, "free_bytes", lambda: 3.0 * held + 100)
    made = prepare()
    monkeypatch.setattr(memory, "free_bytes", lambda: 1.0)
    with pytest.raises(OutOfMemory, match="working memory of a step"):
        next(made.steps())


def test_caches_that_do_not_fit_are_refused_before_they_are_made() -> None:
    from runtime.session import Session
    from runtime.weights.initial import random

    model = loads(SPEC)
    with pytest.raises(OutOfMemory, match=r"of parameters and .* of caches"):
        memory.require_session(model, 1, 10**12)
    with pytest.raises(OutOfMemory, match="of caches"):
        Session(model, random(model, 0).arrays, batch=1, capacity=10**9)


def test_what_jax_says_of_memory_is_out_of_memory() -> None:
    import jax

    with pytest.raises(OutOfMemory, match="m: Out of memory allocating 9 bytes"), memory.told("m"):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore")
    with pytest.raises(jax.errors.JaxRuntimeError), memory.told("m"):
        raise jax.errors.JaxRuntimeError("INTERNAL: else")
