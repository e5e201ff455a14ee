"""What the command line says of wrong calls, to readers that leave, and while it works."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tests.blockgraph.command_line import ROOT, run_json


@pytest.mark.parametrize(
    ("arguments", "code", "words", "suggestion"),
    [
        (("show", "gemma2-9b", "--contxt", "3"), "unknown-option", "no such option: --contxt", "--context"),
        (("show",), "missing-option", "SPEC", None),
        (("simulate", "gemma2-9b", "--batch", "x"), "bad-option", "--batch", None),
        (("compile", "gemma2-9b", "--phase", "sideways"), "bad-option", "'verify'", None),
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
