"""From a strategy and a mesh to a plan for one graph: every division checked, every exception asked for by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from compiler.errors import Position, Problems, SpecError, nearest
from compiler.graph.ir import Graph
from compiler.parallel import replicate
from compiler.parallel import strategy as strategies
from compiler.parallel.mesh import NETWORK, Mesh, divisors, parse
from compiler.parallel.plan import CLASSES, Plan
from compiler.parallel.replicate import Note
from compiler.parallel.strategy import Strategy
from compiler.parallel.tensors import Tensor, is_training, tensors

MOST_SHOWN = 8  # sizes of a mesh axis that would fit
Table = dict[str, dict[str, tuple[str, ...]]]  # class -> mesh axis -> axes in order


@dataclass(frozen=True)
class Resolved(Plan):
    """A plan, the strategy that it came from, and what a person should know of it."""

    strategy: str = ""
    notes: tuple[Note, ...] = ()
    bytes_per_device: Mapping[str, float] = field(default_factory=dict)  # "parameters", "state"
    undivided: Mapping[str, float] = field(default_factory=dict)  # of these, tensors that are whole on every device


def resolve(
    strategy: Strategy | str,
    mesh: Mesh | str,
    graph: Graph,
    sizes: Mapping[str, int],
    devices: int | None = None,
    *,
    machine: str | None = None,
    training: bool | None = None,
) -> Resolved:
    """The plan of a strategy on a mesh for one graph. ``sizes``: batch, seq, capacity and what else the graph needs;
    ``devices``: how many the machine (called ``machine``) has; ``training``: whether gradients and the optimiser's
    state count (default: if the graph has gradients). Raises SpecError with every problem found."""
    problems = Problems()
    if isinstance(strategy, str):
        strategy = strategies.load(strategy)
    if isinstance(mesh, str):
        mesh = parse(mesh)
    try:
        mesh = mesh.fill(devices, machine)
    except SpecError as e:
        if any(size == -1 for size in mesh.sizes.values()):
            raise
        problems.items.extend(e.problems)
    training = is_training(graph) if training is None else training
    found = tensors(graph, sizes, training, problems)
    _check_names(strategy, mesh, found, problems)
    asked = _plan(strategy, mesh)
    whole = replicate.asked(strategy, found)
    kept, factor = strategy, None
    for axis in whole:
        if axis == "kv_heads" and "heads" not in whole:
            kept, factor = replicate.kv_heads(kept, asked, found, problems)
        else:
            kept = kept.without(axis)
    plan = _plan(kept, mesh)
    if factor is not None:
        plan = replicate.factored(plan, *factor)
    _check_division(strategy, plan, found, problems)
    problems.raise_if_any()
    notes = [*_told(strategy, mesh, plan, found), *replicate.told(whole, asked, plan, found)]
    held: dict[str, float] = {}
    undivided: dict[str, float] = {}
    for t in found:
        if t.kind in replicate.HELD:
            shards = t.shards(plan)
            held[t.kind] = held.get(t.kind, 0.0) + t.bytes / shards
            undivided[t.kind] = undivided.get(t.kind, 0.0) + (t.bytes if shards == 1 else 0.0)
    return Resolved(plan.mesh, plan.rules, strategy.name, tuple(notes), held, undivided)


def _plan(strategy: Strategy, mesh: Mesh) -> Plan:
    """The rules on the mesh, nothing checked. Axes of one device are left out of the rules."""
    own = [m for m, size in mesh.sizes.items() if size > 1 and m in strategy.mesh]
    table: Table = strategy.table(own)
    for m, size in mesh.sizes.items():
        if size == 1 or m in strategy.mesh or not m.startswith(NETWORK):
            continue
        like = m.removeprefix(NETWORK)
        source = strategy if like in strategy.mesh else strategies.load("data")
        for kind, rules in source.table([like]).items():
            if like in rules:
                table[kind][m] = rules[like]
    ordered = {kind: {m: table[kind][m] for m in mesh.sizes if m in table[kind]} for kind in CLASSES}
    return Plan(dict(mesh.sizes), ordered)


# -- names
def _check_names(strategy: Strategy, mesh: Mesh, found: Sequence[Tensor], problems: Problems) -> None:
    """Mesh axes that no rule speaks of, and axes that the command line names and no tensor has."""
    for m, size in mesh.sizes.items():
        like = m.removeprefix(NETWORK)
        if size == 1 or m in strategy.mesh or (m.startswith(NETWORK) and like in (*strategy.mesh, "data")):
            continue
        message = f"{strategy.name} says nothing of a mesh axis {m}"
        others = [n for n in strategies.strategies() if m in strategies.load(n).mesh]
        if others:
            message += f"; {' and '.join(others)} {'do' if len(others) > 1 else 'does'}"
        problems.add("unknown-mesh-axis", message, mesh.position, allowed=strategy.mesh,
                     suggestion=nearest(m, strategy.mesh))  # fmt: skip
    axes: dict[str, set[str]] = {kind: set() for kind in CLASSES}
    for t in found:
        axes[t.kind] |= set(t.sizes)
    axes["gradients"] |= axes["parameters"]
    axes["optimiser"] |= axes["parameters"]
    every = sorted(set().union(*axes.values()))
    told: set[Position] = set()
    given = [(r.axis, r.position) for r in strategy.rules if r.given]
    for axis, place in (*strategy.replicated, *strategy.unruled, *given):
        if axis not in every and place not in told:
            told.add(place)
            problems.add("unknown-axis", f"no tensor has an axis {axis}", place, allowed=every,
                         suggestion=nearest(axis, every))  # fmt: skip
    for place in dict.fromkeys(r.position for r in strategy.rules if r.given):
        rules = [r for r in strategy.rules if r.position == place]
        for m in rules[0].over:
            if m not in mesh.sizes:
                problems.add("unknown-mesh-axis", f"the mesh {mesh} has no axis {m}", place, allowed=mesh.sizes,
                             suggestion=nearest(m, mesh.sizes))  # fmt: skip
        if place not in told and not any(r.axis in axes[r.kind] for r in rules):
            kinds = [kind for kind in CLASSES if rules[0].axis in axes[kind]]
            message = f"no tensor of class {rules[0].kind} has an axis {rules[0].axis}"
            problems.add("unknown-axis", message, place, allowed=[f"{kind}.{rules[0].axis}" for kind in kinds])


# -- numbers
def _check_division(strategy: Strategy, plan: Plan, found: Sequence[Tensor], problems: Problems) -> None:
    """Every axis of every tensor divides by the mesh axes that it goes to."""
    seen: dict[tuple[str, tuple[str, ...]], list[Tensor]] = {}
    for t in found:
        for axis, over in t.divided(plan).items():
            seen.setdefault((axis, over), []).append(t)
    faulty = [
        (axis, over)
        for (axis, over), those in seen.items()
        if any(t.sizes[axis] % math.prod(plan.mesh[m] for m in over) for t in those)
    ]
    for axis, over in faulty:
        others = {a for a, ms in faulty if set(ms) & set(over)}
        _indivisible(axis, over, seen[axis, over], others, strategy, plan, problems)


def _indivisible(
    axis: str,
    over: tuple[str, ...],
    those: Sequence[Tensor],
    faulty: set[str],
    strategy: Strategy,
    plan: Plan,
    problems: Problems,
) -> None:
    """One problem for an axis and where it goes; ``faulty``: axes that do not divide there, this one among them."""
    shards = math.prod(plan.mesh[m] for m in over)
    bad = [t for t in those if t.sizes[axis] % shards]
    numbers = sorted({t.sizes[axis] for t in bad})
    one = " x ".join(f"{m} = {plan.mesh[m]}" for m in over)
    by = one if len(over) == 1 else f"{one} = {shards}"
    least = numbers[0]
    verb = f"is less than {by}" if len(numbers) == 1 and least < shards else f"does not divide by {by}"
    message = f"{axis} = {' and '.join(map(str, numbers))} {verb} (in {bad[0].label}{_more(bad)})"
    fitting = _near(math.gcd(*(t.sizes[axis] for t in those)), shards)
    allowed = [f"{'*'.join(over)}={n}" for n in fitting]
    symbols = sorted(set().union(*(t.symbols.get(axis, frozenset()) for t in bad)))
    stay = dict.fromkeys(a for m in over for a in plan.axes("parameters", m) if a not in faulty | {axis, "kv_heads"})
    rest = f", while {', '.join(stay)} stay divided" if stay else ""
    if symbols:
        below = least // shards * shards
        sizes = [n for n in (below, below + shards) if n]
        mend = f"{axis} a multiple of {shards}: {' or '.join(map(str, sizes))}"
        if symbols != [axis]:
            mend += f" (it comes of {', '.join(symbols)})"
    elif axis == "kv_heads" and "heads" in faulty:
        mend = "--replicate heads takes kv_heads with it"
    elif axis == "kv_heads":
        mend = replicate.kv_mend(numbers, shards, over[-1])
    elif axis == "heads":
        mend = f"--replicate heads, and attention runs whole on every device{rest}"
    elif set(k := sorted({t.kind for t in bad})) <= {"parameters", "gradients", "optimiser"}:
        mend = " ".join(f"--shard {kind}.{axis}=none" for kind in k) + " keeps it whole there"
    else:
        mend = f"--replicate {axis} keeps it whole on every device{rest}"
    where = [r.position for t in bad for m in over if (r := strategy.rule(t.kind, axis, m))]
    problems.add("indivisible", message, where[0] if where else None, allowed=allowed, suggestion=mend)


def _more(bad: Sequence[Tensor]) -> str:
    others = len({t.label for t in bad}) - 1
    return f" and {others} more" if others else ""


def _near(n: int, shards: int) -> list[int]:
    """Divisors of ``n``: all of them above 1 when they are few, else the nearest to ``shards``."""
    every = [d for d in divisors(n) if d > 1] or [1]
    if len(every) <= MOST_SHOWN:
        return every
    return [d for d in every if d < shards][-3:] + [d for d in every if d > shards][:3]


# -- what is said of a good plan
def _told(strategy: Strategy, mesh: Mesh, plan: Plan, found: Sequence[Tensor]) -> Iterable[Note]:
    axes = {axis for t in found for axis in t.sizes}
    absent = [a for a in dict.fromkeys(r.axis for r in strategy.rules) if a not in axes]
    if absent:
        yield Note("absent", f"no tensor here has the axes {', '.join(absent)}: their rules do nothing")
    idle = [m for m in strategy.mesh if mesh.sizes.get(m, 1) == 1]
    if idle:
        yield Note("idle", f"mesh axis {', '.join(idle)} is 1: its rules do nothing")
    used = {m for t in found for over in t.divided(plan).values() for m in over}
    for m, size in plan.mesh.items():
        if size > 1 and m not in used:
            yield Note("idle", f"mesh axis {m} = {size} divides nothing here: {size} devices do the same work")
