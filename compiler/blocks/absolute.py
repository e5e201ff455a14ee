"""Absolute positions, added where the block stands: to token embeddings, patches or frames."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from compiler.errors import nearest
from compiler.graph.ir import Value
from compiler.language.block import Block, block
from compiler.language.env import Env
from compiler.language.fields import Count, Index, Number, OptionalCount, Positive, Word
from compiler.language.scope import Fault


class _Absolute(Block):
    over: Annotated[str, Word] = "seq"  # the axis counted along

    def positions(
        self, env: Env, x: Value, limit: int | None = None, grid: tuple[int, int, int] | None = None
    ) -> Value:
        if not {"batch", self.over} <= set(x.axes[:-1]):
            text = f"{self.kind} runs along {self.over} of [batch {self.over} width], found [{' '.join(x.axes)}]"
            hint = None if self.over in x.axes else nearest(self.over, x.axes)
            raise Fault("missing-axis", text, x.axes, hint, key="over")
        made: Value = env.b.positions(x, self.over, limit, grid)
        return made


@block
class PositionTable(_Absolute):
    """x plus a learned row for each position (arXiv:1705.03122; GPT-2). Calls longer than ``rows`` are refused.
    ``spare``: so many rows stand in front of that of position 0 and are never read (OPT, arXiv:2205.01068, has 2). With
    ``period`` a row for each value of one coordinate of a grid that the sequence runs through (axial positions,
    arXiv:2001.04451): it goes up after every ``each`` positions, ``period`` values in turn, behind ``after`` positions
    that have rows of their own."""

    kind: ClassVar[str] = "position_table"
    shorthand: ClassVar[str | None] = "rows"
    rows: Count  # positions that it can tell apart
    spare: Index = 0
    period: OptionalCount = None
    each: Count = 1
    after: Index = 0

    def build(self, env: Env, x: Value, **ports: Value) -> Value:
        b, width = env.b, (x.axes[-1], x.type.sizes[-1])
        if self.period is None:
            if self.each != 1 or self.after:
                text = "each and after are of a grid, whose coordinate has a period"
                raise Fault("missing-key", text, ("period",), key="each" if self.each != 1 else "after")
            at = self.positions(env, x, self.rows)
        else:
            if self.after + self.period > self.rows:
                text = f"{self.after} + {self.period} positions in a table of {self.rows}"
                raise Fault("out-of-range", text, (f"rows: {self.after + self.period} or more",), key="rows")
            at = self.positions(env, x, grid=(self.after, self.each, self.period))
        table = env.weight("table", [("positions", self.rows + self.spare), width], init="normal(0.02)")
        row = b.add(at, b.constant(self.spare, "int32")) if self.spare else at
        return b.add(x, b.cast(b.lookup(table, row, "positions"), x.type.dtype))


@block
class Sinusoid(_Absolute):
    """x plus ``scale`` times sines and cosines of the position (arXiv:1706.03762, section 3.5)."""

    kind: ClassVar[str] = "sinusoid"
    theta: Positive = 10_000.0
    pairs: Annotated[Literal["half", "interleaved"], Word] = "interleaved"  # half: all sines first, as in tensor2tensor
    scale: Number = 1.0

    def build(self, env: Env, x: Value, **ports: Value) -> Value:
        b, width = env.b, (x.axes[-1], x.type.sizes[-1])
        y = b.sinusoid(self.positions(env, x), *width, theta=self.theta, pairs=self.pairs)
        return b.add(x, b.cast(y if self.scale == 1 else b.mul(y, self.scale), x.type.dtype))
