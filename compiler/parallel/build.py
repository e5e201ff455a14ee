"""From a request to the graph of one call, on a mesh where one is asked for. No JAX here: what is compiled, explained
and priced is built by the same function."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from compiler.errors import Problem, Problems, SpecError, nearest
from compiler.graph.ir import Graph, Value
from compiler.language.model import Model
from compiler.ops.state import CacheLayout
from compiler.parallel import strategy as strategies
from compiler.parallel.layout import Layout, lay
from compiler.parallel.mesh import NETWORK, Mesh, parse
from compiler.parallel.network import network
from compiler.parallel.replicate import Note
from compiler.parallel.request import Parallel, Request, Training, Wires
from compiler.parallel.resolve import Resolved, resolve
from compiler.parallel.strategy import Strategy
from compiler.parallel.tensors import Tensor, tensors
from compiler.passes.call import TRAIN, sizes_for, whole_prompt
from compiler.passes.loss import Chunk
from compiler.passes.micro import STAGES
from compiler.passes.optimise import SGD, AdamW, Optimiser
from compiler.passes.pack import pack
from compiler.passes.partition import Partitioned, partition
from compiler.passes.phase import phase_graph
from compiler.passes.pipeline import PrintAfter, micro_sizes, phase_pipeline, training_pipeline
from compiler.passes.rematerialise import POLICIES, Rematerialise
from compiler.passes.select import Choice
from compiler.passes.stages import Stages, stage
from compiler.passes.verify import verify
from compiler.targets.types import Target

LOGITS_BYTES = 1 << 30  # of a chunk of the loss, on each device
BUBBLES = 4  # micro-batches for each stage of a pipeline: less than a fifth of the time without work


@dataclass(frozen=True)
class Meshed:
    """The plan, every value's placement, the order of the devices."""

    plan: Resolved
    made: Partitioned
    layout: Layout
    stages: Stages | None = None


@dataclass(frozen=True)
class Built:
    """The graph of a call and the numbers of its symbols; ``graph`` is the partitioned one where there is a mesh."""

    graph: Graph
    sizes: Mapping[str, int]
    choice: Choice
    meshed: Meshed | None = None


def build(
    model: Model, asked: Request, target: Target, wires: Wires | None = None, print_after: PrintAfter | None = None
) -> Built:
    """Runs the passes of a call for a target. Raises SpecError, PhaseError with every problem found."""
    choice = Choice.of(target.platform)
    sizes = sizes_for(asked.phase, asked.batch, asked.length, asked.chunk, asked.sizes)
    plan, stages = None, None
    if asked.parallel is not None:
        plan, stages, found = _plan(model, asked, sizes, target)
        choice = replace(choice, caches=_divided(choice.caches, plan, found))
    if asked.phase == TRAIN:
        made = _training(model, asked, sizes, choice, plan, stages).run(model.graph, print_after)
        sizes = micro_sizes(sizes, asked.training.accumulate)
    else:
        fresh = whole_prompt(asked.phase, sizes)
        pipeline = phase_pipeline(
            model, asked.phase, sizes, logits=asked.logits, fresh=fresh, choice=choice, stages=stages
        )
        made = pipeline.run(model.graph, print_after)
    if plan is None:
        return Built(made, sizes, choice)
    placed = partition(made, plan, sizes)
    verify(placed.graph, after="partition")
    if print_after is not None:
        print_after("partition", placed)  # type: ignore[arg-type]
    layout = lay(plan.mesh, network(target, wires), traffic(placed))
    return Built(placed.graph, sizes, choice, Meshed(plan, placed, layout, stages))


def _divided(caches: CacheLayout, plan: Resolved, found: Sequence[Tensor]) -> CacheLayout:
    """The layout of caches where a plan divides them. A device packs its own heads; what else is divided (slots, a
    head's channels) is an axis that packed caches do not have, and heads of which devices have other shares in other
    caches are not packed either."""
    held = [t.divided(plan) for t in found if t.kind == "state" and "slots" in t.sizes]
    if any(set(over) - {"batch", "kv_heads"} for over in held):
        return replace(caches, lanes=0)
    shards = {math.prod(plan.mesh[m] for m in over.get("kv_heads", ())) for over in held}
    return replace(caches, shards=shards.pop()) if len(shards) == 1 else replace(caches, lanes=0)


def _plan(
    model: Model, asked: Request, sizes: Mapping[str, int], target: Target
) -> tuple[Resolved, Stages | None, Sequence[Tensor]]:
    """What goes where, from the graph before it is differentiated: gradients and the optimiser follow parameters; the
    pipeline, where there is one; and the graph's tensors."""
    assert asked.parallel is not None
    strategy = strategies.load(asked.parallel.strategy, shard=asked.parallel.shard, replicate=asked.parallel.replicate)
    mesh = parse(asked.parallel.mesh or _only_axis(strategy.mesh, asked.parallel), asked.parallel.slices)
    training = asked.phase == TRAIN
    if training:
        sizes = micro_sizes(sizes, asked.training.accumulate)
    graph = phase_graph(model, "forward" if training else asked.phase, asked.logits).graph
    graph = graph if training else pack(graph)
    stages = pipeline(strategy, mesh, asked.parallel, sizes, target)
    if stages is not None:
        graph = stage(graph, stages, sizes)
    plan = resolve(strategy, mesh, graph, sizes, target.devices, machine=str(target), training=training)
    if stages is not None:
        plan = replace(plan, notes=(*plan.notes, Note("pipeline", stages.told(training))))
    return plan, stages, tensors(graph, sizes, training, Problems())


def pipeline(
    strategy: Strategy, mesh: Mesh, asked: Parallel, sizes: Mapping[str, int], target: Target
) -> Stages | None:
    """The pipeline that a strategy and a mesh make: as many stages as the mesh axes have to which ``stages`` goes.
    None where there is one stage. Raises SpecError for options of a pipeline where there is none."""
    full = mesh.fill(target.devices, str(target)) if -1 in mesh.sizes.values() else mesh
    table = strategy.table(strategy.mesh)["activations"]
    rules = {m: table.get(m.removeprefix(NETWORK), ()) for m in full.sizes}
    over = [m for m, axes in rules.items() if STAGES in axes]
    count = math.prod(full.sizes[m] for m in over)
    if count < 2:
        if asked.microbatches is not None or asked.schedule != "gpipe":
            message = f"{asked.strategy} on {full} has no pipeline to which --schedule or --microbatches could apply"
            raise SpecError(Problem("missing-option", message, None, (), "--parallel pipeline --mesh stage=4"))
        return None
    rows = math.prod(n for m, n in full.sizes.items() if "batch" in rules[m] and m not in over)
    micro = asked.microbatches or _microbatches(sizes["batch"], rows, count, asked.rounds)
    return Stages(count, micro, asked.rounds, asked.schedule == "1f1b")


def _microbatches(batch: int, rows: int, stages: int, rounds: int) -> int:
    """About ``BUBBLES`` micro-batches a stage, each with a row for every device that has its own; a circular pipeline
    takes them by as many as it has stages."""
    by = stages if rounds > 1 else 1
    fitting = [n for n in range(by, batch + 1, by) if batch % n == 0 and batch // n % rows == 0]
    return max((n for n in fitting if n <= BUBBLES * stages), default=min(fitting, default=stages))


def _only_axis(axes: tuple[str, ...], asked: Parallel) -> str:
    if len(axes) == 1:
        return f"{axes[0]}=-1"
    example = ",".join(f"{a}=…" for a in axes)
    message = f"{asked.strategy} shards over {', '.join(axes)}: say how many devices each has (--mesh {example})"
    raise SpecError(Problem("bad-mesh", message, None, axes))


def _training(
    model: Model,
    asked: Request,
    sizes: Mapping[str, int],
    choice: Choice,
    plan: Resolved | None,
    stages: Stages | None,
) -> Any:
    asked_for, shards = asked.training, _shards(plan, sizes)
    rows = shards({"batch": sizes["batch"], "seq": sizes["seq"], "vocab": _vocab(model)})
    chunk = Chunk(positions=asked_for.loss_chunk, logits_bytes=LOGITS_BYTES * rows)
    policy = asked_for.remat
    remat = Rematerialise(policy) if policy in POLICIES else Rematerialise("names", tuple(policy.split(",")))
    if policy == "auto":
        divided = lambda v: shards({a: int(s.evaluate(sizes)) for a, s in v.type.pairs})  # noqa: E731
        remat = replace(remat, limit=asked_for.remat_limit, shards=divided)
    return training_pipeline(
        model, sizes, remat=remat, accumulate=asked_for.accumulate, chunk=chunk, optimiser=optimiser(asked_for),
        choice=choice, stages=stages,
    )  # fmt: skip


def _vocab(model: Model) -> int:
    return int(model.dims.get("vocab", 1))


def _shards(plan: Resolved | None, sizes: Mapping[str, int]) -> Any:
    """Over how many devices an activation of these sizes is divided."""

    def divided(found: Mapping[str, int]) -> int:
        if plan is None:
            return 1
        return Tensor("activations", "", found, {}, 0.0).shards(plan)

    return divided


def optimiser(asked: Training) -> Optimiser:
    """The optimiser of a training step by name."""
    made: dict[str, Optimiser] = {
        "adamw": AdamW(clip=asked.clip, first=asked.moments, second=asked.moments),
        "sgd": SGD(clip=asked.clip, first=asked.moments),
    }
    if asked.optimiser not in made:
        message = f"no optimiser is called {asked.optimiser}"
        known = tuple(made)
        raise SpecError(Problem("unknown-name", message, None, known, nearest(asked.optimiser, known)))
    return made[asked.optimiser]


def traffic(made: Partitioned) -> dict[str, float]:
    """Bytes that a device sends over each mesh axis in one call."""
    found: dict[str, float] = {}
    for node, times in made.graph.walk():
        axes = getattr(node.op, "mesh_axes", ())
        if axes:
            sent = float(node.op.cost(_locals(made, node.operands), _locals(made, node.results)).sent.constant)
            for axis in axes:
                found[axis] = found.get(axis, 0.0) + sent * times
    return found


def _locals(made: Partitioned, values: tuple[Value, ...]) -> list[Any]:
    return [made.local(v) for v in values]
