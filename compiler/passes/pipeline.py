"""Pipeline: the passes in order, the graph verified between them and printable after any.

    elaborate -> phase -> [loss] -> select -> [pack] -> [differentiate] -> [optimise] -> [partition] -> (price | lower)

Select comes before differentiate: an implementation may change the types that flow (dense experts keep their tokens
in place, ragged ones sort them), and a gradient program takes over the implementation of the op it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from compiler.errors import PhaseError, Problem, SpecError, nearest
from compiler.graph.ir import Graph, Node
from compiler.language.model import Model
from compiler.ops.latest import Latest, LatestHeld
from compiler.ops.leaves import Input, Positions, State
from compiler.ops.state import HEADS_FIRST, CacheLayout
from compiler.passes import differentiate as differentiation
from compiler.passes import loss as losses
from compiler.passes import optimise as optimisation
from compiler.passes import phase as phases
from compiler.passes import select as selection
from compiler.passes.accumulate import accumulate
from compiler.passes.call import missing_size
from compiler.passes.merge import merge
from compiler.passes.one_f_one_b import one_f_one_b
from compiler.passes.pack import pack
from compiler.passes.rematerialise import Rematerialise
from compiler.passes.stages import Stages, stage
from compiler.passes.verify import verify

PASSES = ("elaborate", "phase", "loss", "select", "pack", "stage", "differentiate", "optimise", "partition")
PrintAfter = Callable[[str, Graph], None]


class Pass(Protocol):
    """Legal graph in, legal graph out."""

    name: ClassVar[str]

    def __call__(self, graph: Graph) -> Graph: ...


@dataclass(frozen=True)
class Elaborate:
    """The graph of a model as its spec says it, before any phase."""

    name: ClassVar[str] = "elaborate"

    def __call__(self, graph: Graph) -> Graph:
        return graph


@dataclass(frozen=True)
class Phase:
    """The program of one phase: see compiler/passes/phase.py."""

    name: ClassVar[str] = "phase"
    model: Model
    phase: str
    logits: str | None = None
    fresh: bool = False
    caches: CacheLayout = HEADS_FIRST
    losses: bool = False

    def __call__(self, graph: Graph) -> Graph:
        asked = self.logits, self.fresh, self.caches, self.losses
        return phases.phase_graph(self.model, self.phase, *asked).graph


@dataclass(frozen=True)
class Loss:
    """Mean next-token cross-entropy of the forward graph, in chunks of positions: compiler/passes/loss.py."""

    name: ClassVar[str] = "loss"
    sizes: Mapping[str, int]
    tokens: str = "tokens"
    logits: str = "logits"
    chunk: losses.Chunk | None = losses.Chunk()

    def __call__(self, graph: Graph) -> Graph:
        check_sizes(graph, self.sizes)
        return losses.next_token_loss(graph, self.tokens, self.logits, self.sizes, self.chunk)


@dataclass(frozen=True)
class Select:
    """The implementation of each op: compiler/passes/select.py."""

    name: ClassVar[str] = "select"
    sizes: Mapping[str, int]
    choice: selection.Choice = selection.Choice()

    def __call__(self, graph: Graph) -> Graph:
        check_sizes(graph, self.sizes)
        return selection.select(graph, self.sizes, self.choice)


@dataclass(frozen=True)
class Pack:
    """Parameters in few bits as they are held: compiler/passes/pack.py."""

    name: ClassVar[str] = "pack"

    def __call__(self, graph: Graph) -> Graph:
        return pack(graph)


@dataclass(frozen=True)
class Stage:
    """Layers as stages of a pipeline: compiler/passes/stages.py."""

    name: ClassVar[str] = "stage"
    stages: Stages
    sizes: Mapping[str, int]

    def __call__(self, graph: Graph) -> Graph:
        return stage(graph, self.stages, self.sizes)


@dataclass(frozen=True)
class Differentiate:
    """Gradients of the trainable parameters, summed over micro-batches: compiler/passes/differentiate.py,
    rematerialise.py, accumulate.py. ``sizes`` are those of one micro-batch."""

    name: ClassVar[str] = "differentiate"
    sizes: Mapping[str, int]
    loss: str = "loss"
    wrt: tuple[str, ...] | None = None
    remat: Rematerialise = Rematerialise()
    accumulate: int = 1

    def __call__(self, graph: Graph) -> Graph:
        keep = self.remat.keep(graph, self.sizes)
        return merge(accumulate(differentiation.differentiate(graph, self.loss, self.wrt, keep), self.accumulate))


@dataclass(frozen=True)
class OneForwardOneBackward:
    """Differentiate, through a pipeline whose micro-batches go back at once: compiler/passes/one_f_one_b.py."""

    name: ClassVar[str] = "differentiate"
    stages: Stages
    sizes: Mapping[str, int]
    loss: str = "loss"
    wrt: tuple[str, ...] | None = None
    remat: Rematerialise = Rematerialise()
    accumulate: int = 1

    def __call__(self, graph: Graph) -> Graph:
        keep = self.remat.keep(graph, self.sizes)
        made = one_f_one_b(graph, self.stages, self.sizes, self.loss, self.wrt, keep)
        return merge(accumulate(made, self.accumulate))


@dataclass(frozen=True)
class Optimise:
    """The optimiser's update: compiler/passes/optimise.py."""

    name: ClassVar[str] = "optimise"
    optimiser: optimisation.Optimiser = optimisation.AdamW()

    def __call__(self, graph: Graph) -> Graph:
        return optimisation.optimise(graph, self.optimiser)


@dataclass(frozen=True)
class Pipeline:
    """Passes in order."""

    passes: tuple[Pass, ...]

    def run(self, graph: Graph, print_after: PrintAfter | None = None) -> Graph:
        """The graph after all passes; ``print_after`` is called after each. Raises IllegalGraph where a pass fails."""
        done: list[str] = []
        for step in self.passes:
            graph = step(graph)
            done.append(step.name)
            verify(graph, done, step.name)
            if print_after is not None:
                print_after(step.name, graph)
        return graph


def phase_pipeline(
    model: Model,
    phase: str,
    sizes: Mapping[str, int],
    *,
    logits: str | None = None,
    fresh: bool = False,
    choice: selection.Choice = selection.Choice(),
    stages: Stages | None = None,
) -> Pipeline:
    """The passes of one phase: what is priced and lowered. Run it on ``model.graph``."""
    return Pipeline((
        Elaborate(), Phase(model, phase, logits, fresh, choice.caches), Select(sizes, choice), Pack(),
        *([] if stages is None else [Stage(stages, sizes)]),
    ))  # fmt: skip


def training_pipeline(
    model: Model,
    sizes: Mapping[str, int],
    *,
    wrt: Iterable[str] | None = None,
    remat: Rematerialise = Rematerialise(),
    accumulate: int = 1,
    chunk: losses.Chunk | None = losses.Chunk(),
    optimiser: optimisation.Optimiser | None = None,
    choice: selection.Choice = selection.Choice(),
    stages: Stages | None = None,
) -> Pipeline:
    """The passes to loss and gradients, and with ``optimiser`` to new parameters. ``sizes`` are those of the whole
    batch; after ``differentiate`` the graph's symbol batch is a micro-batch's rows (``micro_sizes``)."""
    tokens = model.streaming_input
    if tokens is None:
        raise PhaseError(Problem("no-stream", f"{model.name} has no token input, so no next-token loss"))
    micro, names = micro_sizes(sizes, accumulate), tuple(wrt) if wrt is not None else None
    if stages is not None and stages.at_once:
        back: list[Pass] = [OneForwardOneBackward(stages, micro, wrt=names, remat=remat, accumulate=accumulate)]
    else:
        pipe = [] if stages is None else [Stage(stages, micro)]
        back = [*pipe, Differentiate(micro, wrt=names, remat=remat, accumulate=accumulate)]
    return Pipeline((
        Elaborate(), Phase(model, "forward", losses=True), Loss(micro, tokens, chunk=chunk), Select(micro, choice),
        *back, *([] if optimiser is None else [Optimise(optimiser)]),
    ))  # fmt: skip


def micro_sizes(sizes: Mapping[str, int], accumulate: int) -> dict[str, int]:
    """Sizes of one of ``accumulate`` micro-batches. Raises SpecError where they do not divide the batch."""
    batch = sizes.get("batch")
    if batch is None:
        return dict(sizes)
    if accumulate < 1 or batch % accumulate:
        divisors = tuple(str(n) for n in range(1, batch + 1) if batch % n == 0)
        message = f"batch = {batch} does not divide into {accumulate} micro-batches"
        raise SpecError(Problem("indivisible", message, None, divisors))
    return {**sizes, "batch": batch // accumulate}


def check_sizes(graph: Graph, sizes: Mapping[str, int]) -> None:
    """Raises SpecError naming the sizes that the graph's inputs and states need and that are not given, and where
    there are more positions than the model can tell apart."""
    leaves = [*graph.leaves(Input), *graph.leaves(State)]
    needed = {symbol for n in leaves for size in n.result.type.sizes for symbol in size.symbols}
    missing = sorted(needed - set(sizes))
    if missing:
        raise SpecError(missing_size(missing))
    for node, _ in graph.walk():
        if isinstance(node.op, (Latest, LatestHeld)):
            _enough(node, node.op, sizes)
        limit = node.op.limit if isinstance(node.op, Positions) else None
        if limit is not None:  # with a start they count on from what a cache of ``capacity`` holds
            here = int(node.result.type.sizes[-1].evaluate(sizes))
            asked = max(here, sizes.get("capacity", 0)) if node.operands else here
            if asked > limit:
                message = f"{node.path} tells {limit:,} positions apart, and {asked:,} are asked for"
                raise SpecError(Problem("out-of-capacity", message, node.position, (f"lengths up to {limit}",)))


def _enough(node: Node, op: Latest | LatestHeld, sizes: Mapping[str, int]) -> None:
    """Raises SpecError where a sequence is shorter than what is taken of its end."""
    count = int((op.count if isinstance(op, Latest) else op.keep).constant)
    length = sizes.get("capacity" if isinstance(op, LatestHeld) else "seq", count)
    if count > length:
        message = f"{node.path} takes the last {count:,} positions of {length:,}"
        raise SpecError(Problem("too-short", message, node.position, (f"lengths from {count:,} on",)))


def known_pass(name: str) -> str:
    """The name itself. Raises SpecError for a pass that does not exist."""
    if name not in PASSES:
        raise SpecError(Problem("unknown-pass", f"no pass is called {name}", None, PASSES, nearest(name, PASSES)))
    return name


def printer(names: Iterable[str], write: Callable[[str], None]) -> PrintAfter:
    """A ``print_after`` that writes the graph's text after the passes named ("all": after each)."""
    wanted = {known for name in names for known in (PASSES if name == "all" else (known_pass(name),))}

    def print_after(name: str, graph: Graph) -> None:
        if name in wanted:
            write(f"# after {name}\n{graph}\n")

    return print_after
