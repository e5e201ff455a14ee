"""The verbs that need no compiler: exit codes, JSON, golden texts, no jax."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from blockgraph.cli.files import file_name, within
from compiler.errors import BlockgraphError
from tests.blockgraph.command_line import ROOT, TINY, process, run, run_json


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def test_help_groups_commands_with_an_example_each() -> None:
    text = run("--help").output
    for panel in ("Look at models", "Plan and compile", "Run", "The language"):
        assert panel in text
    for example in ("blockgraph validate my-model.yaml", "blockgraph simulate gemma2-9b --machine v5e"):
        assert example in text


def test_version() -> None:
    from blockgraph import __version__

    assert run("--version").stdout == f"blockgraph {__version__}\n"


def test_list_names_models_and_machines() -> None:
    models = {row["name"]: row for row in run_json("list")["models"]}
    assert models["gemma2-9b"]["parameters"] == 9_242_164_736
    assert models["gemma2-2b"]["extends"] == "gemma2-9b"
    assert "v5e" in {m["name"] for m in run_json("list", "machines")["machines"]}
    assert "gemma2-9b" in run("list").stdout and "v5e" in run("list", "machines").stdout


def test_show_as_text(tiny: Path) -> None:
    found = lines(run("show", tiny, "--context", "100").stdout)
    assert found == lines((Path(__file__).parent / "golden" / "show_tiny.txt").read_text())


def test_show_as_json() -> None:
    found = run_json("show", "gemma2-9b")
    assert found["parameters"]["total"] == 9_242_164_736
    assert found["parameters"]["embedding"] == 917_962_752
    assert found["parameters"]["non_embedding"] == 8_324_201_984
    assert found["layers"] == {"layer": 42}
    assert found["state"]["context"] == 8192


def test_show_prints_the_graph_after_a_pass(tiny: Path) -> None:
    text = run("show", tiny, "--print-after", "select", "--phase", "decode").stdout
    assert text.startswith("# tiny, decode, after select\n") and "attend_cached" in text
    assert run_json("show", tiny, "--graph")["pass"] == "elaborate"


def test_set_changes_dims_args_and_dtypes(tiny: Path) -> None:
    found = run_json("show", tiny, "--set", "layers=2", "--set", "mlp=embed * 4", "--set", "dtype=float32")
    assert found["layers"] == {"layer": 2} and found["dims"]["mlp"] == 64
    assert found["parameters"]["bytes_by_dtype"].keys() == {"float32"}


@pytest.mark.parametrize("wrong", ["layers", "=3", "layers=", "layers=[1", "layer=3", "dtype=float31"])
def test_a_wrong_set_is_a_problem(tiny: Path, wrong: str) -> None:
    result = run("show", tiny, "--set", wrong)
    assert result.exit_code == 2 and result.stdout == "" and "--set" in result.stderr + wrong


@pytest.mark.parametrize("wrong", ["frames", "frames=x", "frames=-1", "frames=0", "frames=2"])
def test_a_wrong_size_is_a_problem(tiny: Path, wrong: str) -> None:
    result = run("show", tiny, "--size", wrong)
    assert result.exit_code == 2 and "frames" in result.stderr


def test_diff_as_text(tiny: Path) -> None:
    result = run("diff", tiny, tiny, "--set", "window=16", "--context", "64")
    assert lines(result.stdout) == lines((Path(__file__).parent / "golden" / "diff_tiny.txt").read_text())
    same = run("diff", tiny, tiny)
    assert same.exit_code == 0 and "are the same" in same.stdout


def test_diff_as_json() -> None:
    found = run_json("diff", "gemma2-9b", "gemma2-2b")
    assert found["args"]["layers"] == [42, 26] and found["parameters"]["total"] == [9_242_164_736, 2_614_636_800]


def test_validate_tells_all_specs(tiny: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text(TINY.replace("- embed\n", "- embd\n").replace("dims:", "dimz:"))
    result = run("validate", tiny, broken, "gema2-9b")
    assert result.exit_code == 2
    assert result.stdout.startswith("tiny: valid, 46,032 parameters, runs forward, prefill, decode, verify, commit\n")
    assert f"{broken}:3:1: no key dimz at the top of a spec [unknown-key]" in result.stderr
    assert "gemma2-9b" in result.stderr
    found = run_json("validate", tiny, broken, code=2)
    assert [row["valid"] for row in found["specs"]] == [True, False]
    assert found["problems"][0]["line"] == 3


def test_unknown_names_suggest_the_nearest() -> None:
    found = run_json("show", "gema2-9b", code=2)
    assert found["problems"][0]["code"] == "unknown-spec" and found["problems"][0]["suggestion"] == "gemma2-9b"
    result = run("simulate", "gemma2-9b", "--machine", "v5")
    assert result.exit_code == 2 and "v5e" in result.stderr and result.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [("shwo",), ("show",), ("simulate", "gemma2-9b"), ("show", "gemma2-9b", "--context", "0"), ("list", "planets"),
     ("compile", "gemma2-9b", "--phase", "sideways"), ("generate", "gemma2-9b", "--weights", "x")],
)  # fmt: skip
def test_usage_errors_exit_2(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and result.stdout == ""


def test_simulate() -> None:
    found = run_json("simulate", "gemma2-9b", "--machine", "v5e", "--batch", "2", "--length", "4096", "--chips", "4")
    assert (found["batch"], found["length"], found["chips"], found["phase"]) == (2, 4096, 4, "decode")
    assert found["parameters"]["count"] == 9_242_164_736
    text = run("simulate", "gemma2-9b", "--machine", "v5e").stdout
    assert text.startswith("gemma2-9b · decode · batch 1 · context 8,192 · v5e\n") and "GiB" in text


def test_simulate_without_a_machine_names_them() -> None:
    told = run("simulate", "gemma2-9b")
    assert told.exit_code == 2 and told.stdout == ""
    first, allowed = told.stderr.splitlines()
    assert first == "simulate needs --machine, whose numbers it prices with [missing-option]"
    assert allowed.startswith("    allowed: ") and "v5e" in allowed


def test_simulate_in_brief_and_in_chunks() -> None:
    call = ("simulate", "gemma2-2b", "--machine", "v5e", "--phase", "prefill", "--length", "4096", "--chunk", "512")
    text, brief = run(*call).stdout, run(*call, "--brief").stdout
    assert text.startswith("gemma2-2b · prefill · batch 1 · length 4,096 · chunk 512 · v5e\n")
    assert text.startswith(brief.rstrip()) and "assumptions" in text and "assumptions" not in brief
    assert len(run_json(*call, "--brief")["assumptions"]) > 5
    wrong = run("simulate", "gemma2-2b", "--machine", "v5e", "--chunk", "512")
    assert wrong.exit_code == 2 and "one prefill or verify call" in wrong.stderr


def test_schema_is_json_schema(tmp_path: Path) -> None:
    printed = json.loads(run("schema").stdout)
    assert printed["$schema"].startswith("https://json-schema.org/")
    assert run("schema", "-o", tmp_path / "deep" / "s.json").exit_code == 0
    assert json.loads((tmp_path / "deep" / "s.json").read_text()) == printed
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["s.json"]


def test_graph_draws_or_tells(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "pictures" / "tiny.svg"
    result = run("graph", tiny, "-o", out)
    assert result.exit_code == 0 and "<svg" in out.read_text()
    assert [p.name for p in out.parent.iterdir()] == ["tiny.svg"]
    assert run_json("graph", tiny)["file"] is None
    wrong = run("graph", tiny, "-o", tmp_path / "tiny.svgg")
    assert wrong.exit_code == 2 and ".svg" in wrong.stderr


def test_a_name_in_a_spec_leads_nowhere(tmp_path: Path) -> None:
    """The language refuses such a name; should it ever not, the file would still be made here."""
    evil = tmp_path / "spec.yaml"
    evil.write_text(TINY.replace("name: tiny", 'name: "../../evil"', 1))
    assert run("graph", evil).exit_code == 2
    assert file_name("../../evil", ".svg") == "evil.svg"
    assert file_name("..", ".svg") == "model.svg"
    with pytest.raises(BlockgraphError, match="not inside"):
        within([tmp_path / ".." / "evil"], tmp_path)


LIGHT = [
    ("list",),
    ("list", "machines"),
    ("validate", "gemma2-9b", "recurrentgemma-2b"),
    ("show", "gemma2-9b"),
    ("show", "smollm2-135m", "--print-after", "select", "--phase", "decode"),
    ("graph", "smollm2-135m", "--json"),
    ("simulate", "gemma2-9b", "--machine", "v5e"),
    ("diff", "gemma-2b", "gemma2-2b"),
    ("import", "tests/fixtures/hf/llama"),
    ("schema",),
]


def test_light_verbs_never_import_jax() -> None:
    script = (
        "import sys\nfrom blockgraph.cli.app import app\n"
        f"for arguments in {LIGHT!r}:\n"
        "    try:\n        app(list(arguments))\n"
        "    except SystemExit as stop:\n        assert not stop.code, (arguments, stop.code)\n"
        "    heavy = [m for m in ('jax', 'jaxlib', 'safetensors', 'tokenizers', 'torch') if m in sys.modules]\n"
        "    assert not heavy, (arguments, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_output_is_plain_and_the_same_each_time() -> None:
    first, second = (process("show", "gemma2-9b", COLUMNS="", FORCE_COLOR="") for _ in range(2))
    assert first.stdout == second.stdout and "\x1b" not in first.stdout and first.stderr == ""
    assert first.returncode == 0


def test_a_closed_pipe_is_quiet() -> None:
    command = f"{sys.executable} -m blockgraph schema; echo code $? >&2"
    done = subprocess.run(f"({command}) | head -c 100 >/dev/null", shell=True, capture_output=True, text=True, cwd=ROOT)
    assert "Traceback" not in done.stderr and "Broken" not in done.stderr
    table = subprocess.run(
        f"({sys.executable} -m blockgraph show gemma2-9b --graph; echo code $? >&2) | true",
        shell=True, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert "Traceback" not in table.stderr and table.stderr.startswith("code 141")


def test_an_output_that_cannot_show_a_sign_does_not_fail() -> None:
    done = process("show", "gemma2-9b", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and "9,242,164,736" in done.stdout


def test_a_cold_simulate_takes_less_than_a_second() -> None:
    """By the processor's time, on an idle machine that of the clock: tests beside this one must not decide."""
    seconds = []
    for _ in range(3):
        start = os.times()
        assert process("simulate", "gemma2-9b", "--machine", "v5e").returncode == 0
        end = os.times()
        seconds.append(end.children_user + end.children_system - start.children_user - start.children_system)
    assert 0 < min(seconds) < 1.0, seconds
