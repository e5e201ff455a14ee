"""Blocks whose windows slide along axes: convolution and pooling."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from compiler.errors import nearest
from compiler.graph.ir import Value
from compiler.language.block import Block, block
from compiler.language.env import Env
from compiler.language.fields import Axes, Channels, Count, Counts, Flag, OptionalCounts, Padding, Word
from compiler.language.scope import Fault, divisors
from compiler.ops.windows import windows_of


def _each(given: tuple[int, ...] | str) -> int | str | tuple[int, ...]:
    """One number for all axes, or one for each."""
    return given[0] if isinstance(given, tuple) and len(given) == 1 else given


def _along(x: Value, over: tuple[str, ...], kind: str) -> None:
    for axis in over:
        if axis not in x.axes[:-1] or axis == "batch":
            axes = [a for a in x.axes[:-1] if a != "batch"]
            text = f"{kind} runs along {' and '.join(over)} of [batch … channels], found [{' '.join(x.axes)}]"
            raise Fault("missing-axis", text, axes, nearest(axis, axes), key="over")


@block
class ConvBlock(Block):
    """A convolution of the last axis, the channels, along ``over``: [batch height width channel] -> [batch height width
    to]. ``to`` a number: the channels keep their axis name. Options take one number for all axes or a list."""

    kind: ClassVar[str] = "conv"
    to: Channels
    kernel: Counts  # size of the window
    stride: Counts = (1,)
    dilation: Counts = (1,)
    padding: Padding = "same"  # same, valid, or entries on both sides
    groups: Count = 1  # into which both channels fall
    bias: Flag = False
    over: Axes = ("height", "width")

    def build(self, env: Env, x: Value, **ports: Value) -> Value:
        b, axis = env.b, x.axes[-1]
        _along(x, self.over, "conv")
        into, to = x.type.size(axis), self.to.axis or axis
        if not into.is_constant:
            raise Fault("varying-size", f"conv works on channels of a fixed size, found [{' '.join(x.axes)}]")
        size = int(into.constant)
        for what, n in ((axis, size), (to, self.to.size)):
            if n % self.groups:
                text = f"{what} = {n} does not divide into {self.groups} groups"
                raise Fault("indivisible", text, [str(d) for d in divisors(n)], key="groups")
        sizes = list(self.kernel) * (len(self.over) if len(self.kernel) == 1 else 1)
        windows = windows_of(self.over, sizes, _each(self.stride), _each(self.padding), _each(self.dilation))  # type: ignore[arg-type]
        taps = [(w.taps, w.size) for w in windows]
        fresh = f"{to}_out" if to in x.axes else to
        kernel = env.weight("kernel", [*taps, (axis, size // self.groups)], to=[(fresh, self.to.size)])
        y = b.conv(
            env.compute(x), env.compute(kernel), stride=_each(self.stride), padding=_each(self.padding),
            groups=self.groups, dilation=_each(self.dilation),
        )  # fmt: skip
        if self.bias:
            bias = env.weight("bias", [], to=[(fresh, self.to.size)], init="zeros")
            y = b.add(y, b.cast(bias, y.type.dtype))
        return b.rename(y, **{fresh: to}) if fresh != to else y


@block
class PoolBlock(Block):
    """The mean or the largest entry of windows along ``over``; without ``window`` of all entries, and the axes go.
    ``stride``: the window unless given. Padding is no entry."""

    kind: ClassVar[str] = "pool"
    by: Annotated[Literal["mean", "max"], Word] = "mean"
    window: OptionalCounts = None
    stride: OptionalCounts = None
    padding: Padding = "same"  # same, valid, or entries on both sides
    over: Axes = ("height", "width")

    def build(self, env: Env, x: Value, **ports: Value) -> Value:
        b = env.b
        _along(x, self.over, "pool")
        if self.window is None:
            if self.stride is not None:
                raise Fault("missing-key", "pool has a stride and no window: without one it takes the whole axes",
                            ("window",), key="stride")  # fmt: skip
            return b.reduce(x, self.by, self.over)
        stride = None if self.stride is None else _each(self.stride)
        return b.pool(
            x, self.by, over=list(self.over), window=_each(self.window), stride=stride, padding=_each(self.padding)
        )
