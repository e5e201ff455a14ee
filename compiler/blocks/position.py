"""How attention knows positions: one class of options for each way, each saying what it does to queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from compiler.errors import nearest
from compiler.graph.ir import Value
from compiler.graph.sizes import smaller
from compiler.graph.types import TensorType
from compiler.language.env import Env
from compiler.language.fields import Args, Count, Flag, Fraction, OptionalPositive, Positive, Word
from compiler.language.scope import Fault
from compiler.ops import bias, frequencies
from compiler.ops.bias import Bias
from compiler.ops.frequencies import Scaling
from compiler.ops.leaves import Constant


@dataclass(frozen=True)
class Place:
    """Where positions are wanted: what queries and keys were made from, and the axes along which they lie; ``table``:
    the value of that port."""

    env: Env
    x: Value
    source: Value
    queries: str
    keys: str
    causal: bool
    table: Value | None = None
    reach: int | None = None  # the nearest keys that are seen, where not all are


@dataclass(frozen=True)
class Located:
    """Queries and keys that know their positions, or what is added to their scores."""

    q: Value
    k: Value
    bias: Bias | None = None
    given: Mapping[str, Value] = field(default_factory=dict)


class Way(Args):
    """One way of knowing positions."""

    def located(self, at: Place, q: Value, k: Value) -> Located:
        return Located(q, k)


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

    def how(self) -> dict[str, Any]:
        """As the op takes it."""
        given: dict[str, Any] = {"theta": self.theta, "fraction": self.fraction, "pairs": self.pairs}
        return given if self.scaling is None else {**given, "scaling": self.scaling.made()}

    def located(self, at: Place, q: Value, k: Value) -> Located:
        b, how = at.env.b, self.how()
        q = b.rotate(q, b.positions(at.x, at.queries), **how)
        return Located(q, b.rotate(k, b.positions(at.source, at.keys), **how))


def between_two(at: Place, what: str) -> None:
    """Raises Fault where queries and keys are not places of one sequence."""
    if at.queries != at.keys or at.x is not at.source:
        raise Fault("axis-mismatch", f"{what} is of distances within one sequence, not to a context", key="position")


class ALiBi(Way):
    """Each head's scores fall with the distance, by a slope of its own that is not learned (arXiv:2108.12409)."""

    def located(self, at: Place, q: Value, k: Value) -> Located:
        between_two(at, "alibi")
        made = slopes(int(q.type.size("heads").constant))
        t = TensorType.make([("heads", len(made))], "float32")
        (value,) = at.env.b.append(Constant(tuple(made)), (), (t,))
        return Located(q, k, bias.Slopes(), {"slopes": value})


def slopes(heads: int) -> list[float]:
    """2 ** (-8 i / heads) for i from 1 on; where heads is no power of two, those of the power below and every other one
    of the power above (arXiv:2108.12409, section 3, and its code)."""
    whole = 1 << (heads.bit_length() - 1)
    found = [2 ** (-8 * (i + 1) / whole) for i in range(whole)]
    return found + [2 ** (-4 * (i + 1) / whole) for i in range(0, 2 * (heads - whole), 2)]


class Buckets(Way):
    """A learned number for each head and range of distances (T5, arXiv:1910.10683, section 2.1): half of the buckets
    for one distance each, the rest ever wider up to ``distance``. Where attention is not causal, half of them for keys
    ahead. The table is this block's own, or the port ``table``'s: `from: {table: name}`, shared by all that name it."""

    count: Count = 32  # that of the port's table, where it is given
    distance: Count = 128  # from which on all share the last bucket

    def located(self, at: Place, q: Value, k: Value) -> Located:
        between_two(at, "buckets")
        pairs = [("buckets", self.count), ("heads", q.type.size("heads"))]
        table = at.table if at.table is not None else at.env.weight("bucket_table", pairs, init="normal(0.02)")
        count = int(table.type.size("buckets").constant)
        return Located(q, k, bias.Buckets(count, self.distance, not at.causal), {"table": table})


class TransformerXL(Way):
    """Scores also by a key for each distance, a linear map of its sinusoids, with two learned vectors a head added to
    the queries: one for the keys of tokens, one for those of distances (arXiv:1901.02860, section 3.3). The keys of
    distances are computed once a request."""

    theta: Positive = 10_000.0
    biases: Flag = True  # the two vectors, u and v in the paper

    def located(self, at: Place, q: Value, k: Value) -> Located:
        between_two(at, "transformer_xl")
        if not at.causal:
            raise Fault("axis-mismatch", "transformer_xl has no keys for positions ahead: needs causal", key="position")
        env, b = at.env, at.env.b
        length = at.x.type.size(at.queries)
        far = b.distances(length if at.reach is None else smaller(at.reach, length))
        waves = b.sinusoid(far, at.x.axes[-1], at.x.type.sizes[-1], theta=self.theta)
        pairs = [("heads", q.type.size("heads")), ("head_dim", q.type.size("head_dim"))]
        keys = env.linear(waves, "position", pairs)
        content = places = q
        if self.biases:
            u, v = (env.compute(env.weight(f"{name}_bias", pairs, init="zeros")) for name in ("content", "position"))
            content, places = (b.arrange(b.add(q, x), q.axes) for x in (u, v))
        return Located(content, k, bias.Relative(), {"position_queries": places, "position_keys": keys})


class Position(Args):
    """How attention knows positions: one of these, by its name or with its options."""

    bare: ClassVar[tuple[str, ...]] = ("string",)
    rope: Rope | None = None
    alibi: ALiBi | None = None
    buckets: Buckets | None = None
    transformer_xl: TransformerXL | None = None

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
