"""What is kept whole although a strategy would divide it: asked for by name, and priced.

Key and value heads are the common case. With fewer of them than devices (8 devices, 4 heads) a mesh axis is factored:
``model = 4`` (outer) divides the heads, ``model_copies = 2`` (inner) holds the same ones, and all else that went to
``model`` goes to both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from compiler.errors import Problems
from compiler.parallel.mesh import divisors
from compiler.parallel.plan import CLASSES, Plan
from compiler.parallel.strategy import Strategy
from compiler.parallel.tensors import Tensor

COPIES = "_copies"
HELD = ("parameters", "state")  # the classes whose bytes are told: the rest depends on the optimiser and the program
Factor = tuple[str, int]  # a mesh axis, and the size that its outer part keeps


@dataclass(frozen=True)
class Note:
    """Something about a plan that is no fault. ``bytes``: what it costs in memory of each device, by class."""

    code: str  # "absent" | "idle" | "replicated"
    text: str
    axis: str | None = None
    bytes: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        return self.text


def asked(strategy: Strategy, found: Sequence[Tensor]) -> tuple[str, ...]:
    """Axes to keep whole. Query heads take key and value heads with them: a device that has all of the one needs all
    of the other."""
    axes = dict.fromkeys(axis for axis, _ in strategy.replicated)
    if "heads" in axes and any("kv_heads" in t.sizes for t in found):
        axes.setdefault("kv_heads")
    return tuple(axes)


def kv_heads(
    strategy: Strategy, plan: Plan, found: Sequence[Tensor], problems: Problems
) -> tuple[Strategy, Factor | None]:
    """The strategy with key and value heads replicated, and the mesh axis that is factored for it."""
    place = next(p for axis, p in strategy.replicated if axis == "kv_heads")
    sizes: dict[int, str] = {}
    over: dict[tuple[str, ...], None] = {}
    for t in found:
        mesh_axes = t.divided(plan).get("kv_heads", ())
        if mesh_axes:
            over.setdefault(mesh_axes)
            sizes.setdefault(t.sizes["kv_heads"], t.label)
    whole = strategy.without("kv_heads")  # also after a problem: it is told once
    if not over:
        return strategy, None
    if len(over) > 1 or len(next(iter(over))) > 1:
        message = "kv_heads goes to more than one mesh axis: only one can be factored into heads and copies"
        problems.add("cannot-replicate", message, place)
        return whole, None
    ((m,),) = over
    shards = plan.mesh[m]
    if all(n % shards == 0 for n in sizes):
        return strategy, None  # each device has heads of its own: nothing to copy
    if 1 in sizes:  # one key head beside towers that have several: whole in all of them
        return whole, None
    if len(sizes) > 1:
        told = " and ".join(f"{n} in {label}" for n, label in sizes.items())
        message = f"kv_heads is {told}: one mesh axis {m} = {shards} cannot be factored for all of them"
        fitting = [f"{m}={d}" for d in divisors(min(sizes)) if all(n % d == 0 for n in sizes)]
        problems.add("cannot-replicate", message, place, allowed=fitting)
        return whole, None
    (kept,) = sizes
    if shards % kept:
        message = f"kv_heads = {kept} cannot be copied over {m} = {shards}: a multiple of {kept} can"
        able = [*divisors(kept), *(kept * i for i in range(2, 2 + max(2, shards // kept)))]
        problems.add("cannot-replicate", message, place, allowed=[f"{m}={n}" for n in able])
        return whole, None
    if m + COPIES in plan.mesh:
        problems.add("mesh-axis-twice", f"the mesh has an axis {m}{COPIES} already", place)
        return whole, None
    return strategy, (m, kept)


def kv_mend(numbers: Sequence[int], shards: int, m: str) -> str:
    """What to do about key and value heads that do not divide, in words."""
    if list(numbers) == [1]:
        return f"--replicate kv_heads, and each of the {shards} devices has the one head whole"
    if len(numbers) == 1 and shards % numbers[0] == 0:
        kept, copies = numbers[0], shards // numbers[0]
        return f"--replicate kv_heads, and {copies} devices share one ({m}={kept}, {m}{COPIES}={copies})"
    return f"another size of {m}, or --replicate heads: attention then runs whole on every device"


def factored(plan: Plan, m: str, kept: int) -> Plan:
    """The plan with mesh axis ``m`` in two: its outer part keeps the name, the inner one holds copies of kv_heads."""
    mesh: dict[str, int] = {}
    for name, size in plan.mesh.items():
        mesh |= {m: kept, m + COPIES: size // kept} if name == m else {name: size}
    rules: dict[str, dict[str, tuple[str, ...]]] = {}
    for kind in CLASSES:
        rules[kind] = {}
        for name, axes in plan.rules[kind].items():
            rules[kind][name] = axes
            if name == m:
                rules[kind][m + COPIES] = tuple(a for a in axes if a != "kv_heads")
    return Plan(mesh, rules)


def told(whole: Sequence[str], before: Plan, plan: Plan, found: Sequence[Tensor]) -> Iterable[Note]:
    """For each axis that was asked to be whole, what that costs a device: bytes above an even division."""
    for axis in whole:
        cost: dict[str, float] = {}
        divided: dict[str, None] = {}
        for t in found:
            over = t.divided(before).get(axis, ())
            divided |= dict.fromkeys(over)
            if over and t.kind in HELD:
                more = t.bytes / t.shards(plan) - t.bytes / t.shards(before)
                cost[t.kind] = cost.get(t.kind, 0.0) + max(more, 0.0)
        if not divided:
            yield Note("replicated", f"{axis} is whole: no rule would have divided it here", axis)
            continue
        names = " x ".join(f"{m} = {before.mesh[m]}" for m in divided)
        copies = [m + COPIES for m in divided if m + COPIES in plan.mesh] if axis == "kv_heads" else []
        if copies:
            text = f"kv_heads: {names} becomes {_parts(plan, copies[0])}; {plan.mesh[copies[0]]} devices hold the same"
        elif all(not c for c in cost.values()) and any(axis in plan.axes(k, m) for k in CLASSES for m in divided):
            yield Note("replicated", f"{axis} divides by {names}: nothing is replicated", axis)
            continue
        else:
            text = f"{axis} is whole on every device instead of divided by {names}"
            text += ": all of attention runs on each" if axis == "heads" else ""
        shown = [f"{_bytes(c)} more {kind}" for kind, c in cost.items() if c]
        yield Note("replicated", f"{text}; {', '.join(shown) or 'no more memory'} a device", axis, tuple(cost.items()))


def _parts(plan: Plan, copies: str) -> str:
    m = copies.removesuffix(COPIES)
    return f"{m} = {plan.mesh[m]} x {copies} = {plan.mesh[copies]}"


def _bytes(n: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:.0f} B"
