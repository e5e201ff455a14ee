"""Generation: prefill, then one decode call a token, rows finishing on their own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler.errors import BlockgraphError, Problem
from compiler.language.model import Model
from compiler.ops.latest import latest_of
from runtime.sample import Sampler, Sampling
from runtime.session import CHUNK, Place, Session, meshed

GREEDY = Sampling()


@dataclass(frozen=True)
class Token:
    """One new token of one row; ``done`` with the row's last."""

    row: int
    id: int
    done: bool


def generate(
    model: Model,
    params: Mapping[str, Any] | Callable[[Mapping[str, Any]], Mapping[str, Any]],
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int = 64,
    sampling: Sampling = GREEDY,
    stop: Collection[int] = (),
    vocab: int | None = None,
    capacity: int | None = None,
    chunk: int = CHUNK,
    place: Place | None = None,
    progress: Callable[..., None] | None = None,
) -> Iterator[Token]:
    """Continues each prompt by up to ``max_tokens`` tokens or until one of ``stop``, which is not given out.
    ``params``: arrays by label, or what makes them from their shardings by label (none but on a mesh).
    ``vocab``: ids below this are real (the rest pads the table). ``place``: a mesh to run on.
    ``progress``: told what happens before the first token."""
    if max_tokens < 1:
        raise BlockgraphError(Problem("out-of-range", f"max_tokens = {max_tokens}", None, ("at least 1",)))
    if not prompts:
        raise BlockgraphError(Problem("empty-prompt", "there is no prompt to continue"))
    longest = max(len(p) for p in prompts)
    latest = latest_of(model.graph)
    need = max(longest + max_tokens, int(latest.keep.constant) if latest else 0)  # room for what is made anew
    chunk, room = min(chunk, max(longest, 1)), capacity or need
    on = meshed(model, place, batch=len(prompts), capacity=room, chunk=chunk) if place is not None else None
    arrays = params(on.shardings() if on is not None else {}) if callable(params) else params
    if progress is not None:
        progress("compiling, and reading the prompt")
    session = Session(model, arrays, batch=len(prompts), capacity=room, chunk=chunk, on=on)
    sampler = Sampler(sampling, len(prompts))
    active = np.ones(len(prompts), bool)
    tokens = sampler.draw(session.prefill(prompts), vocab)
    for step in range(max_tokens):
        last = step == max_tokens - 1
        for row in np.flatnonzero(active):
            token = int(tokens[row])
            if token in stop:
                active[row] = False
                yield Token(int(row), -1, True)
            else:
                yield Token(int(row), token, last)
        if last or not active.any():
            return
        tokens = sampler.draw(session.decode(tokens, active), vocab)
