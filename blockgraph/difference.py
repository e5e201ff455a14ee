"""How two models differ: dims, args, parameters by path and shape, ops, state. Nothing here imports jax.

What is called otherwise in the second and is else the same (a block of the same tensors, an op with the same
attributes) is paired where no other could be meant, and told as moved rather than as removed and added.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import blockgraph.inspect as inspect
from compiler.language.model import Model

PLAIN = ("parameter", "argument", "state", "repeat")  # ops that the other parts of a difference tell
Tensors = dict[str, tuple[tuple[str, int], ...]]  # of a path, in order: the type of one layer, how many layers


def difference(
    a: Model, b: Model, context: int = inspect.CONTEXT, sizes: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """All differences as plain JSON types: pairs [in a, in b], {only_in, value} where one has it not; what is equal
    is left out."""
    first, second = (inspect.summary(m, context, _fitting(m, sizes or {})) for m in (a, b))
    totals = {k: _pair(first["parameters"], second["parameters"], k)
              for k in ("total", "embedding", "non_embedding", "trainable", "bytes")}  # fmt: skip
    tensors_a, tensors_b = _tensors(a), _tensors(b)
    moved = _moved(tensors_a, tensors_b)
    known = {path: _new(path, moved) for path in (*inspect.blocks(a), *tensors_a)}
    blocks_a = {known[x["path"]]: x for x in first["parameters"]["by_block"]}
    blocks_b = {x["path"]: x for x in second["parameters"]["by_block"]}
    changed = {
        path: {key: _pair(blocks_a.get(path, {}), blocks_b.get(path, {}), key) for key in ("parameters", "layers")}
        for path in _merged(blocks_a, blocks_b)
        if not _alike(blocks_a.get(path), blocks_b.get(path))
    }
    shapes = _changed(
        {known[p]: _told(t) for p, t in tensors_a.items()}, {p: _told(t) for p, t in tensors_b.items()}
    )  # fmt: skip
    made = {
        "a": first["name"],
        "b": second["name"],
        **{part: _changed(first[part], second[part]) for part in ("dims", "args", "inputs", "outputs", "dtypes")},
        "layers": _changed({_new(p, moved): n for p, n in first["layers"].items()}, second["layers"]),
        "parameters": {
            **totals,
            "tensors": _tally(tensors_a, tensors_b, shapes, known),
            "by_block": changed,
            "shapes": shapes,
        },
        "blocks": {
            "added": [p for p in blocks_b if p not in blocks_a],
            "removed": [x["path"] for p, x in blocks_a.items() if p not in blocks_b],
            "moved": [{"a": x, "b": y} for x, y in moved.items()],
        },
        "ops": _ops(a, b, moved, {*blocks_a, *blocks_b}),
        "phases": _changed(first["phases"], second["phases"]),
        "state": {"context": context, **_state(first["state"], second["state"])},
    }
    return {**made, "same": _same(made)}


def _fitting(model: Model, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes that this model has an axis for: the other may have more."""
    known = inspect.variable_axes(model)
    return {k: v for k, v in sizes.items() if k in known}


def _pair(a: Mapping[str, Any], b: Mapping[str, Any], key: str) -> Any:
    if (key in a) != (key in b):
        return {"only_in": "a", "value": a[key]} if key in a else {"only_in": "b", "value": b[key]}
    return [a.get(key), b.get(key)]


def _changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Pairs by name, of what differs; types as their text."""
    return {k: _pair(a, b, k) for k in _merged(a, b) if (k in a) != (k in b) or a[k] != b[k]}


def _merged(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """All names: those of ``a`` in their order, each that only ``b`` has behind its neighbour there."""
    order, before = list(a), -1
    for name in b:
        if name not in a:
            order.insert(before + 1, name)
        before = order.index(name)
    return order


def _alike(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> bool:
    return a is not None and b is not None and all(a[k] == b[k] for k in ("parameters", "layers"))


# -- tensors, and what was moved
def _tensors(model: Model) -> Tensors:
    """The parameters of each path."""
    found: dict[str, dict[str, int]] = {}
    for op, t in model.parameters.values():
        stacked = sum(1 for s in op.stack if s.count > 1)
        layers = 1
        for s in op.stack:
            layers *= s.count
        own = found.setdefault(op.path, {})
        text = str(t.drop(*t.axes[:stacked]))
        own[text] = own.get(text, 0) + (layers if op.stack else 0)
    return {path: tuple(kinds.items()) for path, kinds in found.items()}


def _told(kinds: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{layers} x {text}" if layers else text for text, layers in kinds)


def _moved(a: Tensors, b: Tensors) -> dict[str, str]:
    """Blocks, or single weights, of ``a`` that are in ``b`` under another path, outer ones first: alike in their
    tensors, or in these and their own name where several are; then what is around them."""
    found: dict[str, str] = {}
    while True:
        gone = _groups({p: t for p, t in a.items() if _new(p, found) not in b}, a)
        taken = {_new(p, found) for p in a}
        come = _groups({p: t for p, t in b.items() if p not in taken}, b)
        named = [{p: (p.rpartition(".")[2], what) for p, what in side.items()} for side in (gone, come)]
        pairs = {**_unambiguous(gone, come), **_unambiguous(*named)}
        if not pairs:
            break
        outermost = min(pairs, key=lambda p: p.count("."))
        found[outermost] = pairs[outermost]
    _around(found, a, b)
    shortest = sorted(found, key=lambda p: p.count("."))
    return {p: found[p] for p in shortest if _new(p, {q: new for q, new in found.items() if q != p}) != found[p]}


def _around(found: dict[str, str], a: Tensors, b: Tensors) -> None:
    """A block of which every part that was found leads into the same block, and one keeps its name, is that block."""
    heads_a, heads_b = ({p.split(".")[0] for p in side} for side in (a, b))
    for head in sorted(heads_a - heads_b):
        inside = {p: new for p, new in found.items() if p.startswith(head + ".")}
        into = {new.split(".")[0] for new in inside.values()}
        kept = any(p.split(".")[1:] == new.split(".")[1:] for p, new in inside.items())
        if len(into) == 1 and kept and not into & heads_a:
            found[head] = into.pop()


def _groups(left: Tensors, everything: Tensors) -> dict[str, Hashable]:
    """What is left, by each path above it of which all is left, with its tensors by their names below."""
    found: dict[str, dict[str, Hashable]] = {}
    for path, kinds in left.items():
        parts = path.split(".")
        for i in range(1, len(parts) + 1):
            found.setdefault(".".join(parts[:i]), {})[".".join(parts[i:])] = kinds
    whole: dict[str, int] = Counter(
        ".".join(p.split(".")[:i]) for p in everything for i in range(1, p.count(".") + 2)
    )  # fmt: skip
    return {above: tuple(sorted(inner.items())) for above, inner in found.items() if len(inner) == whole[above]}


def _unambiguous(a: Mapping[str, Hashable], b: Mapping[str, Hashable]) -> dict[str, str]:
    """Those of ``a`` and ``b`` that are alike, and alone in being so."""
    theirs: dict[Hashable, list[str]] = {}
    for name, what in b.items():
        theirs.setdefault(what, []).append(name)
    ours = Counter(a.values())
    return {n: theirs[what][0] for n, what in a.items() if ours[what] == 1 and len(theirs.get(what, ())) == 1}


def _new(path: str, moved: Mapping[str, str]) -> str:
    """A path of the first model as the second has it."""
    parts = path.split(".")
    for i in range(len(parts), 0, -1):
        above = ".".join(parts[:i])
        if above in moved:
            return ".".join([moved[above], *parts[i:]])
    return path


def _tally(a: Tensors, b: Tensors, shapes: Mapping[str, Any], known: Mapping[str, str]) -> dict[str, int]:
    """How many named tensors are the same, moved, of another shape, or in one alone."""
    renamed = {known[p]: p for p in a}
    same = [p for p in b if p in renamed and p not in shapes]
    return {
        "same": sum(renamed[p] == p for p in same),
        "moved": sum(renamed[p] != p for p in same),
        "changed": sum(p in b and p in renamed for p in shapes),
        "only_in_a": sum(p not in b for p in renamed),
        "only_in_b": sum(p not in renamed for p in b),
    }


# -- ops
def _ops(a: Model, b: Model, moved: Mapping[str, str], blocks: set[str]) -> list[dict[str, Any]]:
    """Ops with their attributes that only one of the two has at a path: another window, scale or activation."""
    ours, theirs = _texts(a, moved), _texts(b, {})
    gone = {p: frozenset(t.items()) for p, t in ours.items() if p not in theirs and p not in blocks}
    come = {p: frozenset(t.items()) for p, t in theirs.items() if p not in ours and p not in blocks}
    pairs = _unambiguous(gone, come)
    found = [{"path": new, "moved_from": old, "a": [], "b": []} for old, new in pairs.items()]
    for path in _merged(ours, theirs):
        if path in pairs or path in pairs.values():
            continue
        if (path not in ours or path not in theirs) and path in blocks:
            continue  # told as a block that is removed or added
        x, y = ours.get(path, Counter()), theirs.get(path, Counter())
        only_a, only_b = (sorted(set(s) - set(t)) for s, t in ((x, y), (y, x)))
        if only_a or only_b:
            found.append({"path": path, "a": only_a, "b": only_b})
    return found


def _texts(model: Model, moved: Mapping[str, str]) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for node, _ in model.graph.walk():
        if node.op.name not in PLAIN:
            found.setdefault(_new(node.path, moved), Counter())[node.op.text()] += 1
    return found


def _state(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    totals = {k: _pair(a, b, k) for k in ("bytes", "bytes_per_token")}
    kinds_a, kinds_b = (Counter({k["kind"]: k["bytes"] or 0 for k in s["kinds"]}) for s in (a, b))
    return {**totals, "kinds": _changed(kinds_a, kinds_b)}


def _same(made: Mapping[str, Any]) -> bool:
    parameters, state = made["parameters"], made["state"]
    totals = [v for k, v in parameters.items() if k not in ("tensors", "by_block", "shapes")]
    pairs = [*totals, state["bytes"], state["bytes_per_token"]]
    parts = ("dims", "args", "inputs", "outputs", "dtypes", "layers", "ops", "phases")
    equal = all(isinstance(p, list) and p[0] == p[1] for p in pairs)
    other = parameters["by_block"] or parameters["shapes"] or made["blocks"]["moved"]
    return equal and not any(made[p] for p in parts) and not other
