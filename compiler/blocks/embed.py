"""Token embedding."""

from __future__ import annotations

from typing import Annotated, ClassVar

from compiler.graph.ir import Value
from compiler.language.block import Block, block
from compiler.language.env import Env
from compiler.language.fields import Count, Dim, Flag, OptionalNumber


@block
class Embed(Block):
    """Rows of a table by token: [batch seq] -> [batch seq embed], times ``scale``."""

    kind: ClassVar[str] = "embed"
    takes_ids: ClassVar[bool] = True
    shorthand: ClassVar[str | None] = "scale"
    vocab: Annotated[Count, Dim("vocab")]
    embed: Annotated[Count, Dim("embed")]
    scale: OptionalNumber = None
    round_scale: Flag = False  # round the scale to bfloat16 first, as RecurrentGemma's code does

    def build(self, env: Env, x: Value, **ports: Value) -> Value:
        table = env.weight("table", [("vocab", self.vocab), ("embed", self.embed)], table=True)
        y = env.b.cast(env.b.lookup(table, x), env.policy.residual)
        if self.scale is None:
            return y
        return env.b.scale(y, bfloat16(self.scale) if self.round_scale else self.scale)


def bfloat16(x: float) -> float:
    """The nearest bfloat16 (8 bits of mantissa)."""
    import math

    mantissa, exponent = math.frexp(x)
    return math.ldexp(round(mantissa * 256) / 256, exponent)
