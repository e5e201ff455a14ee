"""The call that is meant where nothing else is said: one decode step of one row, at a context of 8,192."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compiler.errors import PhaseError

if TYPE_CHECKING:
    from compiler.language.model import Model

PHASE, BATCH, LENGTH = "decode", 1, 8192


def phase_of(model: Model, asked: str | None) -> tuple[str, str | None]:
    """The phase that was asked for; where none was, decode, or forward for a model without decode and why."""
    from compiler.passes.phase import phase_graph

    if asked is not None:
        return asked, None
    try:
        phase_graph(model, PHASE)
    except PhaseError as error:
        why = "; ".join(dict.fromkeys(p.message for p in error.problems))
        return "forward", f"no phase was asked for, and this is forward, as the model has no {PHASE}: {why}"
    return PHASE, None
