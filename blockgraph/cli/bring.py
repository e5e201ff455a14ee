"""``import``: the spec of a published config.json. Reads files of this machine only; never jax."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blockgraph.cli import screen
from blockgraph.cli.options import Json

if TYPE_CHECKING:
    from blockgraph.importing.config import Imported


def import_(
    config: Annotated[
        str | None, typer.Argument(metavar="CONFIG", help="A config.json, or the folder of a model that has one.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="The spec's file; without it, to stdout.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The spec's name; by default the folder's.")] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option("--ignore", metavar="FIELD", help="Leave out a field that is not known here. Repeatable."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights", metavar="PATH", help="Safetensors to hold the spec against; by default those in the folder."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    types: Annotated[bool, typer.Option("--types", help="List the model types that are covered, and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Write the spec of a Hugging Face config.json, its weights' names included.
    [dim]blockgraph import folder -o my.yaml[/]

    Every field of the config is read, known to be without effect, or refused by name. Where the folder has
    safetensors, the names and shapes in them are held against the spec."""
    from compiler.errors import BlockgraphError, Problem

    if types:
        _types(as_json)
        return
    if config is None:
        raise BlockgraphError(
            Problem("bad-option", "no config is given", None, (), "blockgraph import folder -o my.yaml")
        )
    if out is not None and out.exists() and not force:
        raise BlockgraphError(Problem("already-exists", f"{out} is there already", None, (), "write over it: --force"))
    from blockgraph.importing.config import import_config

    made = import_config(config, ignore or (), name, weights)
    if out is not None:
        from blockgraph.cli.files import write_text

        write_text(out, made.text)
    if as_json:
        screen.print_json({"file": str(out) if out else None, **made.as_json()})
        return
    if out is None:
        typer.echo(screen.clean(made.text), nl=False)
    _tell(made, out)


def _tell(made: Imported, out: Path | None) -> None:
    """What became of the config, to stderr where the spec itself is on stdout."""
    console = screen.console(stderr=out is None)
    head = f"{out}: " if out else ""
    console.print(
        screen.cell(f"{head}{made.model.name}, {made.model_type}, {made.model.parameter_count():,} parameters"),
        soft_wrap=True,
    )
    facts: list[tuple[str, Any]] = []
    reasons: dict[str, list[str]] = {}
    for field, reason in made.ignored.items():
        reasons.setdefault(reason, []).append(field)
    for reason, fields in sorted(reasons.items()):
        facts.append(("" if facts else "without effect", f"{', '.join(fields)}: {reason}"))
    if made.dropped:
        facts.append(("left out", ", ".join(made.dropped)))
    if made.weights:
        facts.append(("weights", f"names and shapes in {made.weights} fit"))
    if facts:
        console.print(screen.facts(facts))
    if made.dropped:
        text = "what was left out may change the numbers: hold the logits against the published ones"
        screen.console(stderr=True).print(f"warning: {text}", style="yellow", markup=False)


def _types(as_json: bool) -> None:
    from blockgraph.importing import types

    found = [types.model_type(n) for n in types.names()]
    if as_json:
        rows = [{"model_type": t.name, "title": t.title, "paper": t.paper, "classes": list(t.classes)} for t in found]
        screen.print_json({"types": rows, "not_covered": types.refused()})
        return
    shown = screen.table("model type", "is", "paper", left=(0, 1, 2))
    for t in found:
        shown.add_row(t.name, screen.cell(t.title), screen.cell(t.paper))
    screen.console().print(shown)
