"""What `compile` writes for the CPU is loaded and run by a process that has none of our code, and decode has no second
copy of the cache: not there, not in our own programs, not on the other targets.

How such a process loads an artifact is LOADER below, whole. The three arguments and the results are dicts: parameters
by label (as `runtime.weights` names them and `show` lists them), state by label, inputs by name, with `valid` [batch],
how many of a row's tokens count; `exported.in_tree` and `in_avals` say them all. The state begins as zeros.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import blockgraph as bg
from compiler.errors import TargetError
from compiler.language.model import Model
from compiler.lower.program import program
from compiler.passes.select import Choice
from compiler.targets import environment, parse_target
from runtime.session import Session
from runtime.weights.initial import random

BATCH, LENGTH, CHUNK = 8, 4096, 16
PROMPTS = [[3 + (7 * row + 5 * i) % 90 for i in range(n)] for row, n in enumerate((16, 1, 9, 16, 2, 12, 7, 3))]
STEPS = 5
SHARE = 0.15  # of the cache, that decode may use beside it
# Small widths at the papers' depths: what a compiler holds of one layer at a time is a small share then.
TINY = {
    "smollm2-135m": "dims: {vocab: 96, embed: 16, heads: 2, kv_heads: 2, head_dim: 8, mlp: 24}",
    "gemma2-9b": "dims: {vocab: 96, embed: 16, heads: 4, kv_heads: 2, head_dim: 16, mlp: 24}\nargs: {window: 1024}",
    "recurrentgemma-2b": "dims: {vocab: 96, embed: 64, rnn: 64, heads: 1}",
}
LOADER = """\
import json, sys
import jax, numpy as np
from jax import export

folder, = sys.argv[1:]
weights = dict(np.load(folder + "/weights.npz"))
calls = np.load(folder + "/calls.npz")

def load(phase):
    with open(f"{folder}/{phase}/artifact.jaxexport", "rb") as file:
        exported = export.deserialize(bytearray(file.read()))
    (params, state, inputs), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    assert {k: v.shape for k, v in params.items()} == {k: v.shape for k, v in weights.items()}
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (params, state, inputs))
    return jax.jit(exported.call, donate_argnums=(1,)).lower(*shapes).compile(), state

prefill, shapes = load("prefill")
decode, same = load("decode")
assert shapes == same
state = {k: jax.numpy.zeros(v.shape, v.dtype) for k, v in shapes.items()}
cache = sum(v.nbytes for v in state.values())
outputs, state = prefill(weights, state, {"tokens": calls["prompts"], "valid": calls["lengths"]})
logits = [np.asarray(outputs["logits"])[:, 0]]
for column in calls["continued"].T:
    old = state
    outputs, state = decode(weights, state, {"tokens": column[:, None], "valid": np.ones_like(column)})
    logits.append(np.asarray(outputs["logits"])[:, 0])
    assert all(v.is_deleted() for k, v in old.items()), "the state was not given away"
np.save(folder + "/logits.npy", np.stack(logits))
memory = decode.memory_analysis()
json.dump({"modules": sorted(sys.modules), "cache": cache, "alias": memory.alias_size_in_bytes,
           "temp": memory.temp_size_in_bytes}, sys.stdout)
"""


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLOCKGRAPH_CACHE", str(tmp_path_factory.mktemp("verdicts")))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifact")


def tiny(base: str, folder: Path, **overrides: int) -> Model:
    """A shipped spec with small sizes, as a user would write it to a file."""
    path = folder / f"tiny-{base}.yaml"
    path.write_text(f"name: tiny-{base}\nextends: {base}\n{TINY[base]}\n")
    return bg.load(path, {"dtype": "float32", **overrides})


def cache_bytes(model: Model) -> int:
    state = program(model, "decode", {"batch": BATCH, "seq": 1, "capacity": LENGTH}).arguments()[1]
    return sum(int(np.prod(s.shape)) * s.dtype.itemsize for s in state.values())


@pytest.fixture(scope="module")
def ours(folder: Path) -> np.ndarray:
    """Logits after prefill and each step in our session, of the calls that the other process gets as files."""
    model = tiny("smollm2-135m", folder, layers=12)
    params = dict(random(model, seed=1).arrays)
    session = Session(model, params, batch=BATCH, capacity=LENGTH, chunk=CHUNK)
    logits = [session.prefill(PROMPTS)]
    tokens = []
    for _ in range(STEPS):
        tokens.append(logits[-1].argmax(-1).astype(np.int32))
        logits.append(session.decode(tokens[-1]))
    padded = np.zeros((BATCH, CHUNK), np.int32)
    for row, prompt in enumerate(PROMPTS):
        padded[row, : len(prompt)] = prompt
    lengths = np.array([len(p) for p in PROMPTS], np.int32)
    np.savez(folder / "calls.npz", prompts=padded, lengths=lengths, continued=np.stack(tokens, 1))
    np.savez(folder / "weights.npz", **params)
    for phase in ("prefill", "decode"):
        chunk = CHUNK if phase == "prefill" else None
        made = bg.compile(model, "cpu", phase=phase, batch=BATCH, length=LENGTH, chunk=chunk, out=folder / phase)
        assert made.result.accepted and (folder / phase / "artifact.jaxexport").is_file()
    return np.stack(logits)


@pytest.fixture(scope="module")
def theirs(folder: Path, ours: np.ndarray) -> dict[str, Any]:
    """What the other process says; it runs in an empty folder with nothing of ours on its path."""
    (folder / "empty").mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "JAX_", "XLA_"))}
    done = subprocess.run(
        [sys.executable, "-P", "-c", LOADER, str(folder)], cwd=folder / "empty", env={**kept, "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_another_process_gives_the_same_logits(ours: np.ndarray, theirs: dict[str, Any], folder: Path) -> None:
    got = np.load(folder / "logits.npy")
    assert got.shape == ours.shape == (1 + STEPS, BATCH, 96)
    assert float(np.ptp(ours)) > 0.1  # logits that say something
    np.testing.assert_allclose(got, ours, atol=1e-5, rtol=0)


def test_it_has_none_of_our_modules(theirs: dict[str, Any]) -> None:
    roots = {name.split(".")[0] for name in theirs["modules"]}
    assert {"jax", "numpy"} <= roots
    assert roots.isdisjoint({"compiler", "runtime", "blockgraph", "costmodel", "specs", "tests"})


def test_it_has_no_second_copy_of_the_cache(theirs: dict[str, Any]) -> None:
    assert theirs["cache"] > 50e6
    assert theirs["alias"] >= theirs["cache"]
    assert theirs["temp"] < SHARE * theirs["cache"]


@pytest.mark.parametrize("base", TINY)
def test_decode_on_cpu_has_no_second_copy_of_the_cache(base: str, folder: Path) -> None:
    model = tiny(base, folder)
    out = folder / f"own-{base}"
    made = bg.compile(model, "cpu", phase="decode", batch=BATCH, length=LENGTH, export=False, out=out)
    memory, cache = made.result.memory, cache_bytes(model)
    assert (memory["alias_bytes"] or 0) >= cache
    assert (memory["temp_bytes"] or cache) < SHARE * cache


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tpu:v5e:1x1", "gpu:h100:1x1"])
def test_decode_of_gemma2_has_no_second_copy_of_the_cache(target: str, folder: Path) -> None:
    try:
        environment.check_installed(parse_target(target))
    except TargetError as e:
        pytest.skip(str(e))
    model = bg.load("gemma2-2b")
    choice = Choice.of(parse_target(target).platform)
    sizes = {"batch": BATCH, "seq": 1, "capacity": 8192}
    state = program(model, "decode", sizes, choice=choice).arguments()[1]
    cache = sum(int(np.prod(s.shape)) * s.dtype.itemsize for s in state.values())
    out = folder / target.replace(":", "-")
    memory = bg.compile(model, target, phase="decode", batch=BATCH, length=8192, export=False, out=out).result.memory
    assert (memory["temp_bytes"] or cache) < SHARE * cache
    if memory["alias_bytes"] is not None:
        assert memory["alias_bytes"] >= cache
