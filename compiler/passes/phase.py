"""Phase: the phase-free graph becomes the program of one phase.

``forward`` is the graph as it stands. ``prefill``, ``decode`` and ``verify`` extend a state by the positions of one
call: every op that looks back says with which state (``Op.stream``); what does not depend on the streaming input
(an encoder, cross-attention keys) is computed once by ``encode`` and kept as context. ``verify`` leaves the state as
it was and hands out what it would have written; ``commit`` writes the accepted part of it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from compiler.errors import PhaseError, Problem, nearest
from compiler.graph.axes import RECENT
from compiler.graph.ir import Graph
from compiler.graph.types import TensorType
from compiler.language.model import Model
from compiler.ops.latest import latest_of
from compiler.ops.leaves import Input, Parameter, State
from compiler.ops.state import HEADS_FIRST, CacheLayout
from compiler.passes.commit import commit
from compiler.passes.dependence import dependence
from compiler.passes.dropout import dropped
from compiler.passes.encode import Encode
from compiler.passes.keep_last import keep_last
from compiler.passes.lengthen import lengthen
from compiler.passes.prune import prune
from compiler.passes.streaming import Pending, Streaming
from compiler.passes.write_out import write_out

PHASES = ("forward", "encode", "prefill", "decode", "verify", "commit")


@dataclass(frozen=True)
class PhaseGraph:
    """A phase's graph. Its leaves are parameters, inputs and states; its outputs are the model's outputs,
    ``state:<label>`` for each state that changes, and in verify ``pending:<label>``."""

    phase: str
    graph: Graph
    pendings: tuple[Pending, ...] = field(default=())

    def states(self) -> dict[str, tuple[State, TensorType]]:
        return {n.op.label: (n.op, n.result.type) for n in self.graph.leaves(State) if isinstance(n.op, State)}

    def inputs(self) -> dict[str, TensorType]:
        return {n.op.label: n.result.type for n in self.graph.leaves(Input) if isinstance(n.op, Input)}

    def parameters(self) -> dict[str, TensorType]:
        return {n.op.label: n.result.type for n in self.graph.leaves(Parameter) if isinstance(n.op, Parameter)}


def phase_graph(
    model: Model,
    phase: str,
    logits: str | None = None,
    fresh: bool = False,
    caches: CacheLayout = HEADS_FIRST,
    losses: bool = False,
) -> PhaseGraph:
    """The graph of ``phase``. ``logits``: "last" (each row's last valid position; the default of prefill), "all", or
    "none": only the state moves on, and of a model that makes more of its last positions, without these.
    ``fresh``: the state is empty (a prompt's first call), so caches are written and not read.
    ``caches``: how they lie. ``losses``: as a training step has it, with the terms of its loss as outputs of forward.
    Raises PhaseError for an unknown phase, and where a block looks ahead in a streaming phase."""
    if phase not in PHASES:
        raise PhaseError(Problem("unknown-phase", f"no phase is called {phase}", None, PHASES, nearest(phase, PHASES)))
    if phase == "forward":
        whole = model.losses if losses and model.losses is not None else model.graph
        return PhaseGraph(phase, prune(write_out(dropped(whole, losses))))
    if model.streaming_input is None:
        raise PhaseError(
            Problem(
                "no-stream",
                f"{model.name} has no token input: it has only a forward phase",
                None,
                ("forward",),
            )
        )
    whole = lengthen(dropped(model.graph, training=False))
    flows = dependence(whole, model.streaming_input)
    if phase == "encode":
        return PhaseGraph(phase, prune(Encode(flows).run(whole)))
    latest = latest_of(whole)
    if latest is not None and phase in ("verify", "commit"):
        text = f"{model.name} makes its last positions anew when there are {latest.count}: it has no {phase}"
        raise PhaseError(Problem("no-verify", text, None, ("prefill", "decode")))
    deferred = phase in ("verify", "commit")
    full, silent = phase == "prefill", logits == "none"
    streaming = Streaming(flows, deferred, fresh, caches, latest=latest, full=full, silent=silent)
    graph = streaming.run(whole)
    streaming.problems.raise_if_any(PhaseError)
    if phase == "commit":
        return PhaseGraph(phase, commit(streaming.pendings))
    wanted = logits or ("last" if phase == "prefill" else "all")
    if wanted == "last":
        graph = keep_last(graph)
    elif wanted == "none":
        graph = dataclasses.replace(graph, outputs=tuple(streaming.before(RECENT)))
    return PhaseGraph(phase, prune(graph), tuple(streaming.pendings))
