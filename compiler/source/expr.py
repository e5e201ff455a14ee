"""A safe expression language: one parser for the arithmetic of dims and args and for op programs.

A hand-written tokenizer and a Pratt parser with Python's precedences. Text, depth and numbers are bounded, so
any text is answered quickly with a tree or an ``ExprError``. What needs more is a Python block.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

from compiler.source.evaluate import FUNCTIONS, evaluate
from compiler.source.tree import (
    ADD,
    BINDING,
    MAX_DEPTH,
    MAX_NUMBER,
    POWER,
    SIGN,
    Binary,
    Brackets,
    Call,
    Expr,
    ExprError,
    Name,
    Number,
    Unary,
    children,
    names,
    to_text,
)

MAX_TEXT = 2_000
_ONLY = "no conditions, no strings: write a Python block"
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


class _Token(NamedTuple):
    kind: str  # number, name, op or end
    text: str
    offset: int


@lru_cache(2048)
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
            if word := next((w for w in re.findall(r"\w+", text[:offset]) if w in _KEYWORDS), None):
                message = f"{word!r} is not allowed: {_ONLY}"
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

    def expression(self, least: int = ADD) -> Expr:
        self.deeper()
        left = self.operand()
        while (binding := BINDING.get(self.token.text, 0)) >= least:
            sign = self.take()
            right = self.expression(SIGN if binding == POWER else binding + 1)
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
            return Unary(text, self.expression(SIGN), column=offset)
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


__all__ = [
    "FUNCTIONS", "MAX_DEPTH", "MAX_NUMBER", "MAX_TEXT", "Binary", "Brackets", "Call", "Expr", "ExprError", "Name",
    "Number", "Unary", "children", "evaluate", "names", "parse", "to_text",
]  # fmt: skip
