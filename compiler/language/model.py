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
from compiler.graph.types import TensorType
from compiler.language import checks
from compiler.language import load as loading
from compiler.language.chains import chains_of, inputs_of, scope_of, start_of
from compiler.language.elaborate import Enough
from compiler.language.env import Env, Policy, Weights
from compiler.language.fields import Dim
from compiler.language.frame import Frame
from compiler.language.load import Document
from compiler.language.scope import Fault, Scope
from compiler.language.spec import Spec
from compiler.language.user_blocks import unused_blocks
from compiler.ops.leaves import Parameter
from compiler.passes.prune import prune
from compiler.source.yaml import YMap

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
    def markers(self) -> dict[str, int]:
        """The token that stands in the text for each entry of an input, by the input's name."""
        scope = Scope(self.dims, self.args)
        return {
            n: scope.count(i.marker, "marker", least=0) for n, i in self.spec.inputs.items() if i.marker is not None
        }

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
    scope = scope_of(raw, problems)
    compute = spec.dtypes.compute
    types = spec.dtypes
    policy = Policy(types.params, compute, types.residual or compute, types.weights, types.group)
    b, weights = Builder(), Weights()
    inputs = inputs_of(spec, raw, scope, b)
    env = Env(b, scope, policy, weights, inputs)
    frame = Frame(env, dict(inputs), None, spec.blocks)
    checks.check(spec, raw, problems)
    outputs: list[tuple[str, Value | None]] = []
    unused: list[str] = []
    with contextlib.suppress(Enough):
        outputs = _outputs(spec, raw, chains_of(raw, frame, start_of(spec, frame)), frame)
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
