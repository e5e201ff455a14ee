"""A safe expression language: one parser for the arithmetic of dims and args and for op programs.

A hand-written tokenizer and a Pratt parser with Python's precedences. Text, depth and numbers are bounded, so
any text is answered quickly with a tree or an ``ExprError``. What needs more is a Python block.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, NamedTuple

from compiler.errors import nearest

MAX_TEXT = 2_000
MAX_DEPTH = 50  # of the tree, so that walking it by recursion is safe
MAX_NUMBER = 1e30
_ONLY = "no conditions, no strings: write a Python block"
_ADD, _MULTIPLY, _SIGN, _POWER, _ATOM = range(1, 6)
_BINDING = dict.fromkeys("+-", _ADD) | dict.fromkeys(("*", "/", "//", "%"), _MULTIPLY) | {"**": _POWER}
_TOKEN = re.compile(
    r"(?P<space>[ \t\r\n]+)"
    r"|(?P<number>([0-9]+(_[0-9]+)*(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?(?P<junk>[A-Za-z0-9_.]*))"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*)"
    r"|(?P<op>\*\*|//|[-+*/%(),\[\]](?!>)|=(?![=>]))"
    r"|(?P<other>->|[<>=!]=|.)",
    re.DOTALL,
)
_REFUSED = {
    **dict.fromkeys("'\"", f"a string is not allowed: {_ONLY}"),
    **dict.fromkeys(("<", ">", "<=", ">=", "==", "!="), f"a comparison is not allowed: {_ONLY}"),
    "->": "an arrow is not an expression: 'a -> b' is written under params",
    "$": "a name needs no $: write the bare word",
}
_INSTEAD = {"^": "**", "−": "-", "–": "-", "×": "*", "·": "*", "÷": "/", "\xa0": "a plain space"}
_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"
_MISPLACED = {
    "[": "there is no indexing: use an op such as take(x, axis=0)",
    "(": "only a name can be called",
    "=": "an assignment is not allowed here",
}
_KEYWORDS = frozenset(("if", "else", "for", "in", "is", "and", "or", "not", "lambda", "while", "import"))


@dataclass(eq=False)
class ExprError(Exception):
    """What is wrong with an expression; ``offset`` counts characters from 0."""

    message: str
    offset: int = 0
    suggestion: str | None = None
    code: str = "expression-syntax"
    name: str | None = None  # the unknown one

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Expr:
    """``column`` is where it is written (an operator: where its sign is); it does not count in ==."""

    column: int = field(default=0, compare=False, repr=False, kw_only=True)


@dataclass(frozen=True)
class Number(Expr):
    value: int | float  # never negative when parsed: the sign is a Unary

    def __eq__(self, other: object) -> bool:  # 2 and 2.0 differ: ints stay ints
        return isinstance(other, Number) and repr(self.value) == repr(other.value)


@dataclass(frozen=True)
class Name(Expr):
    id: str  # dots included; true, false and null are names too


@dataclass(frozen=True)
class Unary(Expr):
    op: str
    operand: Expr


@dataclass(frozen=True)
class Binary(Expr):
    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True)
class Call(Expr):
    name: str
    args: tuple[Expr, ...] = ()
    kwargs: tuple[tuple[str, Expr], ...] = ()


@dataclass(frozen=True)
class Brackets(Expr):
    items: tuple[Expr, ...] = ()  # a list, only as an argument or inside another


def children(expr: Expr) -> tuple[Expr, ...]:
    """The expressions directly inside one, in the order they are written."""
    if isinstance(expr, Unary):
        return (expr.operand,)
    if isinstance(expr, Binary):
        return (expr.left, expr.right)
    if isinstance(expr, Call):
        return (*expr.args, *(value for _, value in expr.kwargs))
    return expr.items if isinstance(expr, Brackets) else ()


def names(expr: Expr) -> frozenset[str]:
    """Every name used as a value; names of functions and of arguments are not among them."""
    own = [expr.id] if isinstance(expr, Name) else []
    return frozenset(own).union(*map(names, children(expr)))


def to_text(expr: Expr) -> str:
    """Canonical text, which parses back to the same tree (it may be longer than what was written)."""
    return _text(expr)[0]


def _text(expr: Expr) -> tuple[str, int]:
    def bound(part: Expr, least: int) -> str:
        text, binding = _text(part)
        return text if binding >= least else f"({text})"

    if isinstance(expr, Unary):
        return expr.op + bound(expr.operand, _SIGN), _SIGN
    if isinstance(expr, Binary):
        own = _BINDING[expr.op]
        left, right = (_ATOM, _SIGN) if own == _POWER else (own, own + 1)
        return f"{bound(expr.left, left)} {expr.op} {bound(expr.right, right)}", own
    if isinstance(expr, Call):
        parts = [to_text(arg) for arg in expr.args] + [f"{key}={to_text(arg)}" for key, arg in expr.kwargs]
        return f"{expr.name}({', '.join(parts)})", _ATOM
    if isinstance(expr, Brackets):
        return f"[{', '.join(map(to_text, expr.items))}]", _ATOM
    if isinstance(expr, Number):
        return repr(expr.value), _ATOM
    assert isinstance(expr, Name)
    return expr.id, _ATOM


class _Token(NamedTuple):
    kind: str  # number, name, op or end
    text: str
    offset: int


def parse(text: str) -> Expr:
    """The expression that ``text`` writes; every fault is an ``ExprError``."""
    if len(text) > MAX_TEXT:
        raise ExprError(f"longer than {MAX_TEXT:,} characters", MAX_TEXT, code="too-large")
    parser = _Parser(text)
    expr = parser.expression()
    parser.expect("")
    layer, depth = [expr], 0  # a chain a + b + c is a deep tree that took no recursion to parse
    while layer:
        depth += 1
        if depth > MAX_DEPTH:
            raise ExprError(_TOO_DEEP, layer[0].column, code="too-deep")
        layer = [child for parent in layer for child in children(parent)]
    return expr


def _tokens(text: str) -> Iterator[_Token]:
    for match in _TOKEN.finditer(text):
        kind, found, offset = match.lastgroup or "", match[0], match.start()
        if kind == "other":
            message = _REFUSED.get(found, f"{found!r} is not allowed: {_ONLY}")
            raise ExprError(message, offset, _INSTEAD.get(found))
        if match["junk"]:
            raise ExprError(f"{found!r} is not a number", offset)
        if kind == "name" and "__" in [part[:2] for part in found.split(".")]:
            raise ExprError(f"a name cannot begin with two underscores: {_ONLY}", offset)
        if kind != "space":
            yield _Token(kind, found, offset)
    yield _Token("end", "", len(text))


def _number(text: str, column: int) -> Number:
    digits = text.replace("_", "")
    value: int | float = math.inf
    if len(digits) <= 60:
        value = int(digits) if digits.isdigit() else float(digits)
    if value >= MAX_NUMBER or (value == 0 and re.match("[0.]*[1-9]", digits)):
        raise ExprError(
            f"a number must be below {MAX_NUMBER:g} and not too small for a float", column, code="too-large"
        )
    return Number(value, column=column)


class _Parser:
    def __init__(self, text: str) -> None:
        self.tokens, self.index, self.level = list(_tokens(text)), 0, 0

    @property
    def token(self) -> _Token:
        return self.tokens[self.index]

    def take(self) -> _Token:
        self.index += 1
        return self.tokens[self.index - 1]

    def expect(self, text: str) -> None:
        token = self.token
        if token.text != text:
            around = {self.tokens[self.index - 1].text, token.text}
            message = f"found {token.text!r} where {text or 'an operator'!r} was expected"
            if token.kind == "end":
                message = f"{text!r} is missing at the end"
            elif keyword := next(iter(_KEYWORDS & around), None):
                message = f"{keyword!r} is not allowed: {_ONLY}"
            raise ExprError(_MISPLACED.get(token.text, message), token.offset)
        self.index += 1

    def deeper(self) -> None:
        self.level += 1
        if self.level > 2 * MAX_DEPTH + 2:  # twice: a level of the tree may need a parenthesis as well
            raise ExprError(_TOO_DEEP, self.token.offset, code="too-deep")

    def expression(self, least: int = _ADD) -> Expr:
        self.deeper()
        left = self.operand()
        while (binding := _BINDING.get(self.token.text, 0)) >= least:
            sign = self.take()
            right = self.expression(_SIGN if binding == _POWER else binding + 1)
            left = Binary(sign.text, left, right, column=sign.offset)
        self.level -= 1
        return left

    def operand(self) -> Expr:
        kind, text, offset = self.take()
        if kind == "number":
            return _number(text, offset)
        if kind == "name":
            return self.call(text, offset) if self.token.text == "(" else Name(text, column=offset)
        if text in ("+", "-"):
            return Unary(text, self.expression(_SIGN), column=offset)
        if text == "(":
            inner = self.expression()
            self.expect(")")
            return inner
        message = f"a value is missing before {text!r}" if text else "a value is missing at the end"
        raise ExprError("a list can only be an argument" if text == "[" else message, offset)

    def call(self, name: str, column: int) -> Expr:
        args: list[Expr] = []
        kwargs: dict[str, Expr] = {}

        def argument() -> None:
            kind, key, offset = self.token
            if kind == "name" and self.tokens[self.index + 1].text == "=":
                if key in kwargs or "." in key:
                    raise ExprError(f"{key!r} is given twice, or is no plain name", offset)
                self.index += 2
                kwargs[key] = self.value()
            elif kwargs:
                raise ExprError("an argument without a name cannot follow one with a name", offset)
            else:
                args.append(self.value())

        if "." in name:
            raise ExprError(f"{name} cannot be called: only a plain name can", column)
        self.listed(")", argument)
        return Call(name, tuple(args), tuple(kwargs.items()), column=column)

    def value(self) -> Expr:
        if self.token.text != "[":
            return self.expression()
        self.deeper()
        column, items = self.token.offset, list[Expr]()
        self.listed("]", lambda: items.append(self.value()))
        self.level -= 1
        return Brackets(tuple(items), column=column)

    def listed(self, close: str, item: Callable[[], None]) -> None:
        self.take()
        if self.token.text != close:
            item()
            while self.token.text == ",":
                self.take()
                item()
        self.expect(close)


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
