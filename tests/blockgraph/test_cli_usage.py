"""What the command line says of wrong calls, to readers that leave, and while it works."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from blockgraph import api
from blockgraph.cli.files import whole
from compiler.errors import BlockgraphError
from tests.blockgraph.command_line import ROOT, TINY, run_json
from tests.blockgraph.test_picture import TWO_INPUTS


@pytest.mark.parametrize(
    ("arguments", "code", "words", "suggestion"),
    [
        (("show", "gemma2-9b", "--contxt", "3"), "unknown-option", "no such option: --contxt", "--context"),
        (("show",), "missing-option", "SPEC", None),
        (("simulate", "gemma2-9b", "--batch", "x"), "bad-option", "--batch", None),
        (("compile", "gemma2-9b", "--phase", "sideways"), "bad-option", "'verify'", None),
        (("train", "gemma2-2b", "--synthetic", "--lr", "inf"), "out-of-range", "--lr inf", None),
        (("shwo", "gemma2-9b"), "unknown-command", "no command is called shwo", "show"),
    ],
)
def test_usage_errors_are_json_where_that_is_asked(
    arguments: tuple[str, ...], code: str, words: str, suggestion: str | None
) -> None:
    (problem,) = run_json(*arguments, code=2)["problems"]
    assert problem["code"] == code and words in problem["message"] and problem["suggestion"] == suggestion


def test_help_into_a_closed_pipe_is_quiet() -> None:
    command = f"({sys.executable} -m blockgraph --help; echo code $? >&2) | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == "code 141\n"


def test_long_work_says_so_where_nobody_sees_a_spinner(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from blockgraph.cli import progress

    monkeypatch.setattr(progress, "FIRST", 0.05)
    with progress.Progress("loading", about="tiny") as told:
        told(1, 2)
        told("compiling")
        time.sleep(0.3)
    with progress.Progress("quiet", quiet=True):
        time.sleep(0.1)
    assert capsys.readouterr().err.startswith("tiny: compiling (0 s so far)\n")
    assert capsys.readouterr().err == ""


def test_the_demo_has_help_and_makes_no_folder_of_it() -> None:
    done = subprocess.run([sys.executable, "-m", "blockgraph.demo", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "default: demo" in done.stdout and not (ROOT / "--help").exists()


def test_a_missing_size_is_told_in_the_same_words_everywhere(tmp_path: Path) -> None:
    spec = tmp_path / "two.yaml"
    spec.write_text(TWO_INPUTS.replace(", frames: 20", ""))
    calls = (("simulate", "--machine", "v5e"), ("compile", "--phase", "forward"), ("trace", "--tokens", "1"),
             ("explain", "--parallel", "fsdp", "--mesh", "fsdp=2", "--batch", "2"),
             ("train", "--synthetic"))  # fmt: skip
    for verb, *rest in calls:
        (problem,) = run_json(verb, spec, *rest, code=2)["problems"]
        assert problem["message"] == "the model needs a size for frames" and problem["code"] == "missing-size", verb
        assert problem["suggestion"].startswith("--size frames=16")
    words = tmp_path / "words.txt"
    words.write_text("nothing but words")
    (problem,) = run_json("train", spec, "--text", words, "--size", "frames=16", code=2)["problems"]
    assert problem["code"] == "missing-input" and "audio" in problem["message"]


def test_what_leads_nowhere_is_named_as_it_was_given(tmp_path: Path) -> None:
    def message(*arguments: str | Path) -> str:
        (problem,) = run_json(*arguments, code=2)["problems"]
        return str(problem["message"])

    spec, words = tmp_path / "tiny.yaml", tmp_path / "words.txt"
    spec.write_text(TINY), words.write_text("no array")
    told = message("generate", spec, "--weights", tmp_path / "no" / "where", "--prompt", "x")
    assert told == f"there are no weights at {tmp_path / 'no' / 'where'}"
    assert "is a folder" in message("train", spec, "--text", tmp_path)
    assert "pickle" not in message("trace", spec, "--tokens", "1", "--reference", words)
    (tmp_path / "w").mkdir()
    (tmp_path / "w").chmod(0o500)
    with pytest.raises(OSError, match=r"w/x\.txt") as caught, whole(tmp_path / "w" / "x.txt") as temporary:
        raise FileNotFoundError(2, "gone", str(temporary))
    assert caught.value.filename == str(tmp_path / "w" / "x.txt")
    with pytest.raises(BlockgraphError, match="batch = 'x': takes a whole number"):
        api.compile("gemma2-2b", "cpu", batch="x")  # type: ignore[arg-type]
