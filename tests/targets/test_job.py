"""Compile jobs on the real compilers: CPU always, TPU and GPU where their extras are installed."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from compiler.errors import InternalError, SpecError, TargetError
from compiler.targets import Job, environment, parse_target, run

UPDATE = "tests.targets.entries:update"
BF16_512 = 512 * 512 * 2


def missing(platform: str) -> bool:
    try:
        environment.check_installed(parse_target({"tpu": "tpu:v5e", "gpu": "gpu:h100"}[platform]))
    except TargetError:
        return True
    return False


needs_tpu = pytest.mark.skipif(missing("tpu"), reason="the TPU compiler (libtpu) is not installed: blockgraph[tpu]")
needs_gpu = pytest.mark.skipif(missing("gpu"), reason="the GPU compiler is not installed: blockgraph[gpu]")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BLOCKGRAPH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def job(target: str, out: Path, entry: str = UPDATE, limit: float = 120, **kwargs: Any) -> Job:
    return Job(target, entry, kwargs, str(out), limit)


def problem_of(one: Job) -> tuple[str, str]:
    with pytest.raises(TargetError) as caught:
        run(one)
    (problem,) = caught.value.problems
    return problem.code, problem.message


def test_a_cpu_job_is_compiled_once(tmp_path: Path, own_cache: Path) -> None:
    stages: list[str] = []
    first = run(job("cpu:8", tmp_path / "one"), stages.append)
    assert stages == ["importing", "building", "tracing", "lowering", "compiling", "exporting"]
    assert first.accepted and not first.cached and first.refused_by is None
    assert first.memory["argument_bytes"] == BF16_512 // 8 + BF16_512
    assert first.memory["alias_bytes"] == BF16_512 // 8
    assert first.cost["flops"] is not None and first.cost["flops"] > 2 * 512**3 / 8
    assert set(first.seconds) == {"import", "build", "trace", "lower", "compile", "export", "total"}
    assert set(first.versions) == {"jax", "jaxlib"}
    text = {kind: Path(path).read_bytes() for kind, path in first.files.items()}
    assert set(text) == {"stablehlo", "optimised_hlo", "export"}
    assert b"stablehlo.dot_general" in text["stablehlo"] and b"HloModule" in text["optimised_hlo"]
    names = {"stablehlo.txt", "optimised_hlo.txt", "artifact.jaxexport", "compiler.log"}
    assert {p.name for p in (tmp_path / "one").iterdir()} == names

    again: list[str] = []
    second = run(job("cpu:8", tmp_path / "two"), again.append)
    assert "cached" in again and "compiling" not in again
    assert second.cached and second.program_hash == first.program_hash
    assert second.memory == first.memory and second.seconds["compile"] == first.seconds["compile"]
    assert Path(second.files["optimised_hlo"]).read_bytes() == text["optimised_hlo"]

    (stored,) = own_cache.glob("*.hlo.gz")
    stored.write_bytes(gzip.compress(b"HloModule of somebody else"))
    third = run(Job("cpu:8", UPDATE, {}, str(tmp_path / "two"), 120, artifacts=("stablehlo",)))
    assert not third.cached
    assert set(third.files) == {"stablehlo"} and not (tmp_path / "two" / "optimised_hlo.txt").exists()


def test_the_order_of_devices_is_part_of_the_program(tmp_path: Path) -> None:
    straight, turned = (run(job("cpu:2", tmp_path, turned=turned)) for turned in (False, True))
    assert straight.program_hash != turned.program_hash and not turned.cached


def test_an_artifact_runs_when_it_is_read_back(tmp_path: Path) -> None:
    result = run(job("cpu", tmp_path))
    code = """if True:
        import sys, pathlib, jax, jax.numpy as jnp
        from jax import export
        artifact = export.deserialize(bytearray(pathlib.Path(sys.argv[1]).read_bytes()))
        assert artifact.platforms == ("cpu",) and artifact.nr_devices == 1
        state, weights = jnp.ones((512, 512), jnp.bfloat16), jnp.zeros((512, 512), jnp.bfloat16)
        assert (artifact.call(state, weights) == 1).all()
    """
    command = [sys.executable, "-P", "-c", code, result.files["export"]]
    subprocess.run(command, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})


def test_folders_of_the_same_names_do_not_hide_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("specs", "compiler", "tests", "jax"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('the wrong one')")
    for name in ("runtime.py", "json.py", "queue.py"):
        (tmp_path / name).write_text("raise ImportError('the wrong one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
    monkeypatch.setenv("XLA_FLAGS", "--no_such_flag")
    result = run(job("cpu", Path("out")))
    assert result.accepted and Path(result.files["stablehlo"]) == tmp_path / "out" / "stablehlo.txt"


def test_no_verdict_in_time_ends_the_whole_group(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    start = time.monotonic()
    entry = "tests.targets.entries:sleeps"
    code, message = problem_of(job("cpu", tmp_path, entry, 4, seconds=300, marker=str(marker)))
    assert code == "no-verdict" and "no verdict within 4 s for cpu (it was building)" in message
    assert time.monotonic() - start < 30
    assert marker.exists(), "the entry had not started"
    deadline = time.monotonic() + 5
    while alive(int(marker.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(int(marker.read_text()))


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_a_problem_of_the_spec_comes_back_as_itself(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        run(job("cpu", tmp_path, "tests.targets.entries:wrong_spec"))
    (problem,) = caught.value.problems
    assert (problem.code, problem.suggestion, problem.allowed) == ("unknown-op", "bar", ("bar",))
    assert "printed by the entry" in (tmp_path / "compiler.log").read_text()


def test_an_entry_that_fails_is_told_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(InternalError) as caught:
        run(job("cpu", tmp_path, "tests.targets.entries:broken"))
    assert caught.value.exit_code == 70
    ((code, message),) = ((p.code, p.message) for p in caught.value.problems)
    assert code == "entry-failed" and "ValueError: seven is not eight (a fault of Blockgraph" in message
    assert str(tmp_path / "compiler.log") in message


def test_a_compiler_that_dies_is_told_with_its_last_words(tmp_path: Path) -> None:
    code, message = problem_of(job("cpu", tmp_path, "tests.targets.entries:dies"))
    assert code == "compiler-died" and "signal 6 while building" in message and "last words" in message


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"entry": "nowhere"}, "is not a name"),
        ({"entry": "tests.targets.nowhere:update"}, "cannot be imported"),
        ({"entry": "tests.targets.entries:nothing"}, "has no 'nothing'"),
        ({"artifacts": ("hlo",)}, "no artifact 'hlo'"),
        ({"time_limit": 0}, "the time limit is 0"),
        ({"time_limit": float("inf")}, "the time limit is inf"),
        ({"kwargs": {"size": {1, 2}}}, "not JSON"),
    ],
)
def test_a_wrong_job_is_told(tmp_path: Path, change: dict[str, Any], part: str) -> None:
    fields: dict[str, Any] = {"target": "cpu", "entry": UPDATE, "out": str(tmp_path), "time_limit": 60}
    code, message = problem_of(Job(**{**fields, **change}))
    assert code == "bad-job" and part in message


def test_a_missing_extra_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "EXTRAS", {"tpu": ("no_libtpu",), "gpu": ("no_plugins.cuda",)})
    for target, line in (
        ("tpu:v5e", 'pip install "blockgraph[tpu]"'),
        ("gpu:h100", 'pip install "blockgraph[gpu]"'),
    ):
        code, message = problem_of(job(target, tmp_path))
        assert code == "missing-extra" and line in message and "\n" not in message


@needs_tpu
def test_tpu_accepts_what_fits(tmp_path: Path) -> None:
    result = run(job("tpu:v5e", tmp_path))
    assert result.accepted and "libtpu" in result.versions
    assert result.memory["argument_bytes"] == 2 * BF16_512 and result.memory["alias_bytes"] == BF16_512
    assert (result.memory["peak_bytes"] or 0) >= 2 * BF16_512
    assert "export" in result.files and "HloModule" in Path(result.files["optimised_hlo"]).read_text()


@needs_tpu
def test_tpu_refuses_what_does_not_fit(tmp_path: Path) -> None:
    result = run(job("tpu:v5e", tmp_path, size=100_000))
    assert result.verdict == "refused" and result.refused_by == "compiler"
    assert "RESOURCE_EXHAUSTED" in (result.message or "")
    assert (result.needed_bytes or 0) > 2 * 2 * 100_000**2 > (result.available_bytes or 0) > 15 * 2**30
    assert "export" not in result.files and "optimised_hlo" not in result.files
    assert run(job("tpu:v5e", tmp_path, size=100_000)).cached


@needs_tpu
@pytest.mark.slow
@pytest.mark.parametrize(
    "target",
    ["tpu:v5e:1x2", "tpu:v5e:2x4:slices=2", "tpu:v6e:2x2", "tpu:v4", "tpu:v4:2x2x2", "tpu:v5p:1x1x1",
     "tpu:v5p:4x4x4", "tpu:7x", "tpu:7x:2x2x1"],
)  # fmt: skip
def test_every_type_of_tpu_compiles(tmp_path: Path, target: str) -> None:
    assert run(job(target, tmp_path)).accepted


@needs_gpu
def test_gpu_accepts_what_fits(tmp_path: Path) -> None:
    result = run(job("gpu:h100:1x8", tmp_path))
    assert result.accepted and "jax-cuda12-plugin" in result.versions
    assert result.memory["argument_bytes"] == BF16_512 // 8 + BF16_512
    assert result.cost == {"flops": None, "bytes_accessed": None}
    assert "export" in result.files


@needs_gpu
def test_a_gpu_program_larger_than_the_card_is_refused_by_its_size(tmp_path: Path) -> None:
    result = run(job("gpu:h100", tmp_path, size=200_000))
    assert result.verdict == "refused" and result.refused_by == "memory size"
    assert (result.needed_bytes or 0) > (result.available_bytes or 0) == 84_942_979_072


@needs_gpu
@pytest.mark.slow
@pytest.mark.parametrize("target", ["gpu:a100:1x4", "gpu:h200:2x8", "gpu:b200", "gpu:b200:2x8"])
def test_every_type_of_gpu_compiles(tmp_path: Path, target: str) -> None:
    assert run(job(target, tmp_path)).accepted


def test_job_survives_json(tmp_path: Path) -> None:
    one = job("cpu", tmp_path, size=8)
    assert Job.from_json(one.to_json()) == one


def test_the_child_gets_a_clean_environment() -> None:
    base = {
        "JAX_PLATFORMS": "tpu",
        "XLA_FLAGS": "--x",
        "LIBTPU_INIT_ARGS": "--y",
        "HOME": "/h",
        "PYTHONPATH": ".",
    }
    found = environment.child_environment(parse_target("tpu:v5e"), base)
    assert found["HOME"] == "/h" and found["JAX_PLATFORMS"] == "cpu" and found["XLA_FLAGS"] == ""
    assert found["TPU_SKIP_MDS_QUERY"] == "1" and "LIBTPU_INIT_ARGS" not in found
    assert os.path.isabs(found.get("PYTHONPATH", "/"))
