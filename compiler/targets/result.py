"""What a compiler said about a program, and how its refusals are read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

MEMORY = ("argument_bytes", "output_bytes", "alias_bytes", "temp_bytes", "generated_code_bytes", "peak_bytes")
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
SIZE = r"([0-9.]+)([KMGT]?)i?B?"
REFUSALS = (
    re.compile(rf"total memory required for [^(]*\({SIZE}\) exceeds available \w+ \({SIZE}\)"),
    re.compile(rf"total memory required[^0-9]*{SIZE}[^0-9]*exceeds available \w+ \({SIZE}\)"),
    re.compile(rf"Used {SIZE} of {SIZE} \w+"),
)


@dataclass(frozen=True)
class Result:
    """The verdict on one program for one target. Bytes are of one device; None: the compiler did not say."""

    verdict: Literal["accepted", "refused"]
    target: str
    program_hash: str  # of the StableHLO text, the target, its devices in order and the compile options
    versions: dict[str, str]
    # XLA for GPU never refuses a program for its size; what it says of memory is held against the card's.
    refused_by: Literal["compiler", "memory size"] | None = None
    message: str | None = None  # the compiler's own words when it refused
    needed_bytes: int | None = None
    available_bytes: int | None = None
    memory: dict[str, int | None] = field(default_factory=dict)  # the keys of MEMORY
    cost: dict[str, float | None] = field(default_factory=dict)  # flops, bytes_accessed: a loop's body once
    seconds: dict[str, float] = field(default_factory=dict)  # per stage; a cached "compile" is from then
    cached: bool = False
    files: dict[str, str] = field(default_factory=dict)  # kind -> absolute path
    notes: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        return self.verdict == "accepted"

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"notes": list(self.notes)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Result:
        return cls(**{**data, "notes": tuple(data.get("notes", ()))})


def is_refusal(message: str) -> bool:
    """Whether a compiler's error says that the program does not fit, rather than that it failed."""
    return "CompileTimeHbmOom" in message or ("RESOURCE_EXHAUSTED" in message and "memory" in message.lower())


def refusal_sizes(message: str) -> tuple[int | None, int | None]:
    """Needed and available bytes from a refusal; the compiler prints two decimals of a GiB."""
    for pattern in REFUSALS:
        found = pattern.search(message)
        if found:
            return _bytes(found[1], found[2]), _bytes(found[3], found[4])
    return None, None


def _bytes(number: str, unit: str) -> int | None:
    try:
        return round(float(number) * UNITS[unit])
    except ValueError:
        return None


def memory_figures(stats: Any, platform: str = "") -> dict[str, int | None]:
    """The compiler's memory analysis as plain numbers. XLA for CPU leaves its working memory, which is one buffer, out
    of its peak: there the peak is the sum."""
    figures: dict[str, int | None] = {}
    for key in MEMORY:
        name = "peak_memory_in_bytes" if key == "peak_bytes" else key.replace("_bytes", "_size_in_bytes")
        value = getattr(stats, name, None)
        figures[key] = None if value is None or (key == "peak_bytes" and value <= 0) else int(value)
    if platform == "cpu":
        parts = [figures[key] for key in ("argument_bytes", "output_bytes", "temp_bytes")]
        figures["peak_bytes"] = None if None in parts else sum(p or 0 for p in parts) - (figures["alias_bytes"] or 0)
    return figures


def cost_figures(analysis: Any) -> dict[str, float | None]:
    """FLOPs and bytes as the compiler counts them; a negative count means that it does not know."""
    if isinstance(analysis, (list, tuple)):
        analysis = analysis[0] if analysis else None
    found = analysis if isinstance(analysis, Mapping) else {}
    names = {"flops": "flops", "bytes_accessed": "bytes accessed"}
    values = {key: found.get(name) for key, name in names.items()}
    return {key: float(v) if v is not None and v >= 0 else None for key, v in values.items()}
