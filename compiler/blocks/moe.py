"""A sparse mixture of experts."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import model_validator

from compiler.blocks.mlp import Activation, one_activation
from compiler.graph.ir import Value
from compiler.graph.sizes import Size
from compiler.language.block import Block, block
from compiler.language.env import Env
from compiler.language.fields import Count, Dim, Flag, Positive, Word
from compiler.language.scope import Fault
from compiler.ops.experts import Collect, Dispatch, ExpertDot


@block
class MoE(Block):
    """A router that sends each token to ``active`` of ``experts`` gated or plain feed-forward layers, dropless
    (arXiv:2401.04088, section 2). ``score``: of an expert, the softmax over all or a sigmoid of its own;
    ``normalise``: the chosen weights sum to 1; ``scale``: and are then multiplied by this. ``correction``: a learned
    number an expert that counts in the choice, not in the weight, and gets no gradient (arXiv:2408.15664).
    ``groups`` and ``active_groups``: experts lie in groups, of which only the best are chosen from, by their best
    score or the sum of their two best (arXiv:2412.19437, section 2.1.2)."""

    kind: ClassVar[str] = "moe"
    experts: Annotated[Count, Dim("experts")]
    active: Annotated[Count, Dim("active")]
    hidden: Annotated[Count, Dim("mlp")]
    gate: Activation | None = None
    act: Activation | None = None
    score: Annotated[Literal["softmax", "sigmoid"], Word] = "softmax"
    normalise: Flag = True
    scale: Positive = 1.0
    correction: Flag = False
    groups: Count = 1
    active_groups: Count = 1
    by: Annotated[Literal["max", "top2"], Word] = "max"

    @model_validator(mode="after")
    def _one(self) -> Any:
        return one_activation(self, self.gate, self.act)

    def build(self, env: Env, x: Value, **ports: Value) -> Value:
        b, width = env.b, x.axes[-1]
        size = x.type.size(width)
        self._check()
        count = Size.of(self.experts)
        logits = env.linear(x, "router", [("experts", self.experts)], dtype="float32")
        number = None
        if self.correction:
            axes = [("experts", self.experts)]
            number = env.weight("correction", axes, init="zeros", dtype="float32", trainable=False)
        weights, chosen = b.route(
            logits, self.active, self.normalise, score=self.score, correction=number, groups=self.groups,
            active_groups=self.active_groups, by=self.by, scale=self.scale,
        )  # fmt: skip
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

    def _check(self) -> None:
        """Raises Fault where there are not as many experts, or groups of them, as are chosen."""
        if self.experts % self.groups:
            text = f"{self.experts} experts do not divide into {self.groups} groups"
            fitting = [str(n) for n in range(1, self.experts + 1) if self.experts % n == 0]
            raise Fault("indivisible", text, fitting, key="groups")
        if self.active_groups > self.groups:
            text = f"moe chooses in {self.active_groups} of {self.groups} groups of experts"
            raise Fault("out-of-range", text, (f"1 to {self.groups}",), key="active_groups")
        room = self.experts // self.groups * self.active_groups
        if self.active > room:
            among = f" in {self.active_groups} of {self.groups} groups" if self.groups > 1 else ""
            text = f"moe chooses {self.active} of {room} experts{among}"
            raise Fault("out-of-range", text, (f"1 to {room}",), key="active")
