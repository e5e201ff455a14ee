"""Scripts for many hosts: what a scheduler reads is there, and the command is the one that was asked for."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.blockgraph.command_line import run

TRAIN = ("train", "--synthetic", "--steps", "5", "--parallel", "fsdp", "--set", "layers=2 * 2")
WORDS = ["blockgraph", "train", "gemma2-2b", *TRAIN[1:], "--distributed"]


def test_a_slurm_script(tmp_path: Path) -> None:
    out = tmp_path / "job.sh"
    told = run("launch", "gemma2-2b", "--slurm", "--hosts", 4, "--chips-per-host", 8, "--minutes", 90, "-o", out,
               "--", *TRAIN)  # fmt: skip
    assert told.exit_code == 0, told.output
    text = out.read_text()
    assert "32 processes" in told.stdout and f"sbatch {out}" in told.stdout
    for line in ("--nodes=4", "--ntasks-per-node=8", "--gpus-per-node=8", "--time=90", "--job-name=gemma2-2b-train"):
        assert f"#SBATCH {line}\n" in text
    (command,) = [line for line in text.splitlines() if line.startswith("srun")]
    assert shlex.split(command) == ["srun", "--kill-on-bad-exit=1", *WORDS]
    assert "coordinator" not in command  # JAX reads SLURM's variables
    assert subprocess.run(["bash", "-n", out], check=False).returncode == 0


def test_a_kubernetes_manifest(tmp_path: Path) -> None:
    out = tmp_path / "job.yaml"
    options = ("--image", "here/blockgraph:1", "--resource", "google.com/tpu", "--node-selector", "pool=a=b")
    told: Any = run("launch", "gemma2-2b", "--kubernetes", "--hosts", 4, "--chips-per-host", 8, *options, "--json",
                    "-o", out, "--", *TRAIN)  # fmt: skip
    assert told.exit_code == 0, told.output
    documents = {d["kind"]: d for d in yaml.safe_load_all(out.read_text())}
    assert list(documents) == ["ServiceAccount", "Role", "RoleBinding", "JobSet"]
    (group,) = documents["JobSet"]["spec"]["replicatedJobs"]
    job = group["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["completionMode"], job["backoffLimit"]) == (4, 4, "Indexed", 0)
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == WORDS and container["image"] == "here/blockgraph:1"
    assert container["resources"]["limits"] == {"google.com/tpu": 8}
    assert pod["restartPolicy"] == "Never" and pod["nodeSelector"] == {"pool": "a=b"}
    # JAX asks the cluster for its pod and job to find the coordinator
    account = documents["ServiceAccount"]["metadata"]["name"]
    assert pod["serviceAccountName"] == account == documents["RoleBinding"]["subjects"][0]["name"]
    allowed = {r for rule in documents["Role"]["rules"] for r in rule["resources"]}
    assert {"pods", "jobs"} <= allowed


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("gemma2-2b", "--slurm", "--", "compile"), "bad-option"),
        (("gemma2-3b", "--slurm", "--", "train"), "unknown-spec"),
        (("gemma2-2b", "--slurm", "--", "train", "--stepz", "3"), "unknown-option"),
        (("gemma2-2b", "--slurm", "--", "train", "--steps", "x"), "bad-option"),
        (("gemma2-2b", "--slurm", "--", "generate", "--prompt", "x"), "missing-option"),
        (("gemma2-2b", "--slurm", "--kubernetes", "--", "train"), "missing-option"),
        (("gemma2-2b", "--", "train"), "missing-option"),
        (("gemma2-2b", "--kubernetes", "--node-selector", "pool", "--", "train"), "bad-option"),
    ],
)
def test_what_cannot_be_launched(arguments: tuple[str, ...], code: str, tmp_path: Path) -> None:
    spec, *rest = arguments
    at = rest.index("--")
    file = tmp_path / "x"
    options = ("--hosts", "2", "--chips-per-host", "4", "-o", file, "--json")
    result = run("launch", spec, *options, *rest[:at], "--", *rest[at + 1 :])
    assert result.exit_code == 2 and f'"code": "{code}"' in result.stdout, result.output
    assert not file.exists()


def test_the_script_goes_to_stdout() -> None:
    told = run("launch", "gemma2-2b", "--slurm", "--hosts", 1, "--chips-per-host", 1, "-o", "-", "--", "train")
    assert told.exit_code == 0 and told.stdout.startswith("#!/bin/bash\n")
    options = ("--hosts", 1, "--chips-per-host", 1, "-o", "-", "--json")
    found = json.loads(run("launch", "gemma2-2b", "--slurm", *options, "--", "train").stdout)
    assert found["script"] == told.stdout and found["file"] is None
