"""Training runs: the loss falls, a seed decides everything, a mesh changes no number, the command line tells it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from blockgraph import api, training
from compiler.errors import BlockgraphError
from compiler.language.model import loads
from runtime.batches import synthetic, windows
from runtime.text.tokenizer import tokenizer
from runtime.train import Diverged
from runtime.weights.initial import random
from runtime.weights.load import export
from tests.docs.pages import named
from tests.runtime.training import OPTIONS, SPEC, finish, lines, start, write


def run(*arguments: str | Path) -> Result:
    from blockgraph.cli.app import app

    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="blockgraph")


def losses(folder: Path, **more: Any) -> list[float]:
    _, text = write(folder)
    options: dict[str, Any] = {"steps": 3, "text": text, "batch": 8, "length": 32, "lr": 1e-2}
    return [s.loss for s in training.prepare(loads(SPEC), **{**options, **more}).steps()]


def test_the_loss_falls_on_text(tmp_path: Path) -> None:
    found = losses(tmp_path, steps=30, warmup=3)
    assert found[0] > 5 and np.mean(found[-3:]) < 3.6


def test_a_seed_decides_everything(tmp_path: Path) -> None:
    first = losses(tmp_path, seed=7)
    assert losses(tmp_path, seed=7) == first
    assert not set(losses(tmp_path, seed=8)) & set(first)


def test_batches_are_of_their_step_and_seed() -> None:
    draw = synthetic(50, 4, 9, seed=1)
    assert draw(3).shape == (4, 9) and draw(3).dtype == np.int32 and draw(3).min() >= 0 and draw(3).max() < 50
    np.testing.assert_array_equal(draw(3), synthetic(50, 4, 9, seed=1)(3))
    assert not np.array_equal(draw(3), draw(4))
    text = np.arange(100)
    for row in windows(text, 100, 5, 10, seed=0)(0):
        np.testing.assert_array_equal(row, np.arange(row[0], row[0] + 10))
    with pytest.raises(BlockgraphError, match="the text has 100 tokens"):
        windows(text, 100, 5, 101, seed=0)
    with pytest.raises(BlockgraphError, match="the text has the token 99"):
        windows(text, 99, 5, 10, seed=0)


def test_training_starts_from_a_checkpoint(tmp_path: Path) -> None:
    model = loads(SPEC)
    export(model, random(model, 0), tmp_path / "x.safetensors")
    assert losses(tmp_path, weights=tmp_path / "x.safetensors") == losses(tmp_path)  # what seed 0 draws


def test_accumulating_changes_no_loss_and_a_warm_up_begins_low(tmp_path: Path) -> None:
    from compiler.parallel.request import Training

    whole = losses(tmp_path)
    np.testing.assert_allclose(losses(tmp_path, training=Training(accumulate=4, remat="none")), whole, rtol=1e-4)
    slow = losses(tmp_path, warmup=100)
    assert slow[0] == whole[0] and slow[1] > whole[1]


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    from compiler.parallel.request import Training

    with pytest.raises(Diverged, match=r"the loss of step|the gradient's norm of step"):
        losses(tmp_path, lr=1e38, training=Training(optimiser="sgd", clip=None))
    with pytest.raises(BlockgraphError, match="lr = inf: takes a finite number"):
        losses(tmp_path, lr=float("inf"))


def test_a_gradient_that_is_no_number_ends_the_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.train import Step, Trainer

    _, text = write(tmp_path)
    made = training.prepare(loads(SPEC), steps=3, text=text, batch=2, length=8)
    monkeypatch.setattr(Trainer, "step", lambda *_: Step(1, 5.0, float("nan"), 1e-3, 1.0, 1.0))
    steps = made.steps()
    assert next(steps).loss == 5.0
    with pytest.raises(Diverged, match="the gradient's norm of step 1 is nan"):
        next(steps)


def test_the_command_prints_a_line_for_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, text = write(tmp_path)
    told = run("train", spec, "--text", text, "--steps", "3", *OPTIONS, "--json")
    assert told.exit_code == 0, told.output
    *steps, whole = lines(told.stdout)
    assert [s["step"] for s in steps] == [1, 2, 3]
    assert set(steps[0]) == {"step", "loss", "gradient_norm", "learning_rate", "seconds", "tokens_per_s", "terms"}
    assert [s["loss"] for s in steps] == losses(tmp_path)
    assert whole["model"] == "tiny-llama" and whole["last_loss"] == steps[-1]["loss"]
    monkeypatch.setattr("blockgraph.cli.train.LONGEST", 0.0)  # 40 steps have a line for every second, unless it is late
    told = run("train", spec, "--synthetic", "--steps", "40", *OPTIONS)
    assert told.exit_code == 0 and "step     39  loss" in told.stdout and "\x1b" not in told.output
    assert told.stdout.startswith("compiled in ") and "tiny-llama on 1 device (cpu)" in told.stdout


def test_trained_weights_are_saved_and_generated_from(tmp_path: Path) -> None:
    from runtime.weights.load import load
    from runtime.weights.shards import load_onto

    _, text = write(tmp_path)
    model = loads(SPEC.partition("\nweights:")[0])  # a spec without published weights
    made = training.prepare(model, steps=3, text=text, batch=8, length=32, lr=1e-2)
    list(made.steps())
    made.save(tmp_path / "w")
    again, onto = load(model, tmp_path / "w").arrays, load_onto(model, tmp_path / "w", {}).arrays
    for label, array in made.trainer.params.items():
        np.testing.assert_array_equal(again[label], array, label)
        np.testing.assert_array_equal(onto[label], array, label)
    pieces = list(api.generate(model, tmp_path / "w", ["caf\u00e9 \n"], max_tokens=4))
    assert [p.row for p in pieces] == [0] * 4 and pieces[-1].done
    ids = tokenizer(tmp_path / "w").encode("caf\u00e9 \n\0")
    assert ids == list("caf\u00e9 \n\0".encode()) and tokenizer(tmp_path / "w").decode(ids) == "caf\u00e9 \n\0"
    told = run("train", "smollm2-135m", "--text", text, "--save", tmp_path / "w")
    assert told.exit_code == 2 and "already-exists" in told.stderr


def test_what_is_missing_or_wrong_is_told(tmp_path: Path) -> None:
    spec, text = write(tmp_path)
    told = run("train", spec, "--steps", "1")
    assert told.exit_code == 2 and "nothing to train on" in told.stderr and "--synthetic" in told.stderr
    assert run("train", spec, "--synthetic", "--text", text).exit_code == 2
    told = run("train", spec, "--text", text, "--set", "vocab=100")
    assert told.exit_code == 2 and "--tokenizer" in told.stderr
    told = run("train", spec, "--synthetic", "--mesh", "data=2", "--json")
    assert told.exit_code == 2 and "needs a strategy" in json.loads(told.stdout)["problems"][0]["message"]
    told = run("train", spec, "--synthetic", "--processes", "2")
    assert told.exit_code == 2 and "--process-id" in told.stderr


def test_the_example_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, text = write(tmp_path)
    spec.rename(tmp_path / "my.yaml"), text.rename(tmp_path / "book.txt")
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    exec(named("training").text, space)
    assert space["step"].step == 20 and "embed.table" in space["weights"]


@pytest.mark.parametrize("mesh", [("--parallel", "fsdp+tensor", "--mesh", "fsdp=4,model=2")], ids=str)
def test_a_mesh_changes_no_number(mesh: tuple[str, ...], tmp_path: Path) -> None:
    spec, text = write(tmp_path)
    common = ("train", spec, "--text", text, "--steps", "3", *OPTIONS, "--json")
    alone, many = start(*common), start(*common, *mesh, devices=8)
    *want, _ = lines(finish(alone))
    *found, whole = lines(finish(many))
    assert whole["devices"] == 8
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose([a["loss"], a["gradient_norm"]], [b["loss"], b["gradient_norm"]], rtol=1e-5)
