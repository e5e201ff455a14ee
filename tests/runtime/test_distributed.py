"""Several real processes on this host are one machine: the same numbers, one printer, one end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from compiler.errors import BlockgraphError
from compiler.language.model import loads
from runtime import distributed
from runtime.weights.initial import random
from runtime.weights.load import export
from tests.runtime.training import OPTIONS, SPEC, finish, free_port, lines, start, start_group, write


def start_slurm(count: int, *arguments: str | Path, devices: int) -> list[subprocess.Popen[str]]:
    """Processes as srun starts them: JAX finds the coordinator from the variables."""
    port = {"JAX_COORDINATOR_PORT": str(free_port()), "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "127.0.0.1"}
    sizes = {"SLURM_NTASKS": str(count), "SLURM_STEP_NUM_TASKS": str(count)}
    mine = [{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(count)]
    return [start(*arguments, devices=devices, **port, **sizes, **m) for m in mine]


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    spec, text = write(tmp_path)
    common = ("train", spec, "--text", text, "--steps", "3", *OPTIONS, "--json")
    *want, _ = lines(finish(start(*common)))
    first, second = (finish(p) for p in start_group(2, *common))
    *found, whole = lines(first)
    assert second == "" and whole["devices"] == 2
    close(found, want)
    mesh = ("--parallel", "fsdp+tensor", "--mesh", "fsdp=2,model=2")
    first, second = (finish(p) for p in start_slurm(2, *common, *mesh, devices=2))
    *found, whole = lines(first)
    assert second == "" and whole["devices"] == 4
    close(found, want)


@pytest.mark.slow
def test_four_processes_are_one(tmp_path: Path) -> None:
    spec, text = write(tmp_path)
    common = ("train", spec, "--text", text, "--steps", "3", *OPTIONS, "--json")
    *want, _ = lines(finish(start(*common)))
    first, *rest = (finish(p) for p in start_group(4, *common))
    *found, whole = lines(first)
    assert rest == [""] * 3 and whole["devices"] == 4
    close(found, want)
    asked = saved(spec, tmp_path)
    first, *rest = (finish(p) for p in start_group(4, *asked, "--parallel", "tensor"))
    assert rest == [""] * 3 and json.loads(first) == json.loads(finish(start(*asked)))


def close(found: list[dict[str, Any]], want: list[dict[str, Any]]) -> None:
    assert len(found) == len(want) == 3
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose([a["loss"], a["gradient_norm"]], [b["loss"], b["gradient_norm"]], rtol=1e-5)


def saved(spec: Path, folder: Path) -> tuple[str | Path, ...]:
    """Random weights of the spec and a tokenizer of bytes; the command that generates from them."""
    model = loads(SPEC)
    export(model, random(model, 3), folder / "x.safetensors")
    letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    words = Tokenizer(models.BPE(vocab=letters, merges=[]))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    words.save(str(folder / "tokenizer.json"))
    return ("generate", spec, "--weights", folder / "x.safetensors", "--max-tokens", "12", "--json",
            "--prompt", "several", "--prompt", "rows of unequal length")  # fmt: skip


def test_two_processes_decode_as_one(tmp_path: Path) -> None:
    spec, _ = write(tmp_path)
    common = saved(spec, tmp_path)
    alone, whole = finish(start(*common)), finish(start(*common, "--parallel", "tensor", devices=2))
    first, second = (finish(p) for p in start_group(2, *common))
    assert second == "" and json.loads(first) == json.loads(alone) == json.loads(whole)
    rows = json.loads(first)["rows"]
    assert [len(r["tokens"]) for r in rows] == [12, 12]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("victim", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_one_process_of_four_is_killed(victim: int, tmp_path: Path) -> None:
    """The others say which and end within a minute, without a traceback."""
    spec, text = write(tmp_path)
    command = ("train", spec, "--text", text, "--steps", "1000000", *OPTIONS, "--json")
    group = start_group(4, *command, more=("--patience", "5"))
    try:
        out = group[0].stdout
        assert out is not None
        assert json.loads(out.readline())["step"] == 1  # all have met
        killed = time.monotonic()
        group[victim].send_signal(signal.SIGKILL)
        told = [p.communicate(timeout=60) for p in group]
        assert time.monotonic() - killed < 60
    finally:
        for p in group:
            p.kill()
    for i, (p, (_, err)) in enumerate(zip(group, told, strict=True)):
        if i == victim:
            continue
        assert p.returncode == 1, err
        assert f"process {victim} of 4" in err and f"process {i}: ending" in err and "[process-lost]" in err
        assert "Traceback" not in err and len(err.splitlines()) <= 2, err


def test_an_error_of_all_is_told_once(tmp_path: Path) -> None:
    spec, text = write(tmp_path)
    group = start_group(2, "train", spec, "--text", text, "--batch", "3", "--length", "32")
    told = [p.communicate(timeout=100)[1] for p in group]
    assert [p.returncode for p in group] == [2, 2]
    assert sum("batch" in t for t in told) == 1 and not any("Traceback" in t for t in told), told


def test_flags_that_do_not_say_which_process_this_is() -> None:
    with pytest.raises(BlockgraphError, match="--process-id must be given too"):
        distributed.connect("localhost:1", 2)
    with pytest.raises(BlockgraphError, match="is not host:port"):
        distributed.connect("localhost", 2, 0)
    with pytest.raises(BlockgraphError, match="--process-id 2"):
        distributed.connect("localhost:1", 2, 2)


def test_the_environment_asks_for_a_group_of_more_than_one() -> None:
    assert not distributed.asked_for({})
    assert not distributed.asked_for({"SLURM_JOB_ID": "1", "SLURM_STEP_NUM_TASKS": "1"})
    assert distributed.asked_for({"SLURM_STEP_NUM_TASKS": "4"})
    assert distributed.asked_for({"OMPI_COMM_WORLD_SIZE": "2"})
    assert distributed.asked_for({"JAX_COORDINATOR_ADDRESS": "host:1"})


def test_no_cluster_is_told() -> None:
    process = start("train", "gemma2-2b", "--synthetic", "--distributed")
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2 and "no cluster was found" in err and "--coordinator host:port" in err
    assert "Traceback" not in err and os.linesep in err
