"""What a field of a config may hold: one class for each kind, with the default of a file that omits the field."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from compiler.errors import nearest
from compiler.source.yaml import YList, YMap

LARGEST = 10**12
_INFINITE = {"{'__float__': 'Infinity'}": math.inf}  # as transformers 5 writes it
REQUIRED = "required"  # in the place of a default: a config without the field is refused


@dataclass
class Misfit(Exception):
    """A value that is not allowed."""

    message: str  # follows the name of the field
    allowed: tuple[str, ...] = ()
    suggestion: str | None = None
    code: str = "unsupported-value"


@dataclass(frozen=True)
class Kind:
    """``default``: of an absent field; a text is an expression over other fields, or says that it is required.
    ``none``: null is a value of its own; else null is as good as absent where the default is null or an expression, and
    refused where it is not. ``when``: the condition without which the field means nothing. ``inner``: given in a
    mapping alone. ``words``: texts that are as good as no field."""

    literal: ClassVar[bool] = False  # a text is itself, not an expression
    default: Any = None
    none: bool = False
    when: str = ""
    inner: bool = False
    words: tuple[str, ...] = ()

    def read(self, value: Any) -> Any:
        """The value as expressions, conditions and templates see it. Raises Misfit."""
        raise NotImplementedError

    @property
    def says(self) -> str:
        """For people: what is allowed."""
        raise NotImplementedError


@dataclass(frozen=True)
class Count(Kind):
    """A whole number."""

    least: int = 1
    most: int = LARGEST

    def read(self, value: Any) -> Any:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not self.least <= value <= self.most:
            raise Misfit(f"is {shown(value)}", (self.says,))
        return value

    @property
    def says(self) -> str:
        up = f"to {self.most:,}" if self.most < LARGEST else "on"
        return f"a whole number from {self.least} {up}"


@dataclass(frozen=True)
class Number(Kind):
    """A finite number, above 0 unless ``least`` says otherwise."""

    least: float | None = None

    def read(self, value: Any) -> Any:
        fine = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not fine or abs(value) > LARGEST or (value <= 0 if self.least is None else value < self.least):
            raise Misfit(f"is {shown(value)}", (self.says,))
        return int(value) if isinstance(value, float) and value.is_integer() else value

    @property
    def says(self) -> str:
        return "a number above 0" if self.least is None else f"a number from {self.least} on"


@dataclass(frozen=True)
class Flag(Kind):
    """true or false."""

    def read(self, value: Any) -> Any:
        if not isinstance(value, bool):
            raise Misfit(f"is {shown(value)}", (self.says,))
        return value

    @property
    def says(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class Word(Kind):
    """One of the words of a table, which says what each is in a spec. ``why``: why others are not supported."""

    literal: ClassVar[bool] = True
    table: Mapping[str, Any] | None = None
    why: Mapping[str, str] | None = None

    def read(self, value: Any) -> Any:
        table = self.table or {}
        if not isinstance(value, str) or value not in table:
            text = isinstance(value, str)
            hint = nearest(value, table) if text else None
            because = (self.why or {}).get(value, "") if text else ""
            raise Misfit(f"is {shown(value)}{': ' if because else ''}{because}", tuple(table), hint)
        return table[value]

    @property
    def says(self) -> str:
        return ", ".join(self.table or {})


@dataclass(frozen=True)
class Items(Kind):
    """A list of the words of a table, or of whole numbers where there is none."""

    table: Mapping[str, Any] | None = None

    def read(self, value: Any) -> Any:
        if not isinstance(value, list):
            raise Misfit(f"is {shown(value)}", ("a list",))
        if self.table is None:
            return [Count(least=0).read(v) for v in value]
        return [Word(table=self.table).read(v) for v in value]

    @property
    def says(self) -> str:
        return f"a list of {', '.join(self.table) if self.table else 'whole numbers'}"


@dataclass(frozen=True)
class Bounds(Kind):
    """Two numbers that bound nothing: of what is never below ``least`` anyway."""

    literal: ClassVar[bool] = True
    least: float = 0

    def read(self, value: Any) -> Any:
        given = value if isinstance(value, list) else []
        pair: list[Any] = [_INFINITE.get(str(v), v) if isinstance(v, dict) else v for v in given]
        fine = len(pair) == 2 and all(isinstance(v, int | float) for v in pair)
        if not fine or pair[0] > self.least or pair[1] != math.inf:
            raise Misfit(f"is {shown(value)}: the language has no such bounds", (self.says,))
        return None

    @property
    def says(self) -> str:
        return f"[{self.least}, Infinity]"


@dataclass(frozen=True)
class Only(Kind):
    """One of a few values, because others are not supported, for the reason ``why``."""

    literal: ClassVar[bool] = True
    values: tuple[Any, ...] = ()
    why: str = ""

    def read(self, value: Any) -> Any:
        if not any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in self.values):
            because = f": {self.why}" if self.why else ""
            raise Misfit(f"is {shown(value)}{because}", tuple(shown(v) for v in self.values))
        return value

    @property
    def says(self) -> str:
        return " or ".join(shown(v) for v in self.values)


def shown(value: Any) -> str:
    """A value in a message, as JSON has it, in short."""
    if isinstance(value, dict | YMap):
        return "a mapping" if value else "{}"
    if isinstance(value, list | YList):
        return "[" + ", ".join(shown(v) for v in value[:6]) + (", …]" if len(value) > 6 else "]")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value[:60] if isinstance(value, str) else value)


def kind_of(data: Mapping[str, Any], tables: Callable[[Any], Mapping[str, Any]]) -> Kind:
    """A field's kind from its line in a type's file: `{count: 32}`, `{word: silu, of: activation}`, …"""
    options = dict(data)
    name = next(k for k in options if k in MAKERS)
    default = options.pop(name)
    if name == "only":
        values = tuple(default) if isinstance(default, list) else (default,)
        return Only(options.pop("default", values[0]), values=values, **options)
    if "of" in options:
        options["table"] = tables(options.pop("of"))
    return MAKERS[name](default, **options)


MAKERS: dict[str, Callable[..., Kind]] = {
    "count": Count, "number": Number, "flag": Flag, "word": Word, "list": Items, "bounds": Bounds, "only": Only,
}  # fmt: skip
