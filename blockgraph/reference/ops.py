"""The page of ops. Each op is shown at a sample taken from the graphs of the examples (forward, streaming, gradient),
with its sizes replaced by their axis names, so that costs read as formulas."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from blockgraph.picture.facts import STATES
from blockgraph.picture.state import states
from blockgraph.reference import examples
from blockgraph.reference.text import HEAD, cell, comments, doc, table, value
from compiler.errors import BlockgraphError
from compiler.graph.builder import Builder
from compiler.graph.ir import Graph, Node, Value
from compiler.graph.replay import Replay
from compiler.graph.sizes import ONE, Size
from compiler.graph.types import TensorType, TypeProblem
from compiler.language.model import Model
from compiler.ops.contract import Along, Cost, Op, all_ops
from compiler.ops.leaves import Input, Leaf
from compiler.passes.differentiate import differentiate
from compiler.passes.loss import next_token_loss
from compiler.passes.one_f_one_b import one_f_one_b
from compiler.passes.pack import pack
from compiler.passes.phase import phase_graph
from compiler.passes.stages import Stages

STREAM = "seq"
PLAIN = TensorType.make([(a, Size.symbol(a)) for a in ("batch", "seq", "embed")], "bfloat16")
LOGITS = TensorType.make([(a, Size.symbol(a)) for a in ("batch", "seq", "experts")], "float32")


@dataclass(frozen=True)
class Sample:
    op: Op
    ins: tuple[TensorType, ...]
    outs: tuple[TensorType, ...]
    sized: tuple[TensorType, ...]  # the operands with the example's sizes
    state: tuple[str, ...] = ()


def ops_page() -> str:
    """docs/reference/ops.md."""
    found = samples()
    text = HEAD + "# Ops\n\n"
    text += "Costs are those of the sample shown: FLOPs of matrix products, element-wise FLOPs, and transcendental "
    text += "functions; bytes read and written. A multiply-add is two FLOPs.\n\n"
    family = ""
    for cls in sorted(all_ops(), key=lambda c: c.__module__):  # registration follows imports, which vary
        if cls.__module__ != family:
            family = cls.__module__
            text += f"## {family.rpartition('.')[2]}\n\n{doc(sys.modules[family])}\n\n"
        text += _op(cls, found.get(cls.name))
    return text


def _op(cls: type[Op], sample: Sample | None) -> str:
    meaning = doc(cls) or doc(next((b for b in cls.__mro__[1:] if b is not Op and doc(b)), None))
    text = f"### {cls.name}\n\n{meaning}\n\n"
    notes = comments(cls)
    attributes = [
        (f"`{f.name}`", f"`{_default(f)}`", notes.get(f.name, "")) for f in dataclasses.fields(cls) if f.name != "body"
    ]
    if attributes:
        text += table(("attribute", "default", ""), attributes)
    if sample is None or issubclass(cls, Leaf):
        return text
    rows: list[tuple[str, str]] = [("sample", f"`{cell(_sample(sample))}`")]
    if not cls.__dict__.get("region") and sample.op.region is None:
        rows += [(name, f"`{formula}`") for name, formula in _cost(sample)]
    rows += [("sharded axes", _roles(sample)), ("along the stream", _along(sample))]
    if sample.state:
        rows.append(("keeps", ", ".join(sample.state)))
    rows.append(("gradient", _gradient(cls, sample)))
    return text + table(("", ""), rows)


def _default(f: dataclasses.Field[object]) -> str:
    if f.default is dataclasses.MISSING:
        return "required"
    return value(f.default) if f.default != "" else '""'


def _sample(s: Sample) -> str:
    sides = [", ".join(f"[{' '.join(t.axes)}]" for t in side) for side in (s.ins, s.outs)]
    return f"{s.op.text() if s.op.region is None else s.op.name} {sides[0]} -> {sides[1]}"


def _cost(s: Sample) -> Iterator[tuple[str, str]]:
    cost = s.op.cost(s.ins, s.outs)
    for f in dataclasses.fields(Cost):
        size = getattr(cost, f.name)
        if size.terms:
            yield {"read": "bytes read", "written": "bytes written"}.get(f.name, f.name), str(size)


def _roles(s: Sample) -> str:
    axes = list(dict.fromkeys(a for t in (*s.ins, *s.outs) for a in t.axes))
    by: dict[str, list[str]] = {}
    for axis in axes:
        by.setdefault(s.op.role(axis, s.ins, s.outs).value, []).append(axis)
    return "; ".join(f"{role}: {' '.join(names)}" for role, names in by.items())


def _along(s: Sample) -> str:
    if s.op.region is not None:
        return "node by node"
    if not any(STREAM in t.axes for t in s.ins):
        return "not in the stream"
    along = s.op.along(STREAM, s.ins)
    return {Along.POINTWISE: "each position alone", Along.STATEFUL: "looks back, with state",
            Along.LOOKAHEAD: "needs all positions at once"}[along]  # fmt: skip


def _gradient(cls: type[Op], s: Sample) -> str:
    """Which ops the gradient is made of, found by building it."""
    if not cls.differentiable:
        return "none"
    if s.op.region is not None:
        return "a repeat that runs the body's gradient from the last trip to the first"
    made, back = _back(s)
    if back is None:
        return "none"
    names = ", ".join(f"`{n.op.text().split('<')[0]}`" for n in made) or "passed on as it is"
    names = ", ".join(dict.fromkeys(names.split(", ")))
    to = [str(i + 1) for i, g in enumerate(back) if g is not None]
    if not to:
        return "none flows back"
    return names if len(to) == len(s.ins) else f"{names}; to operand {', '.join(to)}"


def _back(s: Sample) -> tuple[list[Node], Sequence[Value | None] | None]:
    """The nodes of the gradient of a sample's first result, and the operands' cotangents."""
    b = Builder()
    ins = [b.append(Input(f"x{i}"), (), (t,))[0] for i, t in enumerate(s.sized)]
    outs = b.apply(s.op, *ins)
    first = b.append(Input("g"), (), (outs[0].type,))[0]
    before = len(b.nodes)
    try:
        back = s.op.gradient(b, ins, outs, [first, *(None for _ in outs[1:])])
    except NotImplementedError:
        return [], None
    return [n for n in b.nodes[before:] if not isinstance(n.op, Leaf)], back


# -- samples
def samples() -> dict[str, Sample]:
    """One sample an op: the first node found with all its operands streaming, else the first; else a plain try."""
    best: dict[str, Sample] = {}
    for graph, kept in _graphs():
        for node, _ in _walk(graph):
            sample = _symbolic(node, kept)
            known = best.get(node.op.name)
            if known is None or _rank(sample) > _rank(known):
                best[node.op.name] = sample
    for sample in list(best.values()):  # what only a gradient of a gradient uses
        if type(sample.op).differentiable and sample.op.region is None:
            for node in _back(sample)[0]:
                best.setdefault(node.op.name, _symbolic(node, {}))
    for cls in all_ops():
        if cls.name not in best and not issubclass(cls, Leaf):
            tried = _try(cls)
            if tried is not None:
                best[cls.name] = tried
    return best


def _rank(s: Sample) -> tuple[bool, bool]:
    streaming = bool(s.ins) and STREAM in s.ins[0].axes
    return bool(s.state), streaming


def _graphs() -> Iterator[tuple[Graph, dict[int, list[tuple[str, TensorType]]]]]:
    for model in examples.all_models():
        yield model.graph, states(model)
        for phase in ("prefill", "verify", "commit", "encode"):
            try:
                yield pack(phase_graph(model, phase).graph), {}
            except BlockgraphError:
                continue
        yield from _backward(model)
    layers = next_token_loss(examples.build(examples.graph("repeat") + "  - unembed\n").graph)
    yield one_f_one_b(layers, Stages(3, 2, at_once=True), {"batch": 4}), {}


def _backward(model: Model) -> Iterator[tuple[Graph, dict[int, list[tuple[str, TensorType]]]]]:
    """The gradient graph: of the next token's loss where there are logits, else of the output's sum."""
    try:
        if "vocab" in model.graph.outputs[-1][1].axes:
            graph = next_token_loss(model.graph)
        else:
            copy = Replay()
            copy.run(model.graph)
            out = copy.map[model.graph.outputs[-1][1].id]
            graph = copy.b.finish([("loss", copy.b.reduce(copy.b.cast(out, "float32"), "sum", out.axes))])
        yield graph, {}
        yield differentiate(graph), {}
    except (BlockgraphError, NotImplementedError):
        return


def _walk(graph: Graph) -> Iterator[tuple[Node, int]]:
    for node in graph.nodes:
        if not isinstance(node.op, Leaf):
            yield node, 0
        if node.op.region is not None:
            yield from _walk(node.op.region)


def _symbolic(node: Node, kept: dict[int, list[tuple[str, TensorType]]]) -> Sample:
    """The node with every size replaced by its axis name, where an axis has one size and the op can do with that."""
    state = tuple(dict.fromkeys(STATES.get(k, k) for k, _ in kept.get(node.results[0].id, [])))
    ins, outs = tuple(v.type for v in node.operands), tuple(v.type for v in node.results)
    real = Sample(node.op, ins, outs, ins, state)
    sizes: dict[str, set[Size]] = {}
    for t in (*ins, *outs):
        for axis, size in t.pairs:
            sizes.setdefault(axis, set()).add(size)

    def named(t: TensorType) -> TensorType:
        pairs = [(a, Size.symbol(a) if len(sizes[a]) == 1 and s != ONE else s) for a, s in t.pairs]
        return TensorType.make(pairs, t.dtype)

    sample = Sample(node.op, tuple(named(t) for t in ins), tuple(named(t) for t in outs), ins, state)
    try:
        node.op.cost(sample.ins, sample.outs)
    except (ValueError, LookupError, TypeError, TypeProblem):
        return real
    return sample


def _try(cls: type[Op]) -> Sample | None:
    """An op that no example uses, on plain operands."""
    for ins in ((PLAIN,), (LOGITS,), (PLAIN, PLAIN)):
        try:
            op = cls()
            outs = op.infer(*ins)
            op.cost(ins, outs)
            sample = Sample(op, ins, outs, ins)
            _gradient(cls, sample)
        except (ValueError, LookupError, TypeError, TypeProblem, AttributeError):
            continue
        return sample
    return None


__all__: Sequence[str] = ["Sample", "ops_page", "samples"]
