"""A model that takes images and no tokens, on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.blockgraph.command_line import run, run_json

SMALL = """\
name: eyes
dims: {classes: 7}
args: {side: 16}
inputs:
  images: {kind: image, size: [side, side]}
graph:
  - {conv: {to: 8, kernel: 3, stride: 2, bias: true}, name: first}
  - gelu
  - {conv: {to: 8, kernel: 3, groups: 2}, name: second}
  - pool
  - {linear: classes, name: head}
"""


@pytest.fixture
def eyes(tmp_path: Path) -> Path:
    path = tmp_path / "eyes.yaml"
    path.write_text(SMALL)
    return path


def test_validate_and_show(eyes: Path) -> None:
    assert run("validate", eyes).stdout == "eyes: valid, 568 parameters, runs forward\n"
    found = run_json("show", eyes, "--set", "side=32")
    assert found["inputs"] == {"images": "float32[batch=batch height=32 width=32 channel=3]"}
    assert [p for p, runs in found["phases"].items() if runs] == ["forward"]
    assert found["state"]["none"] == "eyes has no token input: it has only a forward phase"


def test_graph(eyes: Path, tmp_path: Path) -> None:
    drawn = run_json("graph", eyes, "-o", tmp_path / "eyes.svg")["picture"]
    boxes = {n["name"]: n for n in drawn["nodes"]}
    assert boxes["first"]["family"] == "convolution" and boxes["first"]["options"] == ["3 × 3, stride 2"]
    assert boxes["second"]["options"] == ["3 × 3, 2 groups"] and boxes["pool"]["options"] == ["mean"]
    assert (tmp_path / "eyes.svg").stat().st_size > 1000


def test_simulate(eyes: Path) -> None:
    plan = run_json("simulate", eyes, "--machine", "v5e", "--phase", "forward", "--batch", "4")
    first, second = 64 * 27 * 8, 64 * 36 * 8  # multiply-adds: places x entries of a kernel x channels
    assert (plan["unit"], plan["tokens"]) == ("image", 4)
    assert (plan["flops"]["matrix"] + plan["flops"]["padding"]) / 2 == 4 * (first + second + 8 * 7)
    text = run("simulate", eyes, "--machine", "v5e").stdout
    for part in ("eyes · forward · batch 1 · v5e", "FLOPs an image", "images/s", "as papers count convolutions"):
        assert part in text
    assert "length 8,192" not in text and "tokens/s" not in text


def test_compile(eyes: Path) -> None:
    found = run_json("compile", eyes, "--target", "cpu", "--phase", "forward", "--batch", "2", "--check")
    assert found["verdict"] == "accepted" and found["check"]["flops"]["equal"]


@pytest.mark.parametrize(
    "command",
    [
        ("simulate", "--machine", "v5e", "--phase", "decode"),
        ("compile", "--target", "cpu", "--phase", "decode"),
        ("show", "--graph", "--phase", "prefill"),
    ],
)
def test_no_decode_and_why(eyes: Path, command: tuple[str, ...]) -> None:
    verb, *rest = command
    result = run(verb, eyes, *rest)
    assert result.exit_code == 2
    assert "eyes has no token input: it has only a forward phase [no-stream]" in result.stderr


def test_trace(eyes: Path, tmp_path: Path) -> None:
    drawn = run_json("trace", eyes)
    assert drawn["tokens"] is None and drawn["random_inputs"] == ["images"]
    file = tmp_path / "in.safetensors"
    save_file({"images": np.ones((3, 16, 16, 3), np.float32)}, file)
    given = run_json("trace", eyes, "--inputs", file)
    assert given["random_inputs"] == []
    assert {n["shape"][0] for n in given["nodes"] if n["name"].startswith("head")} == {3}
    result = run("trace", eyes, "--tokens", "1 2")
    assert result.exit_code == 2 and "eyes takes no tokens" in result.stderr
