"""The sizes of one call of a phase."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from compiler.errors import Problem, SpecError, nearest

TRAIN = "train"  # a training step: forward, backward and update in one call; no phase of inference
CHUNKED = ("prefill", "verify", "commit")  # phases whose calls take a part of all tokens
VERIFIED = 5  # tokens of a verify call unless said otherwise: four drafted and one more


def sizes_for(
    phase: str, batch: int, length: int, chunk: int | None, sizes: Mapping[str, int] | None
) -> dict[str, int]:
    """Numbers for the symbols: ``seq`` is the positions of one call, ``capacity`` the longest sequence."""
    seq = {"decode": 1, "verify": chunk or VERIFIED, "commit": chunk or VERIFIED}.get(phase, chunk or length)
    return {"batch": batch, "seq": min(seq, length), "capacity": length, **(sizes or {})}


def check_chunk(phase: str, length: int, chunk: int | None) -> None:
    """Raises SpecError for a chunk that the call has no use for: of a phase that takes none, or longer than all."""
    if chunk is not None and phase not in CHUNKED:
        message = f"chunk = {chunk}: the tokens of one prefill or verify call, and this is {phase}"
        raise SpecError(Problem("conflicting-options", message, None, CHUNKED[:2]))
    one = chunk if chunk is not None else VERIFIED if phase in CHUNKED[1:] else 1
    if one > length:
        message = f"a {phase} call of {one} tokens does not fit a length of {length}"
        raise SpecError(Problem("out-of-range", message, None, (f"chunk of 1 to {length}", f"length of {one} or more")))


def missing_size(names: Sequence[str], instead: str = "") -> Problem:
    """Variable axes that a call needs sizes for. ``instead``: what else would say them."""
    mend = f"--size {names[0]}=16" + (f", or {instead}" if instead else "")
    return Problem("missing-size", f"the model needs a size for {', '.join(names)}", None, (), mend)


def unknown_size(name: str, known: Iterable[str]) -> Problem:
    """A size for what is no variable axis of the model."""
    axes = tuple(sorted(known))
    message = f"the model has no variable axis {name}" + ("" if axes else ", only batch and length")
    return Problem("unknown-size", message, None, axes, nearest(name, axes))


def whole_prompt(phase: str, sizes: Mapping[str, int]) -> bool:
    """A prefill whose one call takes all that the cache holds begins with an empty state."""
    return phase == "prefill" and sizes["seq"] == sizes["capacity"]
