"""Another spec as a node: its blocks, dims and args are its own, its weights become this model's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import Problem, SpecError, nearest
from compiler.graph.ir import Value
from compiler.graph.sizes import Size
from compiler.language import checks, table
from compiler.language import load as loading
from compiler.language.chains import chains_of, pairs_of, scope_of
from compiler.language.elaborate import placed
from compiler.language.env import settled
from compiler.language.frame import Frame
from compiler.language.load import OVERRIDE, Document
from compiler.language.nodes import NodeSpec
from compiler.language.scope import AxisArg, Fault, Scope, Slot, shown
from compiler.source.yaml import YMap


def inner_model(raw: YMap, spec: NodeSpec, x: Value | None, frame: Frame) -> Value | None:
    """The value of a chain of another spec, whose only input is ``x``. Raises Fault, SpecError."""
    document = _document(raw, frame)
    mark = f"model {document.spec.name}"
    if mark in frame.stack:
        raise Fault("block-cycle", f"specs contain each other without end: {document.spec.name}", key="spec")
    problems = frame.env.scope.problems
    scope = scope_of(document.raw, problems)
    output = _output(raw, document)
    if x is None:
        return None
    inputs = {_fits(document, scope, x): x}
    name = frame.local_name(spec.kind, spec.name)
    with placed(frame, spec, name):
        env = settled(frame.env.but(scope=scope), spec.kind, spec.position)
        frame.paths[spec.name or spec.kind] = env.share.path(env.b.path) if env.share else env.b.path
        inner = Frame(env, dict(inputs), None, document.spec.blocks, stack=(*frame.stack, mark))
        checks.check(document.spec, document.raw, problems)
        value = chains_of(document.raw, inner, x, output)[output]
        frame.ambiguous |= inner.ambiguous
        if name and not spec.name and value is not None:
            env.call(value)
    return value


def _document(raw: YMap, frame: Frame) -> Document:
    """The other spec, with the dims and args that this one sets."""
    name = raw["spec"]
    if not isinstance(name, str):
        raise Fault("wrong-type", f"model: spec takes the name of a spec, found {shown(name)}", key="spec")
    given = raw.get("set")
    if given is not None and not isinstance(given, YMap):
        raise Fault("wrong-type", f"model: set takes dims and args of {name}, found {shown(given)}", key="set")
    overrides: dict[str, Any] = {}
    for key, value in (given or {}).items():
        found = frame.env.scope.value(value)
        found = found.size if isinstance(found, AxisArg) else found
        if isinstance(found, (Slot, np.ndarray)):
            raise Fault("wrong-type", f"model: {key} takes one value, found {shown(found)}", key="set")
        overrides[key] = found
    base, row = table.apart(name)
    path = _found(base, raw)
    try:
        return loading.load(str(path) if row is None else f"{path}{table.MARK}{row}", overrides)
    except SpecError as e:
        raise SpecError([_placed(p, given) for p in e.problems]) from None


def _found(name: str, raw: YMap) -> Path:
    """The file of the other spec. Raises Fault where there is none."""
    try:
        path = loading.find(name, Path(raw.position.file) if raw.position.file else None)
    except SpecError as e:
        (p,) = e.problems
        raise Fault(p.code, f"model: {p.message}", p.allowed, p.suggestion, key="spec") from None
    if not path.exists():
        raise Fault("file-missing", f"model: there is no file {path}", key="spec")
    return path


def _placed(problem: Problem, given: YMap | None) -> Problem:
    """A problem with an override, where this spec says it."""
    file = problem.position.file if problem.position else None
    name = (file or "").removeprefix(OVERRIDE)
    if given is None or file == name or name not in given:
        return problem
    return dataclasses.replace(problem, position=given.key_position[name])


def _output(raw: YMap, document: Document) -> str:
    """The chain that is wanted; the spec's own output unless one is named."""
    graph, named = document.raw["graph"], document.spec.outputs or {}
    chains = list(graph) if isinstance(graph, YMap) else ["logits"]
    asked = raw.get("output")
    found = next(iter(named.values()), chains[-1]) if asked is None else named.get(str(asked), str(asked))
    if found not in chains:
        text = f"{document.spec.name} has no chain {found}"
        raise Fault("unknown-name", text, chains, nearest(found, chains), key="output")
    return found


def _fits(document: Document, scope: Scope, x: Value) -> str:
    """The name of the other spec's input. Raises Fault where x is not such a one."""
    spec = document.spec
    if len(spec.inputs) != 1:
        raise Fault("wrong-type", f"model: {spec.name} reads {', '.join(spec.inputs)}, and takes one value", key="spec")
    ((name, i),) = spec.inputs.items()
    integers = i.kind in ("tokens", "count")
    if x.type.dtype.startswith("int") != integers:
        raise Fault("dtype-mismatch", f"{spec.name} reads {i.kind}, found {x.type.dtype}", key="spec")
    for axis, size in pairs_of(i, scope):
        wanted = Size.of(size)
        if axis not in x.axes:
            raise Fault("missing-axis", f"{spec.name} reads {axis}, found [{' '.join(x.axes)}]", x.axes, key="spec")
        found = x.type.size(axis)
        if wanted.is_constant and found != wanted:
            text = f"{spec.name} reads {axis} = {wanted}, found {found}"
            raise Fault("axis-mismatch", text, (), f"set: the size of its input {name}", key="spec")
    return name
