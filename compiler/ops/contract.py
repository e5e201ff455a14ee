"""The op contract. An op says, in one place and without jax: its shape rule, its cost as formulas of its sizes,
its gradient as a short op program, how it behaves when an axis is sharded, how it behaves along the streaming
axis and what state it keeps there. The JAX lowering stands in the file of the same name under ``compiler/lower``.

``OPS`` holds every op; a test refuses an op whose contract is not whole (see docs: "add an op").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from compiler.graph.ir import Graph, Value
from compiler.graph.sizes import ZERO, Size, SizeLike
from compiler.graph.types import TensorType

if TYPE_CHECKING:
    from compiler.graph.builder import Builder
    from compiler.passes.phase import Streaming


@dataclass(frozen=True)
class Cost:
    """What one run of a node does. FLOPs: 1 multiply-add = 2. Bytes: each operand read once, each result
    written once, unless the op says otherwise (an embedding lookup reads only its rows)."""

    matrix: Size = ZERO  # FLOPs of matrix products
    vector: Size = ZERO  # element-wise FLOPs
    transcendental: Size = ZERO  # exp, log, tanh, rsqrt ... evaluations
    read: Size = ZERO  # bytes
    written: Size = ZERO  # bytes
    sent: Size = ZERO  # bytes that one device sends to others: collectives only
    padding: Size = ZERO  # FLOPs of products with padding: not in ``matrix``, as XLA counts; papers count them too

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(self)))

    def times(self, n: SizeLike) -> Cost:
        return Cost(*(getattr(self, f.name) * n for f in dataclasses.fields(self)))


class Role(Enum):
    """What an op does when an axis of its operands is sharded over a mesh axis."""

    PARALLEL = "parallel"  # each shard alone; results sharded alike
    SUM = "sum"  # contracted: results without the axis are partial, an all-reduce (of ``Op.partial``) completes them
    WHOLE = "whole"  # must be gathered first
    LOOKUP = "lookup"  # entries by number: each shard (``shard`` is set) answers for its own, an all-reduce adds
    OWN = "own"  # as PARALLEL, and the op is told which shard it is (``shard`` is set)
    ACROSS = "across"  # looks beyond the shard: ``Op.across`` says by which program over the shards


# Axes whose entries stand in an order of each shard's own. Where such a value lies follows from where its tokens or
# experts lie: its placement names those axes instead, and nothing but the ops that know the order brings it from one
# to another. True: a shard has its share of the entries; False: it has room for all of them.
LOCAL: Mapping[str, Mapping[str, bool]] = {
    "rows": {"batch": True, "seq": True, "experts": False},  # (token, expert) pairs: by token, or at their experts
    "pairs": {"batch": True, "seq": True},
    "groups": {"batch": False, "seq": False, "experts": True},  # how many rows each expert has
}


def holders(t: TensorType) -> tuple[str, ...]:
    """The axes by which a value of each shard's own order may be placed; none for other values."""
    return tuple(h for a, s in t.pairs if a in LOCAL and s != ZERO for h in LOCAL[a])


def places(t: TensorType) -> tuple[str, ...]:
    """The axes that a placement of this type may name."""
    return (*(a for a in t.axes if a not in LOCAL), *holders(t))


class Along(Enum):
    """What an op does along the axis over which the input streams in."""

    POINTWISE = "pointwise"  # each position alone: the same op serves every phase
    STATEFUL = "stateful"  # looks back: ``stream`` says with which state
    LOOKAHEAD = "lookahead"  # needs positions that are not there yet: no decode


@dataclass(frozen=True)
class Op:
    """Base of all ops: a frozen record of attributes. Operands and results are values of the graph."""

    name: ClassVar[str] = ""
    differentiable: ClassVar[bool] = True
    once: ClassVar[bool] = False  # takes nothing, and what comes of it is computed once a request and kept

    # -- the contract
    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        """Result types; raises TypeProblem when the operands do not fit."""
        raise NotImplementedError(self.name)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        """Defaults to moving data: no FLOPs, operands read, results written."""
        return moved(ins, outs)

    def gradient(
        self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]
    ) -> tuple[Value | None, ...]:
        """Cotangents of the operands as an op program (None: no gradient flows there)."""
        raise NotImplementedError(f"{self.name} has no gradient")

    def role(self, axis: str, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Role:
        """The partition rule, one axis name at a time."""
        return Role.PARALLEL

    def partial(self) -> str:
        """What completes the partial results of Role.SUM: "sum", "mean" or "max"."""
        return "sum"

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        """Whether partial sums in exactly the operands ``partial`` (the others whole) give partial sums."""
        return False

    def follows(self) -> Mapping[str, str]:
        """Operand axes that go on under another name in the result, their shards with them."""
        return {}

    def together(self, axis: str, ins: Sequence[TensorType]) -> tuple[str, ...]:
        """Axes that are sharded alike when ``axis`` is, itself among them; ``ins`` are the types of a shard so far.
        Empty: the axis cannot be sharded further here."""
        return (axis,)

    def across(self, b: Builder, axis: str, shards: int, ins: Sequence[Value]) -> tuple[Value, ...]:
        """For Role.ACROSS: the same meaning as a program in which ``axis`` is split in [shards, axis]; only what
        it does along ``shards`` moves data."""
        raise NotImplementedError(f"{self.name} cannot be sharded along {axis}")

    def home(self) -> tuple[str, int, str] | None:
        """Where entries of an axis of each shard's own order (the first) belong: with the part of an operand (its
        place) that is split by an axis. None: nowhere in particular."""
        return None

    def exchanges(self) -> tuple[tuple[str, ...], ...]:
        """Further programs over the shards: where rows go from one holder (the second axis) to another (the first)
        or back. ``across`` gets the first axis."""
        return ()

    def exchanged(self, shards: int, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Size:
        """Bytes that one shard sends in such a program, from the types of a shard."""
        return ZERO

    def runs(self, shards: int, ins: Sequence[TensorType]) -> float:
        """How much a shard computes in such a program, in runs of the op on the types of a shard."""
        return 1.0

    def along(self, axis: str, ins: Sequence[TensorType]) -> Along:
        """Behaviour along the streaming axis."""
        return Along.POINTWISE

    def stream(self, s: Streaming, ins: Sequence[Value]) -> tuple[Value, ...]:
        """For STATEFUL ops: the same meaning, extending a state by the positions of this call."""
        raise NotImplementedError(f"{self.name} keeps no state")

    # -- structure
    @property
    def region(self) -> Graph | None:
        return None

    @property
    def times(self) -> SizeLike:
        return 1

    def text(self) -> str:
        parts = []
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Graph) or value == f.default:
                continue
            parts.append(f"{f.name}={' '.join(value) if _words(value) else value}")
        return f"{self.name}<{', '.join(parts)}>" if parts else self.name


def _words(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(v, str) for v in value)


def moved(ins: Sequence[TensorType], outs: Sequence[TensorType], **flops: Size) -> Cost:
    """A Cost whose bytes are every operand read and every result written."""
    read = sum((t.bytes for t in ins), ZERO)
    written = sum((t.bytes for t in outs), ZERO)
    return Cost(read=read, written=written, **flops)


OPS: dict[str, type[Op]] = {}
FUNCTIONS: dict[str, Callable[..., Any]] = {}  # builder functions, by the name that programs call them


def op(cls: type[Op]) -> type[Op]:
    """Registers an op class under its ``name``."""
    if not cls.name or cls.name in OPS:
        raise ValueError(f"op {cls.__name__} needs a name of its own")
    OPS[cls.name] = cls
    return cls


def function(fn: Callable[..., Any] | None = None, *, name: str | None = None) -> Callable[..., Any]:
    """Registers a builder function: callable as ``builder.fn(...)`` and from programs written in YAML."""

    def register(f: Callable[..., Any]) -> Callable[..., Any]:
        FUNCTIONS[name or f.__name__.rstrip("_")] = f
        return f

    return register(fn) if fn else register


def all_ops() -> Iterator[type[Op]]:
    import compiler.ops.families  # noqa: F401  (registers every family)

    yield from OPS.values()
