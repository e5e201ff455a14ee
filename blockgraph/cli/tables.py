"""What ``show`` and ``diff`` draw."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from blockgraph.cli import screen
from blockgraph.inspect import runs
from costmodel import units

SHOWN = 12  # rows of a list that could go on
ABSENT = "absent"


def _bytes(value: float | None) -> str:
    return "?" if value is None else units.memory_text(value) if value else "0"


def summary(made: Mapping[str, Any], depth: int) -> Iterator[Text | Table]:
    """The parts of ``show``."""
    yield _headline(made)
    yield _blocks(made["parameters"], depth)
    yield screen.facts(_facts(made))
    yield Text("")
    yield _state(made["state"])
    for name in ("sources", "assumed", "warnings"):
        told = made[name]
        if told:
            yield Text(name, style="bold yellow" if name != "sources" else "bold")
            rows = told.items() if isinstance(told, Mapping) else (("", text) for text in told)
            grid = Table.grid(padding=(0, 2))
            for key, text in rows:
                grid.add_row(*([Text("  " + key, style="cyan")] if key else []), screen.cell(text))
            yield grid


def _headline(made: Mapping[str, Any]) -> Text:
    parameters = made["parameters"]
    stored = ", ".join(f"{_bytes(n)} in {dtype}" for dtype, n in parameters["bytes_by_dtype"].items())
    layers = made["layers"]
    told = [f"{n} layers" if len(layers) == 1 else f"{n} x {path}" for path, n in layers.items()]
    text = Text(screen.clean(made["name"]), style="bold")
    if made["paper"]:
        text.append(f"  {screen.clean(made['paper'])}", style="not bold dim")
    if made["stand_in"]:
        text.append(f"\nstand-in: {screen.clean(made['stand_in'])}", style="not bold yellow")
    line = " · ".join([f"{parameters['total']:,} parameters", *([stored] if stored else []), *told])
    return text.append(f"\n{line}", style="not bold")


def _blocks(parameters: Mapping[str, Any], depth: int) -> Table:
    total = parameters["total"]
    table = screen.table("block", "parameters", "%", "a layer", "layers", "bytes")
    for block in parameters["by_block"]:
        level = block["path"].count(".")
        if level >= depth:
            continue
        layers, per_layer = block["layers"], block["per_layer"]
        table.add_row(
            "  " * level + block["path"].rpartition(".")[2],
            f"{block['parameters']:,}",
            screen.share(block["parameters"], total),
            f"{per_layer:,}" if per_layer is not None else "",
            str(layers) if layers else "",
            _bytes(block["bytes"]),
            style="" if level == 0 else "dim" if block["parameters"] < total / 1000 else "",
        )
    table.add_section()
    table.add_row("total", f"{total:,}", "100.0%" if total else "–", "", "", _bytes(parameters["bytes"]), style="bold")
    for name in ("embedding", "non_embedding"):
        count = parameters[name]
        table.add_row("  " + name.replace("_", "-"), f"{count:,}", screen.share(count, total), "", "", "")
    if parameters["active"] != total:  # of sparse experts; the embedding's rows counted as all of it
        table.add_row("  of one token", f"{parameters['active']:,}", screen.share(parameters["active"], total))
    if parameters["trainable"] != total:
        table.add_row("  trainable", f"{parameters['trainable']:,}", screen.share(parameters["trainable"], total))
    return table


def _facts(made: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if made["dims"]:
        yield "dims", screen.named(made["dims"])
    if made["args"]:
        yield "args", screen.named(made["args"])
    yield "inputs", " · ".join(f"{name} {_type(t)}" for name, t in made["inputs"].items())
    yield "outputs", " · ".join(f"{name} {_type(t)}" for name, t in made["outputs"].items())
    yield "dtypes", screen.named(made["dtypes"])
    yield "phases", runs(made["phases"])
    if made["weights"]:
        yield "weights", ", ".join(made["weights"])


def _type(text: str) -> str:
    """``int32[batch seq]`` for ``int32[batch=batch seq=seq]``."""
    head, _, inside = text.partition("[")
    axes = [axis if axis == size else f"{axis}={size}" for axis, _, size in _axes(inside.removesuffix("]"))]
    return f"{head}[{' '.join(axes)}]"


def _axes(inside: str) -> Iterator[tuple[str, str, str]]:
    """Axes with their sizes; a size may hold spaces, a name may not."""
    parts: list[str] = []
    for word in inside.split(" "):
        if "=" in word:
            parts.append(word)
        elif parts:
            parts[-1] += " " + word
    return (part.partition("=") for part in parts)


def _state(state: Mapping[str, Any]) -> Table | Text:
    if "none" in state:
        return screen.cell(f"no decode: {state['none']}")
    title = f"state of one sequence at a context of {state['context']:,}"
    table = screen.table("kind", "bytes", "each further token", "dtype", title=title, left=(0, 3))
    kinds = [k for k in state["kinds"] if k["kind"] != "length"]
    for kind in kinds:
        growth = kind["bytes_per_token"]
        grows = "fixed" if growth == 0 else f"+ {_bytes(growth)}"
        table.add_row(kind["kind"], _bytes(kind["bytes"]), grows, ", ".join(kind["dtypes"]))
    if not kinds:
        return Text("no state: each token alone")
    if len(kinds) > 1:
        grows = f"+ {_bytes(state['bytes_per_token'])}" if state["bytes_per_token"] else "fixed"
        table.add_section()
        table.add_row("all", _bytes(state["bytes"]), grows, "", style="bold")
    if state["unknown_sizes"]:
        table.caption = f"? needs --size {state['unknown_sizes'][0]}=…"
    return table


# -- diff
def differences(made: Mapping[str, Any]) -> Iterator[Text | Table]:
    """The parts of ``diff``."""
    if made["same"]:
        yield screen.cell(f"{made['a']} and {made['b']} are the same in dims, args, parameters, ops and state")
        return
    yield _values(made)
    yield _counts(made)
    yield _tally(made)
    if made["blocks"]["moved"] or any("moved_from" in row for row in made["ops"]):
        yield _moves(made)
    if _told_shapes(made):
        yield _shapes(made)
    if any("moved_from" not in row for row in made["ops"]):
        yield _ops(made)


def _names(made: Mapping[str, Any]) -> tuple[str, str]:
    a, b = made["a"], made["b"]
    return (a, b) if a != b else (f"{a} (first)", f"{b} (second)")


def _two(made: Mapping[str, Any], title: str, *more: str, left: tuple[int, ...] = (0,)) -> Table:
    return screen.table(title, *_names(made), *more, left=left)


def _sides(pair: Any, text: Callable[[Any], str]) -> tuple[str, str]:
    """Both sides of a difference in words; what one has not is absent there."""
    if isinstance(pair, Mapping):
        shown = text(pair["value"])
        return (shown, ABSENT) if pair["only_in"] == "a" else (ABSENT, shown)
    return text(pair[0]), text(pair[1])


def _values(made: Mapping[str, Any]) -> Table:
    table = _two(made, "differs")
    for part in ("dims", "args", "layers", "dtypes", "phases", "inputs", "outputs"):
        text = _type if part in ("inputs", "outputs") else screen.number
        for name, pair in made[part].items():
            table.add_row(*(screen.cell(t) for t in (f"{part}.{name}", *_sides(pair, text))))
    return table


def _moves(made: Mapping[str, Any]) -> Table:
    table = _two(made, "moved, else the same", left=(0, 1, 2))
    for pair in made["blocks"]["moved"]:
        table.add_row("", screen.cell(pair["a"]), screen.cell(pair["b"]))
    for row in made["ops"]:
        if "moved_from" in row:
            table.add_row("", screen.cell(row["moved_from"]), screen.cell(row["path"]))
    return table


def _shapes(made: Mapping[str, Any]) -> Table:
    """Tensors of one path and of another shape, where the count of the block does not tell it."""
    table = _two(made, "shapes", left=(0, 1, 2))
    for path, pair in _told_shapes(made)[:SHOWN]:
        table.add_row(screen.cell(path), *(screen.cell(t) for t in _sides(pair, _type)))
    return table


def _told_shapes(made: Mapping[str, Any]) -> list[tuple[str, Any]]:
    blocks = made["parameters"]["by_block"]
    shapes = made["parameters"]["shapes"].items()
    return [(p, pair) for p, pair in shapes if not isinstance(pair, Mapping) and p.rpartition(".")[0] not in blocks]


def _counts(made: Mapping[str, Any]) -> Table:
    parameters = made["parameters"]
    table = _two(made, "parameters", "change")
    for path, pair in parameters["by_block"].items():
        level = path.count(".")
        if level < 2:
            name = "  " * level + path.rpartition(".")[2] if level else path
            table.add_row(screen.cell(name), *_change(pair["parameters"]))
    table.add_section()
    for name in ("total", "embedding", "non_embedding"):
        table.add_row(name.replace("_", "-"), *_change(parameters[name]), style="bold" if name == "total" else "")
    table.add_section()
    state = made["state"]
    for title, key in ((f"state at {state['context']:,}", "bytes"), ("state, each token", "bytes_per_token")):
        pair = state[key]
        ratio = "" if isinstance(pair, Mapping) else _ratio(*pair)
        table.add_row(title, *_sides(pair, lambda n: "–" if n is None else _bytes(n)), ratio)
    return table


def _tally(made: Mapping[str, Any]) -> Text:
    a, b = _names(made)
    words = {"only_in_a": f"only in {a}", "only_in_b": f"only in {b}"}
    told = [f"{n:,} {words.get(k, k)}" for k, n in made["parameters"]["tensors"].items() if n]
    return screen.cell(f"tensors by path and shape: {' · '.join(told)}\n")


def _change(pair: Any) -> tuple[str, str, str]:
    shown = _sides(pair, lambda n: f"{n:,}")
    if isinstance(pair, Mapping):
        return *shown, "removed" if pair["only_in"] == "a" else "added"
    return *shown, _ratio(*pair)


def _ratio(a: float | None, b: float | None) -> str:
    if not a or b is None:
        return "" if a == b or b is None else "new"
    return "same" if a == b else f"x {b / a:.3g}"


def _ops(made: Mapping[str, Any]) -> Table:
    table = _two(made, "ops that differ at", left=(0, 1, 2))
    rows = [row for row in made["ops"] if "moved_from" not in row]
    for row in rows[:SHOWN]:
        sides = ("\n".join(row[side]) or ABSENT for side in "ab")
        table.add_row(*(screen.cell(t) for t in (row["path"], *sides)))
    rest = len(rows) - SHOWN
    if rest > 0:
        table.add_row(f"{rest} more", "", "")
    return table
