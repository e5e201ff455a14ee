"""Names and numbers of a spec: dims are inherited down the call tree, args are lexical, `layer` is the layer's
number (an array over the trips inside a repeat, so that one evaluation serves all of them)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from compiler.errors import Position, Problems, nearest
from compiler.graph.axes import LEGEND
from compiler.source.expr import ExprError, Name, evaluate, parse


class Unroll(Exception):
    """A number that must be one for all layers of a repeat differs by layer: the repeat is written out instead."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


@dataclass(frozen=True)
class AxisArg:
    """A size with the axis name it came by: `to: rnn`."""

    axis: str
    size: int


@dataclass(frozen=True)
class Slot:
    """A node given as an argument, with the args it may use."""

    raw: Any
    position: Position | None
    args: Mapping[str, Any]


class Told(Exception):
    """What this depends on failed, and that was told: nothing more can be said here."""


class Word(str):
    """A word given as an argument, with where it was given: what it means shows only where it is used."""

    position: Position | None = None

    @classmethod
    def at(cls, text: str, position: Position | None) -> Word:
        word = cls(text)
        word.position = position
        return word


FAILED = object()  # the value of an arg that failed


class Fault(Exception):
    """One problem with a value; the place is added by who knows it: ``offset`` counts characters into the value's
    text, ``key`` names the option that is at fault, ``position`` says that it lies elsewhere."""

    def __init__(
        self,
        code: str,
        message: str,
        allowed: Iterable[str] = (),
        suggestion: str | None = None,
        *,
        offset: int = 0,
        key: str | None = None,
        position: Position | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.allowed, self.suggestion = code, message, tuple(allowed), suggestion
        self.offset, self.key, self.position, self.name = offset, key, position, name

    def tell(self, problems: Problems, where: Position | None, before: str = "") -> None:
        problems.add(self.code, before + self.message, self.position or where, allowed=self.allowed,
                     suggestion=self.suggestion)  # fmt: skip


@dataclass(frozen=True)
class Scope:
    dims: Mapping[str, int]
    args: Mapping[str, Any]
    top: Mapping[str, Any] = field(default_factory=dict)  # the spec's own args, seen in every block
    layer: Any = None  # None, an int, or an array over the trips of the repeat around
    problems: Problems = field(default_factory=Problems)
    failed: frozenset[str] = frozenset()  # dims that failed
    axes: Mapping[str, int] | None = field(default_factory=dict)  # sizes of the block's input; None: not known
    read: set[str] = field(default_factory=set, compare=False)  # dims that something used, of all scopes together

    def with_args(self, args: Mapping[str, Any]) -> Scope:
        return replace(self, args=dict(args))

    def with_dims(self, dims: Mapping[str, int]) -> Scope:
        return replace(self, dims={**self.dims, **dims}, failed=self.failed - set(dims))

    def without_dim(self, name: str) -> Scope:
        """A dim that failed: whatever uses it fails in silence."""
        return replace(self.with_dims({name: 1}), failed=self.failed | {name})

    @property
    def known(self) -> tuple[str, ...]:
        layer = ["layer"] if self.layer is not None else []
        return tuple(sorted({*self.dims, *self.args, *(self.axes or ()), *layer}))

    @property
    def numbers(self) -> list[str]:
        """Names that hold a number."""
        return [n for n in self.known if not isinstance(self.args.get(n, 0), (str, bool, Slot, type(None)))]

    def lookup(self, name: str) -> Any:
        if name in self.args:
            value = self.args[name]
            if value is FAILED:
                raise Told
            if isinstance(value, AxisArg):
                return value.size
            if isinstance(value, Word) and value.position is not None:
                hint = nearest(value, self.numbers)
                raise Fault("unknown-name", f"{name} is the word '{value}': no dim or arg is called so, and a number "
                            "is needed", self.numbers, hint, position=value.position)  # fmt: skip
            if isinstance(value, Slot) or value is None or isinstance(value, (str, bool)):
                raise Fault("not-a-number", f"{name} is {shown(value)}, not a number")
            return value
        if name == "layer" and self.layer is not None:
            return self.layer
        if name in self.failed:
            raise Told
        return self.dim(name) if name in self.dims else self.input_axis(name)

    def dim(self, name: str) -> int:
        """A dim's size, noted as used. Raises KeyError."""
        self.read.add(name)
        return self.dims[name]

    def input_axis(self, name: str) -> int:
        """The size of an axis of the block's input. Raises KeyError; Told where that input is not known."""
        if self.axes is None:
            if name in LEGEND:
                raise Told
            raise KeyError(name)
        return self.axes[name]

    def number(self, raw: Any) -> Any:
        """A number, or an array over layers. Raises Fault."""
        if isinstance(raw, (int, float)) and not isinstance(raw, bool):
            if not math.isfinite(raw):
                raise Fault("not-a-number", f"expected a number or an expression, found {raw}")
            return raw
        if not isinstance(raw, str):
            raise Fault("not-a-number", f"expected a number or an expression, found {shown(raw)}")
        try:
            value = evaluate(parse(raw), self.lookup)
        except ExprError as e:
            if e.code == "unknown-name":
                hint = nearest(str(e.name), self.known)
                text = f"unknown name {e.name} in {shown(raw)}"
                if e.name == "layer":
                    text = f"layer, the layer's number, is known inside a repeat only, not in {shown(raw)}"
                raise Fault("unknown-name", text, self.known, hint, offset=e.offset, name=e.name) from None
            raise Fault(e.code, f"{e.message} (in {shown(raw)})", (), e.suggestion, offset=e.offset) from None
        if isinstance(value, np.ndarray):
            return value.flat[0].item() if (value == value.flat[0]).all() else value
        return value

    def static(self, raw: Any, what: str) -> int | float:
        """A number that is the same for all layers. Raises Fault, or Unroll where it differs by layer."""
        value = self.number(raw)
        if isinstance(value, np.ndarray):
            raise Unroll(what)
        return value

    def count(self, raw: Any, what: str, least: int = 1) -> int:
        """A whole number of at least ``least``."""
        value = self.static(raw, what)
        found = shown(int(value) if value == int(value) else value)
        if isinstance(raw, str) and raw.strip() != found:
            found += f" from {shown(raw)}"
        if value != int(value):
            raise Fault("not-whole", f"{what} must be a whole number, found {found}")
        if value < least:
            raise Fault("out-of-range", f"{what} must be at least {least}, found {found}", (f">= {least}",))
        if value > 10**12:
            raise Fault("out-of-range", f"{what} is beyond any size, found {found}", ("<= 10 ** 12",))
        return int(value)

    def axis(self, raw: Any, what: str, default: str) -> AxisArg:
        """A size with its axis name: a bare dim or arg names the axis, an expression gets ``default``."""
        axis = default
        if isinstance(raw, str):
            try:
                tree = parse(raw)
            except ExprError as e:
                raise Fault(e.code, f"{e.message} (in {shown(raw)})", (), e.suggestion, offset=e.offset) from None
            if isinstance(tree, Name):
                given = self.args.get(tree.id)
                named = tree.id in self.dims or tree.id in (self.axes or ())
                axis = given.axis if isinstance(given, AxisArg) else tree.id if named else default
        return AxisArg(axis, self.count(raw, what))

    def value(self, raw: Any) -> Any:
        """An argument's value of whatever sort: number, word, truth value, null, or what an arg holds."""
        if isinstance(raw, (bool, type(None))):
            return raw
        if isinstance(raw, str):
            name = raw.strip()
            if name in self.args:
                if self.args[name] is FAILED:
                    raise Told
                return self.args[name]
            if name in self.failed:
                raise Told
            if name in self.dims:
                return AxisArg(name, self.dim(name))
            if self.axes is None and name in LEGEND:
                raise Told
            if name in (self.axes or ()):
                return AxisArg(name, self.input_axis(name))
            try:
                simple = isinstance(parse(name), Name)
            except ExprError:
                simple = False
            if simple and name != "layer":
                return name
        return self.number(raw)


def divisors(n: int) -> list[int]:
    """All divisors, in order; quick for any size (at most 10 ** 12)."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def shown(value: Any) -> str:
    """A value as people read it in an error: 'text', 3, a list, nothing."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, Slot):
        return "a node"
    if isinstance(value, (int, float)):
        return f"{value:g}" if abs(value) >= 1e15 else str(value)
    text = value if isinstance(value, str) else str(value)
    return f"'{text}'" if len(text) <= 80 else f"'{text[:77]}…'"
