"""The verbs that run something: on a small spec, or with the API replaced where only the command line is asked."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import blockgraph.api as api
from blockgraph.api import Piece
from compiler.errors import Problem, TargetError, WeightsError
from compiler.targets.result import Result
from tests.blockgraph.command_line import ROOT, run, run_json


# -- compile
def result(**changes: Any) -> Result:
    made: dict[str, Any] = {
        "verdict": "accepted", "target": "cpu", "program_hash": "0", "versions": {"jax": "1"},
        "memory": {"argument_bytes": 3 * 2**30, "temp_bytes": None}, "cost": {"flops": 2e9, "bytes_accessed": 1e9},
        "seconds": {"compile": 1.5, "total": 2.0}, "files": {"stablehlo": "/x/stablehlo.txt"},
    }  # fmt: skip
    return Result(**{**made, **changes})


def compiled(monkeypatch: pytest.MonkeyPatch, outcome: Result) -> dict[str, Any]:
    """Replaces the API's compile; what it was asked is in the dict that comes back."""
    asked: dict[str, Any] = {}

    def compile_(model: Any, target: str, **options: Any) -> api.Compiled:
        asked.update(options, target=target)
        names = ("phase", "batch", "length", "chunk", "out")
        phase, *rest = (options[n] for n in names)
        return api.Compiled(model.name, phase or "decode", *rest[:3], outcome, rest[3])

    monkeypatch.setattr(api, "compile", compile_)
    return asked


def test_compile_tells_the_verdict(tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = compiled(monkeypatch, result())
    told = run(
        "compile", tiny, "--phase", "prefill", "--batch", "2", "--length", "64", "--chunk", "16", "--out", tmp_path
    )
    assert told.exit_code == 0, told.output
    assert "tiny · prefill · batch 2 · length 64 · chunk 16 · cpu\naccepted\n" in told.stdout
    assert "argument 3.000 GiB" in told.stdout and "2.00 GFLOP" in told.stdout and "temp" not in told.stdout
    assert (asked["target"], asked["chunk"], asked["out"], asked["time_limit"]) == ("cpu", 16, tmp_path, 600.0)


def test_a_refusal_is_an_answer_with_exit_code_1(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no = result(
        verdict="refused", refused_by="compiler", message="too large", needed_bytes=2**35, available_bytes=2**34
    )
    compiled(monkeypatch, no)
    told = run("compile", tiny, "--target", "tpu:v5e:1x1")
    assert told.exit_code == 1
    assert "REFUSED by its compiler" in told.stdout and "32.00 GiB a device, which has 16.00 GiB" in told.stdout
    assert run_json("compile", tiny, code=1)["verdict"] == "refused"


def test_compile_refuses_before_it_starts(tiny: Path, tmp_path: Path) -> None:
    wrong = run("compile", tiny, "--target", "tpu:v5:1x1")
    assert wrong.exit_code == 2 and "tpu:v5e" in wrong.stderr
    (tmp_path / "file").write_text("")
    assert run("compile", tiny, "--out", tmp_path / "file").exit_code == 2
    for target in ("tpu:v5e:1x1", "cpu"):
        printed = run("compile", tiny, "--target", target, "--print-after", "phase")
        assert printed.exit_code == 0 and "attend_cached" in printed.stdout
        assert ("slots=capacity" in printed.stdout) == (target == "cpu")  # each platform has its own order of caches


@pytest.mark.parametrize("phase", ["forward", "decode"])
def test_compile_for_the_cpu(tiny: Path, tmp_path: Path, phase: str) -> None:
    found = run_json("compile", tiny, "--phase", phase, "--length", "32", "--out", tmp_path / "out")
    assert found["verdict"] == "accepted" and found["target"] == "cpu"
    files = {"stablehlo.txt", "optimised_hlo.txt", "artifact.jaxexport", "summary.json", "compiler.log"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == files
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["phase"] == phase


def test_compile_and_simulate_mean_the_same_call(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode of one row at 8,192; forward, and said to be, where the model looks ahead."""
    monkeypatch.setattr(
        "blockgraph.compiling.run_job", lambda job, progress: result(notes=(job.kwargs["request"]["phase"],))
    )
    compiled_ = run_json("compile", tiny)
    plan = run_json("simulate", tiny, "--machine", "v5e")
    for name in ("phase", "batch", "length"):
        assert compiled_[name] == plan[name] == {"phase": "decode", "batch": 1, "length": 8192}[name]
    assert compiled_["notes"] == ["decode"] and plan["notes"] == []
    tiny.write_text(tiny.read_text().replace("attention: {", "attention: {causal: false, "))
    compiled_ = run_json("compile", tiny)
    plan = run_json("simulate", tiny, "--machine", "v5e")
    assert compiled_["phase"] == plan["phase"] == "forward"
    assert "this is forward" in compiled_["notes"][0] == plan["notes"][0] and compiled_["notes"][1] == "forward"
    assert "note: no phase was asked for" in run("compile", tiny).stdout
    assert run("compile", tiny, "--phase", "decode").exit_code == 2


def test_without_out_no_file_stays(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("BLOCKGRAPH_CACHE", str(tmp_path / "cache"))
    made = api.compile(str(tiny), "cpu", phase="forward", length=16)
    assert made.result.accepted and made.out is None and made.result.files == {}
    assert repr(made) == "<Compiled tiny · forward · batch 1 · length 16 · cpu: accepted>"
    assert list((tmp_path / "temporary").iterdir()) == [] and list((tmp_path / "cache").iterdir())
    with pytest.raises(TargetError) as refused:
        api.compile(str(tiny), "cpu", phase="forward", length=16, time_limit=0.01)
    assert "--out DIR keeps the whole log" in str(refused.value) and "temporary" not in str(refused.value)
    assert list((tmp_path / "temporary").iterdir()) == []


# -- generate
def generating(monkeypatch: pytest.MonkeyPatch, *pieces: Piece | Exception) -> dict[str, Any]:
    asked: dict[str, Any] = {}

    def generate(model: Any, weights: Any, prompts: list[str], **options: Any) -> Iterator[Piece]:
        asked.update(options, prompts=prompts, weights=weights)
        for piece in pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    monkeypatch.setattr(api, "generate", generate)
    return asked


ASK = ("generate", "smollm2-135m", "--weights", "w.gguf")


def test_generate_streams_one_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = generating(
        monkeypatch, Piece(0, 5, "Hel", False), Piece(0, 6, "lo\x1b[31m", False), Piece(0, -1, "!", True)
    )
    told = run(
        *ASK, "--prompt", "Say", "--temperature", "0.7", "--top-p", "0.9", "--top-k", "5", "--seed", "3", "--chat"
    )
    assert told.exit_code == 0 and told.stdout == "Hello\\x1b[31m!\n"
    assert asked["prompts"] == ["Say"] and asked["chat"] and asked["temperature"] == 0.7
    assert (asked["top_p"], asked["top_k"], asked["seed"], asked["max_tokens"]) == (0.9, 5, 3, 64)


def test_generate_writes_rows_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [Piece(1, 1, "b1", False), Piece(0, 2, "a1", False), Piece(1, 3, "b2", True), Piece(0, 4, "a2", True)]
    generating(monkeypatch, *pieces)
    assert run(*ASK, "--prompt", "A", "--prompt", "B").stdout == "1  A\na1a2\n2  B\nb1b2\n"
    generating(monkeypatch, *pieces)
    rows = run_json(*ASK, "--prompt", "A", "--prompt", "B")["rows"]
    assert [(r["prompt"], r["text"], r["tokens"]) for r in rows] == [("A", "a1a2", [2, 4]), ("B", "b1b2", [1, 3])]


def test_generate_tells_errors_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    generating(monkeypatch, WeightsError(Problem("missing-tensor", "w.gguf lacks x")))
    told = run(*ASK, "--prompt", "A")
    assert told.exit_code == 2 and told.stderr == "w.gguf lacks x [missing-tensor]\n" and told.stdout == ""


def test_an_interrupt_ends_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "simulate", interrupted)
    told = run("simulate", "gemma2-9b", "--machine", "v5e")
    assert told.exit_code == 130 and told.output == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_while_compiling_leaves_nothing(tiny: Path, tmp_path: Path, number: int, code: int) -> None:
    """From the keyboard, or from a scheduler."""
    command = [sys.executable, "-m", "blockgraph", "compile", str(tiny), "--out", str(tmp_path / "out")]
    child = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not [*tmp_path.glob("out/.*/compiler.log")] and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(number)
    out, error = child.communicate(timeout=30)
    assert (child.returncode, out, error) == (code, "", "")
    assert not (tmp_path / "out").exists()


# -- trace, export
def test_trace_saves_and_compares(tiny: Path, tmp_path: Path) -> None:
    small, saved = ("trace", tiny, "--set", "layers=2", "--tokens"), tmp_path / "values.npz"
    first = run(*small, "1 2 3", "--tokens", "4,5,6", "-o", saved, "--only", "layer.mlp", "--all")
    assert first.exit_code == 0, first.output
    assert "nodes are finite" in first.stdout and [p.name for p in tmp_path.glob("*.npz")] == ["values.npz"]
    assert "layer.mlp.dot" in first.stdout and "unembed" not in first.stdout
    same = run(*small, "1 2 3", "--tokens", "4,5,6", "--reference", saved)
    assert same.exit_code == 0 and "agree with" in same.stdout
    other = run_json(*small, "1 2 3", "--tokens", "4 5 6", "--random", "1", "--reference", saved, code=1)
    assert (other["first"]["name"], other["first"]["alias"]) == ("embed", "embed.lookup")
    assert other["first"]["difference"] > 0 and other["random_inputs"] == []
    assert {"name", "axes", "shape", "dtype", "rms", "finite"} <= other["nodes"][0].keys()


def test_trace_takes_inputs_from_a_file(tmp_path: Path) -> None:
    """What the file does not name is random, which is said; what does not fit is refused by name."""
    spec, file = ROOT / "tests" / "specs" / "captioner.yaml", tmp_path / "in.safetensors"
    frames = np.random.default_rng(0).standard_normal((1, 5, 10)).astype(np.float32)
    save_file({"frames": frames}, file)
    call = ("trace", spec, "--set", "dtype=float32", "--tokens", "1 2 3")
    told = run(*call, "--inputs", file)
    assert told.exit_code == 0 and told.stderr == "", told.output
    drawn = run(*call, "--size", "frames=5", "--seed", "7")
    assert drawn.exit_code == 0 and "note: random from seed 7: frames (--inputs FILE gives them)" in drawn.stderr
    save_file({"frames": frames, "tokens": np.array([[1, 2, 3]], np.int32)}, file)
    whole = run_json("trace", spec, "--set", "dtype=float32", "--inputs", file)
    assert whole["tokens"] == [[1, 2, 3]] and whole["random_inputs"] == []
    assert whole["nodes"] == run_json(*call, "--inputs", file)["nodes"]
    for wrong, code in (({"frame": frames}, "unknown-input"), ({"frames": frames[..., :3]}, "axis-mismatch"),
                        ({"frames": frames[0]}, "axis-mismatch"), ({"tokens": frames}, "axis-mismatch"),
                        ({"tokens": np.ones((1, 2), np.float32)}, "dtype-mismatch")):  # fmt: skip
        save_file(wrong, file)
        tokens = () if "tokens" in wrong else ("--tokens", "1 2 3")
        assert run_json("trace", spec, *tokens, "--inputs", file, code=2)["problems"][0]["code"] == code
    assert run_json(*call, code=2)["problems"][0]["code"] == "missing-size"
    assert run_json(*call, "--inputs", tmp_path / "no.safetensors", code=2)["problems"][0]["code"] == "file-missing"


def test_trace_tells_an_unknown_block() -> None:
    from blockgraph.cli.traced import show_trace
    from compiler.errors import BlockgraphError

    class Record:
        name, path = "layer.mlp.dot[0]#2", "layer.mlp"

    with pytest.raises(BlockgraphError) as refused:
        show_trace([Record()], None, None, "layer.mpl", False)
    assert refused.value.problems[0].suggestion == "layer.mlp"


@pytest.mark.parametrize(
    "wrong",
    [(), ("--tokens", ""), ("--tokens", "1 x"), ("--tokens", "1000"), ("--tokens", "1", "--tokens", "1 2"),
     ("--tokens", "1", "--prompt", "a"), ("--prompt", "a"), ("--tokens", "1", "--weights", "w", "--random", "1"),
     ("--tokens", "1", "-o", "values.txt"), ("--tokens", "1", "--reference", "nowhere.npz")],
)  # fmt: skip
def test_trace_refuses(tiny: Path, wrong: tuple[str, ...]) -> None:
    told = run("trace", tiny, *wrong)
    assert told.exit_code == 2 and told.stdout == "" and told.stderr


def test_export_refuses_by_name(tiny: Path, tmp_path: Path) -> None:
    unknown = run_json("export", "smollm2-135m", "--weights", "w", "--out", tmp_path / "x", "--format", "gguff", code=2)
    assert unknown["problems"][0]["suggestion"] == "gguf"
    missing = run("export", "smollm2-135m", "--weights", tmp_path / "no.gguf", "--out", tmp_path / "x")
    assert missing.exit_code == 2 and "no.gguf" in missing.stderr and not (tmp_path / "x").exists()


def test_docs_writes_pages(tmp_path: Path) -> None:
    found = run_json("docs", "--out", tmp_path / "pages")["files"]
    assert tmp_path / "pages" / "ops.md" in [Path(f) for f in found]
    (tmp_path / "file").write_text("")
    assert run("docs", "--out", tmp_path / "file").exit_code == 2
