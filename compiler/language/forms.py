"""Forms: what joins nodes rather than computes. Each takes the node, the chain's value and the frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from compiler.errors import nearest
from compiler.graph.ir import Value
from compiler.graph.region import Region
from compiler.graph.sizes import BATCH
from compiler.graph.types import TensorType
from compiler.language.elaborate import chain, node
from compiler.language.frame import Frame
from compiler.language.nodes import NodeSpec
from compiler.language.scope import Fault, Told, Unroll, shown
from compiler.ops.leaves import Layers
from compiler.ops.shape import zeros
from compiler.source.yaml import YList, YMap

Form = Callable[[NodeSpec, Value | None, Frame], Value | None]
FORMS: dict[str, Form] = {}
MAX_LAYERS = 10_000


def form(name: str) -> Callable[[Form], Form]:
    def register(fn: Form) -> Form:
        FORMS[name] = fn
        return fn

    return register


def _branches(spec: NodeSpec, what: str) -> YList:
    if not isinstance(spec.args, YList) or not spec.args:
        found = "an empty one" if isinstance(spec.args, YList) else shown(spec.args)
        raise Fault("wrong-type", f"{spec.kind} takes a list of {what}, found {found}", key=spec.kind)
    return spec.args


def _options(spec: NodeSpec, frame: Frame, form: str, *needed: str, optional: tuple[str, ...] = ()) -> YMap:
    """The options of a form, all ``needed`` ones there. Raises Fault."""
    keys = (*needed, *optional)
    raw = spec.args
    if not isinstance(raw, YMap):
        raise Fault("wrong-type", f"{spec.kind} takes {form}, found {shown(raw)}", keys, key=spec.kind)
    meant = set()
    for key in raw:
        if key not in keys:
            hint = nearest(key, keys)
            meant.add(hint)
            frame.env.scope.problems.add("unknown-key", f"{spec.kind} has no option {key}", raw.key_position[key],
                                         allowed=keys, suggestion=hint)  # fmt: skip
    for key in needed:
        if key not in raw:
            if key in meant:
                raise Told
            raise Fault("missing-key", f"{spec.kind} needs {key}: it takes {form}", keys)
    return raw


@form("identity")
def identity(spec: NodeSpec, x: Value | None, frame: Frame) -> Value | None:
    """The value unchanged (a branch of a sum or product)."""
    if spec.args is not None:
        raise Fault("unexpected-options", f"identity takes no options, found {shown(spec.args)}", key=spec.kind)
    return x


@form("residual")
def residual(spec: NodeSpec, x: Value | None, frame: Frame) -> Value | None:
    """x + chain(x)."""
    y = chain(_branches(spec, "nodes"), spec.position, x, frame)
    if x is None or y is None:
        return x  # told already; whatever was in it, the result would have had the shape of x
    b = frame.env.b
    if sorted(x.axes) != sorted(y.axes):
        raise Fault(
            "axis-mismatch",
            f"a residual adds [{' '.join(x.axes)}] and [{' '.join(y.axes)}]: the axes must agree",
        )
    return b.add(x, b.cast(y, x.type.dtype))


def _combine(fn: str, spec: NodeSpec, x: Value | None, frame: Frame) -> Value | None:
    branches = _branches(spec, "branches")
    values = [node(item, where, x, frame) for item, where in zip(branches, branches.item_position, strict=True)]
    total = values[0]
    for value in values[1:]:
        if total is None or value is None:
            return None
        if not (set(total.axes) <= set(value.axes) or set(value.axes) <= set(total.axes)):
            sides = f"[{' '.join(total.axes)}] and [{' '.join(value.axes)}]"
            raise Fault("axis-mismatch", f"a {spec.kind} joins {sides}: the axes of one must be among the other's")
        total = getattr(frame.env.b, fn)(total, frame.env.b.cast(value, total.type.dtype))
    return total


@form("sum")
def sum_(spec: NodeSpec, x: Value | None, frame: Frame) -> Value | None:
    """The sum of branches that all get the same input."""
    return _combine("add", spec, x, frame)


@form("product")
def product(spec: NodeSpec, x: Value | None, frame: Frame) -> Value | None:
    """The product of branches that all get the same input."""
    return _combine("mul", spec, x, frame)


@form("concat")
def concat(spec: NodeSpec, x: Value | None, frame: Frame) -> Value | None:
    """Branches joined along an axis: {axis: embed, of: [a, b]}."""
    raw = _options(spec, frame, "{axis: name, of: [branches]}", "axis", "of")
    axis, branches = raw["axis"], raw["of"]
    if not isinstance(axis, str):
        raise Fault("wrong-type", f"concat: axis takes an axis name, found {shown(axis)}", key="axis")
    if not isinstance(branches, YList) or not branches:
        raise Fault("wrong-type", "concat: of takes a list of branches", key="of")
    values = [node(item, where, x, frame) for item, where in zip(branches, branches.item_position, strict=True)]
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        return None
    if axis not in known[0].axes:
        raise Fault("missing-axis", f"concat: no axis {axis} in [{' '.join(known[0].axes)}]", known[0].axes,
                    nearest(axis, known[0].axes), key="axis")  # fmt: skip
    return frame.env.b.concat(*known, axis=axis)


@form("repeat")
def repeat(spec: NodeSpec, x: Value | None, frame: Frame) -> Value | None:
    """{times: n, cycle: [nodes]}: n layers, the cycle's nodes in turn; it may be cut short."""
    raw = _options(spec, frame, "{times: n, cycle: [nodes]}", "times", "cycle")
    problems, cycle = frame.env.scope.problems, raw["cycle"]
    times: int | None = None
    try:
        layers = frame.env.scope.count(raw["times"], "times", least=0)
        if layers > MAX_LAYERS:
            raise Fault("out-of-range", f"times must be at most {MAX_LAYERS:,}, found {layers}", (f"<= {MAX_LAYERS}",))
        times = layers
    except Told:
        pass
    except Fault as e:
        e.tell(problems, raw.within("times", e.offset))
    if not isinstance(cycle, YList) or not cycle:
        found = "an empty one" if isinstance(cycle, YList) else shown(cycle)
        problems.add("wrong-type", f"cycle takes a list of nodes, found {found}", raw.value_position["cycle"])
        return x
    if x is None or times is None:  # each node once, to find what else is wrong
        for i, (item, where) in enumerate(zip(cycle, cycle.item_position, strict=True)):
            env = frame.env.but(scope=dataclasses.replace(frame.env.scope, layer=i), inline_layer=i)
            node(item, where, x, _inside(frame, env))
        return x
    return _repeat(cycle, times, x, frame)


def _repeat(cycle: YList, times: int, x: Value, frame: Frame) -> Value | None:
    """``times`` layers: whole trips of the cycle as a region, the rest written out."""
    problems, value = frame.env.scope.problems, x
    start = frame.numbering.next_layer
    frame.numbering.next_layer += times
    trips, rest = divmod(times, len(cycle))
    if trips > 1:
        marks = _marks(frame)
        before = len(problems.items)
        try:
            value = _region(cycle, trips, start, x, frame)
        except Unroll as e:
            _undo(frame, marks)
            del problems.items[before:]
            frame.env.b.unrolled = (
                f"{e.what} differs by layer, so the {times} layers are written out: slower to compile"
            )
            return _inline(cycle, 0, times, start, x, frame)
    else:
        trips, rest = 0, times
    return _inline(cycle, trips * len(cycle), times, start, value, frame) if rest else value


def _region(cycle: YList, trips: int, start: int, x: Value, frame: Frame) -> Value:
    region = Region(frame.env.b, trips, _stack_axis(frame))
    entering = region.carry(x)
    value, failed = entering, False
    for i, (item, where) in enumerate(zip(cycle, cycle.item_position, strict=True)):
        numbers = start + i + len(cycle) * np.arange(trips)
        layers = (*frame.env.layers, Layers(start + i, len(cycle), trips))
        scope = dataclasses.replace(frame.env.scope, layer=numbers)
        env = frame.env.but(b=region, scope=scope, layers=layers)
        left = node(item, where, value, _inside(frame, env))
        if left is not None and left.type != x.type:
            sides = f"{_shape(x, left)} goes in, {_shape(left, x)} comes out"
            frame.env.scope.problems.add(
                "axis-mismatch", f"a layer of a repeat must keep its input's shape: {sides}", where
            )
            left = None
        failed = failed or left is None
        value = left or entering  # after a fault as if the layer had kept its shape, to judge the next ones
    return x if failed else _close(region, value, frame)


def _close(region: Region, value: Value, frame: Frame) -> Value:
    """Ends the region of a repeat's layers; terms of the training loss add up from layer to layer."""
    rows, ends = zeros(frame.env.b, TensorType.make([("batch", BATCH)], "float32")) if region.losses else None, [value]
    for term in region.losses.values():
        assert rows is not None
        ends.append(region.add(region.carry(rows), term))
    results = region.close(ends)[0]
    for name, total in zip(region.losses, results[1:], strict=True):
        frame.env.lose(name, total)
    return results[0]


def _shape(x: Value, other: Value) -> str:
    """Axes and fixed sizes; the dtype where only that differs."""
    axes = " ".join(f"{a}={s}" if s.is_constant else a for a, s in x.type.pairs)
    return f"{x.type.dtype}[{axes}]" if x.type.dtype != other.type.dtype else f"[{axes}]"


def _inline(cycle: YList, first: int, last: int, start: int, x: Value | None, frame: Frame) -> Value | None:
    before = len(frame.env.scope.problems.items)
    for i in range(first, last):
        item, where = cycle[i % len(cycle)], cycle.item_position[i % len(cycle)]
        scope = dataclasses.replace(frame.env.scope, layer=start + i)
        env = frame.env.but(scope=scope, inline_layer=start + i)
        y = node(item, where, x, _inside(frame, env))
        if y is None and len(frame.env.scope.problems.items) > before:
            return x  # told once: the other layers would only repeat it
        x = y
    return x


def _inside(frame: Frame, env: Any) -> Frame:
    return Frame(env, {}, frame, frame.defs, ambiguous=frame.ambiguous, stack=frame.stack, in_cycle=True)


def _stack_axis(frame: Frame) -> str:
    depth = len(frame.env.layers)
    return "layers" if depth == 0 else f"layers{depth + 1}"


def _marks(frame: Frame) -> list[Any]:
    marks: list[Any] = [(set(frame.env.weights.leaves))]
    b = frame.env.b
    while b is not None:
        marks.append((b, b.save()))
        b = b.parent  # type: ignore[assignment]
    return marks


def _undo(frame: Frame, marks: list[Any]) -> None:
    """Takes back what a given-up region left in the graphs around it."""
    weights = frame.env.weights
    for label in set(weights.leaves) - marks[0]:
        weights.forget(label)
    for b, saved in marks[1:]:
        b.restore(saved)


@form("model")
def model(spec: NodeSpec, x: Value | None, frame: Frame) -> Value | None:
    """{spec: name, output: name, set: {dim or arg: value}}: another spec's graph, from its one input to one of its
    chains. Its weights are this model's, under the node's name."""
    from compiler.language.inner_model import inner_model

    form = "{spec: name, output: name, set: {…}}"
    return inner_model(_options(spec, frame, form, "spec", optional=("output", "set")), spec, x, frame)
