"""How attention knows positions: one class of options for each way, each saying what it does to queries and keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from compiler.errors import nearest
from compiler.graph.ir import Value
from compiler.language.env import Env
from compiler.language.fields import Args, Flag, Fraction, OptionalPositive, Positive, Word
from compiler.ops import frequencies
from compiler.ops.frequencies import Scaling


@dataclass(frozen=True)
class Place:
    """Where positions are wanted: what queries and keys were made from, and the axes along which they lie."""

    env: Env
    x: Value
    source: Value
    queries: str
    keys: str


class Way(Args):
    """One way of knowing positions."""

    def located(self, at: Place, q: Value, k: Value) -> tuple[Value, Value]:
        """Queries and keys that know their positions."""
        return q, k


class Linear(Args):
    """Every frequency divided by ``factor`` (arXiv:2306.15595)."""

    shorthand: ClassVar[str | None] = "factor"
    factor: Positive

    def made(self) -> Scaling:
        return frequencies.Linear(self.factor)


class NTK(Args):
    """NTK-aware: theta grows so that the slowest pair is stretched by ``factor`` (arXiv:2309.00071, definition 1)."""

    shorthand: ClassVar[str | None] = "factor"
    factor: Positive

    def made(self) -> Scaling:
        return frequencies.NTK(self.factor)


class Yarn(Args):
    """By parts, with a magnitude (arXiv:2309.00071): pairs that turn more than ``fast`` times over the ``original``
    context are kept, below ``slow`` times stretched by ``factor``."""

    factor: Positive
    original: Positive  # positions of the context trained on
    fast: Positive = 32.0
    slow: Positive = 1.0
    attention: OptionalPositive = None  # magnitude; default: 0.1 ln(factor) + 1
    truncate: Flag = True  # the ramp's ends are whole pairs

    def made(self) -> Scaling:
        return frequencies.Yarn(self.factor, self.original, self.fast, self.slow, self.attention, self.truncate)


class Llama3(Args):
    """By parts of wavelength: above ``original / low`` positions stretched by ``factor``, below ``original / high``
    kept (Llama 3.1)."""

    factor: Positive
    original: Positive  # positions of the context trained on
    low: Positive = 1.0
    high: Positive = 4.0

    @model_validator(mode="after")
    def _ramp(self) -> Any:
        if self.low >= self.high:
            text = "the ramp goes from low up to high, found {low} and {high}"
            raise PydanticCustomError("out-of-range", text, {"low": f"{self.low:g}", "high": f"{self.high:g}"})
        return self

    def made(self) -> Scaling:
        return frequencies.Llama3(self.factor, self.low, self.high, self.original)


GROWING = ("dynamic", "longrope")  # frequencies that change with the length at hand


class Scaled(Args):
    """Frequencies for contexts longer than those trained on: one of these."""

    linear: Linear | None = None
    ntk: NTK | None = None
    yarn: Yarn | None = None
    llama3: Llama3 | None = None

    @model_validator(mode="before")
    @classmethod
    def _refused(cls, raw: Any) -> Any:
        found = next((k for k in GROWING if isinstance(raw, dict) and k in raw), None)
        if found:
            text = "{found} changes frequencies as a sequence grows, and keys in a cache would have to be turned again"
            allowed = list(cls.model_fields)
            raise PydanticCustomError("unknown-word", text, {"found": found, "allowed": allowed, "key": found})
        return raw

    @model_validator(mode="after")
    def _one(self) -> Any:
        only_one(self)
        return self

    def made(self) -> Scaling:
        kind = only_one(self)
        return kind.made() if kind else frequencies.NONE


def only_one(options: Args) -> Any:
    """The one option that is given, or None. Raises what pydantic tells as a problem."""
    given = {n: v for n in type(options).model_fields if (v := getattr(options, n)) is not None}
    if len(given) > 1:
        text, allowed = "takes one of its options, found {found}", list(type(options).model_fields)
        raise PydanticCustomError("conflicting-keys", text, {"found": " and ".join(given), "allowed": allowed})
    return next(iter(given.values()), None)


class Rope(Way):
    """Rotary positions: ``fraction`` of the channels; ``pairs`` half-split or interleaved (arXiv:2104.09864)."""

    theta: Positive = 10_000.0
    fraction: Fraction = 1.0
    pairs: Annotated[Literal["half", "interleaved"], Word] = "half"
    scaling: Scaled | None = None

    def located(self, at: Place, q: Value, k: Value) -> tuple[Value, Value]:
        b = at.env.b
        how: dict[str, Any] = {"theta": self.theta, "fraction": self.fraction, "pairs": self.pairs}
        if self.scaling is not None:
            how["scaling"] = self.scaling.made()
        q = b.rotate(q, b.positions(at.x, at.queries), **how)
        return q, b.rotate(k, b.positions(at.source, at.keys), **how)


class Position(Args):
    """How attention knows positions: one of these, by its name or with its options."""

    rope: Rope | None = None

    @model_validator(mode="before")
    @classmethod
    def _word(cls, raw: Any, info: ValidationInfo) -> Any:
        if not isinstance(raw, str):
            return raw
        if raw in cls.model_fields:
            return {raw: {}}
        allowed = list(cls.model_fields)
        raise PydanticCustomError("unknown-word", "no position encoding is called {found}", {
            "found": raw, "allowed": allowed, "suggestion": nearest(raw, allowed)})  # fmt: skip

    @model_validator(mode="after")
    def _one(self) -> Any:
        only_one(self)
        return self

    @property
    def way(self) -> Way:
        return only_one(self) or Way()
