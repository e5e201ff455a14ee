"""What a box says about itself, read off its ops: its family, sizes inside, options, parameters, state."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

from blockgraph.picture.items import Edge, Item
from compiler.graph.sizes import Size
from compiler.graph.types import TensorType
from compiler.ops.bias import Bias
from compiler.ops.conv import GROUPS, Conv
from compiler.ops.elementwise import ACTIVATIONS, Map
from compiler.ops.experts import BOOKS, Choose
from compiler.ops.frequencies import NONE
from compiler.ops.pool import Pool
from compiler.ops.rotate import Rotate
from compiler.ops.shape import Reduce
from compiler.ops.windows import TAPS, Window

# A box belongs to the first family that one of its ops is in.
FAMILIES: dict[str, tuple[str, ...]] = {
    "attention": ("attend", "attend_cached", "attend_latent"),
    "recurrence": ("recur", "linear_attend", "short_conv", "shift"),
    "experts": ("choose", "dispatch", "expert_dot"),
    "convolution": ("conv",),
    "vocabulary": ("lookup",),
    "linear": ("dot",),
    "norm": ("norm",),
}
OTHER = "element-wise"
STATES = {
    "cache": "cache", "ring": "ring", "recurrent": "recurrent state", "tail": "last inputs", "context": "context",
    "latent": "latent cache",
}  # fmt: skip
OPTIONS = ("kind", "causal", "window", "chunk", "softcap", "by", "fraction")


def family(item: Item) -> str:
    names = {n.op.name for n in item.ops}
    for name, ops in FAMILIES.items():
        if names & set(ops):
            if name == "linear" and any("vocab" in v.axes for n in item.ops for v in n.results):
                return "vocabulary"
            return name
    return OTHER


def size_text(axis: str, size: Size) -> str:
    """``seq``, ``3,584 embed``, ``min(4096, capacity) slots``."""
    if size.is_constant:
        return f"{int(size.constant):,} {axis}"
    return axis if str(size) == axis else f"{size} {axis}"


def shape_text(t: TensorType) -> str:
    return " × ".join(size_text(a, s) for a, s in t.pairs) or "number"


def shape_json(t: TensorType) -> dict[str, object]:
    sizes = {a: int(s.constant) if s.is_constant else str(s) for a, s in t.pairs}
    return {"axes": sizes, "dtype": t.dtype}


def count_text(n: int) -> str:
    """Three digits: 918M, 29.4M, 3.58K."""
    for unit, word in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if n >= unit:
            return f"{n / unit:.3g}{word}" if n / unit < 999.5 else f"{n / unit:,.0f}{word}"
    return str(n)


def layers_text(layers: Iterable[int]) -> str:
    """``0, 2, … 40`` where the numbers are evenly spaced; the first few where not."""
    numbers = sorted(layers)
    if len(numbers) <= 3:
        return ", ".join(map(str, numbers))
    steps = {b - a for a, b in itertools.pairwise(numbers)}
    if steps == {1}:
        return f"{numbers[0]} – {numbers[-1]}"
    if len(numbers) <= 6 and len(steps) > 1:
        return ", ".join(map(str, numbers))
    head = numbers[:2] if len(steps) == 1 else numbers[:5]
    return f"{', '.join(map(str, head))}, … {numbers[-1]}"


def options(item: Item) -> list[str]:
    """Options of the box's ops that are not the default, and its activation."""
    return _ranges([_options(i) for i in (item, *item.others)])


def _ranges(rows: list[list[str]]) -> list[str]:
    """Folded layers that differ: ``window 4 … 9``."""
    if any(len(r) != len(rows[0]) for r in rows):
        return [" or ".join(dict.fromkeys(t for r in rows for t in r))]
    columns = list(zip(*rows, strict=True))
    return [c[0] if len(set(c)) == 1 else f"{c[0]} … {c[-1].split()[-1]}" for c in columns]


def _options(item: Item) -> list[str]:
    found: list[str] = []
    caps = _softcaps(item)
    for node in item.ops:
        if isinstance(node.op, Map):
            if node.result.id in caps:
                found.append(f"softcap {caps[node.result.id]:,.6g}")
            elif node.op.fn in ACTIVATIONS:
                found.append(node.op.fn)
            continue
        if isinstance(node.op, Reduce) and len(item.ops) > 1:
            continue  # one step of several: sums and means of a program
        for f in dataclasses.fields(node.op):
            value = getattr(node.op, f.name)
            if f.name not in OPTIONS or value is None or value == f.default:
                continue
            if isinstance(value, bool):
                found.append(f.name if value else f"not {f.name}")
            elif isinstance(value, str):
                found.append(value)
            else:
                found.append(f"{f.name} {value:,.6g}")
        if isinstance(node.op, Conv):
            kernel = node.operands[1].type
            groups = int(kernel.size(GROUPS).constant) if GROUPS in kernel.axes else 1
            found.append(_windows(node.op.windows, 1) + (f", {groups} groups" if groups > 1 else ""))
        if isinstance(node.op, Choose) and node.op.groups > 1:
            found.append(f"of the best {node.op.active_groups} of {node.op.groups} groups")
        added = getattr(node.op, "bias", None)
        if isinstance(added, Bias):
            found.append(added.short)
        if isinstance(node.op, Pool):
            found.append(f"{node.op.kind} of {_windows(node.op.windows)}")
            continue
        if isinstance(node.op, Rotate):
            size = int(node.operands[0].type.size(node.op.axis).constant)
            part = "" if node.op.channels == size else f" {node.op.channels:,} of {size:,}"
            pairs = "" if node.op.pairs == "half" else f" {node.op.pairs}"
            scaling = "" if node.op.scaling == NONE else f" {node.op.scaling.short}"
            found.append(f"rotary{part}{pairs}{scaling}")
    return list(dict.fromkeys(found))


def _windows(windows: Sequence[Window], stride: int | None = None) -> str:
    """``3 × 3, stride 2``; ``stride``: the usual one, which is not told, or None for the windows' size."""
    text = " × ".join(str(w.size) for w in windows)
    for name, usual in (("stride", stride), ("dilation", 1), ("padding", "same")):
        values = [getattr(w, name) for w in windows]
        if values != [w.size if usual is None else usual for w in windows]:
            told = [" + ".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in dict.fromkeys(values)]
            text += f", {name} {' × '.join(told)}"
    return text


def _softcaps(item: Item) -> dict[int, float]:
    """The caps of cap * tanh(x / cap), by the value of the tanh: what the op `softcap` is made of."""
    made = {v.id: node for node in item.ops for v in node.results}
    found: dict[int, float] = {}
    for node in item.ops:
        if not (isinstance(node.op, Map) and node.op.fn == "mul"):
            continue
        inner, cap = made.get(node.operands[0].id), item.numbers.get(node.operands[1].id)
        if cap is not None and inner is not None and isinstance(inner.op, Map) and inner.op.fn == "tanh":
            found[inner.result.id] = cap
    return found


def inner_sizes(item: Item, edges: Sequence[Edge]) -> list[str]:
    """Sizes that a box has inside and that neither side sees: hidden widths, heads, experts."""
    seen = {p for e in edges if item in (e.source, e.target) for p in e.type.pairs}
    inside: dict[str, Size] = {}
    for node in item.ops:
        for v in (*node.operands, *node.results):
            for axis, size in v.type.pairs:
                told = axis.endswith("_out") or axis in (GROUPS, *BOOKS) or axis.startswith(TAPS)
                if size.is_constant and (axis, size) not in seen and not told:
                    inside.setdefault(axis, size)
    return [size_text(a, s) for a, s in inside.items()]


def state_text(item: Item) -> list[str]:
    """One line a kind of state: ``cache``, ``ring of 4,096``, ``recurrent state``."""
    return _ranges([_states(i) for i in (item, *item.others)])


def _states(item: Item) -> list[str]:
    found: list[str] = []
    for kind, t in item.states:
        text = STATES.get(kind, kind)
        if kind == "ring" and "slots" in t.axes:
            bound = [int(w) for w in str(t.size("slots")).replace("(", " ").replace(",", " ").split() if w.isdigit()]
            text += f" of {bound[0]:,}" if bound else ""
        found.append(text)
    return list(dict.fromkeys(found))


def state_json(item: Item) -> list[dict[str, object]]:
    return [{"kind": kind, **shape_json(t)} for kind, t in item.states]


def borrowed_text(item: Item) -> list[str]:
    return list(dict.fromkeys(f"weights of {path}" for path in item.borrowed.values()))
