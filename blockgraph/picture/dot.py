"""A tree of boxes as Graphviz text. Colours by family: tints of Okabe and Ito's colour-blind-safe palette."""

from __future__ import annotations

from html import escape
from typing import Any

import graphviz

from blockgraph.picture.facts import (
    borrowed_text,
    count_text,
    family,
    inner_sizes,
    layers_text,
    options,
    shape_text,
    state_text,
)
from blockgraph.picture.flow import Exit, changes, column, columns, exits, forked, heads, side_by_side, skips, stack
from blockgraph.picture.items import BOX, FORK, INPUT, JOIN, OUTPUT, PILL, REPEAT, Edge, Item

FONT = "Helvetica"
INK, FAINT, LINE = "#222222", "#6b6b6b", "#5f6670"
FILL = {
    "attention": "#bfdcf2", "recurrence": "#b5e3d3", "experts": "#f3cdb4", "linear": "#fbe3b5",
    "convolution": "#f6f0ae", "vocabulary": "#ecd3e2", "norm": "#e9ecef", "element-wise": "#ffffff",
}  # fmt: skip
PALE = "#9aa1a9"
NARROW = 10  # characters of a cluster's name that leave room beside it
FROZEN, STATE = "#d4d4d4", "#0b5c8a"


def dot(name: str, parameters: int, root: Item, edges: list[Edge]) -> graphviz.Digraph:
    """The whole picture."""
    stack(root, edges)
    edges = forked(root, edges)
    ids = {item: f"n{i}" for i, item in enumerate(root.walk())}
    g = graphviz.Digraph(
        name,
        graph_attr={
            "bgcolor": "white", "fontname": FONT, "fontsize": "11", "fontcolor": INK, "labelloc": "t", "pad": "0.2",
            "ranksep": "0.24", "nodesep": "0.22", "label": _title(name, parameters, root), "newrank": "true",
            "compound": "true",
        },
        node_attr={
            "fontname": FONT, "fontsize": "11", "fontcolor": INK, "shape": "box", "style": "rounded,filled",
            "color": LINE, "penwidth": "0.8", "margin": "0.10,0.045", "height": "0.28", "width": "0.4",
        },
        edge_attr={
            "fontname": FONT, "fontsize": "9", "fontcolor": FAINT, "color": LINE, "arrowsize": "0.55",
            "penwidth": "0.9",
        },
    )  # fmt: skip
    across, beside = columns(root, edges), skips(edges)
    leaving = exits(root, edges, across)
    _cluster(g, root, edges, ids, [e for e in edges if (e.source, e.target) in across])
    for e in edges:
        pair = (e.source, e.target)
        style = {"label": f" {_edge_text(e, edges)}"} if changes(e, edges) else {}
        if e.side:
            style |= {"style": "dashed"}
        elif pair in beside:
            style |= {"color": PALE}
        if e.target.kind == FORK:
            style |= {"dir": "none"}
        if pair in across:
            _lane(g, ids, e, style, heads(column(e), edges))
        else:
            style["weight"] = "1" if e.side or pair in beside else "8"
            out = leaving.get(pair, Exit(e.source, 1, None))
            if out.ranks > 1:
                style["minlen"] = str(out.ranks)
            if out.frame is not None:
                style["ltail"] = f"cluster_{ids[out.frame]}"
            g.edge(ids[out.source], ids[e.target], **style)
    return g


def _lane(g: Any, ids: dict[Item, str], e: Edge, style: dict[str, str], heads: list[Item]) -> None:
    """From the foot of one column up to the head of the next, at the side of the first."""
    top, foot = _lane_ends(ids, e)
    with g.subgraph() as same:
        same.attr(rank="same")
        for name in (*(ids[h] for h in heads), top, ids[e.target]):
            same.node(name)
    with g.subgraph() as same:
        same.attr(rank="same")
        same.node(ids[e.source])
        same.node(foot)
    g.edge(ids[e.source], foot, dir="none", color=PALE, penwidth="1.2")
    g.edge(top, foot, dir="none", color=PALE, penwidth="1.2", weight="8")
    arrow = {k: v for k, v in style.items() if k != "dir"}
    g.edge(top, ids[e.target], **arrow | {"color": PALE, "penwidth": "1.2"})


def _lane_ends(ids: dict[Item, str], e: Edge) -> tuple[str, str]:
    name = f"{ids[e.source]}_{ids[e.target]}"
    return f"top_{name}", f"foot_{name}"


def _edge_text(e: Edge, edges: list[Edge]) -> str:
    """The shape; axes that the source's input has too are left out, but for the first time."""
    arriving = [a.type.pairs for a in edges if a.target is e.source and not a.side and a.source.kind != INPUT]
    known = arriving[0] if arriving else ()
    common = 0
    while common < min(len(known), len(e.type.pairs)) and known[common] == e.type.pairs[common]:
        common += 1
    rest = shape_text(e.type.drop(*(a for a, _ in known[:common])))
    return f"… × {rest}" if common else rest


def _cluster(g: Any, item: Item, edges: list[Edge], ids: dict[Item, str], lanes: list[Edge]) -> None:
    for child in item.children:
        if not child.is_cluster:
            g.node(ids[child], **_node(child, edges))
            continue
        with g.subgraph(name=f"cluster_{ids[child]}") as sub:
            repeat = child.kind == REPEAT
            sub.attr(
                label=_cluster_label(child), style="rounded,filled", fontname=FONT, fontsize="11", labeljust="l",
                labelloc="t", color="#7a828c" if repeat else "#c4c9cf", penwidth="1.2" if repeat else "0.8", margin="9",
                fillcolor="#fafbfc" if repeat else "white",
            )  # fmt: skip
            _cluster(sub, child, edges, ids, lanes)
    for e in lanes:
        if column(e) is item:
            for end in _lane_ends(ids, e):
                g.node(end, label="", shape="point", width="0.015", height="0.015", color=PALE)


def _cluster_label(item: Item) -> str:
    """Two lines: name and how often; which layers and how many parameters."""
    first = f"<b>{escape(item.name)}</b>" if item.name else ""
    lines = [first] if len(item.name) > NARROW else []  # what enters at the middle must not cross the name
    first = "" if lines else first
    if item.times > 1:
        first += ("  " if first else "") + f"<b>× {item.times}</b>"
    if item.tail:
        first += " " + _small(item.tail)
    numbers, total, second = item.layers(), item.total(), list[str]()
    parts = side_by_side(item)
    if numbers and not parts and not (item.parent and item.parent.parent and numbers == item.parent.layers()):
        second.append(f"layer{'s' * (len(numbers) > 1)} {layers_text(numbers)}")
    each = "each" if not numbers else "a layer" if len(numbers) == item.runs() else "a cycle"
    if total and item.runs() > 1 and not parts:
        second.append(f"{count_text(total // item.runs())} {each}")
    if total and (item.runs() == 1 or (item.kind == REPEAT and item.runs() == item.times)):
        second.append(f"{count_text(total)} in all")
    lines += [first, *(_small(t) for t in second)]
    return "<" + "".join(f'{line}<br align="left"/>' for line in lines if line) + ">" if any(lines) else ""


def _small(text: str, colour: str = FAINT) -> str:
    return f'<font point-size="9" color="{colour}">{escape(text)}</font>'


def _node(item: Item, edges: list[Edge]) -> dict[str, str]:
    if item.kind == FORK:
        return {"label": "", "shape": "point", "width": "0.05", "height": "0.05", "fillcolor": LINE}
    if item.kind == JOIN and len(item.name) == 1:
        circle = {"shape": "circle", "fixedsize": "true", "margin": "0", "width": "0.24", "height": "0.24"}
        return {"label": item.name, "fillcolor": "white", "fontsize": "13", **circle}
    if item.kind in (INPUT, OUTPUT):
        assert item.type is not None
        return {"label": f"<<b>{escape(item.name)}</b><br/>{_small(shape_text(item.type))}>", "shape": "plain",
                "fillcolor": "white", "style": "filled"}  # fmt: skip
    if item.kind in (PILL, JOIN):
        return {"label": item.name, "fontsize": "9.5", "margin": "0.08,0.02", "height": "0.2", "fillcolor": "white"}
    lines = [f"<b>{escape(item.name)}</b>"]
    total = item.total()
    if total:
        lines[0] += f" &nbsp;{_small(count_text(total // item.runs()))}"
    kind = family(item)
    facts = [] if kind == "norm" else [", ".join(inner_sizes(item, edges)), ", ".join(options(item))]
    lines += [_small(t) for t in (*facts, *borrowed_text(item)) if t]
    kept = state_text(item)
    if kept:
        lines.append(_small("keeps " + ", ".join(kept), STATE))
    fill = FROZEN if item.all_frozen() else FILL[kind]
    return {"label": "<" + "<br/>".join(lines) + ">", "fillcolor": fill}


def _title(name: str, parameters: int, root: Item) -> str:
    """Name, parameters, and the legend of what is in this picture."""
    boxes = [i for i in root.walk() if i.kind == BOX]
    cells = [f'<td bgcolor="{FILL[f]}" width="14" border="1" color="{LINE}"></td><td>{_small(f)}</td>'
             for f in FILL if any(family(b) == f and not b.all_frozen() for b in boxes)]  # fmt: skip
    if any(b.all_frozen() for b in boxes):
        cells.append(f'<td bgcolor="{FROZEN}" width="14" border="1" color="{LINE}"></td><td>{_small("frozen")}</td>')
    head = f'<font point-size="14"><b>{escape(name)}</b></font> &nbsp; {_small(f"{parameters:,} parameters")}'
    legend = f'<table border="0" cellspacing="4" cellpadding="1" cellborder="0"><tr>{"".join(cells)}</tr></table>'
    return f'<<table border="0" cellspacing="0"><tr><td>{head}</td></tr><tr><td>{legend}</td></tr></table>>'
