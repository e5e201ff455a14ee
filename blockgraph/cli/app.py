"""The commands in groups. Heavy imports happen inside the commands, so that help and the light verbs start fast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from blockgraph.cli import bring, build, draw, launch, look, mesh, run, train
from blockgraph.cli.group import Group
from blockgraph.cli.guard import guarded

HELP = (
    "One YAML spec of a model: checked, drawn, priced, compiled by the real compilers, and run.\n\n"
    "A SPEC is a shipped name (see [cyan]blockgraph list[/]) or the path of a YAML file.\n\n"
    "Exit codes: 0 done, 1 an answer of no (a program refused, a trace that differs), 2 bad input."
)

app = typer.Typer(
    name="blockgraph",
    cls=Group,
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from blockgraph import __version__

        typer.echo(f"blockgraph {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


COMMANDS: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("Look at models", "list", look.list_),
    ("Look at models", "validate", look.validate),
    ("Look at models", "show", look.show),
    ("Look at models", "graph", draw.graph),
    ("Look at models", "diff", look.diff),
    ("Look at models", "import", bring.import_),
    ("Plan and compile", "simulate", build.simulate),
    ("Plan and compile", "compile", build.compile_),
    ("Plan and compile", "explain", mesh.explain),
    ("Run", "generate", run.generate),
    ("Run", "train", train.train),
    ("Run", "launch", launch.launch),
    ("Run", "trace", run.trace),
    ("Run", "export", run.export),
    ("The language", "schema", draw.schema),
    ("The language", "docs", draw.docs),
)
for _panel, _name, _function in COMMANDS:
    app.command(_name, rich_help_panel=_panel)(guarded(_function))
