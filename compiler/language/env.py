"""What a block's program builds with: the builder, the scope's dims, weights by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from compiler.errors import Position, Problem, SpecError, nearest
from compiler.graph.builder import Builder
from compiler.graph.ir import Value
from compiler.graph.region import Region
from compiler.graph.sizes import Size, SizeLike
from compiler.graph.types import TensorType
from compiler.language.scope import Fault, Scope
from compiler.ops.leaves import Constant, Input, Layers, Parameter
from compiler.ops.packed import Packed, packed


@dataclass(frozen=True)
class Policy:
    """Dtypes of a model; norms, softmax, recurrent state and logits are float32 whatever these say."""

    params: str = "bfloat16"
    compute: str = "bfloat16"
    residual: str = "bfloat16"
    weights: str | None = None  # of matrices when the model runs: "int4", "int8"
    group: int = 32


@dataclass(frozen=True)
class Called:
    """A node on the way from the graph down to a weight: its kind and its place in the spec."""

    kind: str
    position: Position | None


Trail = tuple[Called, ...]


@dataclass
class Weights:
    """All parameters of a model, by unique label."""

    leaves: dict[str, Value] = field(default_factory=dict)
    ops: dict[str, Parameter] = field(default_factory=dict)
    # who has a path, by label: layers written out by their numbers, so that many are found at once
    single: dict[tuple[str, tuple[int, ...]], Trail] = field(default_factory=dict)
    several: dict[str, dict[str, tuple[tuple[Layers, ...], Trail]]] = field(default_factory=dict)

    def owner(self, path: str, stack: tuple[Layers, ...]) -> Trail | None:
        """The node whose weight has this path in one of these layers already."""
        one = _number(stack)
        if one is not None and (path, one) in self.single:
            return self.single[path, one]
        for other, trail in self.several.get(path, {}).values():
            if len(other) == len(stack) and all(_meet(a, b) for a, b in zip(other, stack, strict=True)):
                return trail
        if one is None:
            for (held, numbers), trail in self.single.items():
                if held == path and len(numbers) == len(stack) and all(map(_within, numbers, stack)):
                    return trail
        return None

    def own(self, path: str, label: str, stack: tuple[Layers, ...], trail: Trail) -> None:
        one = _number(stack)
        if one is not None:
            self.single[path, one] = trail
        else:
            self.several.setdefault(path, {})[label] = (stack, trail)

    def forget(self, label: str) -> None:
        """Takes a weight back."""
        op = self.ops.pop(label)
        del self.leaves[label]
        one = _number(op.stack)
        if one is not None:
            del self.single[op.path, one]
        else:
            del self.several[op.path][label]


def _number(stack: tuple[Layers, ...]) -> tuple[int, ...] | None:
    """The numbers of the one layer that a stack holds, or None where it holds more."""
    return tuple(s.start for s in stack) if all(s.count == 1 for s in stack) else None


def _within(number: int, layers: Layers) -> bool:
    return number in range(layers.start, layers.start + layers.step * layers.count, layers.step)


def _meet(a: Layers, b: Layers) -> bool:
    few, many = (a, b) if a.count < b.count else (b, a)
    return any(_within(few.start + few.step * i, many) for i in range(few.count))


@dataclass
class Progress:
    """What was elaborated so far."""

    work: int = 0  # nodes and program lines
    used: set[str] = field(default_factory=set)  # blocks of the spec
    cycles: set[frozenset[str]] = field(default_factory=set)  # of blocks, told
    names: dict[str, int] = field(default_factory=dict)  # how many values have each


@dataclass(frozen=True)
class Share:
    """A node that uses another's weights: what is called ``own.x`` here is ``target.x`` there."""

    target: str
    own: str | None = None  # known once the node has its place

    def at(self, path: str) -> Share:
        return self if self.own is not None else Share(self.target, path)

    def path(self, mine: str) -> str:
        rest = mine.removeprefix(self.own or "").lstrip(".")
        return ".".join(p for p in (self.target, rest) if p)


@dataclass(frozen=True)
class Env:
    b: Builder
    scope: Scope
    policy: Policy
    weights: Weights
    inputs: Mapping[str, Value]
    frozen: bool = False
    init: str | None = None
    dtype: str | None = None
    share: Share | None = None
    layers: tuple[Layers, ...] = ()  # of the repeats around, outermost first
    inline_layer: int | None = None
    trail: Trail = ()  # the nodes around, outermost first
    progress: Progress = field(default_factory=Progress)

    @property
    def dims(self) -> Mapping[str, int]:
        return self.scope.dims

    def but(self, **changes: Any) -> Env:
        return replace(self, **changes)

    def call(self, value: Value, name: str = "") -> None:
        """Names a value, for trace: the result of the block at hand, or with ``name`` a value in it. A name that comes
        again, as in the next item of a cycle, gets a number."""
        path = ".".join(p for p in (self.b.path, name) if p)
        if path:
            count = self.progress.names[path] = self.progress.names.get(path, 0) + 1
            self.b.names[path if count == 1 else f"{path}@{count}"] = value

    # -- leaves
    def weight(
        self,
        name: str,
        axes: Sequence[tuple[str, SizeLike]],
        *,
        to: Sequence[tuple[str, SizeLike]] | None = None,
        init: str = "fan_in",
        dtype: str | None = None,
        trainable: bool = True,
        used: float = 1.0,
        table: bool = False,
        exact: bool = False,
    ) -> Value:
        """A parameter. With ``to`` it is a linear map from ``axes`` to ``to``; without, a plain tensor. ``used``: the
        share of it that one token uses. Linear maps and what is a ``table`` may be held in few bits, unless ``exact``
        or stored in a dtype of their own."""
        path = ".".join(p for p in (self.b.path, name) if p)
        path = self.share.path(path) if self.share else path
        full = TensorType.make([*axes, *(to or ())], dtype or self.dtype or self.policy.params)
        for axis, size in full.pairs:
            if not size.is_constant:
                text = f"{path} would be a weight along {axis}, whose size differs from call to call"
                raise Fault("varying-size", text, (), "embed the tokens first, or map the axis to a dim")
        own = () if self.inline_layer is None else (Layers(self.inline_layer, 1, 1),)
        stack = (*self.layers, *own)
        label = path + "".join(f"[{s}]" if s.count > 1 else f"[{s.start}]" for s in stack)
        learns, inputs = trainable and not self.frozen, len(axes) if to is not None else None
        few = self._packed(full, inputs, table) if not (exact or dtype or self.dtype) else None
        op = Parameter(path, label, inputs, self.init or init, learns, stack, used, few)
        if self.share:
            return self._known(path, label, full)
        owner = self.weights.owner(path, stack)
        if owner is not None:
            raise self._twice(path, owner)
        self.weights.own(path, label, stack, self.trail)
        return self._stacked(self.b, label, op, full)

    def _packed(self, t: TensorType, inputs: int | None, table: bool) -> Packed | None:
        """How a weight is held in few bits: in groups along what it is summed over, or a table's rows."""
        linear = inputs and inputs < len(t.axes)
        if self.policy.weights is None or not (linear or table):
            return None
        axis = t.axes[inputs - 1] if linear and inputs else t.axes[-1]
        return packed(self.policy.weights, axis, int(t.size(axis).constant), self.policy.group)

    def _twice(self, path: str, owner: Trail) -> SpecError:
        """Two nodes that give a weight the same path: both places, where the ways to them part."""
        pairs = [(a, b) for a, b in zip(owner, self.trail, strict=False) if a != b]
        text = f"two weights would be called {path}"
        if not pairs:
            return SpecError(Problem("duplicate-name", f"{text}: give one node a name", self.b.position))
        first, second = pairs[0]
        hint = f"name one of the two, as in {{{second.kind}: …, name: …}}, or put one into a block of its own"
        message = f"{text}: of {second.kind} here, and of {first.kind} at {first.position}"
        return SpecError(Problem("duplicate-name", message, second.position, (), hint))

    def _known(self, path: str, label: str, t: TensorType) -> Value:
        """The weight of the node shared with: of the same layers, or one outside the repeats."""
        for known in (label, path):
            if known in self.weights.leaves:
                here = self.b if known == label else None
                if here is None:  # used as it is: a region captures it
                    found = self.weights.leaves[known]
                    if found.type != t:
                        raise self._mismatch(known, found.type, t)
                    return found
                return self._stacked(self.b, known, self.weights.ops[known], t)
        held = sorted({op.path for op in self.weights.ops.values()})
        text = f"share: {path} is no weight of the node shared with"
        raise SpecError(Problem("unknown-name", text, self.b.position, tuple(held), nearest(path, held)))

    def _mismatch(self, label: str, mine: TensorType, other: TensorType) -> SpecError:
        return SpecError(Problem("axis-mismatch", f"{label} is {mine} and would be shared as {other}", self.b.position))

    def _stacked(self, b: Builder, label: str, op: Parameter, t: TensorType) -> Value:
        if isinstance(b, Region):
            above = TensorType((b.axis, *t.axes), (Size.of(b.trips), *t.sizes), t.dtype)
            assert b.parent is not None
            return b.stacked(self._stacked(b.parent, label, op, above))
        if label not in self.weights.leaves:
            self.weights.leaves[label] = b.append(op, (), (t,))[0]
            self.weights.ops[label] = op
        elif self.weights.leaves[label].type != t:
            raise self._mismatch(label, self.weights.leaves[label].type, t)
        return self.weights.leaves[label]

    def number(self, value: float | tuple[float, ...], dtype: str) -> Value:
        """A constant: one number, or one a layer of the repeat around."""
        if not isinstance(value, tuple):
            return self.b.constant(float(value), dtype)
        region = self.b
        assert isinstance(region, Region) and region.parent is not None
        root = region.parent
        t = TensorType((region.axis,), (Size.of(region.trips),), dtype)
        return region.stacked(root.append(Constant(value), (), (t,))[0])

    def lengths(self, axis: str) -> Value | None:
        """Valid entries of each row along a variable axis [batch], or None where the axis has a fixed size."""
        return self.inputs.get(f"{axis}_lengths")

    def lose(self, name: str, term: Value) -> None:
        """Adds to a term of the training loss: a number for each row [batch], float32. The training step adds its mean
        over rows to the loss; other phases do not compute it."""
        known = self.b.losses.get(name)
        self.b.losses[name] = term if known is None else self.b.add(known, term)

    # -- common steps
    def compute(self, x: Value) -> Value:
        return self.b.cast(x, self.policy.compute)

    def linear(
        self,
        x: Value,
        name: str,
        to: Sequence[tuple[str, SizeLike]],
        *,
        over: Sequence[str] = (),
        bias: bool = False,
        dtype: str | None = None,
        exact: bool = False,
    ) -> Value:
        """x times a weight [over, to], plus a bias [to]; ``over`` defaults to the last axis of x."""
        over = tuple(over) or (x.axes[-1],)
        taken = {*over, *(a for a in x.axes if a not in over)}
        fresh = [(f"{a}_out" if a in taken else a, s) for a, s in to]
        w = self.weight(name, [(a, x.type.size(a)) for a in over], to=fresh, exact=exact)
        y = self.b.dot(self.compute(x), self.compute(w), over, dtype or self.policy.compute)
        if bias:
            # a map from nothing: a checkpoint's layout of linear maps flattens its axes as it does the weight's
            vector = self.weight("bias" if name == "weight" else f"{name}_bias", [], to=fresh, init="zeros")
            y = self.b.add(y, self.b.cast(vector, y.type.dtype))
        renamed = {f: a for (f, _), (a, _) in zip(fresh, to, strict=True) if f != a}
        return self.b.rename(y, **renamed) if renamed else y


def settled(env: Env, kind: str, position: Position | None) -> Env:
    """The environment of a node that has its place: `share` is relative to it."""
    share = env.share.at(env.b.path) if env.share else None
    return env.but(share=share, trail=(*env.trail, Called(kind, position)))


def input_leaf(b: Builder, label: str, t: TensorType) -> Value:
    return b.append(Input(label), (), (t,))[0]
