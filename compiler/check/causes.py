"""Why a compiler made something else of a collective: what is known of each, measured on small programs.

A rule looks at the shapes that were asked for and says nothing where they do not explain the change. Measured with
jax 0.10.2, libtpu 0.0.42.1 on v5e (gathers and scatters of one value over eight devices).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from compiler.check.compare import Comparison, Expected, Match

LANES, SUBLANES = 128, 8  # of a tile of TPU's memory


@dataclass(frozen=True)
class Rule:
    platform: str
    asked: str  # kinds
    made: str
    holds: Callable[[Expected], bool]
    cause: str


def _ragged_gather(e: Expected) -> bool:
    """A vector whose shards end inside a row of lanes."""
    return e.along is not None and math.prod(e.shape) == e.shape[e.along] and e.shape[e.along] % LANES != 0


def _less_than_a_tile(e: Expected) -> bool:
    """Shards of a scatter that are no whole tiles: of a vector, or of few rows."""
    if e.along is None:
        return False
    return math.prod(e.shape) == e.shape[e.along] or (e.shape[e.along] // e.group) % SUBLANES != 0


RULES = (
    Rule(
        "tpu", "all-gather", "all-reduce", _ragged_gather,
        f"XLA for TPU gathers whole lanes: a vector whose shards are no multiple of {LANES} entries it sums instead, "
        "each device adding its part to zeros",
    ),
    Rule(
        "tpu", "reduce-scatter", "all-reduce", _less_than_a_tile,
        f"XLA for TPU scatters whole tiles of {SUBLANES} x {LANES}: vectors, and what leaves a device fewer rows, it "
        "sums, and each device takes its part",
    ),
)  # fmt: skip


def cause(match: Match, platform: str) -> str:
    """Why a match is not as asked; empty where that is not known."""
    if not match.expected or not match.found:
        return ""
    e, made = match.expected[0], {c.kind for c in match.found}
    for rule in RULES:
        if (rule.platform, rule.asked) == (platform, e.kind) and made == {rule.made} and rule.holds(e):
            return rule.cause
    return ""


def explained(comparison: Comparison, platform: str) -> Comparison:
    """The comparison with the cause of each match that is not as asked, where it is known."""
    matches = (m if m.status in ("equal", "normalised") else replace(m, cause=cause(m, platform))
               for m in comparison.matches)  # fmt: skip
    return replace(comparison, matches=tuple(matches))
