"""The tree of an expression: its nodes, what they hold, and the canonical text that parses back to them."""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_DEPTH = 50  # of the tree, so that walking it by recursion is safe
MAX_NUMBER = 1e30
ADD, MULTIPLY, SIGN, POWER, ATOM = range(1, 6)
BINDING = dict.fromkeys("+-", ADD) | dict.fromkeys(("*", "/", "//", "%"), MULTIPLY) | {"**": POWER}


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
        return expr.op + bound(expr.operand, SIGN), SIGN
    if isinstance(expr, Binary):
        own = BINDING[expr.op]
        left, right = (ATOM, SIGN) if own == POWER else (own, own + 1)
        return f"{bound(expr.left, left)} {expr.op} {bound(expr.right, right)}", own
    if isinstance(expr, Call):
        parts = [to_text(arg) for arg in expr.args] + [f"{key}={to_text(arg)}" for key, arg in expr.kwargs]
        return f"{expr.name}({', '.join(parts)})", ATOM
    if isinstance(expr, Brackets):
        return f"[{', '.join(map(to_text, expr.items))}]", ATOM
    if isinstance(expr, Number):
        return repr(expr.value), ATOM
    assert isinstance(expr, Name)
    return expr.id, ATOM
