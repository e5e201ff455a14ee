"""``list``, ``validate``, ``show``, ``diff``: what needs no compiler, and never jax."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blockgraph.cli import options, screen
from blockgraph.cli.options import Json, Phase, Sets, Sizes, Spec
from costmodel.calls import BATCH, LENGTH

if TYPE_CHECKING:
    from compiler.errors import Problem

Context = Annotated[int, typer.Option("--context", min=1, help="Tokens of the sequence whose state is told.")]


class What(Enum):
    """What can be listed."""

    models = "models"
    machines = "machines"


def list_(
    what: Annotated[What, typer.Argument(help="models, or machines to simulate on.")] = What.models,
    as_json: Json = False,
) -> None:
    """The shipped models, or the machines.
    [dim]blockgraph list machines[/]"""
    (_machines if what is What.machines else _models)(as_json)


def _models(as_json: bool) -> None:
    from compiler.errors import BlockgraphError
    from compiler.language import table
    from compiler.language.load import shipped
    from compiler.language.model import load
    from costmodel import units

    rows: list[dict[str, Any]] = []
    for name, path in shipped().items():
        try:
            model = load(name)
            sizes = list(table.rows(path)) if path.with_suffix(".csv").is_file() else []
            counts = sorted(load(f"{name}@{sizes[i]}").parameter_count() for i in (0, -1)) if sizes else []
        except BlockgraphError as error:  # one broken file must not hide the others
            rows.append({"name": name, "file": str(path), "problems": [p.as_json() for p in error.problems]})
            continue
        base = model.document.files[1].stem if len(model.document.files) > 1 else None
        rows.append({
            "name": name, "parameters": model.parameter_count(), "paper": model.spec.paper,
            "stand_in": model.spec.stand_in, "extends": base, "file": str(path), 
            **({"sizes": sizes, "parameters_of_sizes": counts} if sizes else {}),
        })  # fmt: skip
    if as_json:
        screen.print_json({"models": rows})
        return
    shown = screen.table("model", "parameters", "paper", left=(0, 2))
    for row in rows:
        broken = units.counted(len(row["problems"]), "problem", "problems") if "problems" in row else ""
        paper = f"{row.get('paper') or ''}{', a stand-in' if row.get('stand_in') else ''}"
        count = broken or f"{row['parameters']:,}"
        if "sizes" in row:
            paper = f"{len(row['sizes'])} sizes, @{row['sizes'][0]} to @{row['sizes'][-1]}: {paper}"
            count = " – ".join(f"{n:,}" for n in row["parameters_of_sizes"])
        shown.add_row(row["name"], count, screen.cell(paper))
    screen.console().print(shown)
    family = next((row for row in rows if "sizes" in row), None)
    if family is not None:
        text = f"a spec of several sizes is one of them by its row, as in show {family['name']}@{family['sizes'][0]}"
        screen.console().print(screen.cell(text), style="dim")


def _machines(as_json: bool) -> None:
    from costmodel.machines import machine, machines

    found = [machine(name) for name in machines()]
    if as_json:
        screen.print_json({"machines": [m.as_json() for m in found]})
        return
    from costmodel.render import machines_table

    screen.console().print(machines_table(found))


def validate(
    specs: Annotated[list[str], typer.Argument(metavar="SPEC...", help="Shipped names, or paths of YAML files.")],
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Check specs: each problem with its line and what is allowed.
    [dim]blockgraph validate my-model.yaml[/]"""
    from blockgraph.inspect import runs
    from compiler.errors import BlockgraphError

    rows, problems = [], []
    for spec in specs:
        try:
            row = _checked(spec, sets)
        except BlockgraphError as error:
            problems += list(error.problems)
            row = {"spec": spec, "valid": False, "problems": [p.as_json() for p in error.problems]}
        rows.append(row)
        if not as_json and row["valid"]:
            text = f"{row['name']}: valid, {row['parameters']:,} parameters, runs {runs(row['phases'])}"
            screen.console().print(screen.cell(text), soft_wrap=True)
            for warning in row["warnings"]:
                screen.console(stderr=True).print(screen.cell(f"warning: {warning}"), style="yellow", soft_wrap=True)
    if as_json:
        screen.print_json({"specs": rows, "problems": [p.as_json() for p in problems]})
    elif problems:
        from blockgraph.cli.guard import tell

        tell(problems)
    if problems:
        raise typer.Exit(2)


def _checked(spec: str, sets: list[str] | None) -> dict[str, Any]:
    """One valid spec in short. Raises with all problems, those of its weight mappings too."""
    import blockgraph.inspect as inspect
    from compiler.errors import SpecError
    from runtime.weights import mapping

    model = options.loaded(spec, sets)
    faults: list[Problem] = mapping.check(model)
    if faults:
        raise SpecError(faults)
    return {"spec": spec, "valid": True, "name": model.name, "parameters": model.parameter_count(),
            "phases": inspect.phases(model), "warnings": list(model.warnings)}  # fmt: skip


def show(
    spec: Spec,
    context: Context = 8192,
    depth: Annotated[int, typer.Option("--depth", min=1, help="Levels of blocks in the table.")] = 2,
    graph: Annotated[bool, typer.Option("--graph", help="Print the op graph instead, as text.")] = False,
    after: Annotated[
        str | None,
        typer.Option(
            "--print-after", metavar="PASS", help="Print it after elaborate, phase, select, loss or differentiate."
        ),
    ] = None,
    phase: Annotated[Phase, typer.Option("--phase", help="Of the graph that is printed.")] = Phase.forward,
    batch: options.Batch = BATCH,
    length: options.Length = LENGTH,
    sets: Sets = None,
    sizes: Sizes = None,
    as_json: Json = False,
) -> None:
    """Parameters by block, dims, inputs, state, sources and guesses.
    [dim]blockgraph show gemma2-9b --context 32768[/]

    In JSON: parameters.total, .embedding and .non_embedding. Embedding parameters are the tables that tokens look
    up, counted once when tied, and an untied output matrix over the same vocabulary; the graph tells them, no name.
    """
    model = options.loaded(spec, sets)
    given = options.sizes(sizes)
    if graph or after:
        name = after or ("elaborate" if phase is Phase.forward else "phase")
        print_graph(model, name, phase.value, (batch, length, None), given, as_json)
        return
    import blockgraph.inspect as inspect

    made = inspect.summary(model, context, given)
    if as_json:
        screen.print_json(made)
        return
    from blockgraph.cli.tables import summary

    for part in summary(made, depth):
        screen.console().print(part)


def print_graph(
    model: Any,
    name: str,
    phase: str,
    call: tuple[int, int, int | None],
    given: dict[str, int],
    as_json: bool,
    platform: str = "cpu",
) -> None:
    """Prints the op graph of a phase after a pass. ``call``: batch, length, chunk."""
    import blockgraph.inspect as inspect
    from compiler.passes.call import check_chunk, sizes_for

    inspect.check_sizes(model, given)
    check_chunk(phase, *call[1:])
    made = inspect.after(model, name, phase, sizes_for(phase, *call, given), platform)
    if as_json:
        screen.print_json({"model": model.name, "phase": phase, "pass": name, "graph": list(made.lines())})
        return
    console = screen.console()
    console.print(screen.cell(f"# {model.name}, {phase}, after {name}"), style="dim", soft_wrap=True)
    for line in made.lines():
        console.print(screen.cell(line), soft_wrap=True)


def diff(
    first: Annotated[str, typer.Argument(metavar="SPEC")],
    second: Annotated[str, typer.Argument(metavar="SPEC")],
    context: Context = 8192,
    sets: Sets = None,
    sizes: Sizes = None,
    as_json: Json = False,
) -> None:
    """How two models differ: dims, args, parameters, ops, state.
    [dim]blockgraph diff gemma-2b gemma2-2b[/]

    --set changes the second, so `diff gemma2-9b gemma2-9b --set layers=10` tells what a change does."""
    a, b = options.loaded(first), options.loaded(second, sets)
    import blockgraph.inspect as inspect
    from blockgraph.difference import difference

    given = options.sizes(sizes)
    for name in given:
        check: Callable[..., None] = inspect.check_sizes
        if name not in inspect.variable_axes(a):
            check(b, {name: given[name]})
    made = difference(a, b, context, given)
    if as_json:
        screen.print_json(made)
        return
    from blockgraph.cli.tables import differences

    for part in differences(made):
        screen.console().print(part)
