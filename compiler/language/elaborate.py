"""Elaborate: a checked spec becomes an op graph. Forms (residual, repeat, …) are in ``forms``; block kinds in
``compiler/blocks``; a block of the spec is a body or a program. All problems are collected, not only the first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from compiler.errors import Position, Problem, SpecError, nearest
from compiler.graph.ir import Value
from compiler.language import program
from compiler.language.block import Block, kinds
from compiler.language.fields import validate
from compiler.language.frame import Frame
from compiler.language.nodes import NodeSpec, read_node
from compiler.language.scope import AxisArg, Fault, Scope, Slot, Unroll
from compiler.ops.elementwise import TABLE
from compiler.source.yaml import YList, YMap

DEPTH = 24  # blocks inside blocks


def chain(raw: Any, position: Position | None, x: Value | None, frame: Frame) -> Value | None:
    """Nodes one after the other; None once something failed (already told)."""
    if not isinstance(raw, YList):
        raw, position = _as_list(raw, position), position
    for item, where in zip(raw, raw.item_position, strict=True):
        x = node(item, where, x, frame)
    return x


def _as_list(raw: Any, position: Position | None) -> YList:
    made = YList(position or Position("<none>", 1, 1))
    made.append(raw)
    made.item_position.append(made.position)
    return made


def node(raw: Any, position: Position | None, x: Value | None, frame: Frame) -> Value | None:
    """One node. Its value, or None with the problem told."""
    problems = frame.env.scope.problems
    spec = read_node(raw, position, problems)
    if spec is None:
        return None
    try:
        return _node(spec, x, frame)
    except Fault as e:
        problems.add(
            e.code,
            e.message,
            spec.source_position or spec.position,
            allowed=e.allowed,
            suggestion=e.suggestion,
        )
    except SpecError as e:
        for p in e.problems:
            p = p if p.position else dataclasses.replace(p, position=spec.position)
            problems.items.append(p) if p not in problems.items else None
    return None


def _node(spec: NodeSpec, x: Value | None, frame: Frame) -> Value | None:
    if spec.chain is not None:
        return chain(spec.chain, spec.position, x, frame)
    x, ports = _sources(spec, x, frame)
    env = frame.env
    if spec.frozen or spec.init or spec.dtype or spec.share:
        share = None
        if spec.share:
            found = frame
            while spec.share not in found.paths and found.outer is not None:
                found = found.outer
            if spec.share not in found.paths:
                raise Fault(
                    "unknown-name",
                    f"share: no node before is called {spec.share}",
                    tuple(found.paths),
                    nearest(spec.share, found.paths),
                )
            share = found.paths[spec.share]
        env = env.but(
            frozen=env.frozen or bool(spec.frozen),
            init=spec.init or env.init,
            dtype=spec.dtype or env.dtype,
            share=share,
        )
    inner = dataclasses.replace(frame, env=env) if env is not frame.env else frame
    value = _elaborate(spec, x, ports, inner)
    if spec.name:
        if spec.name in frame.values and not frame.in_cycle:
            raise SpecError(Problem("duplicate-name", f"two nodes are called {spec.name}", spec.position))
        frame.values[spec.name] = value
        if value is not None:
            env.b.names[".".join(p for p in (env.b.path, spec.name) if p)] = value
    return value


def _sources(spec: NodeSpec, x: Value | None, frame: Frame) -> tuple[Value | None, dict[str, Value | None]]:
    if spec.source is None:
        return x, {}
    if isinstance(spec.source, str):
        return frame.lookup(spec.source), {}
    if isinstance(spec.source, YMap):
        ports: dict[str, Value | None] = {}
        for port, name in spec.source.items():
            if not isinstance(name, str):
                raise Fault("wrong-type", f"from: {port} takes a node's name, found {name!r}")
            ports[port] = frame.lookup(name)
        if "input" in ports:
            x = ports.pop("input")
        return x, ports
    raise Fault("wrong-type", f"from takes a name or {{port: name}}, found {spec.source!r}")


def _elaborate(spec: NodeSpec, x: Value | None, ports: dict[str, Value | None], frame: Frame) -> Value | None:
    from compiler.language.forms import FORMS

    scope = frame.env.scope
    if isinstance(scope.args.get(spec.kind), Slot):
        return _slot(scope.args[spec.kind], spec, x, ports, frame)
    if spec.kind in frame.defs:
        return user_block(spec, x, ports, frame)
    if spec.kind in FORMS:
        with _placed(frame, spec):
            return FORMS[spec.kind](spec, x, frame)
    if spec.kind in kinds():
        return _kind(kinds()[spec.kind], spec, x, ports, frame)
    if spec.kind in TABLE and TABLE[spec.kind].arity == 1:
        if spec.args is not None:
            raise Fault("wrong-type", f"{spec.kind} takes no options")
        if x is None:
            return None
        with _placed(frame, spec):
            return frame.env.b.__getattr__(spec.kind)(x)
    known = sorted({*FORMS, *frame.defs, *kinds(), *(n for n, r in TABLE.items() if r.arity == 1)})
    slots = [n for n, v in scope.args.items() if isinstance(v, Slot)]
    raise Fault(
        "unknown-block",
        f"no block is called {spec.kind}",
        tuple([*slots, *known]),
        nearest(spec.kind, [*slots, *known]),
    )


@contextmanager
def _placed(frame: Frame, spec: NodeSpec, name: str = "") -> Iterator[None]:
    with frame.env.b.at(name, spec.position):
        yield


def _kind(
    cls: type[Block], spec: NodeSpec, x: Value | None, ports: dict[str, Value | None], frame: Frame
) -> Value | None:
    made = validate(cls, spec.args, frame.env.scope, spec.kind, spec.args_position)
    for port in ports:
        if port not in cls.ports:
            allowed = ("input", *cls.ports)
            raise Fault("unknown-port", f"{spec.kind} has no input {port}", allowed, nearest(port, allowed))
    if made is None or (x is None and not cls.source) or any(v is None for v in ports.values()):
        frame.local_name(spec.kind, spec.name)
        return None
    assert isinstance(made, Block)
    with _placed(frame, spec, frame.local_name(spec.kind, spec.name)):
        frame.paths[spec.name or spec.kind] = frame.env.share or frame.env.b.path
        value = made.build(frame.env, x, **ports)  # type: ignore[arg-type]
    return value


def _slot(slot: Slot, spec: NodeSpec, x: Value | None, ports: dict[str, Value | None], frame: Frame) -> Value | None:
    """The node that the caller passed, with the caller's args and the dims of this place."""
    if ports:
        raise Fault("unknown-port", f"{spec.kind} is a node given by the caller: only `from: name` goes beside it", ())
    if spec.args is not None:
        raise Fault("unknown-key", f"{spec.kind} is a node given by the caller and takes no options here")
    scope = frame.env.scope.with_args(slot.args)
    inner = dataclasses.replace(frame, env=frame.env.but(scope=scope))
    return node(slot.raw, slot.position, x, inner)


def user_block(spec: NodeSpec, x: Value | None, ports: dict[str, Value | None], frame: Frame) -> Value | None:
    """A block written in the spec."""
    definition = frame.defs[spec.kind]
    problems = frame.env.scope.problems
    if spec.kind in frame.stack or len(frame.stack) >= DEPTH:
        loop = " -> ".join([*frame.stack, spec.kind])
        raise Fault("block-cycle", f"blocks contain each other without end: {loop}")
    allowed = ("input", *(definition.inputs or ()))
    for port in ports:
        if port not in allowed:
            raise Fault("unknown-port", f"{spec.kind} has no input {port}", allowed, nearest(port, allowed))
    missing = [p for p in definition.inputs or () if p not in ports]
    if missing:
        raise Fault("missing-port", f"{spec.kind} needs `from: {{{missing[0]}: …}}`", allowed)
    args = _bind(spec, definition, frame)
    path_name = frame.local_name(spec.kind, spec.name)
    if args is None or x is None:
        return None
    scope = dataclasses.replace(frame.env.scope, args=args)
    scope = bind_dims(definition.dims, scope, problems)
    env = frame.env.but(scope=scope)
    inner = Frame(env, {**ports}, frame, frame.defs, ambiguous=frame.ambiguous, stack=(*frame.stack, spec.kind))
    with _placed(frame, spec, path_name):
        frame.paths[spec.name or spec.kind] = env.share or env.b.path
        if definition.program is not None:
            inner.values["input"] = x
            return program.run(definition, x, ports, inner)
        inner.transparent = _is_one_block(definition.body)
        return chain(definition.body, spec.position, x, inner)


def _is_one_block(body: Any) -> bool:
    """A body of one unnamed block: `norm: {body: [{rms_norm: …}]}` has its weight at `norm.scale`."""
    from compiler.language.forms import FORMS

    if len(body) != 1:
        return False
    only = body[0]
    if isinstance(only, str):
        return only not in FORMS
    return isinstance(only, dict) and "name" not in only and not any(k in FORMS for k in only)


def bind_dims(raw: Any, scope: Scope, problems: Any) -> Scope:
    """Dims rebound for a block and what is below it, in order: later ones may use earlier ones."""
    for name, value in (raw or {}).items():
        try:
            size = scope.count(value, f"dim {name}")
        except Fault as e:
            where = raw.value_position.get(name) if isinstance(raw, YMap) else None
            problems.add(e.code, e.message, where, allowed=e.allowed, suggestion=e.suggestion)
            size = 1
        scope = scope.with_dims({name: size})
    return scope


def _bind(spec: NodeSpec, definition: Any, frame: Frame) -> dict[str, Any] | None:
    """Arguments of a call of a block of the spec: given ones in the caller's scope, defaults in the block's own."""
    scope, problems = frame.env.scope, frame.env.scope.problems
    declared = definition.args or {}
    given = spec.args if spec.args is not None else {}
    if not isinstance(given, dict):
        raise Fault("wrong-type", f"{spec.kind} takes options by name, found {given!r}", tuple(declared))
    ok = True
    for key in given:
        if key not in declared:
            where = given.key_position[key] if isinstance(given, YMap) else spec.position
            problems.add(
                "unknown-key",
                f"{spec.kind} has no option {key}",
                where,
                allowed=declared,
                suggestion=nearest(key, declared),
            )
            ok = False
    bound: dict[str, Any] = dict(scope.top)
    for name, default in declared.items():
        raw, where, own = (
            (given[name], _where(given, name), False) if name in given else (default, _where(declared, name), True)
        )
        here = dataclasses.replace(scope, args=bound) if own else scope
        try:
            if default == "block":
                if own:
                    raise Fault("missing-key", f"{spec.kind} needs {name}: a node")
                existing = scope.args.get(raw) if isinstance(raw, str) else None
                bound[name] = existing if isinstance(existing, Slot) else Slot(raw, where, scope.args)
            elif default in ("size", "number") and own:
                raise Fault("missing-key", f"{spec.kind} needs {name}: a {default}")
            elif default == "size":
                bound[name] = here.axis(raw, name, name)
            else:
                bound[name] = here.value(raw)
        except Fault as e:
            problems.add(
                e.code,
                e.message,
                where if not own else spec.position,
                allowed=e.allowed,
                suggestion=e.suggestion,
            )
            ok = False
    return bound if ok else None


def _where(raw: Any, key: str) -> Position | None:
    return raw.value_position.get(key) if isinstance(raw, YMap) else None


__all__ = ["AxisArg", "Unroll", "bind_dims", "chain", "node", "user_block"]
