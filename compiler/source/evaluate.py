"""The number that an arithmetic expression gives. Bounded: no input takes long or grows without end."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

from compiler.errors import nearest
from compiler.source.tree import MAX_NUMBER, Binary, Brackets, Call, Expr, ExprError, Name, Number, Unary, children

_OPERATORS: dict[str, Callable[..., Any]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_OPERATORS |= {"/": operator.truediv, "//": operator.floordiv, "%": operator.mod, "**": operator.pow}
_SEVERAL: dict[str, tuple[Callable[..., Any], str]] = {"min": (min, "minimum"), "max": (max, "maximum")}
FUNCTIONS = ("sqrt", "log", "exp", "ceil", "floor", "abs", *_SEVERAL)


def evaluate(expr: Expr, lookup: Callable[[str], Any]) -> Any:
    """The number that arithmetic gives: an int where Python gives one; NumPy arrays broadcast, in float64.

    ``lookup`` gives the value of a name or raises KeyError. Every fault is an ``ExprError``.
    """
    if isinstance(expr, Number):
        return expr.value
    if isinstance(expr, Name):
        try:
            value = lookup(expr.id)
        except KeyError:
            raise ExprError(f"unknown name {expr.id!r}", expr.column, None, "unknown-name", expr.id) from None
        if hasattr(value, "dtype") and not value.ndim:
            value = value.item()
        value = _sensible(value, expr)  # in float64 nothing wraps around, as integer arrays do in silence
        return value.astype("float64") if hasattr(value, "dtype") else value
    if isinstance(expr, Call) and expr.name not in FUNCTIONS:
        message, near = f"unknown function {expr.name!r}", nearest(expr.name, FUNCTIONS)
        raise ExprError(message, expr.column, near, "unknown-function", expr.name)
    if isinstance(expr, Brackets) or (isinstance(expr, Call) and (expr.kwargs or not expr.args)):
        message = "arithmetic has no lists, no named arguments and no call without an argument"
        raise ExprError(message, expr.column, code="not-arithmetic")
    if isinstance(expr, Call) and len(expr.args) > 1 and expr.name not in _SEVERAL:
        raise ExprError(f"{expr.name} takes one argument", expr.column, code="not-arithmetic")
    values = [evaluate(child, lookup) for child in children(expr)]
    try:
        return _sensible(_apply(expr, values), expr)
    except ZeroDivisionError:
        raise ExprError("division by zero", expr.column, code="zero-division") from None
    except OverflowError:
        raise ExprError(f"the result is beyond {MAX_NUMBER:g}", expr.column, code="too-large") from None
    except ValueError as error:  # sqrt(-1), log(0), arrays that do not broadcast
        raise ExprError(f"not a number: {error}", expr.column, code="not-a-number") from None


def _apply(expr: Expr, values: list[Any]) -> Any:
    if not any(hasattr(value, "dtype") for value in values):
        return _compute(expr, values, math)
    import numpy  # here, because somebody loaded it already if there are arrays

    with numpy.errstate(all="ignore"):  # what is not finite is refused afterwards
        return _compute(expr, values, numpy)


def _compute(expr: Expr, values: list[Any], library: Any) -> Any:
    first, last = values[0], values[-1]
    if isinstance(expr, Unary):
        return -first if expr.op == "-" else first
    if isinstance(expr, Binary):
        if expr.op == "**" and library is math and last > 0 and last * math.log(max(abs(first), 1)) > 70:
            raise OverflowError  # 9 ** 9 ** 9: before its time is spent
        return _OPERATORS[expr.op](first, last)
    assert isinstance(expr, Call)
    if expr.name in _SEVERAL:
        plain, ufunc = _SEVERAL[expr.name]
        return reduce(plain if library is math else getattr(library, ufunc), values)
    return abs(first) if expr.name == "abs" else getattr(library, expr.name)(first)


def _sensible(value: Any, expr: Expr) -> Any:
    """``value`` if it is a number, or an array of numbers, within the bounds."""
    array = hasattr(value, "dtype")
    if isinstance(value, bool) or not (value.dtype.kind in "iuf" if array else isinstance(value, int | float)):
        raise ExprError("not a number", expr.column, code="not-a-number")
    small = abs(value) <= MAX_NUMBER
    if not (small.all() if array else small):
        raise ExprError(f"the result is beyond {MAX_NUMBER:g} or not finite", expr.column, code="too-large")
    return value
