"""Feed-forward layers, plain and gated."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from compiler.graph.ir import Value
from compiler.language.block import Block, block
from compiler.language.env import Env
from compiler.language.fields import Count, Dim, Flag, Word

Activation = Annotated[Literal["relu", "squared_relu", "silu", "gelu", "gelu_tanh", "tanh", "sigmoid"], Word]


@block
class MLP(Block):
    """Plain: down(act(up(x))). Gated: down(gate_activation(gate(x)) * up(x)) (arXiv:2002.05202). ``hidden`` is the
    width of one branch (default: the dim mlp)."""

    kind: ClassVar[str] = "mlp"
    hidden: Annotated[Count, Dim("mlp")]
    gate: Activation | None = None
    act: Activation | None = None
    bias: Flag = False

    @model_validator(mode="after")
    def _one(self) -> Any:
        if (self.gate is None) == (self.act is None):
            raise PydanticCustomError("missing-key", "an mlp has either act: (plain) or gate: (gated)")
        return self

    def build(self, env: Env, x: Value, **ports: Value) -> Value:
        b, to, out = env.b, [("mlp", self.hidden)], [(x.axes[-1], x.type.sizes[-1])]
        if self.gate is not None:
            gate = getattr(b, self.gate)(env.linear(x, "gate", to, bias=self.bias))
            h = b.mul(gate, env.linear(x, "up", to, bias=self.bias))
        else:
            h = getattr(b, str(self.act))(env.linear(x, "up", to, bias=self.bias))
        return env.linear(h, "down", out, bias=self.bias)
