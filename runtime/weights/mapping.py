"""Which tensor of a checkpoint holds which of our parameters: a model and a format's lines, made one table."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from compiler.errors import Problem, Problems, WeightsError, nearest
from compiler.graph.types import TensorType
from compiler.language.model import Model
from compiler.ops.leaves import Parameter
from compiler.source.expr import ExprError, evaluate
from runtime.weights import lines as lines_
from runtime.weights.layout import Layout, LayoutFault, Part, Recipe, places, resolve, standard
from runtime.weights.lines import HOLES, Line, Section

OWN = "blockgraph"  # the format of our own labels
Layer = tuple[int, ...]  # the numbers of the layers around a parameter: none, one, or one for each nested repeat
Index = tuple[int | slice, ...]


@dataclass(frozen=True)
class Piece:
    """One of our tensors, or what one layer or expert has of it: ``array[index]`` of the array called ``label``."""

    label: str
    index: Index
    part: Part
    recipe: Recipe

    def of(self, array: np.ndarray) -> np.ndarray:
        """A view of the piece in its array; with fewer rows where the checkpoint has fewer."""
        view = array[(*self.index, ...)]
        return view[tuple(slice(0, size) for _, size in self.part.axes)]


@dataclass(frozen=True)
class Tensor:
    """A tensor of the checkpoint and the pieces of ours that make it up."""

    name: str
    shape: tuple[int, ...]
    line: Line
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Mapping_:
    """All tensors that a checkpoint of one format must have, by name."""

    format: str
    tensors: Mapping[str, Tensor]
    ignore: Sequence[str]
    padded: Sequence[str]
    dims: Mapping[str, int]
    default: str  # the layout of linear maps

    def ignores(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.ignore)

    def layout(self, tensor: Tensor) -> tuple[Layout, list[tuple[str, ...]]]:
        """The layout of a tensor, and the first part's axes place by place."""
        part = tensor.pieces[0].part
        layout = tensor.line.layout or standard(part, self.default)
        return layout, places(layout, part, self.dims)

    def fitted(self, tensor: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, dict[str, int]] | None:
        """The tensor with the rows of padded axes that ``shape`` says, and these rows; None if it cannot fit."""
        rows: dict[str, int] = {}
        if len(shape) != len(tensor.shape):
            return None
        layout, placed = self.layout(tensor)
        for place, ours, theirs in zip(placed, tensor.shape, shape, strict=True):
            if ours != theirs:
                if len(place) > 1 or place[0] not in self.padded or not 0 < theirs < ours:
                    return None
                rows[place[0]] = theirs
        if not rows:
            return tensor, {}
        parts = [replace(p.part, axes=tuple((a, rows.get(a, n)) for a, n in p.part.axes)) for p in tensor.pieces]
        recipes = resolve(layout, parts, {**self.dims, **rows})
        pieces = [replace(p, part=q, recipe=r) for p, q, r in zip(tensor.pieces, parts, recipes, strict=True)]
        return replace(tensor, shape=recipes[0].shape, pieces=tuple(pieces)), rows


def own(model: Model) -> Mapping_:
    """The table of files under our own labels, whole and in our order: what a spec without published weights has."""
    tensors = {}
    for label, (op, t) in model.parameters.items():
        layout = Layout(tuple((a,) for a in t.axes))
        part = Part(op.path, tuple((a, int(s.constant)) for a, s in t.pairs))
        recipe = resolve(layout, [part], model.dims)[0]
        line = Line(label, (op.path,), label, layout)
        tensors[label] = Tensor(label, recipe.shape, line, (Piece(label, (), part, recipe),))
    padded = dict.fromkeys(a for spec in model.spec.weights.values() for a in spec.padded)
    return Mapping_(OWN, tensors, (), tuple(padded), model.dims, "in out")


def check(model: Model) -> list[Problem]:
    """What is wrong with the spec's `weights:` section, all formats together."""
    problems = Problems()
    for format in model.spec.weights:
        _Compiler(model, format, problems).run()
    return problems.items


def compile(model: Model, format: str) -> Mapping_:
    """The table of one format. Raises WeightsError with every fault of its lines."""
    if format == OWN:
        return own(model)
    if format not in model.spec.weights:
        known = (*model.spec.weights, OWN)
        what = (
            f"the spec of {model.name} has no weights.{format}"
            if model.spec.weights
            else f"the spec of {model.name} maps no weights"
        )
        raise WeightsError(Problem("unknown-format", what, None, known, nearest(format, known)))
    problems = Problems()
    table = _Compiler(model, format, problems).run()
    problems.raise_if_any(WeightsError)
    return table


def layers_of(op: Parameter, t: TensorType) -> Iterator[tuple[Layer, tuple[int, ...]]]:
    """(layer numbers, index into the leading axes) of everything a parameter stacks. A layer that was written out
    has a number and no axis."""
    stacked = sum(1 for a in itertools.takewhile(lambda a: a.rstrip("0123456789") == "layers", t.axes))
    axes = [s for s in op.stack if s.count > 1]
    assert len(axes) == stacked, f"{op.label}: {stacked} layer axes for {len(axes)} repeats"
    for at in itertools.product(*(range(s.count) for s in op.stack)):
        numbers = tuple(s.start + s.step * i for s, i in zip(op.stack, at, strict=True))
        yield numbers, tuple(i for s, i in zip(op.stack, at, strict=True) if s.count > 1)


def own_axes(op: Parameter, t: TensorType) -> list[tuple[str, int]]:
    """Axes and sizes without the leading layers."""
    count = sum(1 for s in op.stack if s.count > 1)
    return [(a, int(s.constant)) for a, s in t.pairs[count:]]


class _Compiler:
    def __init__(self, model: Model, format: str, problems: Problems) -> None:
        self.model, self.problems = model, problems
        self.section: Section = lines_.read(model, format, problems)
        self.default = self.section.spec.layout
        self.where: dict[str, dict[Layer, tuple[str, tuple[int, ...]]]] = defaultdict(dict)
        for label, (op, t) in model.parameters.items():
            for layer, index in layers_of(op, t):
                self.where[op.path][layer] = (label, index)
        self.tensors: dict[str, Tensor] = {}
        self.told: set[tuple[Any, ...]] = set()

    def run(self) -> Mapping_:
        mapped: set[str] = set()
        for line in self.section.lines:
            mapped.update(line.paths)
            self._line(line)
        read = set(itertools.chain.from_iterable(lines_.expand(k) for k in self.section.spec.tensors))
        for path in self.where:
            if path not in mapped and path not in read:  # a line with a fault of its own was told already
                self._tell("unmapped-parameter", f"weights.{self.section.format} has no line for {path}", None)
        spec = self.section.spec
        return Mapping_(self.section.format, self.tensors, spec.ignore, spec.padded, self.model.dims, self.default)

    def _tell(self, code: str, message: str, line: Line | None, **more: Any) -> None:
        self.problems.add(code, message, line.position if line else self.section.position, **more)

    def _line(self, line: Line) -> None:
        layers = dict.fromkeys(itertools.chain.from_iterable(self.where[p] for p in line.paths))
        for layer in layers:
            lacking = [p for p in line.paths if layer not in self.where[p]]
            if lacking:
                self._tell("fused-mismatch", f"layer {_shown(layer)} has no {', '.join(lacking)} to fuse with "
                           f"{', '.join(p for p in line.paths if p not in lacking)}", line)  # fmt: skip
                return
            if not self._layer(line, layer):
                return

    def _layer(self, line: Line, layer: Layer) -> bool:
        """Adds the tensors of one layer; False after a fault, which the other layers would only repeat."""
        found = [self.where[p][layer] for p in line.paths]
        params = [self.model.parameters[label] for label, _ in found]
        axes = [own_axes(op, t) for op, t in params]
        first = dict(axes[0])
        spread = [h for h in line.holes if h in first]
        if any(dict(a).get(h) != first[h] for a in axes for h in spread):
            self._tell("bad-layout", f"<{spread[0]}> must be an axis of every part", line)
            return False
        parts = [self._part(line, op, a, spread) for (op, _), a in zip(params, axes, strict=True)]
        try:
            layout = line.layout or standard(parts[0], self.default)
            recipes = resolve(layout, parts, self.model.dims)
        except LayoutFault as e:
            self._tell("bad-layout", e.message, line, allowed=e.allowed, suggestion=e.suggestion)
            return False
        for at in itertools.product(*(range(first[h]) for h in spread)):
            name = self._name(line, layer, dict(zip(spread, at, strict=True)))
            if name is None:
                return False
            if name in self.tensors:
                other = self.tensors[name].line
                hint = "write <layer> in its name" if other is line and layer else None
                which = f"{line.key} of layer {_shown(layer)}" if layer else line.key
                self._tell("duplicate-tensor", f"{name} would hold {which} and {other.key} too", line, suggestion=hint)
                return False
            chosen = dict(zip(spread, at, strict=True))
            pieces = []
            for (label, index), own, part, recipe in zip(found, axes, parts, recipes, strict=True):
                inner = tuple(chosen.get(a, slice(None)) for a, _ in own)
                pieces.append(Piece(label, (*index, *inner), part, recipe))
            self.tensors[name] = Tensor(name, recipes[0].shape, line, tuple(pieces))
        return True

    def _part(self, line: Line, op: Parameter, axes: list[tuple[str, int]], spread: list[str]) -> Part:
        inputs = op.inputs
        if inputs is not None:
            inputs -= sum(1 for a, _ in axes[:inputs] if a in spread)
        kept = tuple((a, n) for a, n in axes if a not in spread)
        return Part(op.path, kept, inputs, "head_dim" if line.interleaved else None)

    def _name(self, line: Line, layer: Layer, chosen: Mapping[str, int]) -> str | None:
        numbers = {("layer" if i == 0 else f"layer{i + 1}"): n for i, n in enumerate(layer)}
        known = {**self.model.dims, **self.model.args, **numbers}
        name = line.tensor
        for hole in HOLES.findall(name):
            if hole in chosen:
                value: Any = chosen[hole]
            elif hole in numbers:
                value = numbers[hole]
            elif hole in self.section.variables:
                try:
                    value = evaluate(self.section.variables[hole], lambda n: known[n])
                except ExprError as e:
                    self._tell(e.code, f"<{hole}> of {line.key}: {e.message}", line, suggestion=e.suggestion)
                    return None
                if value != int(value) or value < 0:
                    self._tell("not-whole", f"<{hole}> of {line.key} is {value} in layer {_shown(layer)}", line)
                    return None
            else:
                axes = [a for a, _ in own_axes(*self.model.parameters[self.where[line.paths[0]][layer][0]])]
                allowed = [*numbers, *self.section.variables, *axes]
                self._tell("unknown-placeholder", f"{line.key}: <{hole}> in the name of its tensor is unknown", line,
                           allowed=allowed, suggestion=nearest(hole, allowed))  # fmt: skip
                return None
            name = name.replace(f"<{hole}>", str(int(value)))
        return name


def _shown(layer: Layer) -> str:
    return ".".join(str(n) for n in layer)
