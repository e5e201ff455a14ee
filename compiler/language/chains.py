"""What a spec is made of, below its blocks: the scope of its dims and args, its inputs, its chains."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from compiler.errors import Problems
from compiler.graph.builder import Builder
from compiler.graph.ir import Value
from compiler.graph.sizes import BATCH, SEQ, Size, SizeLike
from compiler.graph.types import TensorType
from compiler.language.elaborate import chain
from compiler.language.env import input_leaf
from compiler.language.frame import Frame
from compiler.language.scope import FAILED, Fault, Scope, Told, Word, shown
from compiler.language.spec import InputSpec, Spec
from compiler.source.yaml import YList, YMap


def scope_of(raw: YMap, problems: Problems) -> Scope:
    """Dims and args, each may use those before it; args may use dims too."""
    scope = Scope({}, {}, problems=problems)
    tables = {s: t for s in ("dims", "args") if isinstance(t := raw.get(s), YMap)}
    later = {n: None for t in tables.values() for n in t}
    for section, table in tables.items():
        for name, value in table.items():
            before = scope
            try:
                if section == "dims":
                    scope = scope.with_dims({name: scope.count(value, f"dim {name}")})
                else:
                    scope = scope.with_args({**scope.args, name: _arg(name, value, later, table, scope)})
            except (Fault, Told) as e:
                if isinstance(e, Fault):
                    _order(e, f"{section[:-1]} {name}", name, later)
                    e.tell(problems, table.within(name, e.offset))
                scope = (
                    before.without_dim(name) if section == "dims" else before.with_args({**before.args, name: FAILED})
                )
            later.pop(name, None)
            if problems.full:
                break
    return dataclasses.replace(scope, top=scope.args)


def _arg(name: str, value: Any, later: Mapping[str, None], table: YMap, scope: Scope) -> Any:
    if isinstance(value, str) and value.strip() in later:
        raise Fault("unknown-name", "", name=value.strip())
    found = scope.value(value)
    return Word.at(found, table.within(name)) if type(found) is str else found


def _order(e: Fault, what: str, name: str, later: Mapping[str, None]) -> None:
    """An unknown name that is declared, but too late to be used here."""
    if e.code == "unknown-name" and e.name in later:
        e.code = "circular-name" if e.name == name else "later-name"
        e.message = f"{what} refers to itself"
        if e.name != name:
            e.message = f"{what} uses {e.name}, which is declared further down: a dim or an arg may use those before it"
        e.allowed, e.suggestion = (), None


def inputs_of(spec: Spec, raw: YMap, scope: Scope, b: Builder) -> dict[str, Value]:
    """The leaves of a spec's inputs by name, and the lengths of their axes that vary."""
    values: dict[str, Value] = {}
    if not spec.inputs:
        scope.problems.add("missing-key", "a model has at least one input", raw.value_position.get("inputs"))
    for name, i in spec.inputs.items():
        try:
            pairs = pairs_of(i, scope)
            if i.marker is not None:
                scope.count(i.marker, "marker", least=0)
        except (Fault, Told) as e:
            if isinstance(e, Fault):
                table = raw["inputs"]
                where = table.value_position.get(name) if isinstance(table, YMap) else None
                e.tell(scope.problems, where, f"inputs.{name}: ")
            continue
        dtype = "int32" if i.kind in ("tokens", "count") else "float32"
        values[name] = input_leaf(b, name, TensorType.make(pairs, dtype))
        for at, (axis, size) in enumerate(pairs):
            if at and isinstance(size, Size) and not size.is_constant and f"{axis}_lengths" not in values:
                each = pairs[: at if axis == "frame" else 1]  # videos of one row differ in their frames
                values[f"{axis}_lengths"] = input_leaf(b, f"{axis}_lengths", TensorType.make(each, "int32"))
    return values


def pairs_of(i: InputSpec, scope: Scope) -> list[tuple[str, SizeLike]]:
    """Axes and sizes of an input. Raises Fault for a size that is none."""
    if i.kind == "tokens" and i.streams:
        return [("batch", BATCH), ("seq", SEQ)]
    if i.kind == "count":
        return [("batch", BATCH)]
    if i.kind in ("features", "tokens"):
        return [("batch", BATCH), *((a, _axis(a, scope)) for a in i.axes or [])]
    return [("batch", BATCH), *_pictures(i, scope)]


def _axis(name: str, scope: Scope) -> SizeLike:
    return scope.dim(name) if name in scope.dims else Size.symbol(name)


def _pictures(i: InputSpec, scope: Scope) -> list[tuple[str, SizeLike]]:
    """Axes of images or videos: several a row have an axis ``image``, whose size a call decides or the spec."""
    height, width = (scope.count(s, "size") for s in i.size or [])
    count = "any" if i.count is None and i.kind == "video" else i.count
    pairs: list[tuple[str, SizeLike]] = []
    if count is not None:
        pairs.append(("image", Size.symbol("image") if count == "any" else scope.count(count, "count")))
    if i.kind == "video":
        frames = 1 if i.frames is None else i.frames
        pairs.append(("frame", Size.symbol("frame") if frames == "any" else scope.count(frames, "frames")))
    return [*pairs, ("height", height), ("width", width), ("channel", i.channels)]


def start_of(spec: Spec, frame: Frame) -> Value | None:
    """The value with which a chain begins that says no other: the tokens, or the first input."""
    return frame.values.get(next((n for n, i in spec.inputs.items() if i.streams), next(iter(spec.inputs), "")))


def chains_of(raw: YMap, frame: Frame, start: Value | None, until: str | None = None) -> dict[str, Value | None]:
    """The values of a spec's chains by name, up to the one called ``until``."""
    graph, where = raw["graph"], raw.value_position["graph"]
    problems = frame.env.scope.problems
    if isinstance(graph, YList):
        return {"logits": chain(graph, where, start, frame)}
    if not isinstance(graph, YMap) or not graph:
        found = "an empty mapping" if isinstance(graph, YMap) else shown(graph)
        problems.add("wrong-type", f"graph takes a list of nodes, or chains by name, found {found}", where)
        return {}
    values: dict[str, Value | None] = {}
    for name, nodes in graph.items():
        inner = Frame(frame.env, frame.values, None, frame.defs, frame.seen, frame.ambiguous, paths=frame.paths,
                      stack=frame.stack)  # fmt: skip
        value = chain(nodes, graph.value_position[name], start, inner)
        values[name] = frame.values[name] = value
        if value is not None:
            b = frame.env.b
            b.names[".".join(p for p in (b.path, name) if p)] = value
        if name == until:
            break
    return values
