"""Symbolic sizes: polynomials in batch, lengths and mesh sizes with exact coefficients.

One graph serves every batch and length, so sizes stay symbolic to the end; a cost is a size too. The canonical
form (a dict of monomials) makes equality cheap, lets thousands of terms collapse into a few, and evaluates on
plain numbers or on NumPy arrays alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Union

import numpy as np


@dataclass(frozen=True)
class Opaque:
    """A function of sizes that is not a polynomial: floordiv, min, max, or a registered counting rule."""

    function: str
    args: tuple[Size, ...]

    def __str__(self) -> str:
        return f"{self.function}({', '.join(str(a) for a in self.args)})"


Atom = str | Opaque
Monomial = tuple[tuple[Atom, int], ...]
SizeLike = Union["Size", int, float]


def _block_pairs(
    queries: Any, keys: Any, query_block: Any, key_block: Any, window: Any, causal: Any, offset: Any = 0, chunk: Any = 0
) -> Any:
    """Number of (query block, key block) pairs that a causal and/or windowed mask leaves, and one by chunks; arrays
    broadcast. ``offset``: positions by which the keys lie before the queries."""

    def one(q: float, k: float, bq: float, bk: float, w: float, c: float, behind: float, apart: float) -> int:
        nq, nk = -(-int(q) // int(bq)), -(-int(k) // int(bk))
        first = np.arange(nq) * int(bq) + int(behind)
        last = np.minimum(first + int(bq), int(q) + int(behind)) - 1
        ahead = 0 if c else int(w) - 1 if w else int(k)  # how far a query sees beyond itself
        upper = np.minimum((last + ahead) // int(bk) + 1, nk)
        lower = np.maximum(first - int(w) + 1, 0) // int(bk) if w else np.zeros(nq, int)
        if apart:
            lower = np.maximum(lower, first // int(apart) * int(apart) // int(bk))
            upper = np.minimum(upper, ((last // int(apart) + 1) * int(apart) - 1) // int(bk) + 1)
        return int(np.maximum(upper - lower, 0).sum())

    result = np.vectorize(one, otypes=[float])(queries, keys, query_block, key_block, window, causal, offset, chunk)
    return int(result) if np.ndim(result) == 0 else result


def _window_pairs(size: Any, places: Any, taps: Any, stride: Any, dilation: Any, before: Any) -> Any:
    """Pairs of a place and a tap of a sliding window that lie on an entry of the axis; arrays broadcast."""

    def one(n: float, out: float, k: float, step: float, apart: float, pad: float) -> int:
        offset = np.arange(int(k)) * int(apart) - int(pad)  # of a tap from r * stride
        first = np.maximum(-(offset // int(step)), 0)
        last = np.minimum((int(n) - 1 - offset) // int(step), int(out) - 1)
        return int(np.maximum(last - first + 1, 0).sum())

    result = np.vectorize(one, otypes=[float])(size, places, taps, stride, dilation, before)
    return int(result) if np.ndim(result) == 0 else result


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "floordiv": lambda a, b: a // b,
    "min": np.minimum,
    "max": np.maximum,
    "block_pairs": _block_pairs,
    "window_pairs": _window_pairs,
}


class Size:
    """An immutable polynomial; ``Size.of(3) * Size.symbol("batch")``."""

    __slots__ = ("_hash", "terms")
    terms: dict[Monomial, int | float]

    def __init__(self, terms: Mapping[Monomial, int | float]) -> None:
        self.terms = {m: c for m, c in terms.items() if c != 0}
        self._hash: int | None = None

    # -- construction
    @staticmethod
    def of(value: SizeLike) -> Size:
        return value if isinstance(value, Size) else Size({(): value})

    @staticmethod
    def symbol(name: str) -> Size:
        return Size({((name, 1),): 1})

    @staticmethod
    def opaque(function: str, *args: SizeLike) -> Size:
        sizes = tuple(Size.of(a) for a in args)
        if all(s.is_constant for s in sizes):
            value = FUNCTIONS[function](*(s.constant for s in sizes))
            return Size.of(value.item() if isinstance(value, np.generic) else value)
        return Size({((Opaque(function, sizes), 1),): 1})

    # -- questions
    @property
    def is_constant(self) -> bool:
        return not self.terms or (len(self.terms) == 1 and () in self.terms)

    @property
    def constant(self) -> int | float:
        if not self.is_constant:
            raise ValueError(f"{self} is not a number")
        return self.terms.get((), 0)

    @property
    def symbols(self) -> frozenset[str]:
        found: set[str] = set()
        for monomial in self.terms:
            for atom, _ in monomial:
                if isinstance(atom, str):
                    found.add(atom)
                else:
                    for arg in atom.args:
                        found |= arg.symbols
        return frozenset(found)

    def evaluate(self, env: Mapping[str, Any]) -> Any:
        """The number (or array) for given symbols. Raises KeyError for a symbol that ``env`` lacks."""
        total: Any = 0
        for monomial, coefficient in self.terms.items():
            product: Any = coefficient
            for atom, power in monomial:
                value = (
                    env[atom]
                    if isinstance(atom, str)
                    else FUNCTIONS[atom.function](*(a.evaluate(env) for a in atom.args))
                )
                product = product * (value if power == 1 else value**power)
            total = total + product
        return total.item() if isinstance(total, np.generic) else total

    def substitute(self, env: Mapping[str, SizeLike]) -> Size:
        """Replaces symbols by sizes."""
        total = Size({})
        for monomial, coefficient in self.terms.items():
            product = Size.of(coefficient)
            for atom, power in monomial:
                if isinstance(atom, str):
                    value = Size.of(env[atom]) if atom in env else Size.symbol(atom)
                else:
                    value = Size.opaque(atom.function, *(a.substitute(env) for a in atom.args))
                for _ in range(power):
                    product = product * value
            total = total + product
        return total

    # -- arithmetic
    def __add__(self, other: SizeLike) -> Size:
        terms = dict(self.terms)
        for m, c in Size.of(other).terms.items():
            terms[m] = terms.get(m, 0) + c
        return Size(terms)

    __radd__ = __add__

    def __neg__(self) -> Size:
        return Size({m: -c for m, c in self.terms.items()})

    def __sub__(self, other: SizeLike) -> Size:
        return self + (-Size.of(other))

    def __rsub__(self, other: SizeLike) -> Size:
        return Size.of(other) - self

    def __mul__(self, other: SizeLike) -> Size:
        terms: dict[Monomial, int | float] = {}
        for m1, c1 in self.terms.items():
            for m2, c2 in Size.of(other).terms.items():
                m = _times(m1, m2)
                terms[m] = terms.get(m, 0) + c1 * c2
        return Size(terms)

    __rmul__ = __mul__

    def __floordiv__(self, other: SizeLike) -> Size:
        other = Size.of(other)
        if other.is_constant and all(c % other.constant == 0 for c in self.terms.values()):
            return Size({m: int(c // other.constant) for m, c in self.terms.items()})
        return Size.opaque("floordiv", self, other)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (int, float)):
            other = Size.of(other)
        return isinstance(other, Size) and self.terms == other.terms

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(frozenset(self.terms.items()))
        return self._hash

    def __str__(self) -> str:
        if not self.terms:
            return "0"
        parts = []
        for monomial, c in sorted(self.terms.items(), key=lambda t: str(t[0])):
            factors = [str(a) if p == 1 else f"{a}^{p}" for a, p in monomial]
            number = [] if c == 1 and factors else [f"{c:g}" if isinstance(c, float) else str(c)]
            parts.append("*".join(number + factors))
        return " + ".join(parts).replace("+ -", "- ")

    __repr__ = __str__


def _times(a: Monomial, b: Monomial) -> Monomial:
    powers: dict[Atom, int] = dict(a)
    for atom, p in b:
        powers[atom] = powers.get(atom, 0) + p
    return tuple(sorted(powers.items(), key=lambda item: str(item[0])))


ZERO = Size({})
ONE = Size.of(1)
BATCH = Size.symbol("batch")
SEQ = Size.symbol("seq")
CAPACITY = Size.symbol("capacity")


def product(sizes: Any) -> Size:
    total = ONE
    for s in sizes:
        total = total * s
    return total


def smaller(a: SizeLike, b: SizeLike) -> Size:
    return Size.of(a) if Size.of(a) == Size.of(b) else Size.opaque("min", a, b)
