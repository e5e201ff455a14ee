"""How two models differ: dims, args, parameters by block, ops, state. Nothing here imports jax."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import blockgraph.inspect as inspect
from compiler.language.model import Model

PLAIN = ("parameter", "argument", "state", "repeat")  # ops that the other parts of a difference tell


def difference(
    a: Model, b: Model, context: int = inspect.CONTEXT, sizes: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """All differences as plain JSON types: pairs [in a, in b], null where one lacks it; what is equal is left out."""
    first, second = (inspect.summary(m, context, _fitting(m, sizes or {})) for m in (a, b))
    totals = {k: _pair(first["parameters"], second["parameters"], k)
              for k in ("total", "embedding", "non_embedding", "trainable", "bytes")}  # fmt: skip
    blocks_a, blocks_b = ({x["path"]: x for x in s["parameters"]["by_block"]} for s in (first, second))
    changed = {
        path: {key: _pair(blocks_a.get(path, {}), blocks_b.get(path, {}), key) for key in ("parameters", "layers")}
        for path in _merged(blocks_a, blocks_b)
        if not _alike(blocks_a.get(path), blocks_b.get(path))
    }
    made = {
        "a": first["name"],
        "b": second["name"],
        **{part: _changed(first[part], second[part]) for part in ("dims", "args", "inputs", "outputs", "dtypes")},
        "layers": _changed(first["layers"], second["layers"]),
        "parameters": {**totals, "by_block": changed},
        "blocks": {
            "added": [p for p in blocks_b if p not in blocks_a],
            "removed": [p for p in blocks_a if p not in blocks_b],
        },
        "ops": _ops(a, b),
        "phases": _changed(first["phases"], second["phases"]),
        "state": {"context": context, **_state(first["state"], second["state"])},
    }
    return {**made, "same": _same(made)}


def _fitting(model: Model, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes that this model has an axis for: the other may have more."""
    known = inspect.variable_axes(model)
    return {k: v for k, v in sizes.items() if k in known}


def _pair(a: Mapping[str, Any], b: Mapping[str, Any], key: str) -> list[Any]:
    return [a.get(key), b.get(key)]


def _changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
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


def _ops(a: Model, b: Model) -> list[dict[str, Any]]:
    """Ops with their attributes that only one of the two has at a path: another window, scale or activation."""
    found = []
    ours, theirs = _texts(a), _texts(b)
    for path in ours:
        if path not in theirs:
            continue  # told as a block that is removed
        gone, new = (sorted(x - y) for x, y in ((ours[path], theirs[path]), (theirs[path], ours[path])))
        if gone or new:
            found.append({"path": path, "a": gone, "b": new})
    return found


def _texts(model: Model) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for node, _ in model.graph.walk():
        if node.op.name not in PLAIN:
            found.setdefault(node.path, set()).add(node.op.text())
    return found


def _state(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    totals = {k: _pair(a, b, k) for k in ("bytes", "bytes_per_token")}
    kinds_a, kinds_b = (Counter({k["kind"]: k["bytes"] or 0 for k in s["kinds"]}) for s in (a, b))
    return {**totals, "kinds": _changed(kinds_a, kinds_b)}


def _same(made: Mapping[str, Any]) -> bool:
    parameters, state = made["parameters"], made["state"]
    pairs = [v for k, v in parameters.items() if k != "by_block"] + [state["bytes"], state["bytes_per_token"]]
    parts = ("dims", "args", "inputs", "outputs", "dtypes", "layers", "ops", "phases")
    return not any(made[p] for p in parts) and not parameters["by_block"] and all(x == y for x, y in pairs)
