"""A model: its spec, its phase-free op graph and its parameters. The end of the front of the compiler."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.errors import Position, Problems
from compiler.graph.builder import Builder
from compiler.graph.ir import Graph, Value
from compiler.graph.sizes import BATCH, SEQ, Size, SizeLike
from compiler.graph.types import TensorType
from compiler.language import load as loading
from compiler.language.elaborate import chain
from compiler.language.env import Env, Policy, Weights, input_leaf
from compiler.language.frame import Frame
from compiler.language.load import Document
from compiler.language.scope import Fault, Scope
from compiler.language.spec import Spec
from compiler.ops.elementwise import ACTIVATIONS
from compiler.ops.leaves import Parameter
from compiler.source.yaml import YList, YMap


@dataclass(frozen=True)
class Model:
    """A checked model. ``parameters`` maps unique labels to leaf values, in order of use."""

    document: Document
    graph: Graph
    dims: Mapping[str, int]
    args: Mapping[str, Any]
    policy: Policy
    parameters: Mapping[str, tuple[Parameter, TensorType]]
    ambiguous: frozenset[str]
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def spec(self) -> Spec:
        return self.document.spec

    @property
    def streaming_input(self) -> str | None:
        """The token input that the sequence streams in over."""
        return next((n for n, i in self.spec.inputs.items() if i.kind == "tokens"), None)

    def parameter_count(self) -> int:
        return sum(int(t.elements.constant) for _, t in self.parameters.values())


def load(name: str | Path, overrides: Mapping[str, Any] | None = None) -> Model:
    """A model by name or path. Raises SpecError with all problems of the file."""
    return build(loading.load(name, overrides))


def loads(text: str, file: str = "<spec>", overrides: Mapping[str, Any] | None = None) -> Model:
    """A model from a text."""
    return build(loading.loads(text, file, overrides))


def build(document: Document) -> Model:
    """Elaborates a checked spec."""
    spec, raw, problems = document.spec, document.raw, Problems()
    scope = _scope(spec, raw, problems)
    compute = spec.dtypes.compute
    policy = Policy(spec.dtypes.params, compute, spec.dtypes.residual or compute)
    b, weights = Builder(), Weights()
    inputs = _inputs(spec, raw, scope, b)
    env = Env(b, scope, policy, weights, inputs)
    frame = Frame(env, dict(inputs), None, spec.blocks)
    _check_names(spec, raw, scope, problems)
    values = _chains(spec, raw, frame)
    outputs = _outputs(spec, raw, values, frame)
    problems.raise_if_any()
    graph = b.finish([(n, v) for n, v in outputs if v is not None])
    leaves = {label: (weights.ops[label], v.type) for label, v in weights.leaves.items()}
    _check_paths(spec, raw, leaves, problems)
    problems.raise_if_any()
    warnings = (b.unrolled,) if b.unrolled else ()
    return Model(
        document,
        graph,
        dict(scope.dims),
        dict(scope.args),
        policy,
        leaves,
        frozenset(frame.ambiguous),
        warnings,
    )


def _scope(spec: Spec, raw: YMap, problems: Problems) -> Scope:
    """Dims and args, each may use those before it; dims of dims too."""
    scope = Scope({}, {}, problems=problems)
    for section in ("dims", "args"):
        table = raw.get(section)
        for name, value in (table or {}).items() if isinstance(table, YMap) else []:
            where = table.value_position[name]  # type: ignore[union-attr]
            try:
                if section == "dims":
                    scope = scope.with_dims({name: scope.count(value, f"dim {name}")})
                else:
                    scope = scope.with_args({**scope.args, name: scope.value(value)})
            except Fault as e:
                problems.add(e.code, e.message, where, allowed=e.allowed, suggestion=e.suggestion)
                scope = scope.with_dims({name: 1}) if section == "dims" else scope.with_args({**scope.args, name: 1})
    return dataclasses.replace(scope, top=scope.args)


def _inputs(spec: Spec, raw: YMap, scope: Scope, b: Builder) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for name, i in spec.inputs.items():
        try:
            pairs: list[tuple[str, SizeLike]]
            if i.kind == "tokens":
                pairs = [("batch", BATCH), ("seq", SEQ)]
            elif i.kind == "features":
                pairs = [("batch", BATCH), *((a, scope.dims.get(a, Size.symbol(a))) for a in i.axes or [])]
            else:
                h, w = (scope.count(s, "size") for s in i.size or [])
                image: list[tuple[str, SizeLike]] = [("height", h), ("width", w), ("channel", i.channels)]
                frames = [("image", Size.symbol("image")), ("frame", scope.count(i.frames or 1, "frames"))]
                pairs = [("batch", BATCH), *(frames if i.kind == "video" else []), *image]
        except Fault as e:
            table = raw["inputs"]
            where = table.value_position.get(name) if isinstance(table, YMap) else None
            scope.problems.add(e.code, e.message, where, allowed=e.allowed, suggestion=e.suggestion)
            continue
        dtype = "int32" if i.kind == "tokens" else "float32"
        values[name] = input_leaf(b, name, TensorType.make(pairs, dtype))
        for axis, size in pairs[1:]:
            if isinstance(size, Size) and not size.is_constant and f"{axis}_lengths" not in values:
                values[f"{axis}_lengths"] = input_leaf(
                    b, f"{axis}_lengths", TensorType.make([("batch", BATCH)], "int32")
                )
    return values


def _chains(spec: Spec, raw: YMap, frame: Frame) -> dict[str, Value | None]:
    tokens = next((n for n, i in spec.inputs.items() if i.kind == "tokens"), next(iter(spec.inputs), ""))
    start = frame.values.get(tokens)
    graph, where = raw["graph"], raw.value_position["graph"]
    problems = frame.env.scope.problems
    if isinstance(graph, YList):
        return {"logits": chain(graph, where, start, frame)}
    if not isinstance(graph, YMap) or not graph:
        problems.add("wrong-type", "graph takes a list of nodes, or chains by name", where)
        return {}
    values: dict[str, Value | None] = {}
    for name, nodes in graph.items():
        inner = Frame(frame.env, frame.values, None, frame.defs, frame.seen, frame.ambiguous, paths=frame.paths)
        values[name] = frame.values[name] = chain(nodes, graph.value_position[name], start, inner)
        if values[name] is not None:
            frame.env.b.names[name] = values[name]  # type: ignore[assignment]
    return values


def _outputs(spec: Spec, raw: YMap, values: dict[str, Value | None], frame: Frame) -> list[tuple[str, Value | None]]:
    if spec.outputs is None:
        last = list(values.items())[-1:]
        return last
    found = []
    for name, source in spec.outputs.items():
        try:
            found.append((name, frame.lookup(source)))
        except Fault as e:
            table = raw["outputs"]
            where = table.value_position.get(name) if isinstance(table, YMap) else None
            frame.env.scope.problems.add(e.code, e.message, where, allowed=e.allowed, suggestion=e.suggestion)
    return found


def _check_names(spec: Spec, raw: YMap, scope: Scope, problems: Problems) -> None:
    """A dim, arg or block must not shadow a block kind, a form or an enum word: the same word would mean two things."""
    from compiler.language.block import kinds
    from compiler.language.forms import FORMS

    for section in ("dims", "args", "blocks"):
        table = raw.get(section)
        if not isinstance(table, YMap):
            continue
        taken: dict[str, str] = dict.fromkeys(ACTIVATIONS, "an activation") | {"input": "a block's input"}
        if section != "dims":  # a dim stands where a size stands, never where a node does
            taken |= dict.fromkeys(kinds(), "a block kind") | dict.fromkeys(FORMS, "a form")
        if section != "blocks":
            taken |= {"layer": "the layer's number"}
        if section == "args":
            taken |= dict.fromkeys(spec.blocks, "a block of this spec")
        for name in table:
            if name in taken:
                problems.add(
                    "shadowed-name",
                    f"{section[:-1]} {name} has the name of {taken[name]}: choose another",
                    table.key_position[name],
                )
            elif not name.isidentifier():
                problems.add("bad-name", f"'{name}' is no name: letters, digits and _ only", table.key_position[name])


def _check_paths(spec: Spec, raw: YMap, leaves: Mapping[str, Any], problems: Problems) -> None:
    """`sources` and `assumed` must speak of something that exists: top keys, dims, args, blocks."""
    for section in ("sources", "assumed"):
        table = raw.get(section)
        for path in table if isinstance(table, YMap) else []:
            head, _, rest = path.partition(".")
            inner: Any = raw.get(head)
            known = head in raw or head in (
                "dims",
                "args",
                "graph",
                "blocks",
                "inputs",
                "dtypes",
                "weights",
                "outputs",
            )
            if known and rest and isinstance(inner, YMap):
                known = rest.split(".")[0] in inner
            if not known:
                where: Position = table.key_position[path]  # type: ignore[union-attr]
                problems.add(
                    "unknown-path",
                    f"{section}: nothing is called {path}",
                    where,
                    allowed=[k for k in raw if k not in ("name", "paper")],
                )


__all__ = ["Model", "build", "load", "loads"]
