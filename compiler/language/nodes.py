"""Reading a node of a chain: its kind, its options, and what stands beside them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from compiler.errors import Position, Problems
from compiler.language.fields import META
from compiler.source.yaml import YList, YMap

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class NodeSpec:
    kind: str  # "" for a nested chain
    args: Any
    position: Position | None
    args_position: Position | None
    name: str | None = None
    source: Any = None  # `from`
    source_position: Position | None = None
    frozen: bool | None = None
    share: str | None = None
    dtype: str | None = None
    init: str | None = None
    chain: YList | None = field(default=None)


def read_node(raw: Any, position: Position | None, problems: Problems) -> NodeSpec | None:
    """A node from YAML, or None with the problem told."""
    if isinstance(raw, str):
        if not raw.replace("_", "").replace(".", "").isalnum():
            problems.add("wrong-type", f"a node is a block's name or a mapping, found '{raw}'", position)
            return None
        return NodeSpec(raw, None, position, position)
    if isinstance(raw, list):
        return NodeSpec("", None, position, position, chain=raw if isinstance(raw, YList) else None)
    if not isinstance(raw, YMap):
        problems.add("wrong-type", f"a node is a block's name or a mapping, found {raw!r}", position)
        return None
    kinds = [k for k in raw if k not in META]
    if len(kinds) != 1:
        if kinds:
            text = f"a node has one kind, found {len(kinds)}: {', '.join(kinds)}"
            hint = "start each node with its own '-'; options go one level deeper"
            problems.add("two-kinds", text, raw.key_position[kinds[1]], suggestion=hint)
        else:
            problems.add(
                "no-kind",
                f"a node needs a kind beside {', '.join(raw) or 'nothing'}",
                raw.position or position,
            )
        return None
    kind = kinds[0]
    meta: dict[str, Any] = {}
    good = True
    for key, check, what in (
        ("name", str, "a name"), ("share", str, "a node's name"), ("init", str, "a word"), ("frozen", bool, "true or false"),
    ):  # fmt: skip
        if key in raw:
            if isinstance(raw[key], check):
                meta[key] = raw[key]
            else:
                problems.add("wrong-type", f"{key} takes {what}, found {raw[key]!r}", raw.value_position[key])
                good = False
    if "name" in meta and not str(meta["name"]).isidentifier():
        problems.add("bad-name", f"'{meta['name']}' is no name: letters, digits and _ only", raw.value_position["name"])
        good = False
    if "dtype" in raw:
        if raw["dtype"] in DTYPES:
            meta["dtype"] = raw["dtype"]
        else:
            problems.add(
                "unknown-word",
                f"dtype: {raw['dtype']!r} is not a dtype",
                raw.value_position["dtype"],
                allowed=DTYPES,
            )
            good = False
    if not good:
        return None
    return NodeSpec(
        kind,
        raw[kind],
        raw.key_position[kind],
        raw.value_position.get(kind) or raw.key_position[kind],
        source=raw.get("from"),
        source_position=raw.value_position.get("from"),
        **meta,
    )
