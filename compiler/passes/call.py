"""The sizes of one call of a phase."""

from __future__ import annotations

from collections.abc import Mapping

TRAIN = "train"  # a training step: forward, backward and update in one call; no phase of inference
VERIFIED = 5  # tokens of a verify call unless said otherwise: four drafted and one more


def sizes_for(
    phase: str, batch: int, length: int, chunk: int | None, sizes: Mapping[str, int] | None
) -> dict[str, int]:
    """Numbers for the symbols: ``seq`` is the positions of one call, ``capacity`` the longest sequence."""
    seq = {"decode": 1, "verify": chunk or VERIFIED, "commit": chunk or VERIFIED}.get(phase, chunk or length)
    return {"batch": batch, "seq": min(seq, length), "capacity": length, **(sizes or {})}


def whole_prompt(phase: str, sizes: Mapping[str, int]) -> bool:
    """A prefill whose one call takes all that the cache holds begins with an empty state."""
    return phase == "prefill" and sizes["seq"] == sizes["capacity"]
