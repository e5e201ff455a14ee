"""Blocks of the spec: how a call binds arguments and dims, and what becomes of their bodies and slots."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from compiler.errors import Position, nearest
from compiler.graph.ir import Value
from compiler.language import program
from compiler.language.elaborate import chain, check_ports, node, placed, work
from compiler.language.env import settled
from compiler.language.fields import META
from compiler.language.frame import Frame
from compiler.language.nodes import NodeSpec
from compiler.language.scope import FAILED, Fault, Scope, Slot, Told, Word, shown
from compiler.source.yaml import YMap

DEPTH = 24  # blocks inside blocks


def slot_node(
    slot: Slot, spec: NodeSpec, x: Value | None, ports: dict[str, Value | None], frame: Frame
) -> Value | None:
    """The node that the caller passed, with the caller's args and the dims of this place."""
    if ports:
        raise Fault(
            "unknown-port", f"{spec.kind} is a node given by the caller: only `from: name` goes beside it", key="from"
        )
    if spec.args is not None:
        raise Fault("unexpected-options", f"{spec.kind} is a node given by the caller and takes no options here",
                    suggestion="give the options where the node is passed", key=spec.kind)  # fmt: skip
    scope = frame.env.scope.with_args(slot.args)
    inner = dataclasses.replace(frame, env=frame.env.but(scope=scope))
    return node(slot.raw, slot.position, x, inner)


def user_block(spec: NodeSpec, x: Value | None, ports: dict[str, Value | None], frame: Frame) -> Value | None:
    """A block written in the spec. Without a value its body is still read, to find what is wrong in it."""
    definition = frame.defs[spec.kind]
    problems = frame.env.scope.problems
    if spec.kind in frame.stack or len(frame.stack) >= DEPTH:
        blocks = frozenset(frame.stack[frame.stack.index(spec.kind) :] if spec.kind in frame.stack else frame.stack)
        if any(blocks & told for told in frame.env.progress.cycles):
            raise Told
        frame.env.progress.cycles.add(blocks)
        loop = " -> ".join([*frame.stack[frame.stack.index(spec.kind) if spec.kind in frame.stack else 0 :], spec.kind])
        raise Fault("block-cycle", f"blocks contain each other without end: {loop}")
    frame.env.progress.used.add(spec.kind)
    allowed = ("input", *(definition.inputs or ()))
    check_ports(spec, ports, allowed, frame)
    for port in definition.inputs or ():
        if port not in ports:
            hint = f"from: {{{port}: a node's name}}"
            problems.add("missing-port", f"{spec.kind} needs its input {port}", spec.at("from"), allowed=allowed,
                         suggestion=hint)  # fmt: skip
            ports[port] = None
    axes = None if x is None else {a: int(s.constant) for a, s in x.type.pairs if s.is_constant}
    args = _bind(spec, definition, frame, axes)
    path_name = frame.local_name(spec.kind, spec.name)
    scope = dataclasses.replace(frame.env.scope, args=args, axes=axes)
    scope = bind_dims(definition.dims, scope, problems)
    env = frame.env.but(scope=scope)
    inner = Frame(env, {**ports}, frame, frame.defs, ambiguous=frame.ambiguous, stack=(*frame.stack, spec.kind))
    with placed(frame, spec, path_name):
        inner.env = env = settled(env, spec.kind, spec.position)
        frame.paths[spec.name or spec.kind] = env.share.path(env.b.path) if env.share else env.b.path
        if definition.program is not None:
            work(frame, len(definition.program) + len(definition.params or ()), spec.position)
            inner.values["input"] = x
            value = program.run(definition, x, ports, inner)
        else:
            inner.transparent = _is_one_block(definition.body)
            value = chain(definition.body, definition.body.position, x, inner)
        if path_name and not spec.name and value is not None:
            env.call(value)
        return value


def unused_blocks(raw: YMap, frame: Frame) -> list[str]:
    """Reads the blocks that nothing used, to find what is wrong in them; a warning for each."""
    problems, unused = frame.env.scope.problems, []
    for name, definition in frame.defs.items():
        if name in frame.env.progress.used:
            continue
        unused.append(f"nothing uses the block {name}")
        before = list(problems.items)
        args = dict.fromkeys([*(definition.args or ())], FAILED)
        spec = NodeSpec(name, args, raw.key_position[name], None, name=f"{name}_unused")
        env = frame.env.but(scope=dataclasses.replace(frame.env.scope, layer=0))
        with suppress(Told, Fault):
            user_block(spec, None, dict.fromkeys(definition.inputs or ()), dataclasses.replace(frame, env=env))
        # what it takes by name from around it, only a caller can say
        found = [p for p in problems.items[len(before) :] if p.code != "unknown-node"]
        problems.items[:] = [*before, *found]
    return unused


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
        except (Fault, Told) as e:
            if isinstance(e, Fault):
                e.tell(problems, raw.within(name, e.offset) if isinstance(raw, YMap) else None)
            scope = scope.without_dim(name)
        else:
            scope = scope.with_dims({name: size})
    return scope


def _bind(spec: NodeSpec, definition: Any, frame: Frame, axes: Mapping[str, int] | None) -> dict[str, Any]:
    """Arguments of a call of a block of the spec: given ones in the caller's scope, defaults in the block's own, which
    knows the sizes of its input's axes."""
    scope, problems = frame.env.scope, frame.env.scope.problems
    declared = definition.args or {}
    given = spec.args if spec.args is not None else {}
    if not isinstance(given, dict):
        text = (
            f"{spec.kind} takes options by name, found {shown(given)}" if declared else f"{spec.kind} takes no options"
        )
        Fault("wrong-type", text, declared).tell(problems, spec.at(spec.kind))
        given = dict.fromkeys(declared, FAILED)
    meant: set[str | None] = set()
    for key in given:
        if key not in declared:
            where = given.key_position[key] if isinstance(given, YMap) else spec.position
            hint = nearest(key, declared)
            meant.add(hint)
            if key in META:
                problems.add("misplaced-key", f"{key} belongs beside {spec.kind}:, not among its options", where,
                             suggestion=f"write {key} in the same column as {spec.kind}")  # fmt: skip
            else:
                problems.add(
                    "unknown-key", f"{spec.kind} has no option {key}", where, allowed=declared, suggestion=hint
                )
    work(frame, (len(declared) + len(definition.dims or ())) // 8, spec.position)
    bound: dict[str, Any] = dict(scope.top)
    for name, default in declared.items():
        own = name not in given
        raw, table = (default, declared) if own else (given[name], given)
        if raw is FAILED or (own and name in meant):
            bound[name] = FAILED
            continue
        here = dataclasses.replace(scope, args=bound, axes=axes) if own else scope
        where = table.value_position.get(name) if isinstance(table, YMap) else None
        try:
            bound[name] = _argument(name, default, raw, own, where, here, spec)
        except Told:
            bound[name] = FAILED
        except Fault as e:
            bound[name] = FAILED
            inside = table.within(name, e.offset) if isinstance(table, YMap) else where
            e.tell(problems, spec.position if own and e.code == "missing-key" else inside)
    return bound


def _argument(name: str, default: Any, raw: Any, own: bool, where: Position | None, here: Scope, spec: NodeSpec) -> Any:
    """The value of one argument. ``default`` may say what it must be: a node (block), a size, a number."""
    if own and default in ("block", "size", "number"):
        what = {"block": "a node", "size": "a size", "number": "a number"}[default]
        raise Fault("missing-key", f"{spec.kind} needs {name}: {what}")
    if default == "block":
        existing = here.args.get(raw) if isinstance(raw, str) else None
        if existing is FAILED:
            raise Told
        return existing if isinstance(existing, Slot) else Slot(raw, where, here.args)
    if default == "size":
        return here.axis(raw, name, name)
    if default == "number":
        return here.number(raw)
    value = here.value(raw)
    return Word.at(value, where) if type(value) is str else value
