"""Elaborate: a checked spec becomes an op graph. Forms (residual, repeat, …) are in ``forms``; block kinds in
``compiler/blocks``; a block of the spec is a body or a program. All problems are collected, not only the first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from compiler.errors import Position, SpecError, nearest
from compiler.graph.ir import Value
from compiler.graph.types import TypeProblem
from compiler.language import program
from compiler.language.block import Block, kinds
from compiler.language.fields import META, validate
from compiler.language.frame import Frame
from compiler.language.nodes import NodeSpec, read_node
from compiler.language.scope import FAILED, AxisArg, Fault, Scope, Slot, Told, Unroll, Word, shown
from compiler.ops.elementwise import TABLE
from compiler.source.yaml import YList, YMap

DEPTH = 24  # blocks inside blocks
MAX_NODES = 20_000  # elaborated: a repeat's cycle counts once, layers written out count each


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


def node(raw: Any, position: Position | None, x: Value | None, frame: Frame) -> Value | None:
    """One node. Its value, or None with the problem told."""
    problems, progress = frame.env.scope.problems, frame.env.progress
    progress.nodes += 1
    if progress.nodes > MAX_NODES:
        text = f"the spec writes out more than {MAX_NODES:,} nodes: layers that are alike belong in a repeat"
        problems.add("too-large", text, position)
        raise Enough
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
            share=_shared(spec.share, frame) if spec.share else None,
        )
    inner = dataclasses.replace(frame, env=env) if env is not frame.env else frame
    value = None
    try:
        value = _elaborate(spec, x, ports, inner)
    finally:
        if spec.name:
            frame.values[spec.name] = value
            if value is not None:
                env.b.names[".".join(p for p in (env.b.path, spec.name) if p)] = value
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


def _check_ports(spec: NodeSpec, ports: dict[str, Value | None], allowed: tuple[str, ...], frame: Frame) -> None:
    for port in ports:
        if port not in allowed and isinstance(spec.source, YMap):
            hint = nearest(port, allowed) or (f"from: {spec.source[port]}" if allowed == ("input",) else None)
            fault = Fault("unknown-port", f"{spec.kind} has no input {port}", allowed, hint)
            fault.tell(frame.env.scope.problems, spec.source.key_position[port])


def _elaborate(spec: NodeSpec, x: Value | None, ports: dict[str, Value | None], frame: Frame) -> Value | None:
    from compiler.language.forms import FORMS

    scope = frame.env.scope
    if scope.args.get(spec.kind) is FAILED:
        raise Told
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
            raise Fault("unexpected-options", f"{spec.kind} takes no options, found {shown(spec.args)}", key=spec.kind)
        if x is None:
            return None
        if x.type.dtype.startswith("int"):
            raise Fault(
                "dtype-mismatch", f"{spec.kind} takes floats, found {x.type.dtype}", (), "embed the tokens first"
            )
        with _placed(frame, spec):
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
    before, count = len(problems.items), frame.env.progress.nodes
    try:
        value = _elaborate(dataclasses.replace(spec, kind=meant, raw=None), x, ports, frame)
    except (Fault, SpecError, TypeProblem, Told):
        value = None
    if len(problems.items) > before:  # something else was meant: nothing certain can be said of it
        del problems.items[before:]
        value = None
    frame.env.progress.nodes = count
    return value


@contextmanager
def _placed(frame: Frame, spec: NodeSpec, name: str = "") -> Iterator[None]:
    with frame.env.b.at(name, spec.position):
        yield


def _kind(
    cls: type[Block], spec: NodeSpec, x: Value | None, ports: dict[str, Value | None], frame: Frame
) -> Value | None:
    _check_ports(spec, ports, ("input", *cls.ports), frame)
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
    with _placed(frame, spec, name):
        frame.paths[spec.name or spec.kind] = frame.env.share or frame.env.b.path
        return made.build(frame.env, x, **{p: v for p, v in ports.items() if p in cls.ports})  # type: ignore[arg-type]


def _slot(slot: Slot, spec: NodeSpec, x: Value | None, ports: dict[str, Value | None], frame: Frame) -> Value | None:
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
    _check_ports(spec, ports, allowed, frame)
    for port in definition.inputs or ():
        if port not in ports:
            hint = f"from: {{{port}: a node's name}}"
            problems.add("missing-port", f"{spec.kind} needs its input {port}", spec.at("from"), allowed=allowed,
                         suggestion=hint)  # fmt: skip
            ports[port] = None
    args = _bind(spec, definition, frame)
    path_name = frame.local_name(spec.kind, spec.name)
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
        return chain(definition.body, definition.body.position, x, inner)


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


def _bind(spec: NodeSpec, definition: Any, frame: Frame) -> dict[str, Any]:
    """Arguments of a call of a block of the spec: given ones in the caller's scope, defaults in the block's own."""
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
    bound: dict[str, Any] = dict(scope.top)
    for name, default in declared.items():
        own = name not in given
        raw, table = (default, declared) if own else (given[name], given)
        bound[name] = FAILED
        if raw is FAILED or (own and name in meant):
            continue
        here = dataclasses.replace(scope, args={k: v for k, v in bound.items() if k != name}) if own else scope
        where = table.value_position.get(name) if isinstance(table, YMap) else None
        try:
            bound[name] = _argument(name, default, raw, own, where, here, spec)
        except Told:
            pass
        except Fault as e:
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


__all__ = ["AxisArg", "Unroll", "bind_dims", "chain", "node", "user_block"]
