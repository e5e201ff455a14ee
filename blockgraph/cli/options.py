"""Options that commands share, and the reading of ``--set`` and ``--size``."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from compiler.language.model import Model

COMMON = "Options of every command with a spec"

Spec = Annotated[str, typer.Argument(metavar="SPEC", help="A shipped name, or the path of a YAML file.")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Change a dim or an arg, as in --set layers=4; --set dtype=float32 sets both dtypes. Repeatable.",
        rich_help_panel=COMMON,
    ),
]
Sizes = Annotated[
    list[str] | None,
    typer.Option(
        "--size",
        metavar="AXIS=N",
        help="The size of a variable axis other than batch and length, as in --size frames=64. Repeatable.",
        rich_help_panel=COMMON,
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document; errors too, as {problems: [...]}.", rich_help_panel=COMMON),
]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Rows: independent sequences in one call.")]
Length = Annotated[int, typer.Option("--length", min=1, help="Tokens of the call; in decode the context that is kept.")]
Weights = Annotated[
    str, typer.Option("--weights", metavar="PATH", help="A .safetensors or .gguf file, or a folder of shards.")
]


class Priced(Enum):
    """The phases that a plan is made for."""

    forward = "forward"
    prefill = "prefill"
    decode = "decode"


class Phase(Enum):
    """What one call of a program does."""

    forward = "forward"
    prefill = "prefill"
    decode = "decode"
    verify = "verify"
    commit = "commit"
    encode = "encode"


def overrides(sets: Sequence[str] | None) -> dict[str, Any]:
    """The values of ``--set``, read as YAML reads them: numbers, words, expressions. Raises SpecError."""
    if not sets:
        return {}
    from compiler.errors import Problems
    from compiler.source.yaml import load_text

    found: dict[str, Any] = {}
    problems = Problems()
    for text in sets:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name or not value:
            problems.add("bad-option", f"--set {text!r} is not name=value", suggestion="--set layers=4")
        elif name in found:
            problems.add("bad-option", f"--set {name} is given twice")
        elif "\n" in value:
            problems.add("bad-option", f"--set {name} takes one line")
        else:
            read = load_text(f"value: {value}", f"--set {name}", problems)
            found[name] = None if read is None else read.get("value")
    problems.raise_if_any()
    return found


def sizes(given: Sequence[str] | None) -> dict[str, int]:
    """The values of ``--size``. Raises SpecError."""
    from compiler.errors import Problems

    found: dict[str, int] = {}
    problems = Problems()
    for text in given or ():
        name, _, value = (part.strip() for part in text.partition("="))
        if not name or not (value.isascii() and value.isdigit() and 0 < len(value) <= 10 and int(value) > 0):
            message = f"--size {text!r} is not axis=n with a whole number n of 1 or more"
            problems.add("bad-option", message, suggestion="--size frames=64")
        elif name in found:
            problems.add("bad-option", f"--size {name} is given twice")
        else:
            found[name] = int(value)
    problems.raise_if_any()
    return found


def loaded(spec: str, sets: Sequence[str] | None = None) -> Model:
    """The model of a spec with ``--set`` applied; its warnings go to stderr."""
    changes = overrides(sets)
    from compiler.language.model import load

    return load(spec, changes)


def warn(model: Model, as_json: bool) -> None:
    """The model's warnings, to stderr for people (JSON documents carry them)."""
    if model.warnings and not as_json:
        from blockgraph.cli import screen

        for text in model.warnings:
            screen.console(stderr=True).print(f"warning: {screen.clean(text)}", style="yellow", markup=False)
