"""Names and numbers of a spec: dims are inherited down the call tree, args are lexical, `layer` is the layer's
number (an array over the trips inside a repeat, so that one evaluation serves all of them)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from compiler.errors import Position, Problems, nearest
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


class Fault(Exception):
    """One problem with a value; the place is added by who knows it."""

    def __init__(self, code: str, message: str, allowed: tuple[str, ...] = (), suggestion: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.allowed, self.suggestion = code, message, allowed, suggestion


@dataclass(frozen=True)
class Scope:
    dims: Mapping[str, int]
    args: Mapping[str, Any]
    top: Mapping[str, Any] = field(default_factory=dict)  # the spec's own args, seen in every block
    layer: Any = None  # None, an int, or an array over the trips of the repeat around
    problems: Problems = field(default_factory=Problems)

    def with_args(self, args: Mapping[str, Any]) -> Scope:
        return replace(self, args=dict(args))

    def with_dims(self, dims: Mapping[str, int]) -> Scope:
        return replace(self, dims={**self.dims, **dims})

    @property
    def known(self) -> tuple[str, ...]:
        return tuple(sorted({*self.dims, *self.args, *(["layer"] if self.layer is not None else [])}))

    def lookup(self, name: str) -> Any:
        if name in self.args:
            value = self.args[name]
            if isinstance(value, AxisArg):
                return value.size
            if isinstance(value, Slot) or value is None or isinstance(value, (str, bool)):
                raise Fault("not-a-number", f"{name} is {_kind(value)}, not a number")
            return value
        if name == "layer" and self.layer is not None:
            return self.layer
        return self.dims[name]

    def number(self, raw: Any) -> Any:
        """A number, or an array over layers. Raises Fault."""
        if isinstance(raw, bool) or raw is None or isinstance(raw, (dict, list)):
            raise Fault("not-a-number", f"expected a number or an expression, found {_kind(raw)}")
        if not isinstance(raw, str):
            return raw
        try:
            value = evaluate(parse(raw), self.lookup)
        except ExprError as e:
            if e.code == "unknown-name":
                hint = nearest(str(e.name), self.known)
                raise Fault("unknown-name", f"unknown name {e.name} in '{raw}'", self.known, hint) from None
            raise Fault(e.code, f"{e.message} in '{raw}'", (), e.suggestion) from None
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
        if float(value) != int(value):
            raise Fault("not-whole", f"{what} must be a whole number, found {value:g}")
        if value < least:
            raise Fault("out-of-range", f"{what} must be at least {least}, found {int(value)}", (f">= {least}",))
        if value > 10**12:
            raise Fault("out-of-range", f"{what} = {int(value)} is beyond any size (at most 10**12)")
        return int(value)

    def axis(self, raw: Any, what: str, default: str) -> AxisArg:
        """A size with its axis name: a bare dim or arg names the axis, an expression gets ``default``."""
        axis = default
        if isinstance(raw, str):
            try:
                tree = parse(raw)
            except ExprError as e:
                raise Fault(e.code, f"{e.message} in '{raw}'", (), e.suggestion) from None
            if isinstance(tree, Name):
                given = self.args.get(tree.id)
                axis = given.axis if isinstance(given, AxisArg) else tree.id if tree.id in self.dims else default
        return AxisArg(axis, self.count(raw, what))

    def value(self, raw: Any) -> Any:
        """An argument's value of whatever sort: number, word, truth value, null, or what an arg holds."""
        if isinstance(raw, (bool, type(None))):
            return raw
        if isinstance(raw, str):
            name = raw.strip()
            if name in self.args:
                return self.args[name]
            if name in self.dims:
                return AxisArg(name, self.dims[name])
            try:
                simple = isinstance(parse(name), Name)
            except ExprError:
                simple = False
            if simple and name != "layer":
                return name
        return self.number(raw)


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return "a node" if isinstance(value, Slot) else f"'{value}'"
