"""Choosing the next token from logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compiler.errors import BlockgraphError, Problem


@dataclass(frozen=True)
class Sampling:
    """``temperature`` 0 is greedy. ``top_k`` keeps the k likeliest (0: all); ``top_p`` the smallest set of the
    likeliest whose probability reaches it (nucleus sampling, arXiv:1904.09751)."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, ok, allowed in (
            ("temperature", 0 <= self.temperature <= 100, "0 to 100"),
            ("top_p", 0 < self.top_p <= 1, "above 0, to 1"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("seed", self.seed >= 0, "0 or more"),
        ):
            if not ok:
                raise BlockgraphError(Problem("out-of-range", f"{name} = {getattr(self, name)}", None, (allowed,)))


def probabilities(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Probabilities [vocab] after temperature, top-k and top-p; one 1 where greedy. float64."""
    logits = logits.astype(np.float64)
    if sampling.temperature == 0:
        greedy = np.zeros_like(logits)
        greedy[int(np.argmax(logits))] = 1.0
        return greedy
    with np.errstate(over="ignore"):  # a tiny temperature makes all but the best -inf
        p = np.exp((logits - logits.max()) / sampling.temperature)
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    keep = len(p) if sampling.top_k == 0 else min(sampling.top_k, len(p))
    if sampling.top_p < 1:
        keep = min(keep, int(np.searchsorted(np.cumsum(p[order]), sampling.top_p)) + 1)
    if keep < len(p):
        p[order[keep:]] = 0
        p /= p.sum()
    return p


class Sampler:
    """Draws tokens; rows have streams of their own, so that a row does not depend on the batch around it."""

    def __init__(self, sampling: Sampling, batch: int) -> None:
        self.sampling = sampling
        self.streams = [np.random.default_rng([sampling.seed, row]) for row in range(batch)]

    def draw(self, logits: np.ndarray, limit: int | None = None) -> np.ndarray:
        """A token for each row of logits [batch, vocab]; ids from ``limit`` on are padding rows, never drawn."""
        chosen = np.empty(len(logits), np.int64)
        for row, line in enumerate(logits[:, :limit]):
            if self.sampling.temperature == 0:
                chosen[row] = int(np.argmax(line))
            else:
                p = probabilities(line, self.sampling)
                chosen[row] = int(np.searchsorted(np.cumsum(p), self.streams[row].random(), side="right"))
                chosen[row] = min(chosen[row], int(np.flatnonzero(p)[-1]))
        return chosen
