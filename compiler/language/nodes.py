"""Reading a node of a chain: its kind, its options, and what stands beside them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Any

from compiler.errors import Position, Problems, nearest
from compiler.language.fields import META
from compiler.language.scope import Fault, shown
from compiler.source.expr import Call, ExprError, Name, Number, Unary, parse
from compiler.source.yaml import YList, YMap

DTYPES = ("float32", "bfloat16", "float16")
INITS = {
    "fan_in": 0, "zeros": 0, "ones": 0, "normal": 1, "uniform": 2, "log_uniform": 2,
    "log_of_uniform": 2, "inverse_softplus_log_uniform": 2, "rg_lru": 0, "log_counts": 0,
}  # fmt: skip  # how many numbers each takes


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
    raw: YMap | None = field(default=None)

    def at(self, key: str | None) -> Position | None:
        """Where an option, or what stands beside the kind, has its value; else where the node is."""
        for table in (self.args, self.raw):
            if key is not None and isinstance(table, YMap) and key in table:
                return table.value_position[key]
        return self.position

    @property
    def text(self) -> Position | None:
        """Where the characters of a bare value begin: `scale: 2 * x`."""
        return self.raw.text_start.get(self.kind) if self.raw is not None else None


def check_dtype(raw: Any, what: str = "dtype") -> str:
    """A dtype's name. Raises Fault."""
    if raw not in DTYPES:
        raise Fault("unknown-word", f"{what}: {shown(raw)} is not a dtype", DTYPES, nearest(str(raw), DTYPES))
    return str(raw)


def check_init(raw: Any) -> str:
    """An init: a rule's name with its numbers. Raises Fault."""
    allowed = [f"{n}({', '.join('ab'[:k])})" if k else n for n, k in INITS.items()]
    try:
        tree = parse(raw) if isinstance(raw, str) else None
    except ExprError as e:
        raise Fault(e.code, f"init: {e.message} in {shown(raw)}", allowed, e.suggestion, offset=e.offset) from None
    name = tree.id if isinstance(tree, Name) else tree.name if isinstance(tree, Call) else ""
    numbers = tree.args if isinstance(tree, Call) else ()
    if name not in INITS:
        raise Fault("unknown-word", f"init: {shown(raw)} is no rule", allowed, nearest(name or str(raw), INITS))
    plain = [n.operand if isinstance(n, Unary) else n for n in numbers]
    if len(numbers) != INITS[name] or not all(isinstance(n, Number) for n in plain):
        takes = f"{INITS[name]} numbers" if INITS[name] else "no numbers"
        raise Fault("wrong-call", f"init: {name} takes {takes}, found {shown(raw)}", allowed)
    return str(raw)


def _name(raw: Any) -> str:
    if not isinstance(raw, str):
        raise Fault("wrong-type", f"name takes a name, found {shown(raw)}")
    if not raw.isidentifier():
        raise Fault("bad-name", f"{shown(raw)} is no name: letters, digits and _ only")
    return raw


def _flag(raw: Any) -> bool:
    if not isinstance(raw, bool):
        raise Fault("wrong-type", f"frozen takes true or false, found {shown(raw)}", ("true", "false"))
    return raw


def _share(raw: Any) -> str:
    if not isinstance(raw, str):
        raise Fault("wrong-type", f"share takes a node's name, found {shown(raw)}")
    return raw


BESIDE = {"name": _name, "frozen": _flag, "share": _share, "dtype": check_dtype, "init": check_init}
_NODE = "a node is a block's name or {kind: options}, found "


def read_node(raw: Any, position: Position | None, problems: Problems) -> NodeSpec | None:
    """A node from YAML, or None with the problem told."""
    if isinstance(raw, str) and raw.replace("_", "").replace(".", "").isalnum():
        return NodeSpec(raw, None, position, position)
    if isinstance(raw, YList):
        return NodeSpec("", None, position, position, chain=raw)
    if not isinstance(raw, YMap):
        problems.add("wrong-type", _NODE + shown(raw), position)
        return None
    kinds = [k for k in raw if k not in META]
    if len(kinds) > 1:
        text = f"a node has one kind, found {len(kinds)}: {', '.join(kinds)}"
        hint = "start each node with its own '-'; options go one level deeper"
        misspelt = [k for k in kinds[1:] if difflib.get_close_matches(k, META, n=1, cutoff=0.7)]
        if len(misspelt) == len(kinds) - 1:
            text, hint = f"no key {misspelt[0]} stands beside {kinds[0]}:", str(nearest(misspelt[0], META))
            problems.add("unknown-key", text, raw.key_position[misspelt[0]], allowed=META, suggestion=hint)
        else:
            problems.add("two-kinds", text, raw.key_position[kinds[1]], suggestion=hint)
        return None
    if not kinds:
        found = f"only {', '.join(raw)}" if raw else "nothing"
        problems.add("no-kind", f"a node needs a kind, found {found}", raw.position)
        return None
    kind = kinds[0]
    beside: dict[str, Any] = {}
    for key, check in BESIDE.items():
        if key in raw:
            try:
                beside[key] = check(raw[key])
            except Fault as e:
                e.tell(problems, raw.within(key, e.offset))
    return NodeSpec(kind, raw[kind], raw.key_position[kind], raw.value_position[kind], source=raw.get("from"),
                    source_position=raw.value_position.get("from"), raw=raw, **beside)  # fmt: skip
