"""Element-wise ops with broadcasting by axis name. ``TABLE`` is the whole vocabulary: cost and derivative of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from compiler.graph.ir import Value
from compiler.graph.types import DTYPE_BITS, TensorType, TypeProblem, broadcast
from compiler.ops.contract import FUNCTIONS, Cost, Op, function, moved, op

if TYPE_CHECKING:
    from compiler.graph.builder import Builder

Grads = tuple[Value | None, ...]


@dataclass(frozen=True)
class Rule:
    """``derivative(b, ins, out, g)`` gives the operands' cotangents before broadcasting is undone."""

    arity: int
    flops: int
    transcendental: int
    derivative: Callable[[Any, Sequence[Value], Value, Value], Grads] | None
    result: str | None = None  # result dtype where it is not the operands'
    meaning: str = ""
    linear: tuple[frozenset[int], ...] = ()  # sets of operands in which it is linear, together


def _gelu_tanh_slope(b: Any, x: Value) -> Value:
    c = 0.7978845608028654  # sqrt(2 / pi)
    x2 = b.mul(x, x)
    t = b.tanh(b.mul(b.mul(x, c), b.add(b.mul(x2, 0.044715), 1.0)))
    inner = b.mul(b.add(b.mul(x2, 3 * 0.044715), 1.0), c)
    return b.add(b.mul(b.add(t, 1.0), 0.5), b.mul(b.mul(b.mul(x, 0.5), b.sub(1.0, b.mul(t, t))), inner))


def _gelu_slope(b: Any, x: Value) -> Value:
    cdf = b.mul(b.add(b.erf(b.mul(x, 0.7071067811865476)), 1.0), 0.5)
    return b.add(cdf, b.mul(x, b.mul(b.exp(b.mul(b.mul(x, x), -0.5)), 0.3989422804014327)))


def _silu_slope(b: Any, x: Value) -> Value:
    s = b.sigmoid(x)
    return b.mul(s, b.add(b.mul(x, b.sub(1.0, s)), 1.0))


def _by(slope: Callable[[Any, Value], Value]) -> Callable[..., Grads]:
    return lambda b, ins, out, g: (b.mul(g, slope(b, ins[0])),)


def _greater(b: Any, x: Value, y: Value | float) -> Value:
    return b.cast(b.greater(x, y), x.type.dtype)


def _larger(b: Any, g: Value, second: Value, first: Value) -> Grads:
    """Cotangents of two values of which one is taken; the first when they are equal."""
    to_second = b.mul(g, _greater(b, second, first))
    return b.sub(g, to_second), to_second


def _unless(b: Any, condition: Value, g: Value) -> Value:
    return b.select(condition, b.constant(0.0, g.type.dtype), g)


FIRST = (frozenset({0}),)
EITHER = (frozenset({0}), frozenset({1}))
BOTH = (frozenset({0, 1}),)

TABLE: dict[str, Rule] = {
    "add": Rule(2, 1, 0, lambda b, i, o, g: (g, g), meaning="x + y", linear=BOTH),
    "sub": Rule(2, 1, 0, lambda b, i, o, g: (g, b.neg(g)), meaning="x - y", linear=BOTH),
    "mul": Rule(2, 1, 0, lambda b, i, o, g: (b.mul(g, i[1]), b.mul(g, i[0])), meaning="x * y", linear=EITHER),
    "div": Rule(
        2, 1, 0, lambda b, i, o, g: (b.div(g, i[1]), b.neg(b.div(b.mul(g, o), i[1]))), meaning="x / y", linear=FIRST
    ),
    "max": Rule(2, 1, 0, lambda b, i, o, g: _larger(b, g, i[1], i[0]), meaning="the larger of x and y"),
    "min": Rule(2, 1, 0, lambda b, i, o, g: _larger(b, g, i[0], i[1]), meaning="the smaller of x and y"),
    "power": Rule(
        2,
        0,
        2,
        lambda b, i, o, g: (
            b.mul(g, b.mul(i[1], b.power(i[0], b.sub(i[1], 1.0)))),
            b.mul(g, b.mul(o, b.log(i[0]))),
        ),
        meaning="x ** y, for x > 0",
    ),
    "neg": Rule(1, 1, 0, lambda b, i, o, g: (b.neg(g),), linear=FIRST),
    "abs": Rule(1, 1, 0, lambda b, i, o, g: (b.mul(g, b.sign(i[0])),)),
    "sign": Rule(1, 1, 0, lambda b, i, o, g: (None,)),
    "exp": Rule(1, 0, 1, lambda b, i, o, g: (b.mul(g, o),)),
    "log": Rule(1, 0, 1, lambda b, i, o, g: (b.div(g, i[0]),)),
    "sqrt": Rule(1, 0, 1, lambda b, i, o, g: (b.div(b.mul(g, 0.5), o),)),
    "bounded_sqrt": Rule(
        1,
        1,
        1,
        lambda b, i, o, g: (b.mul(g, b.rsqrt(b.max(b.mul(i[0], 4.0), 1e-6))),),
        meaning="the root of max(x, 0), its slope at most 1000",
    ),
    "rsqrt": Rule(1, 0, 1, lambda b, i, o, g: (b.mul(b.mul(g, -0.5), b.mul(o, b.mul(o, o))),)),
    "tanh": Rule(1, 0, 1, lambda b, i, o, g: (b.mul(g, b.sub(1.0, b.mul(o, o))),)),
    "erf": Rule(1, 0, 1, lambda b, i, o, g: (b.mul(g, b.mul(b.exp(b.neg(b.mul(i[0], i[0]))), 1.1283791670955126)),)),
    "sigmoid": Rule(1, 2, 1, lambda b, i, o, g: (b.mul(g, b.mul(o, b.sub(1.0, o))),)),
    "softplus": Rule(1, 2, 2, _by(lambda b, x: b.sigmoid(x)), meaning="log(1 + exp(x))"),
    "square": Rule(1, 1, 0, lambda b, i, o, g: (b.mul(b.mul(g, 2.0), i[0]),)),
    "relu": Rule(1, 1, 0, _by(lambda b, x: _greater(b, x, 0.0))),
    "squared_relu": Rule(1, 2, 0, _by(lambda b, x: b.mul(b.relu(x), 2.0)), meaning="max(x, 0) ** 2"),
    "silu": Rule(1, 3, 1, _by(_silu_slope), meaning="x * sigmoid(x)"),
    "gelu": Rule(1, 4, 1, _by(_gelu_slope), meaning="x * Phi(x), exact"),
    "gelu_tanh": Rule(1, 8, 1, _by(_gelu_tanh_slope), meaning="gelu by its tanh approximation"),
    "greater": Rule(2, 1, 0, lambda b, i, o, g: (None, None), result="bool"),
    "equal": Rule(2, 1, 0, lambda b, i, o, g: (None, None), result="bool"),
    "select": Rule(
        3,
        1,
        0,
        lambda b, i, o, g: (None, b.select(i[0], g, b.constant(0.0, g.type.dtype)), _unless(b, i[0], g)),
        meaning="x where the condition holds, else y",
    ),
}
ACTIVATIONS = ("relu", "squared_relu", "silu", "gelu", "gelu_tanh", "tanh", "sigmoid")


@op
@dataclass(frozen=True)
class Map(Op):
    """One function of TABLE, element by element, operands broadcast by axis name."""

    name: ClassVar[str] = "map"
    fn: str = "add"

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        rule = TABLE[self.fn]
        if len(ins) != rule.arity:
            raise TypeProblem("operand-count", f"{self.fn} takes {rule.arity} values, found {len(ins)}")
        dtypes = [t.dtype for t in (ins[1:] if self.fn == "select" else ins)]
        if len(set(dtypes)) != 1:
            raise TypeProblem("dtype-mismatch", f"{self.fn} of {' and '.join(dtypes)}")
        return (TensorType.make(broadcast(ins), rule.result or dtypes[0]),)

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        rule, n = TABLE[self.fn], outs[0].elements
        return moved(ins, outs, vector=n * rule.flops, transcendental=n * rule.transcendental)

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        if grads[0] is None:
            return tuple(None for _ in ins)
        derivative = TABLE[self.fn].derivative
        assert derivative is not None
        raw = derivative(b, ins, outs[0], grads[0])
        return tuple(None if g is None else unbroadcast(b, g, x) for g, x in zip(raw, ins, strict=True))

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return partial in TABLE[self.fn].linear

    def text(self) -> str:
        return self.fn


@op
@dataclass(frozen=True)
class Cast(Op):
    """Another dtype."""

    name: ClassVar[str] = "cast"
    dtype: str = "float32"

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        return (ins[0].with_dtype(self.dtype),)

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        g = grads[0]
        if g is None or not ins[0].type.dtype.startswith(("float", "bfloat")):
            return (None,)
        return (b.cast(g, ins[0].type.dtype),)

    def widens(self, t: TensorType) -> bool:
        """Whether every value of ``t`` is kept as it is, in more bits."""
        floats = all(d.startswith(("float", "bfloat")) for d in (self.dtype, t.dtype))
        return floats and DTYPE_BITS[self.dtype] > DTYPE_BITS[t.dtype]

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        """Widening only: a sum of narrowed parts is not the narrowed sum."""
        return DTYPE_BITS[self.dtype] >= DTYPE_BITS[ins[0].dtype] and self.dtype.startswith(("float", "bfloat"))


@op
@dataclass(frozen=True)
class StopGradient(Op):
    """The value itself, through which no gradient flows."""

    name: ClassVar[str] = "stop_gradient"

    def infer(self, *ins: TensorType) -> tuple[TensorType, ...]:
        return ins

    def cost(self, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Cost:
        return Cost()

    def gradient(self, b: Builder, ins: Sequence[Value], outs: Sequence[Value], grads: Sequence[Value | None]) -> Grads:
        return (None,)

    def linear(self, partial: frozenset[int], ins: Sequence[TensorType]) -> bool:
        return True


def unbroadcast(b: Builder, g: Value, like: Value) -> Value:
    """Sums a cotangent over the axes that broadcasting added, and puts the rest in order."""
    extra = tuple(a for a in g.axes if a not in like.axes)
    return b.arrange(b.reduce(g, "sum", extra) if extra else g, like.axes)


@function
def cast(b: Builder, x: Value, dtype: str) -> Value:
    return x if x.type.dtype == dtype else b.one(Cast(dtype), x)


@function
def float32(b: Builder, x: Value) -> Value:
    """x in float32: sums and roots of narrow numbers that the compute dtype would round on the way."""
    return b.cast(x, "float32")


@function
def compute(b: Builder, x: Value) -> Value:
    """x in the compute dtype, of a program: so that products take what was computed in float32 at their width."""
    return x  # a program casts what it hands to this


@function
def stop_gradient(b: Builder, x: Value) -> Value:
    return b.one(StopGradient(), x)


def _mapping(fn: str) -> Callable[..., Value]:
    def build(b: Builder, *operands: Value | float) -> Value:
        values = [v for v in operands if isinstance(v, Value)]
        dtype = values[-1].type.dtype if values else "float32"
        return b.one(Map(fn), *(v if isinstance(v, Value) else b.constant(v, dtype) for v in operands))

    build.__name__ = fn
    build.__doc__ = f"{TABLE[fn].meaning or fn}, element by element."
    return build


for _fn in TABLE:
    FUNCTIONS[_fn] = _mapping(_fn)


@function
def softcap(b: Builder, x: Value, cap: float) -> Value:
    """cap * tanh(x / cap) (Gemma 2, arXiv:2408.00118, section 2)."""
    return b.mul(b.tanh(b.mul(x, 1.0 / cap)), cap)


@function
def scale(b: Builder, x: Value, by: float | Value) -> Value:
    """x times a number."""
    return b.mul(x, b.cast(by, x.type.dtype) if isinstance(by, Value) else by)


def widened(b: Builder, value: Value, dtype: str) -> Value:
    """A term of a sum in a wide float: where it was wide before it was narrowed (a gradient to its parameter's dtype),
    as it was then. The sum loses no bits, and its parts on devices can be completed once, after the last term."""
    node = next((n for n in reversed(b.nodes) if any(v.id == value.id for v in n.results)), None)
    if node is not None and isinstance(node.op, Cast) and node.operands[0].type.dtype == dtype:
        return node.operands[0]
    if node is not None and isinstance(node.op, Map) and node.op.fn == "add":
        return b.add(*(widened(b, v, dtype) for v in node.operands))
    return b.cast(value, dtype)
