"""``launch``: a SLURM script or a Kubernetes manifest that runs a command on many hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blockgraph.cli import screen
from blockgraph.cli.options import Json, Spec


def launch(
    spec: Spec,
    command: Annotated[
        list[str], typer.Argument(metavar="-- train …", help="The command, train or generate, and its options.")
    ],
    hosts: Annotated[int, typer.Option("--hosts", min=1, help="Machines.")],
    chips: Annotated[int, typer.Option("--chips-per-host", min=1, help="Accelerators of each.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="What is written; - is stdout.")],
    slurm: Annotated[bool, typer.Option("--slurm", help="A script for sbatch …")] = False,
    kubernetes: Annotated[bool, typer.Option("--kubernetes", help="… or a JobSet for kubectl apply -f.")] = False,
    name: Annotated[str | None, typer.Option("--name", help="Of the job (default: the spec's).")] = None,
    image: Annotated[
        str, typer.Option("--image", help="Kubernetes: an image with blockgraph and jax[k8s].")
    ] = "blockgraph:latest",
    resource: Annotated[str, typer.Option("--resource", help="Kubernetes: what a chip is called.")] = "nvidia.com/gpu",
    selector: Annotated[
        list[str] | None, typer.Option("--node-selector", metavar="KEY=VALUE", help="Kubernetes: which nodes.")
    ] = None,
    minutes: Annotated[int | None, typer.Option("--minutes", min=1, help="SLURM: time limit.")] = None,
    as_json: Json = False,
) -> None:
    """Write what starts a command on many hosts.
    [dim]blockgraph launch gemma2-2b --slurm --hosts 4 --chips-per-host 8 -o job.sh -- train --synthetic[/]"""
    from blockgraph import launching

    job = launching.Job(spec, tuple(command), hosts, chips, name)
    kind = launching.kind_of(slurm, kubernetes)
    if kind == "slurm":
        text = launching.slurm(job, minutes)
    else:
        text = launching.kubernetes(job, image, resource, launching.pairs(selector or ()))
    if str(out) == "-":
        typer.echo(text, nl=False)
        return
    out.write_text(text, "utf-8")
    found = {"kind": kind, "file": str(out), "processes": job.processes(kind), "start": job.start(kind, out)}
    if as_json:
        screen.print_json(found)
        return
    told = f"{out}: {found['processes']} processes; start it: {found['start']}"
    screen.console().print(screen.cell(told), soft_wrap=True)
