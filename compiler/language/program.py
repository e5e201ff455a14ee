"""Programs of blocks written in YAML: named weights and one expression a value, over the op functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from compiler.errors import Position, Problems, SpecError, nearest
from compiler.graph.ir import Value
from compiler.graph.types import TypeProblem
from compiler.language.call import PRODUCTS, call, callable_functions, wants_number
from compiler.language.frame import Frame
from compiler.language.nodes import check_dtype, check_init
from compiler.language.scope import FAILED, AxisArg, Fault, Told, shown
from compiler.language.spec import MAX_AXES
from compiler.source.expr import FUNCTIONS as ARITHMETIC_FUNCTIONS
from compiler.source.expr import Binary, Brackets, Call, Expr, ExprError, Name, Number, Unary, children, evaluate, parse
from compiler.source.yaml import YMap

ARITHMETIC = {"+": "add", "-": "sub", "*": "mul", "/": "div"}


def run(definition: Any, x: Value | None, ports: Mapping[str, Value | None], frame: Frame) -> Value | None:
    """Runs a block's program. The value named ``output`` is the block's. Without an input it is still read, to find
    what is wrong in it."""
    problems, params, lines = frame.env.scope.problems, definition.params or {}, definition.program
    found: dict[str, Any] = {"input": x, **ports}
    before = len(problems.items)
    for name, raw in params.items():
        found[name] = None
        try:
            found[name] = _param(name, raw, frame)
        except Told:
            pass
        except Fault as e:
            inner = isinstance(raw, YMap) and e.key in raw
            e.tell(
                problems, raw.within(e.key, e.offset) if inner else _within(params, name, e.offset), f"weight {name}: "
            )
        except TypeProblem as e:
            hint = "rename one of them" if e.code == "repeated-axis" else e.suggestion
            problems.add(e.code, f"weight {name}: {e}", _within(params, name), allowed=e.allowed, suggestion=hint)
    later = list(lines)
    for name, raw in lines.items():
        later.remove(name)
        with frame.env.b.at("", _within(lines, name)):
            found[name] = _line(name, raw, found, later, frame, lines)
        if isinstance(found[name], Value) and name != "output":
            frame.env.call(found[name], name)
    if len(problems.items) == before:  # else a fault may hide what a line uses
        _check_used(params, lines, problems)
    if "output" not in lines:
        hint = nearest("output", lines) or (f"output: {list(lines)[-1]}" if lines else None)
        where = lines.position if isinstance(lines, YMap) else None
        problems.add("missing-key", "a program needs output: the block's value", where, suggestion=hint)
        return None
    return found["output"] if isinstance(found["output"], Value) else None


def _within(table: Any, key: str, offset: int = 0) -> Position | None:
    return table.within(key, offset) if isinstance(table, YMap) else None


def _check_used(params: Mapping[str, Any], lines: Mapping[str, Any], problems: Problems) -> None:
    """A weight that no line uses would count and be loaded, and do nothing."""
    words: set[str] = set()
    for raw in lines.values():
        try:
            words |= _words(parse(str(raw)))
        except ExprError:
            return
    for name in params:
        if name not in words:
            where = params.key_position[name] if isinstance(params, YMap) else None
            problems.add("unused-weight", f"no line of the program uses the weight {name}", where)


def _words(tree: Expr) -> set[str]:
    own = {tree.name} if isinstance(tree, Call) else {tree.id} if isinstance(tree, Name) else set()
    return own.union(*map(_words, children(tree)))


def _line(name: str, raw: Any, found: dict[str, Any], later: list[str], frame: Frame, lines: Any) -> Any:
    problems = frame.env.scope.problems
    try:
        if not isinstance(raw, (str, int, float)) or isinstance(raw, bool):
            raise Fault("wrong-type", f"{name} takes an expression over ops, found {shown(raw)}")
        value = _eval(parse(str(raw)), found, frame)
        value = value.leaf if isinstance(value, Weight) else value
        if name == "output" and not isinstance(value, Value):
            raise Fault("wrong-type", f"output must be a tensor, found {shown(value)}")
        return value
    except ExprError as e:
        problems.add(e.code, f"{e.message} (in {shown(raw)})", _within(lines, name, e.offset), suggestion=e.suggestion)
    except Told:
        pass
    except Fault as e:
        message, hint = e.message, e.suggestion
        if e.name is not None and (e.name == name or e.name in later):
            message, hint = f"{e.name} refers to itself", None
            if e.name != name:
                message = f"{e.name} is computed further down"
        text = f" in {shown(raw)}" if isinstance(raw, str) else ""
        where = e.position or _within(lines, name, e.offset)
        problems.add(e.code, message + text, where, allowed=e.allowed, suggestion=hint)
    except TypeProblem as e:
        problems.add(e.code, str(e), _within(lines, name), allowed=e.allowed, suggestion=e.suggestion)
    except SpecError as e:
        for p in e.problems:
            problems.add(p.code, p.message, p.position, allowed=p.allowed, suggestion=p.suggestion)
    return None


def _eval(tree: Expr, names: dict[str, Any], frame: Frame) -> Any:
    """A tensor, a weight or a number. A fault is placed at the part of the expression that has it."""
    try:
        return _value(tree, names, frame)
    except Fault as e:
        e.offset = e.offset or tree.column
        raise


def _value(tree: Expr, names: dict[str, Any], frame: Frame) -> Any:
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
            raise Told
        return names[name]
    if name in ("true", "false"):
        return name == "true"
    try:
        return frame.env.scope.number(name)
    except Fault as e:
        if e.code != "unknown-name" or e.position:
            raise
        known = [*names, *frame.env.scope.known]
        hint = nearest(name, known) if name not in callable_functions() else f"{name}(…)"
        raise Fault("unknown-name", f"unknown name {name}", known, hint, name=name) from None


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
        return _plain(Binary(tree.op, _literal(left), _literal(right), column=tree.column))
    if tree.op == "**" and isinstance(left, Value) and not isinstance(right, Value):
        if right == 2:
            return b.square(left)
        if right in (0.5, -0.5):
            return b.sqrt(left) if right > 0 else b.rsqrt(left)
    if tree.op not in ARITHMETIC:
        hint = "square(x), sqrt(x), rsqrt(x) or exp(p * log(x))" if tree.op == "**" else None
        raise Fault("wrong-type", f"{tree.op} is not for tensors", ARITHMETIC, hint, offset=tree.column)
    x, y = _operand(left, tensors[0], frame), _operand(right, tensors[0], frame)
    dtype = x.type.dtype if x.type.dtype == y.type.dtype else "float32"
    return getattr(b, ARITHMETIC[tree.op])(b.cast(x, dtype), b.cast(y, dtype))


def _call(tree: Call, names: dict[str, Any], frame: Frame) -> Any:
    args = [_eval(a, names, frame) for a in tree.args]
    target = names.get(tree.name)
    if isinstance(target, Weight):
        if target.inputs is None:
            raise Fault("wrong-call", f"{tree.name} is a plain tensor and cannot be called",
                        suggestion=f"{tree.name} * x, or declare it as a map 'a -> b'")  # fmt: skip
        if len(args) != 1 or tree.kwargs or not isinstance(args[0], Value):
            count = len(args) + len(tree.kwargs)
            found = (
                shown(args[0])
                if count == 1 and args and not isinstance(args[0], (Value, Weight))
                else f"{count} values"
            )
            raise Fault("wrong-call", f"{tree.name} is a linear map of one value, found {found}")
        return target.apply(frame, args[0])
    if tree.name in names:
        if target is None:
            raise Told
        raise Fault("wrong-call", f"{tree.name} is a value and cannot be called")
    if tree.name in ARITHMETIC_FUNCTIONS and not tree.kwargs and not any(isinstance(a, (Value, Weight)) for a in args):
        return _plain(Call(tree.name, tuple(_literal(a) for a in args), (), column=tree.column))
    functions = callable_functions()
    if tree.name not in functions:
        known = [*(n for n, v in names.items() if isinstance(v, Weight)), *functions]
        hint = nearest(tree.name, known)
        raise Fault("unknown-function", f"no op or weight is called {tree.name}", known, hint)
    values = [a.leaf if isinstance(a, Weight) else a for a in args]
    wide = () if tree.name in PRODUCTS else ("float32",)
    values = [frame.env.compute(v) if _narrowed(v, wide) else v for v in values]
    options = {k: _option(v, names, frame, wants_number(tree.name, k)) for k, v in tree.kwargs}
    return call(frame.env.b, tree.name, values, options)


def _narrowed(value: Any, wide: tuple[str, ...]) -> bool:
    """Whether a call takes a value in the compute dtype: numbers of tokens and counts stay whole."""
    return isinstance(value, Value) and value.type.dtype not in (*wide, "int32")


def _literal(value: Any) -> Number:
    return Number(value)


def _plain(tree: Expr) -> Any:
    """Arithmetic on numbers alone."""
    try:
        return evaluate(tree, lambda name: 0)
    except ExprError as e:
        raise Fault(e.code, e.message, (), e.suggestion, offset=tree.column) from None


def _option(tree: Expr, names: dict[str, Any], frame: Frame, number: bool = False) -> Any:
    """A keyword's value: an axis name (a bare word that is a dim or unknown), a word, a number or a value. Where a
    ``number`` is wanted a dim is its size."""
    if isinstance(tree, Brackets):
        return [_option(t, names, frame, number) for t in tree.items]
    if isinstance(tree, Name):
        if tree.id in names:
            value = _name(tree.id, names, frame)
            return value.leaf if isinstance(value, Weight) else value
        if tree.id in ("true", "false"):
            return tree.id == "true"
        if tree.id == "null":
            return None
        if tree.id not in frame.env.scope.args:
            return _eval(tree, names, frame) if number else tree.id
        given = frame.env.scope.args[tree.id]  # may be null
        if given is FAILED:
            raise Told
        if isinstance(given, AxisArg):
            return given.size if number else given.axis
        return given
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
            where = raw.key_position[key] if isinstance(raw, YMap) else None
            raise Fault("unknown-key", f"no option {key}", allowed, nearest(key, allowed), position=where)
    if "axes" not in long:
        raise Fault("missing-key", "axes are missing", allowed)
    axes = long["axes"]
    if not isinstance(axes, str):
        raise Fault("wrong-type", f"axes are words like 'embed -> mlp', found {shown(axes)}", key="axes")
    sides = [side.split() for side in axes.split("->")]
    if sum(map(len, sides)) > MAX_AXES:
        raise Fault("too-large", f"at most {MAX_AXES} axes", key="axes")
    if len(sides) > 2 or (len(sides) == 2 and not all(sides)):
        raise Fault("wrong-type", f"axes are 'a b' or 'a -> b', found {shown(axes)}", key="axes")
    scope = frame.env.scope

    def sized(axis: str) -> tuple[str, int]:
        try:
            if not axis.isidentifier():
                raise Fault("wrong-type", f"axes are words like 'embed -> mlp', found '{axis}'")
            return axis, scope.count(axis, axis)
        except Fault as e:
            e.offset, e.key = axes.find(axis), "axes"
            raise

    kwargs: dict[str, Any] = {"init": "fan_in" if len(sides) == 2 else "ones"}
    for key, check in (("init", check_init), ("dtype", check_dtype)):
        if key in long:
            try:
                kwargs[key] = check(long[key])
            except Fault as e:
                e.key = key
                raise
    ins = [sized(a) for a in sides[0]]
    if len(sides) == 1:
        return Weight(frame.env.weight(name, ins, **kwargs), None, {})
    outs = [sized(a) for a in sides[1]]
    fresh = [(f"{a}_out" if a in sides[0] else a, s) for a, s in outs]
    renames = {f: a for (f, _), (a, _) in zip(fresh, outs, strict=True) if f != a}
    return Weight(frame.env.weight(name, ins, to=fresh, **kwargs), tuple(sides[0]), renames)


__all__ = ["callable_functions", "run"]
