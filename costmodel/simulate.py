"""``simulate``: what one call of a model costs on a machine, as a roofline lower bound.

A Plan holds numbers (SI) and every assumption made, in words; ``as_json`` is the same for programs. Nothing
is calibrated here, so no time is a prediction: each is a bound below the true one.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.errors import Problems, nearest
from compiler.graph.types import DTYPE_BITS
from compiler.passes.call import check_chunk, missing_size, unknown_size
from costmodel import anew
from costmodel.calls import BATCH, LENGTH, phase_of
from costmodel.errors import PlanError
from costmodel.machines import Machine, machine
from costmodel.memory import activation_bytes
from costmodel.origins import Stored
from costmodel.plan import (
    BLOCKED,
    LOOKUPS,
    PACKED,
    PADDING,
    PLAIN,
    TIME_LABEL,
    Flops,
    Memory,
    Parameters,
    Plan,
    Traffic,
)
from costmodel.price import Price, price
from costmodel.roofline import rows, timed
from costmodel.units import memory_text

if TYPE_CHECKING:
    from compiler.graph.ir import Graph
    from compiler.language.model import Model

PHASES = ("forward", "prefill", "decode")
MOST = {"batch": 1 << 24, "length": 1 << 27, "chips": 1_000_000, "chunk": 1 << 27}
SCORES = "attention scores stay on the chip"
IN_PLACE = "state is updated in place"
RIDES = "element-wise work that rides takes no time of its own, and exp, log, tanh and the like take none"


def simulate(
    model: Model | str | Path,
    machine_: Machine | str | Path,
    phase: str | None = None,
    batch: int = BATCH,
    length: int = LENGTH,
    chips: int = 1,
    *,
    chunk: int | None = None,
    weights_dtype: str | None = None,
    cache_dtype: str | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Plan:
    """Prices one call of a model (or of the spec of that name) on a machine (or the one of that name).

    ``phase``: decode unless another is asked for; forward for a model that has no decode, and a note says so.
    ``length``: tokens of the call (forward, prefill), or the context that decode reads, which is the cache's
    length. ``chunk``: a prefill in calls of so many tokens, of which one is priced. ``weights_dtype``,
    ``cache_dtype``: how matrices, and keys and values, are stored (default: as the spec says). ``sizes``: other
    lengths of the model (frames, images).
    Raises SpecError, PlanError, MachineError, PhaseError.
    """
    sizes_given = {"batch": batch, "length": length, "chips": chips, **({} if chunk is None else {"chunk": chunk})}
    _check(phase, sizes_given, weights_dtype, cache_dtype)
    place = machine_ if isinstance(machine_, Machine) else machine(machine_)
    if isinstance(model, (str, Path)):
        from compiler.language.model import load

        model = load(model)
    from compiler.passes.phase import phase_graph
    from compiler.passes.pipeline import phase_pipeline
    from compiler.passes.select import Choice

    phase, note = phase_of(model, phase)
    check_chunk(phase, length, chunk)
    chunk = None if chunk == length else chunk
    fresh, choice = phase == "prefill" and chunk is None, Choice.of(place.kind)
    symbols = price(phase_graph(model, phase, fresh=fresh).graph).symbols
    env = _env(phase, batch, length, chunk, sizes or {}, symbols)
    graph = phase_pipeline(model, phase, env, fresh=fresh, choice=choice).run(model.graph)
    priced = price(graph, Stored(weights_dtype, cache_dtype))
    plan = plan_graph(graph, priced, place, env, chips, phase, model.name, length, model.unit)
    told = _told(model, priced, phase, weights_dtype, cache_dtype)
    if chunk is not None:
        calls = -(-length // chunk)
        told.insert(0, f"this is one call of {chunk:,} tokens a row: {length:,} tokens take {calls:,} such calls")

    def one_token_again() -> Plan:
        return simulate(
            model, place, "prefill", batch, length, chips, chunk=1, weights_dtype=weights_dtype,
            cache_dtype=cache_dtype, sizes=sizes,
        )  # fmt: skip

    notes = [*model.notes, *([note] if note else []), *_halves(place), *_dense(graph)]
    notes += anew.notes(model, plan, one_token_again)
    return dataclasses.replace(plan, assumptions=(*plan.assumptions, *told), chunk=chunk, notes=tuple(notes))


def plan_graph(
    graph: Graph,
    priced: Price,
    place: Machine,
    env: Mapping[str, int],
    chips: int = 1,
    phase: str = "forward",
    name: str = "graph",
    length: int | None = None,
    unit: str = "token",
) -> Plan:
    """The plan of a graph that is priced already. ``env``: batch, seq, capacity and what else it needs; ``unit``:
    what a call takes many of."""
    work = priced.at(env)
    tokens = env["batch"] * (env["seq"] if unit == "token" else 1)
    nodes = timed(priced, place, env, chips)
    return Plan(
        model=name,
        machine=place.name,
        phase=phase,
        batch=env["batch"],
        length=env["seq"] if length is None else length,
        chips=chips,
        tokens=tokens,
        parameters=Parameters(
            priced.parameter_count(),
            priced.parameter_count(embedding=True),
            priced.parameter_count(embedding=False),
            priced.parameter_bytes(),
        ),
        flops=Flops(work.matrix, work.vector, work.transcendental, work.matrix / tokens, work.padding),
        traffic=Traffic(work.parameters, work.state, work.activations, work.fused, work.unfused),
        memory=_memory(graph, priced, place, env, chips),
        time=nodes.time(tokens, TIME_LABEL),
        by_op=rows(nodes, lambda item: item.op),
        by_path=rows(nodes, lambda item: item.path),
        assumptions=_assumptions(place, chips, nodes.notes),
        aside=_aside(graph, priced, work.vector + work.transcendental),
        unit=unit,
    )


def _aside(graph: Graph, priced: Price, beside_products: float) -> tuple[str, ...]:
    """The assumptions and conventions about what a graph has not."""
    ways = {getattr(n.op, "implementation", None) for n, _ in graph.walk() if n.op.name.startswith("attend")}
    there = {
        SCORES: bool(ways),
        RIDES: beside_products > 0,
        IN_PLACE: bool(priced.states),
        PLAIN: bool(ways - {"blocked"}),
        BLOCKED: "blocked" in ways,
        PACKED: "diagonal" in ways,
        LOOKUPS: any(item.op == "lookup" for item in priced.items),
        PADDING: any(item.padding != 0 for item in priced.items),
    }
    return tuple(text for text, has in there.items() if not has)


def _halves(place: Machine) -> list[str]:
    """Of a chip that a compiler sees as several devices."""
    if (n := place.devices_per_chip) == 1:
        return []
    return [
        f"a {place.name} is {n} devices of {memory_text(place.memory_bytes / n)} each: here the work is divided over "
        f"them without loss; a program for one of them (compile without --parallel) has one share of the memory"
    ]


def _dense(graph: Graph) -> list[str]:
    """Of experts that all run, for few tokens."""
    ops = [n.op for n, _ in graph.walk() if n.op.name == "expert_dot"]
    if not any(getattr(op, "implementation", "") == "dense" for op in ops):
        return []
    return [
        "of so few tokens every expert runs on every token, as in the program that is compiled: FLOPs and bytes are "
        "those of all experts, not only of the active ones"
    ]


def _memory(graph: Graph, priced: Price, place: Machine, env: Mapping[str, int], chips: int) -> Memory:
    held, room = sum(priced.parameter_bytes().values()) / chips, place.memory_bytes

    def parts(batch: int) -> tuple[dict[str, float], float]:
        at_batch = {**env, "batch": batch}
        states = {k: float(v) / chips for k, v in priced.state_bytes(at_batch).items()}
        return states, activation_bytes(graph, at_batch, priced.origins) / chips

    def total(batch: int) -> float:
        states, activations = parts(batch)
        return held + sum(states.values()) + activations

    states, activations = parts(env["batch"])
    whole = total(env["batch"])
    return Memory(
        parameters=held,
        state_by_kind=states,
        activations=activations,
        total=whole,
        available=room,
        headroom=room - whole,
        fits=whole <= room,
        most_batch=_most(lambda batch: total(batch) <= room),
        fewest_chips=math.ceil(whole * chips / room),
    )


def _most(fits: Callable[[int], bool]) -> int | None:
    """The largest batch that fits, found by halving; None where 1 does not."""
    if not fits(1):
        return None
    low = 1
    while low < MOST["batch"] and fits(low * 2):
        low *= 2
    step = low // 2
    while step:
        low, step = (low + step if fits(low + step) else low), step // 2
    return low


def _env(
    phase: str, batch: int, length: int, chunk: int | None, sizes: Mapping[str, int], symbols: frozenset[str]
) -> dict[str, int]:
    """The values of a graph's size symbols."""
    seq = 1 if phase == "decode" else chunk or length
    env = {"batch": batch, "seq": seq, "capacity": length, **sizes}
    problems = Problems()
    if missing := sorted(symbols - set(env)):
        problems.put(missing_size(missing))
    for name, value in sizes.items():
        if name not in symbols | {"batch", "seq", "capacity"}:
            problems.put(unknown_size(name, symbols - {"batch", "seq", "capacity"}))
        elif isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MOST["length"]:
            problems.add("bad-size", f"{name} = {value!r}: takes a whole number from 1 to {MOST['length']:,}")
    problems.raise_if_any(PlanError)
    return env


def _check(phase: str | None, sizes: Mapping[str, object], *dtypes: str | None) -> None:
    """Refuses what no plan can be made of, by name."""
    problems = Problems()
    if phase is not None and phase not in PHASES:
        problems.add(
            "unknown-phase",
            f"no plan is made for the phase {phase!r}",
            allowed=PHASES,
            suggestion=nearest(str(phase), PHASES),
        )
    for name, value in sizes.items():
        most = MOST[name]
        if isinstance(value, bool) or not isinstance(value, int):
            problems.add("bad-size", f"{name} = {value!r}: takes a whole number", allowed=[f"1 to {most:,}"])
        elif value < 1:
            problems.add("bad-size", f"{name} = {value}: takes 1 or more", allowed=[f"1 to {most:,}"])
        elif value > most:
            problems.add("bad-size", f"{name} = {value:,} is beyond any machine", allowed=[f"1 to {most:,}"])
    for name, dtype in zip(("weights_dtype", "cache_dtype"), dtypes, strict=True):
        known = [d for d in DTYPE_BITS if d.startswith(("float", "bfloat", "int")) and not d.endswith("64")]
        if dtype is not None and dtype not in known:
            problems.add(
                "unknown-dtype",
                f"{name}: no dtype is called {dtype!r}",
                allowed=known,
                suggestion=_nearest_dtype(dtype, known),
            )
    problems.raise_if_any(PlanError)


def _nearest_dtype(name: str, known: Sequence[str]) -> str | None:
    """Of the same kind the one of the nearest width: int4 for int3, bfloat16 for bf16, float16 for fp8."""
    match = re.fullmatch(r"(u?int|i|u|q|bfloat|bf|float|fp|f)(\d+).*", name.lower())
    if match is None:
        return nearest(name, known)
    kind = "bfloat" if match[1].startswith("b") else "float" if match[1].startswith("f") else "int"
    bits = int(match[2])
    alike = {dtype: int(dtype.removeprefix(kind)) for dtype in known if dtype.startswith(kind)}
    return min(alike, key=lambda d: (abs(alike[d] - bits), -alike[d]), default=None)


def _assumptions(place: Machine, chips: int, notes: tuple[str, ...]) -> tuple[str, ...]:
    said = [
        f"time is a {TIME_LABEL}: every node runs at the peak rate or the peak bandwidth, with no launch, no "
        "dispatch and nothing waiting; how far above it the true time lies is not known here",
        "traffic is the fused estimate: element-wise ops, norms and reshapes ride with their neighbours, "
        "every other op reads its operands and writes its results once",
        SCORES,
        RIDES,
        "activations are rough: live values without fusion",
        IN_PLACE,
    ]
    if place.usable_hbm_bytes is None:
        said.append(f"all of {place.name}'s HBM counts as usable: what its compiler or driver keeps is not known")
    if not place.vector_flops_per_s:
        said.append(f"the vector rate of {place.name} is not known: element-wise FLOPs take no time")
    if chips > 1:
        said.append(f"per chip = total / {chips}: ideal sharding, no collectives: a lower bound")
    if chips > place.pod_chips:
        said.append(
            f"{chips:,} chips are more than one network of {place.name} joins ({place.pod_chips:,}): "
            "the network between is not priced"
        )
    return (*said, *notes)


def _told(model: Model, priced: Price, phase: str, weights_dtype: str | None, cache_dtype: str | None) -> list[str]:
    said = []
    if weights_dtype:
        said.append(f"matrices are stored in {weights_dtype} without scales; products keep the graph's dtype")
    if cache_dtype:
        said.append(f"keys and values are stored in {cache_dtype} without scales")
    if phase == "prefill" and any(item.op == "attend_cached" for item in priced.items):
        said.append(
            "prefill attends over every slot of the cache besides this call's own keys, as attend_cached runs, "
            "though the cache is empty at first"
        )
    if (whole := model.parameter_count()) != priced.parameter_count():
        said.append(f"this phase uses {priced.parameter_count():,} of the model's {whole:,} parameters")
    return said
