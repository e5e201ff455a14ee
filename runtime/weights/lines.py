"""The lines of a spec's `weights:` section: what each says, with its place in the YAML."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from compiler.errors import Position, Problems, nearest
from compiler.graph.ir import Graph
from compiler.language.model import Model
from compiler.language.spec import WeightsSpec
from compiler.ops.control import Repeat
from compiler.ops.leaves import Parameter
from compiler.source.expr import Expr, ExprError, evaluate, parse
from compiler.source.yaml import YMap
from runtime.weights import layout as layouts
from runtime.weights.layout import Layout, LayoutFault

OPTIONS = ("tensor", "layout", "add", "scale", "pairs", "optional")
_BRACES = re.compile(r"^([^{}]*)\{([^{}]*)\}([^{}]*)$")
HOLES = re.compile(r"<([^<>]*)>")


@dataclass(frozen=True)
class Line:
    """One line: our paths (several when fused) lie in the tensors called ``tensor`` as ``layout`` says, where
    ours = theirs * scale + add. ``holes`` are the names in <> of the tensor's name."""

    key: str
    paths: tuple[str, ...]
    tensor: str
    layout: Layout | None  # None: the default one
    add: float = 0.0
    scale: float = 1.0
    interleaved: bool = False
    position: Position | None = None

    @property
    def holes(self) -> tuple[str, ...]:
        return tuple(HOLES.findall(self.tensor))


@dataclass(frozen=True)
class Section:
    """The checked lines of one format."""

    format: str
    spec: WeightsSpec
    lines: tuple[Line, ...]
    variables: Mapping[str, Expr]
    position: Position | None


def expand(key: str) -> tuple[str, ...]:
    """`layer.attention.{query, key}` as its paths."""
    match = _BRACES.match(key)
    if match is None:
        return (key.strip(),)
    before, inside, after = match.groups()
    return tuple(f"{before}{part.strip()}{after}".strip() for part in inside.split(","))


def read(model: Model, format: str, problems: Problems) -> Section:
    """The lines of `weights.<format>`; faults go to ``problems``."""
    spec = model.spec.weights[format]
    formats = _inner(model.document.raw, "weights")
    raw = _inner(formats, format)
    reader = _Reader(model, spec, raw, problems)
    return Section(format, spec, reader.lines(), reader.variables(), place(formats, format))


def _inner(raw: Any, key: str) -> YMap | None:
    value = raw.get(key) if raw is not None else None
    return value if isinstance(value, YMap) else None


def place(table: YMap | None, key: str, value: bool = False) -> Position | None:
    if table is None:
        return None
    return (table.value_position if value else table.key_position).get(key)


def borrowed(graph: Graph) -> dict[str, set[str]]:
    """Paths of parameters that the nodes of a path use although they are another's: tied, shared."""
    found: dict[str, set[str]] = {}
    _borrowed(graph, {}, found)
    return found


def _borrowed(graph: Graph, weights: dict[int, str], found: dict[str, set[str]]) -> None:
    for node in graph.nodes:
        if isinstance(node.op, Parameter):
            weights[node.result.id] = node.op.path
        elif isinstance(node.op, Repeat):
            for argument, operand in zip(node.op.arguments, node.operands, strict=True):
                if operand.id in weights:
                    weights[argument] = weights[operand.id]
            _borrowed(node.op.body, weights, found)
        else:
            used = [weights[v.id] for v in node.operands if v.id in weights]
            found.setdefault(node.path, set()).update(p for p in used if p.rpartition(".")[0] != node.path)
            if len(used) == len(node.operands) == 1:  # a cast
                weights[node.result.id] = used[0]


class _Reader:
    def __init__(self, model: Model, spec: WeightsSpec, raw: YMap | None, problems: Problems) -> None:
        self.model, self.spec, self.raw, self.problems = model, spec, raw, problems
        self.known = {op.path for op, _ in model.parameters.values()}
        self.default = self._layout(spec.layout, place(raw, "layout", True))
        self.borrowed: dict[str, set[str]] | None = None

    def variables(self) -> dict[str, Expr]:
        found = {}
        table = _inner(self.raw, "variables")
        for name, text in self.spec.variables.items():
            try:
                found[name] = parse(str(text))
            except ExprError as e:
                self.problems.add(e.code, f"{e.message} in '{text}'", place(table, name, True), suggestion=e.suggestion)
        axes = {a for _, t in self.model.parameters.values() for a in t.axes}
        for axis in self.spec.padded:
            if axis not in axes:
                where = place(self.raw, "padded", True)
                self.problems.add("unknown-axis", f"padded: no parameter has an axis {axis}", where,
                                  allowed=sorted(axes), suggestion=nearest(axis, axes))  # fmt: skip
        return found

    def lines(self) -> tuple[Line, ...]:
        found: dict[str, Line] = {}
        table = _inner(self.raw, "tensors")
        for key, value in self.spec.tensors.items():
            line = self._line(key, value, table)
            if line is None:
                continue
            for path in line.paths:
                if path in found:
                    self.problems.add(
                        "duplicate-path", f"{path} is mapped twice: also by '{found[path].key}'", line.position
                    )
                found[path] = line
        return tuple(dict.fromkeys(found.values()))

    def _line(self, key: str, value: Any, table: YMap | None) -> Line | None:
        where, there = place(table, key), place(table, key, True)
        options: dict[str, Any] = {"tensor": value} if isinstance(value, str) else value
        inner = value if isinstance(value, YMap) else None
        if not isinstance(options, dict) or not isinstance(options.get("tensor"), str):
            self.problems.add("wrong-type", f"{key}: a line is 'their.name', 'their.name = layout' or {{tensor: …}}",
                              there, allowed=OPTIONS)  # fmt: skip
            return None
        for name in options:
            if name not in OPTIONS:
                self.problems.add("unknown-key", f"{key}: no such option {name}", place(inner, name) or there,
                                  allowed=OPTIONS, suggestion=nearest(name, OPTIONS))  # fmt: skip
        paths = self._paths(key, bool(options.get("optional", False)), where)
        name, _, text = options["tensor"].partition("=")
        given = options.get("layout", text.strip() or None)
        layout = self._layout(str(given), place(inner, "layout", True) or there) if given is not None else None
        pairs = options.get("pairs", "half")
        if pairs not in ("half", "interleaved"):
            self.problems.add("unknown-word", f"{key}: pairs: {pairs}", there, allowed=("half", "interleaved"))
        number = self._number(key, inner, there)
        if paths is None or (given is not None and layout is None):
            return None
        return Line(key, paths, name.strip(), layout, number(options.get("add", 0)), number(options.get("scale", 1)),
                    pairs == "interleaved", where)  # fmt: skip

    def _number(self, key: str, inner: YMap | None, there: Position | None) -> Callable[[Any], float]:
        def number(value: Any) -> float:
            try:
                tree = parse(str(value))
                found = float(evaluate(tree, lambda n: {**self.model.dims, **self.model.args}[n]))
            except (ExprError, TypeError) as e:
                self.problems.add("not-a-number", f"{key}: '{value}' is no number: {e}", there)
                return 1.0
            return found

        return number

    def _paths(self, key: str, optional: bool, where: Position | None) -> tuple[str, ...] | None:
        paths = expand(key)
        missing = [p for p in paths if p not in self.known]
        if optional and missing:
            return None
        ambiguous = self.model.ambiguous
        for path in paths:
            steps = path.split(".")
            prefixes = [".".join(steps[:i]) for i in range(1, len(steps) + 1)]
            bad = next((p for p in prefixes if p in ambiguous), None)
            if bad:
                message = f"{path}: several unnamed nodes share the kind of {bad}, so this could mean another of them"
                self.problems.add("ambiguous-path", message, where, suggestion="give each of the nodes a name")
            elif path in missing and (owner := self._borrowed(path)):
                message = f"{path} is no parameter of its own: {path.rpartition('.')[0]} uses {owner}"
                hint = "leave this line out; if their file holds a copy, put its name under ignore"
                self.problems.add("unknown-path", message, where, suggestion=hint)
            elif path in missing:
                self.problems.add("unknown-path", f"the model has no parameter {path}", where,
                                  allowed=sorted(self.known), suggestion=nearest(path, self.known))  # fmt: skip
        return None if missing else paths

    def _borrowed(self, path: str) -> str | None:
        """The parameter of another node that the node of ``path`` uses instead: a tied or shared one."""
        if self.borrowed is None:
            self.borrowed = borrowed(self.model.graph)
        block, _, name = path.rpartition(".")
        if nearest(path, [p for p in self.known if p.rpartition(".")[0] == block]):
            return None  # a misspelt one of its own
        found = sorted(self.borrowed.get(block, ()))
        return ", ".join([p for p in found if p.rpartition(".")[2] == name] or found) or None

    def _layout(self, text: str, where: Position | None) -> Layout | None:
        try:
            return layouts.parse(text)
        except LayoutFault as e:
            self.problems.add("bad-layout", e.message, where, allowed=e.allowed, suggestion=e.suggestion)
            return None
