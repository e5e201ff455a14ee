"""``graph``, ``schema``, ``docs``: pictures and pages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blockgraph.cli import options, screen
from blockgraph.cli.options import Json, Sets, Sizes, Spec

FORMATS = (".svg", ".png")


def graph(
    spec: Spec,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="An .svg or .png file (default: NAME.svg here).")
    ] = None,
    depth: Annotated[
        int | None, typer.Option("--depth", min=1, help="Levels of blocks that are opened (default: up to 40 boxes).")
    ] = None,
    sets: Sets = None,
    sizes: Sizes = None,
    as_json: Json = False,
) -> None:
    """Draw the model: repeated layers folded, shapes on the edges.
    [dim]blockgraph graph gemma2-9b -o gemma2.svg[/]

    With --json, prints what the picture holds; it is drawn only where -o says so."""
    from blockgraph.cli.files import file_name, whole
    from compiler.errors import BlockgraphError, Problem, nearest

    if out is not None and out.suffix.lower() not in FORMATS:
        near = nearest(out.suffix.lower(), FORMATS)
        raise BlockgraphError(Problem("unknown-format", f"{out} does not end as a picture does", None, FORMATS, near))
    model = options.loaded(spec, sets)
    import blockgraph.inspect as inspect

    inspect.check_sizes(model, options.sizes(sizes))
    options.warn(model, as_json)
    import blockgraph.picture as picture

    path = out if out is not None or as_json else Path(file_name(model.name, ".svg"))
    if path is not None:
        with whole(path) as temporary:
            picture.draw(model, temporary, depth=depth)
    if as_json:
        made = picture.layout(model, depth)
        screen.print_json({"model": model.name, "file": None if path is None else str(path), "picture": made})
    elif path is not None:
        screen.console().print(screen.cell(f"{path}  {path.stat().st_size:,} bytes"), soft_wrap=True)


def schema(
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE", help="A file instead of stdout.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Accepted for symmetry: it is JSON anyway.")] = False,
) -> None:
    """The JSON Schema of spec files, for editors.
    [dim]blockgraph schema -o blockgraph.schema.json[/]"""
    import json

    from compiler.language.spec import json_schema

    if out is None:
        screen.print_json(json_schema())
        return
    from blockgraph.cli.files import write_text

    write_text(out, json.dumps(json_schema(), indent=2) + "\n")
    _wrote([out], as_json)


def docs(
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Folder of the pages (default: docs/reference; docs for the gallery)."
        ),
    ] = None,
    gallery: Annotated[
        bool, typer.Option("--gallery", help="The page of all shipped specs instead, with their pictures.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the reference pages of blocks and ops from the code, or the gallery of the shipped specs.
    [dim]blockgraph docs --out docs/reference[/]"""
    from blockgraph.cli.files import folder, within
    from blockgraph.cli.progress import Progress

    place = folder(out or ("docs" if gallery else "docs/reference"))
    with Progress("writing", as_json, "docs") as progress:
        if gallery:
            from blockgraph.reference.gallery import write_gallery

            files = write_gallery(place, progress)
        else:
            from blockgraph.reference import write

            files = write(place)
    _wrote(within(files, place), as_json)


def _wrote(files: list[Path], as_json: bool) -> None:
    if as_json:
        screen.print_json({"files": [str(f) for f in files]})
        return
    for file in files:
        screen.console().print(screen.cell(f"{file}"), soft_wrap=True)
