"""Windows that slide along an axis: at how many places they stand, what padding that takes, what they meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from compiler.errors import nearest
from compiler.graph.sizes import Size, SizeLike
from compiler.graph.types import TypeProblem

TAPS = "kernel_"  # in front of an axis: the entries of a kernel along it
Padding = str | tuple[int, int]  # "same", "valid", or the entries before and after


@dataclass(frozen=True, repr=False)
class Window:
    """``size`` entries of an axis, ``dilation`` apart, moved on by ``stride``. Padding ``same``: one place for each
    ``stride`` entries, what is missing added half before and half (or one more) after, as TensorFlow and XLA do;
    ``valid``: none."""

    axis: str
    size: int
    stride: int = 1
    dilation: int = 1
    padding: Padding = "same"

    @property
    def taps(self) -> str:
        """The axis of a kernel that holds the entries of the window."""
        return TAPS + self.axis

    @property
    def reach(self) -> int:
        """Entries from the first to the last."""
        return (self.size - 1) * self.dilation + 1

    def places(self, size: SizeLike) -> Size:
        """Where the window stands along an axis of so many entries. Raises TypeProblem where it does not fit."""
        n = Size.of(size)
        if self.padding == "same":
            return (n + (self.stride - 1)) // self.stride
        before, after = self.pads(n)
        free = n + before + after - self.reach
        if free.is_constant and free.constant < 0:
            message = f"a window of {self.reach} does not fit into {self.axis} = {n}"
            raise TypeProblem("out-of-range", message, (f"at most {n + before + after}",), "padding: same")
        return free // self.stride + 1

    def pads(self, size: SizeLike) -> tuple[Size, Size]:
        """Entries added before and after."""
        if isinstance(self.padding, tuple):
            return Size.of(self.padding[0]), Size.of(self.padding[1])
        if self.padding == "valid":
            return Size.of(0), Size.of(0)
        n = Size.of(size)
        needed = (self.places(n) - 1) * self.stride + self.reach - n
        total = Size.opaque("max", needed, 0)
        return total // 2, total - total // 2

    def met(self, size: SizeLike) -> Size:
        """Pairs of a place and an entry of the window that lies on the axis, not on padding."""
        n = Size.of(size)
        before, _ = self.pads(n)
        return Size.opaque("window_pairs", n, self.places(n), self.size, self.stride, self.dilation, before)

    def alone(self, size: SizeLike) -> bool:
        """Whether windows neither overlap nor reach beyond a whole number of strides: shards need no neighbour."""
        n = Size.of(size)
        whole = n.is_constant and n.constant % self.stride == 0
        return whole and self.reach <= self.stride and not (isinstance(self.padding, tuple) and any(self.padding))

    def inside(self) -> Window:
        """The same window over an axis that holds its padding already."""
        return replace(self, padding="valid")

    def __repr__(self) -> str:
        step = f"/{self.stride}" if self.stride > 1 else ""
        apart = f"x{self.dilation}" if self.dilation > 1 else ""
        pad = "+".join(map(str, self.padding)) if isinstance(self.padding, tuple) else self.padding
        return f"{self.axis}:{self.size}{apart}{step} {pad}"


def resized(pairs: Sequence[tuple[str, Size]], windows: Sequence[Window]) -> list[tuple[str, Size]]:
    """Axes with their sizes, each place of a window one entry."""
    by = {w.axis: w for w in windows}
    return [(a, by[a].places(s) if a in by else s) for a, s in pairs]


def windows_of(
    over: Sequence[str],
    sizes: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = "same",
    dilation: int | Sequence[int] = 1,
) -> tuple[Window, ...]:
    """Windows along these axes. One stride, dilation or number of padding entries serves all axes; a list has one for
    each. Raises TypeProblem."""
    if isinstance(padding, str) and padding not in ("same", "valid"):
        allowed = ("same", "valid", "a number of entries on both sides")
        raise TypeProblem("unknown-word", f"padding is not {padding!r}", allowed, nearest(padding, allowed[:2]))
    strides, dilations = (_each(over, n, w, 1) for n, w in ((stride, "stride"), (dilation, "dilation")))
    pads: Sequence[Padding] = [padding] * len(over) if isinstance(padding, str) else [
        (n, n) for n in _each(over, padding, "padding", 0)
    ]  # fmt: skip
    made = zip(over, _each(over, sizes, "window", 1), strides, dilations, pads, strict=True)
    return tuple(Window(*fields) for fields in made)


def _each(over: Sequence[str], given: int | Sequence[int], what: str, least: int) -> list[int]:
    """One number for each axis."""
    found = [int(n) for n in given] if isinstance(given, Sequence) else [int(given)] * len(over)
    if len(found) != len(over):
        raise TypeProblem("axis-mismatch", f"{what} has {len(found)} numbers for the axes {', '.join(over)}")
    if any(n < least for n in found):
        raise TypeProblem("out-of-range", f"{what} is at least {least}, found {min(found)}", (f">= {least}",))
    return found
