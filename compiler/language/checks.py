"""What can be said of a spec without elaborating it: names that clash, paths that nothing has, unsafe names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from compiler.errors import Position, Problems, nearest
from compiler.language.call import callable_functions
from compiler.language.scope import shown
from compiler.language.spec import Spec
from compiler.ops.contract import LOCAL
from compiler.ops.elementwise import ACTIVATIONS, TABLE
from compiler.source.yaml import YList, YMap

LAYER = "the layer's number"
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def check(spec: Spec, raw: YMap, problems: Problems) -> None:
    """All of them."""
    if not _MODEL_NAME.fullmatch(spec.name):
        text = f"{shown(spec.name)} is no name of a model: letters, digits and . _ + - only"
        problems.add("bad-name", text, raw.value_position["name"])
    _names(spec, raw, problems)
    _paths(raw, problems)
    _tensor_names(raw, problems)


def _table(raw: Any, *keys: str) -> YMap:
    for key in keys:
        raw = raw.get(key) if isinstance(raw, YMap) else None
    return raw if isinstance(raw, YMap) else YMap(Position("", 0, 0))


def _names(spec: Spec, raw: YMap, problems: Problems) -> None:
    """A dim, arg or block must not shadow a block kind, a form or an enum word: the same word would mean two things."""
    from compiler.language.block import kinds
    from compiler.language.forms import FORMS

    words = dict.fromkeys(ACTIVATIONS, "an activation") | {"input": "a block's input"}
    nodes = dict.fromkeys((n for n, r in TABLE.items() if r.arity == 1), "an op")
    nodes |= words | dict.fromkeys(kinds(), "a block kind") | dict.fromkeys(FORMS, "a form")
    blocks = dict.fromkeys(spec.blocks, "a block of this spec")
    number = {"layer": LAYER}
    functions = dict.fromkeys(callable_functions(), "an op")
    axes = words | number | dict.fromkeys(LOCAL, "an axis by which experts sort their rows")
    _check("dim", _table(raw, "dims"), axes, problems)
    _check("arg", _table(raw, "args"), blocks | nodes | number | dict.fromkeys(spec.dims, "a dim"), problems)
    _check("block", _table(raw, "blocks"), nodes, problems)
    _check("input", _table(raw, "inputs"), {}, problems)
    if isinstance(raw.get("graph"), YMap):
        _check("chain", _table(raw, "graph"), dict.fromkeys(spec.inputs, "an input"), problems)
    for name in spec.blocks:
        own = _table(raw, "blocks", name)
        args, dims = _table(own, "args"), _table(own, "dims")
        _check("dim", dims, axes, problems)
        _check("arg", args, blocks | nodes | number | dict.fromkeys(dims, "a dim of this block"), problems)
        names = functions | dict.fromkeys(args, "an arg of this block")
        _check("weight", _table(own, "params"), names | {"input": "the block's input"}, problems)
        names |= dict.fromkeys(_table(own, "params"), "a weight of this block")
        _check("value", _table(own, "program"), names | {"input": "the block's input"}, problems)


def _check(what: str, table: YMap, taken: Mapping[str, str], problems: Problems) -> None:
    for name in table:
        where = table.key_position[name]
        if not name.isidentifier():
            problems.add("bad-name", f"{shown(name)} is no name of a {what}: letters, digits and _ only", where)
        elif name in taken:
            problems.add("shadowed-name", f"{what} {name} has the name of {taken[name]}: choose another", where)


def _paths(raw: YMap, problems: Problems) -> None:
    """`sources` and `assumed` must speak of something that exists: a top key, a dim, an arg, a block, …"""
    heads = [k for k in Spec.model_fields if k not in ("name", "paper", "stand_in", "extends", "sources", "assumed")]
    known = [*heads, *(f"{h}.{name}" for h in heads for name in _table(raw, h))]
    for section in ("sources", "assumed"):
        table = _table(raw, section)
        for path in table:
            head, _, rest = path.partition(".")
            if head in heads and (not rest or rest.split(".")[0] in _table(raw, head)):
                continue
            near = difflib.get_close_matches(path, known, n=6, cutoff=0.4)
            problems.add("unknown-path", f"{section}: nothing is called {path}", table.key_position[path],
                         allowed=near or heads, suggestion=nearest(path, known))  # fmt: skip


def _tensor_names(raw: YMap, problems: Problems) -> None:
    """Names of tensors become names of entries and files when weights are written: none may leave its folder."""
    for format, section in _table(raw, "weights").items():
        if not format.isidentifier():
            where = _table(raw, "weights").key_position[format]
            problems.add("bad-name", f"{shown(format)} is no name of a format: letters, digits and _ only", where)
        tensors = _table(section, "tensors")
        for key in tensors:
            names: list[tuple[str, Position]] = [(key, tensors.key_position[key]), *_texts(tensors, key)]
            for text, where in names:
                if _unsafe(text):
                    rule = "no '..', no '\\', no '/' or '~' in front, no control character"
                    problems.add("unsafe-name", f"a tensor cannot be called {shown(text)}: {rule}", where)
        for key in ("ignore", "padded"):
            listed = section.get(key) if isinstance(section, YMap) else None
            if isinstance(listed, YList):
                for item, where in zip(listed, listed.item_position, strict=True):
                    if isinstance(item, str) and _unsafe(item):
                        problems.add("unsafe-name", f"{key}: no tensor can be called {shown(item)}", where)


def _texts(tensors: YMap, key: str) -> Iterator[tuple[str, Position]]:
    value = tensors[key]
    if isinstance(value, YMap):
        yield from ((str(value["tensor"]), value.value_position["tensor"]) for _ in range("tensor" in value))
    elif isinstance(value, str):
        yield value.partition("=")[0], tensors.value_position[key]


def _unsafe(name: str) -> bool:
    """Could a file of this name lie outside its folder, or break a line?"""
    name = name.strip()
    return ".." in name or name.startswith(("/", "~")) or "\\" in name or ":/" in name or not name.isprintable()
