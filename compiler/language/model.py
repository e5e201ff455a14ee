"""A model: its spec, its phase-free op graph and its parameters. The end of the front of the compiler."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.errors import Problems, nearest
from compiler.graph.builder import Builder
from compiler.graph.ir import Graph, Value
from compiler.graph.sizes import BATCH, SEQ, Size, SizeLike
from compiler.graph.types import TensorType
from compiler.language import checks
from compiler.language import load as loading
from compiler.language.elaborate import Enough, chain
from compiler.language.env import Env, Policy, Weights, input_leaf
from compiler.language.fields import Dim
from compiler.language.frame import Frame
from compiler.language.load import Document
from compiler.language.scope import FAILED, Fault, Scope, Told, Word, shown
from compiler.language.spec import InputSpec, Spec
from compiler.language.user_blocks import unused_blocks
from compiler.ops.leaves import Parameter
from compiler.passes.prune import prune
from compiler.source.yaml import YList, YMap

LOSS = "loss:"  # in front of the name of a term of the training loss, among a graph's outputs


@dataclass(frozen=True, repr=False)
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
    losses: Graph | None = None  # with ``loss:<name>`` [batch] besides, the terms of the training loss; None: no terms

    def __repr__(self) -> str:
        return f"<Model {self.name}: {self.parameter_count():,} parameters in {self.policy.params}>"

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def spec(self) -> Spec:
        return self.document.spec

    @property
    def notes(self) -> tuple[str, ...]:
        """What every report says of it."""
        return (f"stand-in: {self.spec.stand_in}",) if self.spec.stand_in else ()

    @property
    def streaming_input(self) -> str | None:
        """The token input that the sequence streams in over."""
        return next((n for n, i in self.spec.inputs.items() if i.streams), None)

    @property
    def unit(self) -> str:
        """What a call of the model takes many of: a token, or where there are none an image or a row of the batch."""
        if self.streaming_input is not None:
            return "token"
        kinds = [(i.kind, i.count) for i in self.spec.inputs.values()]
        return "image" if kinds == [("image", None)] else "row"

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
    types = spec.dtypes
    policy = Policy(types.params, compute, types.residual or compute, types.weights, types.group)
    b, weights = Builder(), Weights()
    inputs = _inputs(spec, raw, scope, b)
    env = Env(b, scope, policy, weights, inputs)
    frame = Frame(env, dict(inputs), None, spec.blocks)
    checks.check(spec, raw, problems)
    outputs: list[tuple[str, Value | None]] = []
    unused: list[str] = []
    with contextlib.suppress(Enough):
        outputs = _outputs(spec, raw, _chains(spec, raw, frame), frame)
        blocks = raw.get("blocks")
        unused = unused_blocks(blocks, frame) if isinstance(blocks, YMap) else []
    problems.raise_if_any()
    whole = b.finish([*((n, v) for n, v in outputs if v is not None), *((LOSS + n, v) for n, v in b.losses.items())])
    graph = prune(dataclasses.replace(whole, outputs=whole.outputs[: len(outputs)])) if b.losses else whole
    leaves = {label: (weights.ops[label], v.type) for label, v in weights.leaves.items()}
    warnings = (*([b.unrolled] if b.unrolled else []), *unused, *_unused_dims(raw, scope))
    return Model(
        document,
        graph,
        dict(scope.dims),
        dict(scope.args),
        policy,
        leaves,
        frozenset(frame.ambiguous),
        warnings,
        whole if b.losses else None,
    )


def _unused_dims(raw: YMap, scope: Scope) -> list[str]:
    """A warning for each dim that nothing reads, the mapping of its weights included; names that block kinds know
    are no slips of the pen."""
    words = set(re.findall(r"\w+", str(raw.get("weights"))))
    found = []
    table = raw.get("dims")
    for name in table if isinstance(table, YMap) else ():
        if name not in scope.read | Dim.known | words:
            near = nearest(name, sorted(scope.read | Dim.known))
            found.append(f"nothing uses the dim {name}" + (f": did you mean {near}?" if near else ""))
    return found


def _axis(name: str, scope: Scope) -> SizeLike:
    return scope.dim(name) if name in scope.dims else Size.symbol(name)


def _scope(spec: Spec, raw: YMap, problems: Problems) -> Scope:
    """Dims and args, each may use those before it; args may use dims too."""
    scope = Scope({}, {}, problems=problems)
    tables = {s: t for s in ("dims", "args") if isinstance(t := raw.get(s), YMap)}
    later = {n: None for t in tables.values() for n in t}
    for section, table in tables.items():
        for name, value in table.items():
            before = scope
            try:
                if section == "dims":
                    scope = scope.with_dims({name: scope.count(value, f"dim {name}")})
                else:
                    scope = scope.with_args({**scope.args, name: _arg(name, value, later, table, scope)})
            except (Fault, Told) as e:
                if isinstance(e, Fault):
                    _order(e, f"{section[:-1]} {name}", name, later)
                    e.tell(problems, table.within(name, e.offset))
                scope = (
                    before.without_dim(name) if section == "dims" else before.with_args({**before.args, name: FAILED})
                )
            later.pop(name, None)
            if problems.full:
                break
    return dataclasses.replace(scope, top=scope.args)


def _arg(name: str, value: Any, later: Mapping[str, None], table: YMap, scope: Scope) -> Any:
    if isinstance(value, str) and value.strip() in later:
        raise Fault("unknown-name", "", name=value.strip())
    found = scope.value(value)
    return Word.at(found, table.within(name)) if type(found) is str else found


def _order(e: Fault, what: str, name: str, later: Mapping[str, None]) -> None:
    """An unknown name that is declared, but too late to be used here."""
    if e.code == "unknown-name" and e.name in later:
        e.code = "circular-name" if e.name == name else "later-name"
        e.message = f"{what} refers to itself"
        if e.name != name:
            e.message = f"{what} uses {e.name}, which is declared further down: a dim or an arg may use those before it"
        e.allowed, e.suggestion = (), None


def _inputs(spec: Spec, raw: YMap, scope: Scope, b: Builder) -> dict[str, Value]:
    values: dict[str, Value] = {}
    if not spec.inputs:
        scope.problems.add("missing-key", "a model has at least one input", raw.value_position.get("inputs"))
    for name, i in spec.inputs.items():
        try:
            pairs: list[tuple[str, SizeLike]]
            if i.kind == "tokens" and i.streams:
                pairs = [("batch", BATCH), ("seq", SEQ)]
            elif i.kind == "count":
                pairs = [("batch", BATCH)]
            elif i.kind in ("features", "tokens"):
                pairs = [("batch", BATCH), *((a, _axis(a, scope)) for a in i.axes or [])]
            else:
                pairs = [("batch", BATCH), *_pictures(i, scope)]
        except (Fault, Told) as e:
            if isinstance(e, Fault):
                table = raw["inputs"]
                where = table.value_position.get(name) if isinstance(table, YMap) else None
                e.tell(scope.problems, where, f"inputs.{name}: ")
            continue
        dtype = "int32" if i.kind in ("tokens", "count") else "float32"
        values[name] = input_leaf(b, name, TensorType.make(pairs, dtype))
        for axis, size in pairs[1:]:
            if isinstance(size, Size) and not size.is_constant and f"{axis}_lengths" not in values:
                values[f"{axis}_lengths"] = input_leaf(
                    b, f"{axis}_lengths", TensorType.make([("batch", BATCH)], "int32")
                )
    return values


def _pictures(i: InputSpec, scope: Scope) -> list[tuple[str, SizeLike]]:
    """Axes of images or videos: several a row have an axis ``image``, whose size a call decides or the spec."""
    height, width = (scope.count(s, "size") for s in i.size or [])
    count = "any" if i.count is None and i.kind == "video" else i.count
    pairs: list[tuple[str, SizeLike]] = []
    if count is not None:
        pairs.append(("image", Size.symbol("image") if count == "any" else scope.count(count, "count")))
    if i.kind == "video":
        pairs.append(("frame", scope.count(1 if i.frames is None else i.frames, "frames")))
    return [*pairs, ("height", height), ("width", width), ("channel", i.channels)]


def _chains(spec: Spec, raw: YMap, frame: Frame) -> dict[str, Value | None]:
    tokens = next((n for n, i in spec.inputs.items() if i.streams), next(iter(spec.inputs), ""))
    start = frame.values.get(tokens)
    graph, where = raw["graph"], raw.value_position["graph"]
    problems = frame.env.scope.problems
    if isinstance(graph, YList):
        return {"logits": chain(graph, where, start, frame)}
    if not isinstance(graph, YMap) or not graph:
        found = "an empty mapping" if isinstance(graph, YMap) else shown(graph)
        problems.add("wrong-type", f"graph takes a list of nodes, or chains by name, found {found}", where)
        return {}
    values: dict[str, Value | None] = {}
    for name, nodes in graph.items():
        inner = Frame(frame.env, frame.values, None, frame.defs, frame.seen, frame.ambiguous, paths=frame.paths)
        value = chain(nodes, graph.value_position[name], start, inner)
        values[name] = frame.values[name] = value
        if value is not None:
            frame.env.b.names[name] = value
    return values


def _outputs(spec: Spec, raw: YMap, values: dict[str, Value | None], frame: Frame) -> list[tuple[str, Value | None]]:
    problems = frame.env.scope.problems
    if spec.outputs is None:
        found = list(values.items())[-1:]
    else:
        table = raw["outputs"]
        assert isinstance(table, YMap)
        found = []
        if not table:
            problems.add("missing-key", "outputs names at least one value", table.position)
        for name, source in spec.outputs.items():
            try:
                found.append((name, frame.lookup(source) if source not in values else values[source]))
            except Fault as e:
                e.tell(problems, table.value_position[name])
    if not problems.items and any(
        v is None for _, v in found
    ):  # every None is told; this is for the case that one is not
        problems.add("no-value", "the graph gives no value", raw.value_position["graph"])
    return found


__all__ = ["Model", "build", "load", "loads"]
