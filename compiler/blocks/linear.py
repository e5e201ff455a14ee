"""A linear map of the last axis."""

from __future__ import annotations

from typing import ClassVar

from compiler.graph.ir import Value
from compiler.language.block import Block, block
from compiler.language.env import Env
from compiler.language.fields import Axis, Flag


@block
class Linear(Block):
    """[… in] -> [… to]; ``to`` is a dim (which names the axis) or an expression."""

    kind: ClassVar[str] = "linear"
    shorthand: ClassVar[str | None] = "to"
    to: Axis
    bias: Flag = False

    def build(self, env: Env, x: Value, **ports: Value) -> Value:
        return env.linear(x, "weight", [(self.to.axis, self.to.size)], bias=self.bias)
