"""Absolute positions, added where the block stands: to token embeddings, patches or frames."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from compiler.errors import nearest
from compiler.graph.ir import Value
from compiler.language.block import Block, block
from compiler.language.env import Env
from compiler.language.fields import Count, Index, Number, Positive, Word
from compiler.language.scope import Fault


class _Absolute(Block):
    over: Annotated[str, Word] = "seq"  # the axis counted along

    def positions(self, env: Env, x: Value, limit: int | None = None) -> Value:
        if not {"batch", self.over} <= set(x.axes[:-1]):
            text = f"{self.kind} runs along {self.over} of [batch {self.over} width], found [{' '.join(x.axes)}]"
            hint = None if self.over in x.axes else nearest(self.over, x.axes)
            raise Fault("missing-axis", text, x.axes, hint, key="over")
        made: Value = env.b.positions(x, self.over, limit)
        return made


@block
class PositionTable(_Absolute):
    """x plus a learned row for each position (arXiv:1705.03122; GPT-2). Calls longer than ``rows`` are refused.
    ``spare``: so many rows stand in front of that of position 0 and are never read (OPT, arXiv:2205.01068, has 2)."""

    kind: ClassVar[str] = "position_table"
    shorthand: ClassVar[str | None] = "rows"
    rows: Count  # positions that it can tell apart
    spare: Index = 0

    def build(self, env: Env, x: Value, **ports: Value) -> Value:
        b, width = env.b, (x.axes[-1], x.type.sizes[-1])
        at = self.positions(env, x, self.rows)
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
