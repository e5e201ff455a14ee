"""``launch``: a SLURM script or a Kubernetes manifest that runs a command on many hosts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

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
    _check(job.words()[1:])
    if kind == "slurm":
        text = launching.slurm(job, minutes)
    else:
        text = launching.kubernetes(job, image, resource, launching.pairs(selector or ()))
    printed = str(out) == "-"
    found = {"kind": kind, "file": None if printed else str(out), "processes": job.processes(kind),
             "start": None if printed else job.start(kind, out), "script": text if printed else None}  # fmt: skip
    if not printed:
        out.write_text(text, "utf-8")
    if as_json:
        screen.print_json(found)
        return
    if printed:
        typer.echo(text, nl=False)
        return
    told = f"{out}: {found['processes']} processes; start it: {found['start']}"
    screen.console().print(screen.cell(told), soft_wrap=True)


def _check(words: list[str]) -> None:
    """Reads the command that will be started as the command line will, and runs nothing. Raises BlockgraphError."""
    from blockgraph.cli.app import app
    from blockgraph.cli.group import ClickError, usage_problem
    from compiler.errors import BlockgraphError, Problem

    verb, *rest = words
    command: Any = typer.main.get_command(app)
    try:
        command.commands[verb].make_context(verb, rest)
    except ClickError as error:
        problem = usage_problem(error)
        raise BlockgraphError(replace(problem, message=f"-- {verb}: {problem.message}")) from None
    except typer.Exit:  # --help
        raise BlockgraphError(Problem("bad-option", f"-- {verb}: it would only print its help")) from None
