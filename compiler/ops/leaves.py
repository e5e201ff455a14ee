"""Leaves: inputs, parameters, constants, region arguments, state, positions. They cost nothing by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from compiler.graph.axes import first_of
from compiler.graph.ir import Value
from compiler.graph.sizes import BATCH, Size
from compiler.graph.types import TensorType, TypeProblem
from compiler.ops.contract import Cost, Op, Role, function, op
from compiler.ops.packed import Packed

if TYPE_CHECKING:
    from compiler.graph.builder import Builder


@dataclass(frozen=True)
class Leaf(Op):
    """Takes no operands; its type is given where the node is made."""

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        raise TypeError(f"a leaf {self.name} is appended with its type")

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return Cost()

    def gradient(
        self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]
    ) -> tuple[Value | None, ...]:
        return ()


@op
@dataclass(frozen=True)
class Input(Leaf):
    """A value given with every call, by the spec's name for it."""

    name: ClassVar[str] = "input"
    label: str = ""


@dataclass(frozen=True)
class Layers:
    """Which layers a stacked parameter holds: start, start + step, … (``count`` of them)."""

    start: int
    step: int
    count: int

    def __str__(self) -> str:
        return f"{self.start}:{self.start + self.step * (self.count - 1) + 1}:{self.step}"


@op
@dataclass(frozen=True)
class Parameter(Leaf):
    """A weight. ``path`` is the spec's name ("layer.attention.query"), shared by all layers that hold one;
    ``stack`` says which layers this tensor's leading ``layers`` axes run over."""

    name: ClassVar[str] = "parameter"
    path: str = ""
    label: str = ""  # unique: the path, with the layers in brackets where stacked
    inputs: int | None = None  # for a linear map: how many of the axes (after layers) are its inputs
    init: str = "fan_in"
    trainable: bool = True
    stack: tuple[Layers, ...] = ()
    used: float = 1.0  # share of it that one token uses: of experts, the chosen ones
    packed: Packed | None = None  # how it is held when the model runs, where not as it is


@op
@dataclass(frozen=True)
class State(Leaf):
    """What a call hands on to the next: a cache, a ring, a recurrent state, a convolution tail, a length."""

    name: ClassVar[str] = "state"
    label: str = ""
    kind: str = ""  # "cache" | "ring" | "recurrent" | "tail" | "context" | "length"


@op
@dataclass(frozen=True)
class Argument(Leaf):
    """A region's argument: the carried value, a captured one, or this layer's slice of a stack."""

    name: ClassVar[str] = "argument"


@op
@dataclass(frozen=True)
class Constant(Leaf):
    """A number, a size that becomes one when sizes are known, or one number a layer (then a stack outside the
    region and an argument inside)."""

    name: ClassVar[str] = "constant"
    values: tuple[Any, ...] = (0.0,)


@op
@dataclass(frozen=True)
class Positions(Op):
    """Absolute positions [batch, axis]: 0, 1, … or, with an operand ``start`` [batch], from there on. ``rows``: of the
    batch. ``limit``: how many positions what reads them can tell apart, where that is limited. ``first``: the position
    of the first one, where nothing else says it. ``grid``: a coordinate instead of the position, (after, each, period):
    those before ``after`` are kept, then a new one comes after each so many positions, ``period`` of them in turn."""

    name: ClassVar[str] = "positions"
    differentiable: ClassVar[bool] = False
    axis: str = "seq"
    size: Any = 0
    rows: Any = BATCH
    limit: int | None = None
    first: Any = 0
    grid: tuple[int, int, int] | None = None

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        return (TensorType.make([("batch", self.rows), (self.axis, self.size)], "int32"),)

    def gradient(
        self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]
    ) -> tuple[Value | None, ...]:
        return tuple(None for _ in ins)

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.WHOLE if axis == self.axis else Role.PARALLEL


@op
@dataclass(frozen=True)
class Distances(Op):
    """0, 1, … [distance]: how far back a sequence reaches, as long as the sequence where it is whole and as long as
    the cache where it comes in pieces. What is made of it alone does not change with the tokens: computed once a
    request."""

    name: ClassVar[str] = "distances"
    differentiable: ClassVar[bool] = False
    once: ClassVar[bool] = True
    size: Size = Size.of(1)

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        return (TensorType.make([("distance", self.size)], "int32"),)

    def gradient(
        self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]
    ) -> tuple[Value | None, ...]:
        return ()

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.WHOLE


@op
@dataclass(frozen=True)
class Index(Op):
    """0, 1, … along an axis of fixed size, float32: for numbers that a paper gives by head or channel."""

    name: ClassVar[str] = "index"
    differentiable: ClassVar[bool] = False
    axis: str = "heads"
    size: Size = Size.of(1)

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        return (TensorType.make([(self.axis, self.size)], "float32"),)

    def gradient(
        self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]
    ) -> tuple[Value | None, ...]:
        return ()

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        return Role.WHOLE


@function
def index(b: Builder, x: Value, axis: str) -> Value:
    """0, 1, … along an axis of x: [axis], float32."""
    size = x.type.size(axis)
    if not size.is_constant:
        raise TypeProblem("varying-size", f"index along {axis}, whose size varies")
    return b.one(Index(axis, size))


@function
def distances(b: Builder, size: Size) -> Value:
    """Distances from 0 on [distance], int32; ``size``: how many."""
    return b.one(Distances(size))


@function
def constant(b: Builder, value: float | Size, dtype: str = "float32") -> Value:
    """A scalar. A size is always that of the whole axis, also where it is sharded."""
    return b.append(Constant((value,)), (), (TensorType((), (), dtype),))[0]


@function
def positions(
    b: Builder, x: Value, axis: str = "seq", limit: int | None = None, grid: tuple[int, int, int] | None = None
) -> Value:
    """Absolute positions of the entries of ``x`` along ``axis``: [batch, axis], int32. From ``limit`` on a call is
    refused. ``grid``: a coordinate of them, (after, each, period)."""
    size = x.type.size(axis)
    return b.one(Positions(axis, size, limit=limit, first=first_of(axis, size), grid=grid))
