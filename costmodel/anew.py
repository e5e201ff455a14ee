"""What a decode of a model that makes more of its last positions costs beside its usual call."""

from __future__ import annotations

from collections.abc import Callable

from compiler.language.model import Model
from compiler.ops.latest import latest_of
from costmodel.plan import Plan
from costmodel.units import time_text


def notes(model: Model, plan: Plan, prefill: Callable[[], Plan]) -> tuple[str, ...]:
    """How often the last positions are made anew, how long that takes and what a token takes in the mean; nothing of
    another model or phase. ``prefill``: the plan of a prefill call of one token, which does it."""
    latest = latest_of(model.graph)
    if latest is None or plan.phase != "decode":
        return ()
    count, keep = int(latest.count.constant), int(latest.keep.constant)
    turn, full = count - keep + 1, prefill().time.seconds
    mean = (full + (turn - 1) * plan.time.seconds) / turn
    return (
        f"one token in {turn:,} makes the last {keep:,} positions anew, as a prefill call does: {time_text(full)}, "
        f"{time_text(mean)} a token in the mean ({plan.time.label})",
    )
