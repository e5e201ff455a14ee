"""Scripts that start a command on many hosts. Who joins the processes, and where, JAX finds by itself there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from compiler.errors import BlockgraphError, Problem, nearest
from compiler.language.load import shipped

COMMANDS = ("train", "generate")
KINDS = ("slurm", "kubernetes")


@dataclass(frozen=True)
class Job:
    """A command of the command line on ``hosts`` machines of ``chips`` accelerators each. ``command``: its name and
    options, without the spec. Raises BlockgraphError for a command that does not run on many hosts."""

    spec: str
    command: tuple[str, ...]
    hosts: int
    chips: int
    title: str | None = None

    def __post_init__(self) -> None:
        verb = self.command[0] if self.command else ""
        if verb not in COMMANDS:
            message = f"{verb or 'nothing'} is not launched on many hosts"
            raise BlockgraphError(Problem("bad-option", message, None, COMMANDS, nearest(verb, COMMANDS)))
        if not Path(self.spec).is_file() and self.spec not in shipped():
            known = tuple(shipped())
            message = f"there is no spec {self.spec}"
            raise BlockgraphError(Problem("unknown-spec", message, None, (), nearest(self.spec, known)))

    @property
    def name(self) -> str:
        """Lower case letters, digits and hyphens, as both schedulers take them."""
        words = re.sub(r"[^a-z0-9]+", "-", (self.title or f"{Path(self.spec).stem}-{self.command[0]}").lower())
        return words.strip("-")[:40].strip("-") or "blockgraph"

    def words(self) -> list[str]:
        """The command line of each process."""
        verb, *rest = self.command
        joined = [] if "--distributed" in rest or "--coordinator" in rest else ["--distributed"]
        return ["blockgraph", verb, self.spec, *rest, *joined]

    def processes(self, kind: str) -> int:
        """SLURM: one for each chip, as JAX divides a host's GPUs there. Kubernetes: one for each host."""
        return self.hosts * (self.chips if kind == "slurm" else 1)

    def start(self, kind: str, file: Path) -> str:
        return f"sbatch {file}" if kind == "slurm" else f"kubectl apply -f {file}"


def kind_of(slurm: bool, kubernetes: bool) -> str:
    """Which of the two was asked for. Raises unless exactly one was."""
    if slurm == kubernetes:
        message = "both --slurm and --kubernetes are given" if slurm else "which scheduler is not said"
        raise BlockgraphError(Problem("missing-option", message, None, ("--slurm", "--kubernetes")))
    return "slurm" if slurm else "kubernetes"


def pairs(given: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE options. Raises BlockgraphError."""
    found = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise BlockgraphError(Problem("bad-option", f"{text!r} is not key=value"))
        found[key] = value
    return found


def slurm(job: Job, minutes: int | None = None) -> str:
    """A script for sbatch: one task for each chip. JAX reads the host list, the number of tasks and this one's number
    from SLURM; one task's end ends all."""
    limit = [f"#SBATCH --time={minutes}"] if minutes else []
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name={job.name}",
        f"#SBATCH --nodes={job.hosts}",
        f"#SBATCH --ntasks-per-node={job.chips}",
        f"#SBATCH --gpus-per-node={job.chips}",
        "#SBATCH --exclusive",
        "#SBATCH --output=%x-%j.out",
        *limit,
        "",
        "set -euo pipefail",
        "# JAX takes its coordinator, the number of processes and this one's number from SLURM's variables",
        f"srun --kill-on-bad-exit=1 {shlex.join(job.words())}",
    ]
    return "\n".join(lines) + "\n"


def kubernetes(job: Job, image: str, resource: str, selector: Mapping[str, str] | None = None) -> str:
    """A JobSet: one pod for each host, restarted never. JAX asks the cluster for its pods to find the coordinator,
    which the service account of the manifest may do (the image needs jax[k8s])."""
    account = f"{job.name}-jax"
    rules = [
        {"apiGroups": [""], "resources": ["pods", "services"], "verbs": ["get", "list"]},
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get"]},
    ]
    container: dict[str, Any] = {
        "name": "blockgraph",
        "image": image,
        "command": job.words(),
        "resources": {"limits": {resource: job.chips}},
    }
    pod: dict[str, Any] = {"serviceAccountName": account, "restartPolicy": "Never", "containers": [container]}
    if selector:
        pod["nodeSelector"] = dict(selector)
    work = {
        "parallelism": job.hosts,
        "completions": job.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "template": {"spec": pod},
    }
    named = {"metadata": {"name": account}}
    documents: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "ServiceAccount", **named},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", **named, "rules": rules},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", **named,
            "subjects": [{"kind": "ServiceAccount", "name": account}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account},
        },
        {
            "apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": {"name": job.name},
            "spec": {
                "failurePolicy": {"maxRestarts": 0},
                "replicatedJobs": [{"name": "hosts", "replicas": 1, "template": {"spec": work}}],
            },
        },
    ]  # fmt: skip
    return yaml.safe_dump_all(documents, sort_keys=False, width=110)
