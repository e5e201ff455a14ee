"""Elaborate: a checked spec becomes an op graph. Forms (residual, repeat, …) are in ``forms``; block kinds in
``compiler/blocks``; blocks of the spec in ``user_blocks``. All problems are collected, not only the first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from compiler.errors import Position, SpecError, nearest
from compiler.graph.ir import Value
from compiler.graph.types import TypeProblem
from compiler.language.block import Block, kinds
from compiler.language.env import Share, settled
from compiler.language.fields import validate
from compiler.language.frame import Frame
from compiler.language.nodes import NodeSpec, read_node
from compiler.language.scope import FAILED, Fault, Slot, Told, shown
from compiler.ops.elementwise import TABLE
from compiler.source.yaml import YList, YMap

MAX_WORK, MAX_OPS = 6_000, 20_000  # a repeat's cycle counts once, layers written out count each


def chain(raw: Any, position: Position | None, x: Value | None, frame: Frame) -> Value | None:
    """Nodes one after the other; None once something failed (already told)."""
    if not isinstance(raw, YList):
        raw = _as_list(raw, position)
    if not raw:
        hint = "write identity for the value unchanged"
        frame.env.scope.problems.add("empty-chain", "a chain has at least one node", position, suggestion=hint)
        return None
    for item, where in zip(raw, raw.item_position, strict=True):
        x = node(item, where, x, frame)
    return x


def _as_list(raw: Any, position: Position | None) -> YList:
    made = YList(position or Position("<none>", 1, 1))
    made.append(raw)
    made.item_position.append(made.position)
    return made


class Enough(Exception):
    """The spec writes out more nodes than any model has: going on would take long."""


def work(frame: Frame, steps: int, position: Position | None) -> None:
    """Counts what is elaborated, so that no short text (blocks that call blocks ten times each) takes long."""
    problems, progress = frame.env.scope.problems, frame.env.progress
    progress.work += steps
    ops, b = 0, frame.env.b
    while b is not None:
        ops, b = ops + len(b.nodes), b.parent  # type: ignore[assignment]
    if progress.work > MAX_WORK or ops > MAX_OPS:
        text = f"the spec writes out more than {MAX_WORK:,} nodes or {MAX_OPS:,} ops"
        problems.add("too-large", f"{text}: layers that are alike belong in a repeat", position)
        raise Enough
    if problems.full:
        raise Enough


def node(raw: Any, position: Position | None, x: Value | None, frame: Frame) -> Value | None:
    """One node. Its value, or None with the problem told."""
    problems = frame.env.scope.problems
    work(frame, 1, position)
    spec = read_node(raw, position, problems)
    if spec is None:
        return None
    try:
        return _node(spec, x, frame)
    except Told:
        pass
    except Fault as e:
        e.tell(problems, spec.at(e.key))
    except TypeProblem as e:
        problems.add(e.code, f"{spec.kind}: {e}", spec.position, allowed=e.allowed, suggestion=e.suggestion)
    except SpecError as e:
        for p in e.problems:
            where = p.position or spec.position
            if not any(q.code == p.code and q.position == where for q in problems.items):  # of another call: the same
                problems.add(p.code, p.message, where, allowed=p.allowed, suggestion=p.suggestion)
    return None


def _node(spec: NodeSpec, x: Value | None, frame: Frame) -> Value | None:
    if spec.chain is not None:
        return chain(spec.chain, spec.position, x, frame)
    if spec.name and spec.name in frame.values and not frame.in_cycle:
        raise Fault(
            "duplicate-name", f"the name {spec.name} is taken by another node or an input", frame.known(), key="name"
        )
    try:
        x, ports = _sources(spec, x, frame)
    except Fault as e:
        e.tell(frame.env.scope.problems, spec.source_position)
        x, ports = None, {}
    env = frame.env
    if spec.frozen is not None or spec.init or spec.dtype or spec.share:
        env = env.but(
            frozen=env.frozen or bool(spec.frozen),
            init=spec.init or env.init,
            dtype=spec.dtype or env.dtype,
            share=Share(_shared(spec.share, frame)) if spec.share else env.share,
        )
    inner = dataclasses.replace(frame, env=env) if env is not frame.env else frame
    value = None
    try:
        value = _elaborate(spec, x, ports, inner)
    finally:
        if spec.name:
            frame.values[spec.name] = value
            if value is not None:
                env.call(value, spec.name)
    return value


def _shared(name: str, frame: Frame) -> str:
    """The path of the node whose weights another one uses too."""
    found, known = frame, list(frame.paths)
    while name not in found.paths and found.outer is not None:
        found = found.outer
        known += found.paths
    if name not in found.paths:
        raise Fault("unknown-name", f"share: no node before is called {name}", known, nearest(name, known), key="share")
    return found.paths[name]


def _sources(spec: NodeSpec, x: Value | None, frame: Frame) -> tuple[Value | None, dict[str, Value | None]]:
    if spec.source_position is None:
        return x, {}
    if isinstance(spec.source, str):
        return frame.lookup(spec.source), {}
    if not isinstance(spec.source, YMap):
        raise Fault("wrong-type", f"from takes a name or {{port: name}}, found {shown(spec.source)}")
    ports: dict[str, Value | None] = {}
    for port, name in spec.source.items():
        ports[port] = None
        try:
            if not isinstance(name, str):
                raise Fault("wrong-type", f"from: {port} takes a node's name, found {shown(name)}")
            ports[port] = frame.lookup(name)
        except Fault as e:
            e.tell(frame.env.scope.problems, spec.source.value_position[port])
    if "input" in ports:
        x = ports.pop("input")
    return x, ports


def check_ports(spec: NodeSpec, ports: dict[str, Value | None], allowed: tuple[str, ...], frame: Frame) -> None:
    for port in ports:
        if port not in allowed and isinstance(spec.source, YMap):
            hint = nearest(port, allowed) or (f"from: {spec.source[port]}" if allowed == ("input",) else None)
            fault = Fault("unknown-port", f"{spec.kind} has no input {port}", allowed, hint)
            fault.tell(frame.env.scope.problems, spec.source.key_position[port])


def _elaborate(spec: NodeSpec, x: Value | None, ports: dict[str, Value | None], frame: Frame) -> Value | None:
    from compiler.language.forms import FORMS
    from compiler.language.user_blocks import slot_node, user_block

    scope = frame.env.scope
    if scope.args.get(spec.kind) is FAILED:
        raise Told
    if isinstance(scope.args.get(spec.kind), Slot):
        return slot_node(scope.args[spec.kind], spec, x, ports, frame)
    if spec.kind in frame.defs:
        return user_block(spec, x, ports, frame)
    if spec.kind in FORMS:
        with placed(frame, spec):
            return FORMS[spec.kind](spec, x, frame)
    if spec.kind in kinds():
        return _kind(kinds()[spec.kind], spec, x, ports, frame)
    if spec.kind in TABLE and TABLE[spec.kind].arity == 1:
        if spec.args is not None:
            raise Fault("unexpected-options", f"{spec.kind} takes no options, found {shown(spec.args)}", key=spec.kind)
        if x is None:
            return None
        if x.type.dtype.startswith("int"):
            raise Fault(
                "dtype-mismatch", f"{spec.kind} takes floats, found {x.type.dtype}", (), "embed the tokens first"
            )
        with placed(frame, spec):
            return frame.env.b.__getattr__(spec.kind)(x)
    return _unknown(spec, x, ports, frame)


def _unknown(spec: NodeSpec, x: Value | None, ports: dict[str, Value | None], frame: Frame) -> Value | None:
    """A kind that nothing has; goes on as if the nearest were meant, to find what else is wrong."""
    from compiler.language.forms import FORMS

    args, problems = frame.env.scope.args, frame.env.scope.problems
    slots = [n for n, v in args.items() if isinstance(v, Slot)]
    own = [*slots, *frame.defs]
    known = [*own, *sorted({*FORMS, *kinds(), *(n for n, r in TABLE.items() if r.arity == 1)})]
    meant = nearest(spec.kind, known)
    message = f"no block is called {spec.kind}"
    if spec.kind in args:
        message = f"{spec.kind} is {shown(args[spec.kind])}, not a node: a slot is declared as {{{spec.kind}: block}}"
    problems.add("unknown-block", message, spec.position, allowed=known, suggestion=meant)
    if meant is None:
        return None
    before, count = len(problems.items), frame.env.progress.work
    try:
        value = _elaborate(dataclasses.replace(spec, kind=meant, raw=None), x, ports, frame)
    except (Fault, SpecError, TypeProblem, Told):
        value = None
    if len(problems.items) > before:  # something else was meant: nothing certain can be said of it
        del problems.items[before:]
        value = None
    frame.env.progress.work = count
    return value


@contextmanager
def placed(frame: Frame, spec: NodeSpec, name: str = "") -> Iterator[None]:
    with frame.env.b.at(name, spec.position):
        yield


def _kind(
    cls: type[Block], spec: NodeSpec, x: Value | None, ports: dict[str, Value | None], frame: Frame
) -> Value | None:
    check_ports(spec, ports, ("input", *cls.ports), frame)
    name = frame.local_name(spec.kind, spec.name)
    made = validate(cls, spec.args, frame.env.scope, spec.kind, spec.args_position, spec.text)
    if made is None or (x is None and not cls.source) or any(ports.get(p, x) is None for p in cls.ports):
        return None
    assert isinstance(made, Block)
    if x is not None and x.type.dtype.startswith("int") and not cls.takes_ids:
        found = f"{x.type.dtype} [{' '.join(x.axes)}]"
        raise Fault("dtype-mismatch", f"{spec.kind} takes floats, found {found}", (), "embed the tokens first")
    if x is not None and not x.axes:
        raise Fault("missing-axis", f"{spec.kind} takes a tensor with axes, found a single number")
    with placed(frame, spec, name):
        env = settled(frame.env, spec.kind, spec.position)
        frame.paths[spec.name or spec.kind] = env.share.path(env.b.path) if env.share else env.b.path
        value = made.build(env, x, **{p: v for p, v in ports.items() if p in cls.ports})  # type: ignore[arg-type]
        if name and not spec.name:
            env.call(value)
        return value


__all__ = ["Enough", "chain", "node", "work"]
