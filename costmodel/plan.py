"""A plan: what one call of a model costs, as frozen records of numbers in SI units."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from costmodel import units

TIME_LABEL = "roofline lower bound, uncalibrated"
PLAIN = "attention is counted as it runs: every query against every key slot, masked ones too"
BLOCKED = "blocked attention is counted as it runs: whole tiles of 512 x 512 that the mask leaves"
PACKED = (
    "key heads that do not fill a TPU's tiles lie side by side in the cache: a query of decode or verify meets all of "
    "them, zeros for those that are not its own, which is more products and no more traffic"
)
LOOKUPS = "embedding lookups are not counted as FLOPs"
PADDING = (
    "a convolution's FLOPs are products with entries of its input, as XLA counts; papers also count those with the "
    "zeros around it"
)
CONVENTIONS = (
    "1 multiply-add = 2 FLOPs",
    PLAIN,
    BLOCKED,
    PACKED,
    LOOKUPS,
    PADDING,
    "capacity in GiB (2^30 bytes); traffic and bandwidth in GB (1e9 bytes)",
)


@dataclass(frozen=True)
class Parameters:
    """``embedding``: tables that tokens look up, and weights over the same vocabulary (untied outputs)."""

    count: int
    embedding: int
    non_embedding: int
    bytes_by_dtype: Mapping[str, float]


@dataclass(frozen=True)
class Flops:
    """Of one call on all chips."""

    matrix: float
    vector: float
    transcendental: float
    matrix_per_token: float  # or image, or row: see ``Plan.unit``
    padding: float = 0.0  # products with the padding of convolutions, not in ``matrix``


@dataclass(frozen=True)
class Traffic:
    """HBM bytes of one call on all chips."""

    parameters: float
    state: float
    activations: float
    fused: float  # the sum of these: the first estimate of what moves
    unfused: float  # every node reads and writes HBM: what no compiler would do


@dataclass(frozen=True)
class Memory:
    """Bytes on one chip."""

    parameters: float
    state_by_kind: Mapping[str, float]
    activations: float  # rough
    total: float
    available: float
    headroom: float  # negative where it does not fit
    fits: bool
    most_batch: int | None  # the largest batch that fits, all else equal; None where not even 1 does
    fewest_chips: int  # that hold this call when everything divides evenly


@dataclass(frozen=True)
class Time:
    """Seconds of one call on one of ``chips``: the sum over nodes of the larger of compute and memory."""

    seconds: float
    label: str
    compute_seconds: float  # products at the peak rate, by themselves
    memory_seconds: float  # fused traffic at the peak bandwidth, by itself
    binds: str  # "memory" | "compute": where most of ``seconds`` goes
    memory_share: float  # part of ``seconds`` in nodes that memory binds
    tokens_per_second: float  # an upper bound, all chips together; or images, or rows


@dataclass(frozen=True)
class Row:
    """Totals of one op or block path, over all chips, with its part of the time."""

    name: str
    matrix: float
    vector: float
    traffic: float
    seconds: float
    binds: str


@dataclass(frozen=True, repr=False)
class Plan:
    """One call of a model on a machine."""

    model: str
    machine: str
    phase: str
    batch: int
    length: int
    chips: int
    tokens: int  # computed by one call; or images, or rows
    parameters: Parameters
    flops: Flops
    traffic: Traffic
    memory: Memory
    time: Time
    by_op: tuple[Row, ...]
    by_path: tuple[Row, ...]
    assumptions: tuple[str, ...]
    conventions: tuple[str, ...] = CONVENTIONS
    aside: tuple[str, ...] = ()  # those of both that speak of what this call has not
    chunk: int | None = None  # of a prefill in several calls: the tokens of one
    notes: tuple[str, ...] = ()  # how this is not what was asked for
    unit: str = "token"  # what a call takes many of: token, or image or row for a model without tokens

    def as_json(self) -> dict[str, Any]:
        return _plain(self)

    def __repr__(self) -> str:
        time = f"{units.time_text(self.time.seconds)} at least, {'fits' if self.memory.fits else 'does not fit'}"
        return f"<Plan {self.call}: {time}>"

    def __str__(self) -> str:
        from costmodel.render import plan_text

        return plan_text(self).rstrip()

    @property
    def call(self) -> str:
        """What was priced, in one line."""
        length = (
            [f"{'context' if self.phase == 'decode' else 'length'} {self.length:,}"] if self.unit == "token" else []
        )
        chunk = [f"chunk {self.chunk:,}"] if self.chunk is not None else []
        chips = f"{self.chips:,} x {self.machine}" if self.chips > 1 else self.machine
        return " · ".join([self.model, self.phase, f"batch {self.batch:,}", *length, *chunk, chips])


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
