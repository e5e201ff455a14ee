"""Frequencies of rotary and sinusoidal positions, and their rescaling to contexts longer than those trained on.

Each scaling says from the frequencies of the trained model, in radians a position and from the fastest pair to the
slowest, which ones are used. It is a function of the pair alone, never of the length at hand: keys in a cache stay
as they were turned. What grows with the length (dynamic NTK, LongRoPE's switch) is for this reason not here.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass


def geometric(theta: float, channels: int) -> list[float]:
    """theta ** (-2 i / channels), in radians a position (arXiv:2104.09864, section 3.2.2; arXiv:1706.03762, 3.5)."""
    return [theta ** (-2.0 * i / channels) for i in range(channels // 2)]


@dataclass(frozen=True)
class Scaling:
    """None: the frequencies as they were trained."""

    def frequencies(self, theta: float, channels: int) -> list[float]:
        """One for each pair of channels, in radians a position."""
        return geometric(theta, channels)

    @property
    def magnitude(self) -> float:
        """By which turned queries and keys are multiplied."""
        return 1.0

    def __str__(self) -> str:
        """As a spec has it: ``yarn {factor: 4}``."""
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        options = ", ".join(f"{n}: {v:g}" for n, v in given.items() if v is not None)
        return f"{type(self).__name__.lower()} {{{options}}}" if given else "none"

    @property
    def short(self) -> str:
        """Its name and by how much: ``yarn × 4``."""
        return f"{type(self).__name__.lower()} × {getattr(self, 'factor', 1):g}"


NONE = Scaling()


@dataclass(frozen=True)
class Linear(Scaling):
    """Position interpolation: every frequency divided by ``factor`` (arXiv:2306.15595, equation 4)."""

    factor: float = 1.0

    def frequencies(self, theta: float, channels: int) -> list[float]:
        return [f / self.factor for f in geometric(theta, channels)]


@dataclass(frozen=True)
class NTK(Scaling):
    """NTK-aware: theta times factor ** (n / (n - 2)), so that the fastest pair keeps its frequency and the slowest is
    divided by ``factor`` (arXiv:2309.00071, definition 1)."""

    factor: float = 1.0

    def frequencies(self, theta: float, channels: int) -> list[float]:
        if channels <= 2:  # one pair, and it is the fastest
            return geometric(theta, channels)
        return geometric(theta * self.factor ** (channels / (channels - 2)), channels)


@dataclass(frozen=True)
class Llama3(Scaling):
    """By parts of wavelength (Llama 3.1's release, ``apply_scaling`` of its model code): those above ``original / low``
    positions are stretched by ``factor``, those below ``original / high`` kept, with a ramp between."""

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original: float = 8192.0

    def frequencies(self, theta: float, channels: int) -> list[float]:
        found = []
        for f in geometric(theta, channels):
            turns = self.original * f / (2 * math.pi)  # that this pair makes over the trained context
            kept = min(max((turns - self.low) / (self.high - self.low), 0.0), 1.0)
            found.append(f * (kept + (1 - kept) / self.factor))
        return found


@dataclass(frozen=True)
class Yarn(Scaling):
    """By parts of the number of pairs, with a magnitude (arXiv:2309.00071, definitions 2 and 3): pairs that turn more
    than ``fast`` times over the trained context ``original`` are kept, those that turn less than ``slow`` times are
    stretched by ``factor``, with a ramp along the pairs between; its ends are whole pairs if ``truncate``.
    ``attention``: the magnitude, 0.1 ln(factor) + 1 where it is not given."""

    factor: float = 1.0
    original: float = 4096.0
    fast: float = 32.0
    slow: float = 1.0
    attention: float | None = None
    truncate: bool = True

    def frequencies(self, theta: float, channels: int) -> list[float]:
        def pair(turns: float) -> float:  # which, counted from the fastest, makes so many
            return channels * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(theta))

        first, last = pair(self.fast), pair(self.slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, channels - 1)
        wide = last - first or 0.001
        found = []
        for i, f in enumerate(geometric(theta, channels)):
            kept = 1 - min(max((i - first) / wide, 0.0), 1.0)
            found.append(f * (kept + (1 - kept) / self.factor))
        return found

    @property
    def magnitude(self) -> float:
        if self.attention is not None:
            return self.attention
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0
