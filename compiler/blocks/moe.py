"""A sparse mixture of experts."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import model_validator

from compiler.blocks.mlp import Activation, one_activation
from compiler.graph.ir import Value
from compiler.graph.sizes import Size
from compiler.language.block import Block, block
from compiler.language.env import Env
from compiler.language.fields import Count, Dim, Flag
from compiler.language.scope import Fault
from compiler.ops.experts import Collect, Dispatch, ExpertDot


@block
class MoE(Block):
    """Top-k softmax router over ``experts`` gated or plain feed-forward layers, dropless (arXiv:2401.04088,
    section 2). ``normalise``: the chosen weights sum to 1."""

    kind: ClassVar[str] = "moe"
    experts: Annotated[Count, Dim("experts")]
    active: Annotated[Count, Dim("active")]
    hidden: Annotated[Count, Dim("mlp")]
    gate: Activation | None = None
    act: Activation | None = None
    normalise: Flag = True

    @model_validator(mode="after")
    def _one(self) -> Any:
        return one_activation(self, self.gate, self.act)

    def build(self, env: Env, x: Value, **ports: Value) -> Value:
        b, width = env.b, x.axes[-1]
        size = x.type.size(width)
        if self.active > self.experts:
            text = f"moe chooses {self.active} of {self.experts} experts"
            raise Fault("out-of-range", text, (f"1 to {self.experts}",), key="active")
        count = Size.of(self.experts)
        logits = env.linear(x, "router", [("experts", self.experts)], dtype="float32")
        weights, chosen = b.route(logits, self.active, self.normalise)
        rows, order, groups = b.apply(Dispatch(experts=count), env.compute(x), chosen)

        def product(h: Value, name: str, inner: tuple[str, Size | int], outer: tuple[str, Size | int]) -> Value:
            w = env.weight(name, [("experts", self.experts), inner], to=[outer])
            return b.one(ExpertDot((inner[0],), experts=count), h, env.compute(w), groups)

        up = product(rows, "up", (width, size), ("mlp", self.hidden))
        if self.gate is not None:
            up = b.mul(getattr(b, self.gate)(product(rows, "gate", (width, size), ("mlp", self.hidden))), up)
        else:
            up = getattr(b, str(self.act))(up)
        y = product(up, "down", ("mlp", self.hidden), (width, size))
        return b.one(Collect(experts=count), y, weights, chosen, order)
