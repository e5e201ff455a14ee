"""Plans and machines as tables for a terminal. rich is imported only when something is drawn."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from costmodel import units
from costmodel.machines import Machine
from costmodel.plan import Memory, Plan, Row

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SHOWN = 8  # rows of "where the time goes"


def plan_text(plan: Plan, width: int = 100, brief: bool = False) -> str:
    """The drawn plan as plain text."""
    from rich.console import Console

    console = Console(width=width, no_color=True, color_system=None, highlight=False)
    with console.capture() as captured:
        show_plan(plan, console, brief)
    return captured.get()


def escape(text: str) -> str:
    from rich.markup import escape as escaped

    return escaped(text)


def show_plan(plan: Plan, console: Console, brief: bool = False) -> None:
    """Draws a plan: the summary and where the time goes; unless ``brief``, the assumptions and conventions that
    have to do with this call."""
    name, _, rest = plan.call.partition(" · ")
    console.print(f"[bold]{escape(name)}[/] · {escape(rest)}", highlight=False)
    for note in plan.notes:
        console.print(escape(f"note: {note}"), highlight=False)
    console.print(_summary(plan))
    console.print(_rows("where the time goes", plan.by_path, plan))
    if brief:
        return
    for title, lines in (("assumptions", plan.assumptions), ("conventions", plan.conventions)):
        _bullets(console, title, [line for line in lines if line not in plan.aside])
    if plan.aside:
        console.print(f"and {units.counted(len(plan.aside), 'more')} about what this call has not: --json", style="dim")


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        title=title or None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_header=bool(columns),
        pad_edge=False,
    )
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 else "right")
    return table


def _bullets(console: Console, title: str, lines: Iterable[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1))
    for line in lines:
        grid.add_row("-", Text(line))
    console.print(Text(title, style="bold"))
    console.print(grid)


def _summary(plan: Plan) -> Table:
    p, f, t, m, time = plan.parameters, plan.flops, plan.traffic, plan.memory, plan.time
    table = _table("")
    table.add_column("what", style="bold", no_wrap=True)
    table.add_column("value", no_wrap=True, justify="right")
    table.add_column("of which")
    stored = ", ".join(f"{units.memory_text(b)} in {dtype}" for dtype, b in p.bytes_by_dtype.items())
    table.add_row("parameters", f"{p.count:,}", f"embedding {p.embedding:,}, other {p.non_embedding:,}; {stored}")
    each = f"{'an' if plan.unit[0] in 'aeiou' else 'a'} {plan.unit}"
    per_call = "a step" if plan.phase == "decode" else "a call"
    table.add_row(
        f"FLOPs {per_call}",
        units.flop_text(f.matrix),
        "matrix products; beside them "
        f"{units.flop_text(f.vector)} element-wise, {units.count_text(f.transcendental)} exp, tanh …",
    )
    if f.padding:
        whole = f.matrix + f.padding
        told = f"as papers count convolutions: {units.count_text(whole / 2 / plan.tokens)} multiply-adds {each}"
        table.add_row("with padding", units.flop_text(whole), told)
    table.add_row(f"FLOPs {each}", units.flop_text(f.matrix_per_token), "matrix products")
    table.add_row(
        f"HBM bytes {per_call}",
        units.traffic_text(t.fused),
        f"parameters {units.traffic_text(t.parameters)}, "
        f"state {units.traffic_text(t.state)}, other {units.traffic_text(t.activations)} (fused estimate; "
        f"{units.traffic_text(t.unfused)} unfused)",
    )
    where = "memory a chip" if plan.chips > 1 else "memory"
    states = [f"{kind} {units.memory_text(b)}" for kind, b in m.state_by_kind.items() if b >= 1024]
    table.add_row(
        where,
        units.memory_text(m.total),
        ", ".join(
            [
                f"parameters {units.memory_text(m.parameters)}",
                *states,
                f"activations about {units.memory_text(m.activations)}",
            ]
        ),
    )
    table.add_row("fits", "yes" if m.fits else "NO", _fit(plan, m))
    table.add_row(
        "time",
        f"≥ {units.time_text(time.seconds)}",
        f"{time.label}; products alone "
        f"{units.time_text(time.compute_seconds)}, traffic alone {units.time_text(time.memory_seconds)}",
    )
    share = time.memory_share if time.binds == "memory" else 1 - time.memory_share
    table.add_row("bound by", time.binds, f"{share:.0%} of the time")
    bound = "upper bound, all chips together" + ("" if m.fits else "; of no use while it does not fit")
    many = f"{plan.unit}s"
    table.add_row(f"{many}/s", f"≤ {units.rate_text(time.tokens_per_second, many)}", bound)
    return table


def _fit(plan: Plan, m: Memory) -> str:
    have = f"{units.memory_text(m.available)} usable on one {plan.machine}"
    if m.fits:
        room = f"headroom {units.memory_text(m.headroom)} ({m.headroom / m.available:.0%})"
        return f"{have}; {room}; the largest batch that fits is about {m.most_batch:,}"
    short = f"short by {units.memory_text(-m.headroom)}"
    batch = f"batch {m.most_batch:,} would fit; " if m.most_batch else ""
    return f"{have}; {short}; {batch}{m.fewest_chips:,} chips would hold it if all divides evenly"


def _rows(title: str, rows: tuple[Row, ...], plan: Plan) -> Table:
    table = _table(title, "block", "time", "%", "matrix", "HBM bytes", "bound by")
    for row in rows[:SHOWN]:
        share = row.seconds / plan.time.seconds if plan.time.seconds else 0
        table.add_row(
            row.name or "(inputs and length)",
            units.time_text(row.seconds),
            f"{share:.1%}",
            units.flop_text(row.matrix),
            units.traffic_text(row.traffic),
            row.binds,
        )
    rest = rows[SHOWN:]
    if rest:
        seconds = sum(r.seconds for r in rest)
        table.add_row(
            units.counted(len(rest), "other", "others"),
            units.time_text(seconds),
            f"{seconds / plan.time.seconds:.1%}",
            units.flop_text(sum(r.matrix for r in rest)),
            units.traffic_text(sum(r.traffic for r in rest)),
            "",
        )
    return table


def machines_table(found: Iterable[Machine]) -> Table:
    """Machines side by side; a dash is what is not known."""
    table = _table("", "machine", "bfloat16", "HBM", "usable", "bandwidth", "links, one way", "one network", "dated")
    for m in found:
        usable = units.memory_text(m.usable_hbm_bytes) if m.usable_hbm_bytes else "–"
        table.add_row(
            m.name,
            _rate(m, "bfloat16"),
            units.memory_text(m.hbm_bytes),
            usable,
            units.bandwidth_text(m.hbm_bytes_per_s),
            f"{m.links} x {units.bandwidth_text(m.link_bytes_per_s)}",
            f"{m.pod_chips:,} chips, {m.topology.kind}",
            m.date,
        )
    return table


def _rate(m: Machine, dtype: str) -> str:
    return units.flop_rate_text(m.flops_per_s[dtype]) if dtype in m.flops_per_s else "–"


def machine_text(m: Machine) -> dict[str, Any]:
    """A machine's sources and the figures that were not chosen, for ``--sources``."""
    return {"sources": dict(m.sources), "alternatives": dict(m.alternatives)}
