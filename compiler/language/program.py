"""Programs of blocks written in YAML: named weights and one expression a value, over the op functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from compiler.errors import Position, nearest
from compiler.graph.ir import Value
from compiler.language.frame import Frame
from compiler.language.scope import AxisArg, Fault
from compiler.ops.contract import FUNCTIONS
from compiler.source.expr import Binary, Brackets, Call, Expr, ExprError, Name, Number, Unary, evaluate, parse
from compiler.source.yaml import YMap

ARITHMETIC = {"+": "add", "-": "sub", "*": "mul", "/": "div"}
HIDDEN = {"constant", "positions", "reduce", "expand", "arrange", "first", "lookup", "cast", "norm", "equal", "greater", "select", "last_valid", "split", "merge"}  # fmt: skip


def callable_functions() -> list[str]:
    """Functions that a program may call."""
    return sorted(set(FUNCTIONS) - HIDDEN)


def run(definition: Any, x: Value, ports: Mapping[str, Value | None], frame: Frame) -> Value | None:
    """Runs a block's program. The value named ``output`` is the block's."""
    problems = frame.env.scope.problems
    names: dict[str, Any] = {"input": x, **{p: v for p, v in ports.items()}}
    for name, raw in (definition.params or {}).items():
        where = definition.params.value_position[name] if isinstance(definition.params, YMap) else None
        try:
            names[name] = _param(name, raw, frame)
        except Fault as e:
            problems.add(e.code, f"weight {name}: {e.message}", where, allowed=e.allowed, suggestion=e.suggestion)
            names[name] = None
    if "output" not in definition.program:
        raise Fault("missing-key", "a program needs output: the block's value", ("output",))
    for name, raw in definition.program.items():
        where = definition.program.value_position[name] if isinstance(definition.program, YMap) else None
        with frame.env.b.at("", where):
            names[name] = _line(raw, names, frame, where)
        if isinstance(names[name], Value) and name != "output":
            frame.env.b.names[f"{frame.env.b.path}.{name}"] = names[name]
    return names["output"] if isinstance(names["output"], Value) else None


def _line(raw: Any, names: dict[str, Any], frame: Frame, where: Position | None) -> Any:
    problems = frame.env.scope.problems
    try:
        tree = parse(str(raw))
        return _eval(tree, names, frame)
    except ExprError as e:
        place = Position(where.file, where.line, where.column + e.offset) if where else None
        problems.add(e.code, f"{e.message} in '{raw}'", place, suggestion=e.suggestion)
    except _Failed:
        pass
    except Fault as e:
        problems.add(e.code, f"{e.message} in '{raw}'", where, allowed=e.allowed, suggestion=e.suggestion)
    return None


class _Failed(Exception):
    """A value this depends on failed; already told."""


def _eval(tree: Expr, names: dict[str, Any], frame: Frame) -> Any:
    if isinstance(tree, Number):
        return tree.value
    if isinstance(tree, Name):
        return _name(tree.id, names, frame)
    if isinstance(tree, Unary):
        value = _eval(tree.operand, names, frame)
        if tree.op == "+":
            return value
        return frame.env.b.neg(value) if isinstance(value, Value) else -value
    if isinstance(tree, Binary):
        return _binary(tree, names, frame)
    if isinstance(tree, Call):
        return _call(tree, names, frame)
    raise Fault("wrong-type", "a list stands only as an option's value")


def _name(name: str, names: dict[str, Any], frame: Frame) -> Any:
    if name in names:
        if names[name] is None:
            raise _Failed
        return names[name]
    if name in ("true", "false"):
        return name == "true"
    try:
        return frame.env.scope.number(name)
    except Fault:
        known = [*names, *frame.env.scope.known]
        raise Fault("unknown-name", f"unknown name {name}", tuple(known), nearest(name, known)) from None


def _operand(value: Any, like: Value, frame: Frame) -> Value:
    """Numbers take the other side's dtype; two values meet in float32 unless both agree."""
    b = frame.env.b
    if isinstance(value, Weight):
        value = value.leaf
    if isinstance(value, Value):
        return value
    if isinstance(value, np.ndarray):
        return frame.env.number(tuple(float(v) for v in value), like.type.dtype)
    return b.constant(float(value), like.type.dtype)


def _binary(tree: Binary, names: dict[str, Any], frame: Frame) -> Any:
    left, right = _eval(tree.left, names, frame), _eval(tree.right, names, frame)
    left, right = (v.leaf if isinstance(v, Weight) else v for v in (left, right))
    tensors = [v for v in (left, right) if isinstance(v, Value)]
    b = frame.env.b
    if not tensors:
        return evaluate(Binary(tree.op, *(_literal(v) for v in (left, right)), tree.column), lambda n: 0)
    if tree.op == "**" and isinstance(left, Value) and not isinstance(right, Value):
        if right == 2:
            return b.square(left)
        if right in (0.5, -0.5):
            return b.sqrt(left) if right > 0 else b.rsqrt(left)
    if tree.op not in ARITHMETIC:
        raise Fault("wrong-type", f"{tree.op} is not for tensors", tuple(ARITHMETIC))
    x, y = _operand(left, tensors[0], frame), _operand(right, tensors[0], frame)
    dtype = x.type.dtype if x.type.dtype == y.type.dtype else "float32"
    return getattr(b, ARITHMETIC[tree.op])(b.cast(x, dtype), b.cast(y, dtype))


def _literal(value: Any) -> Number:
    return Number(value, 0)


def _call(tree: Call, names: dict[str, Any], frame: Frame) -> Any:
    b = frame.env.b
    args = [_eval(a, names, frame) for a in tree.args]
    target = names.get(tree.name)
    if isinstance(target, Weight):
        if len(args) != 1 or not isinstance(args[0], Value) or target.inputs is None:
            raise Fault(
                "wrong-type",
                f"{tree.name} is a linear map of one value"
                if target.inputs
                else f"{tree.name} is a plain tensor: write it without brackets, or as 'a -> b' to make it a map",
            )
        return target.apply(frame, args[0])
    if tree.name in names:
        if target is None:
            raise _Failed
        raise Fault("wrong-type", f"{tree.name} is a value and cannot be called")
    functions = callable_functions()
    if (
        not any(isinstance(a, (Value, Weight)) for a in args)
        and not tree.kwargs
        and tree.name in ("sqrt", "exp", "log", "min", "max", "ceil", "floor", "abs")
    ):
        return evaluate(Call(tree.name, tuple(_literal(a) for a in args), (), tree.column), lambda n: 0)
    if tree.name not in functions:
        known = [*functions, *(n for n, v in names.items() if isinstance(v, Weight))]
        raise Fault(
            "unknown-function",
            f"no op or weight is called {tree.name}",
            tuple(known),
            nearest(tree.name, known),
        )
    values = [a.leaf if isinstance(a, Weight) else a for a in args]
    values = [frame.env.compute(v) if isinstance(v, Value) and v.type.dtype != "float32" else v for v in values]
    options = {k: _option(v, names, frame) for k, v in tree.kwargs}
    try:
        return getattr(b, tree.name)(*values, **options)
    except TypeError as e:
        raise Fault("wrong-call", f"{tree.name}: {str(e).split('()', 1)[-1].strip()}") from None


def _option(tree: Expr, names: dict[str, Any], frame: Frame) -> Any:
    """A keyword's value: an axis name (a bare word that is a dim or unknown), a word, a number or a value."""
    if isinstance(tree, Brackets):
        return [_option(t, names, frame) for t in tree.items]
    if isinstance(tree, Name):
        if tree.id in names:
            value = _name(tree.id, names, frame)
            return value.leaf if isinstance(value, Weight) else value
        if tree.id in ("true", "false"):
            return tree.id == "true"
        if tree.id == "null":
            return None
        given = frame.env.scope.args.get(tree.id)
        if given is not None:
            return given.axis if isinstance(given, AxisArg) else given
        return tree.id
    value = _eval(tree, names, frame)
    return value.leaf if isinstance(value, Weight) else value


class Weight:
    """A weight of a program: a tensor, callable when it is a linear map."""

    def __init__(self, leaf: Value, inputs: tuple[str, ...] | None, renames: Mapping[str, str]) -> None:
        self.leaf, self.inputs, self.renames = leaf, inputs, renames

    def apply(self, frame: Frame, x: Value) -> Value:
        env = frame.env
        y = env.b.dot(env.compute(x), env.compute(self.leaf), self.inputs or (), env.policy.compute)
        return env.b.rename(y, **self.renames) if self.renames else y


def _param(name: str, raw: Any, frame: Frame) -> Weight:
    long: dict[str, Any] = raw if isinstance(raw, dict) else {"axes": raw}
    allowed = ("axes", "init", "dtype")
    for key in long:
        if key not in allowed:
            raise Fault("unknown-key", f"no such option {key}", allowed, nearest(key, allowed))
    axes = long.get("axes")
    if not isinstance(axes, str):
        raise Fault("wrong-type", f"axes are words like 'embed -> mlp', found {axes!r}")
    sides = [side.split() for side in axes.split("->")]
    if len(sides) > 2:
        raise Fault("wrong-type", f"one arrow at most, found '{axes}'")
    scope = frame.env.scope

    def sized(axis: str) -> tuple[str, int]:
        return axis, scope.count(axis, axis)

    kwargs: dict[str, Any] = {"init": str(long.get("init", "fan_in" if len(sides) == 2 else "ones"))}
    if "dtype" in long:
        kwargs["dtype"] = long["dtype"]
    ins = [sized(a) for a in sides[0]]
    if len(sides) == 1:
        return Weight(frame.env.weight(name, ins, **kwargs), None, {})
    outs = [sized(a) for a in sides[1]]
    fresh = [(f"{a}_out" if a in sides[0] else a, s) for a, s in outs]
    renames = {f: a for (f, _), (a, _) in zip(fresh, outs, strict=True) if f != a}
    return Weight(frame.env.weight(name, ins, to=fresh, **kwargs), tuple(sides[0]), renames)


__all__ = ["Callable", "callable_functions", "run"]
