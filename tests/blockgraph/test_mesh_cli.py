"""Meshes on the command line: explain, the check of a compiled training step, and refusals."""

from __future__ import annotations

import json

import pytest

from blockgraph import api
from blockgraph.meshes import check_training
from tests.blockgraph.command_line import run

MESH = ("--parallel", "fsdp+tensor", "--mesh", "fsdp=4,model=2", "--phase", "train", "--batch", "8")
TINY = {"layers": 4, "embed": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "mlp": 48, "vocab": 96, "window": 8}
SETS = [arg for name, n in TINY.items() for arg in ("--set", f"{name}={n}")] + ["--set", "dtype=float32"]


def test_explain_says_where_weights_lie_and_what_moves() -> None:
    done = run("explain", "gemma2-2b", *MESH, "--length", "256", "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["mesh"] == {"fsdp": 4, "model": 2}
    table = next(p for p in told["parameters"] if p["label"] == "embed.table")
    assert table["placement"] == "[vocab/model embed/fsdp]" and table["bytes"] == 8 * table["bytes_per_device"]
    kinds = {(c["kind"], *c["axes"]) for c in told["collectives"]}
    assert {("all-gather", "fsdp"), ("reduce-scatter", "fsdp")} <= kinds
    assert all(m["why"] for b in told["blocks"] for m in b["moves"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("gemma2-2b", "--parallel", "tensr", "--mesh", "model=2"), "tensor"),
        (("gemma2-2b", "--parallel", "fsdp", "--mesh", "fsdp=3", "--phase", "forward"), "batch = 1"),
        (("recurrentgemma-2b", "--parallel", "tensor", "--mesh", "model=4"), "heads = 10 does not divide by model = 4"),
        (("gemma2-2b", "--parallel", "tensor", "--mesh", "model=2", "--chips", "4"), "model=2 has 2 devices"),
    ],
)
def test_what_does_not_fit_is_told(arguments: tuple[str, ...], said: str) -> None:
    done = run("explain", *arguments)
    assert done.exit_code == 2 and said in done.stderr


def test_options_of_training_need_a_training_step() -> None:
    done = run("compile", "gemma2-2b", "--remat", "full")
    assert done.exit_code == 2 and "--phase train" in done.stderr


def test_a_limit_for_what_is_kept_is_given_in_gib() -> None:
    assert check_training("train", {"remat": "auto", "remat_limit": 4.0}).remat_limit == 4 * 2**30


def test_a_compiled_training_step_holds_exactly_our_collectives() -> None:
    arguments = ["compile", "gemma2-2b", "--target", "cpu:8", *MESH, "--length", "32", "--check", *SETS]
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["devices_used"] == 8 and told["verdict"] == "accepted"
    assert {m["status"] for m in told["check"]["matches"]} == {"equal"}
    ours, theirs = told["figures"]["memory_per_device"], told["memory"]["argument_bytes"]
    assert sum(ours[k] for k in ("parameters", "optimiser", "inputs")) == pytest.approx(theirs, rel=0.01)


@pytest.mark.slow
def test_a_tpu_scatters_the_sums_of_a_batch_of_one_row() -> None:
    """And does not sum the whole on each chip, twice the bytes."""
    model = api.load("gemma2-2b", {"layers": 2, "vocab": 4096})
    made = api.compile(
        model, "tpu:v5e:2x2", phase="forward", batch=1, length=1024, parallel="tensor+sequence", mesh="model=4",
        check=True,
    )  # fmt: skip
    assert made.checked is not None
    scattered = [m for m in made.checked.comparison.matches if m.expected and m.expected[0].kind == "reduce-scatter"]
    large = [m.status for m in scattered if m.expected[0].bytes > 10**6]
    assert large and set(large) <= {"equal", "normalised"}
