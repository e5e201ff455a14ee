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


def one_activation(made: Any, gate: str | None, act: str | None) -> Any:
    """Feed-forward layers are gated or plain. Raises what pydantic tells as a problem."""
    if gate is None and act is None:
        raise PydanticCustomError("missing-key", "needs act: (plain) or gate: (gated)", {"allowed": ["act", "gate"]})
    if gate is not None and act is not None:
        text = "takes act: (plain) or gate: (gated), not both"
        raise PydanticCustomError("conflicting-keys", text, {"allowed": ["act", "gate"], "key": "act"})
    return made


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
        return one_activation(self, self.gate, self.act)

    def build(self, env: Env, x: Value, **ports: Value) -> Value:
        b, to, out = env.b, [("mlp", self.hidden)], [(x.axes[-1], x.type.sizes[-1])]
        if self.gate is not None:
            gate = getattr(b, self.gate)(env.linear(x, "gate", to, bias=self.bias))
            h = b.mul(gate, env.linear(x, "up", to, bias=self.bias))
        else:
            h = getattr(b, str(self.act))(env.linear(x, "up", to, bias=self.bias))
        return env.linear(h, "down", out, bias=self.bias)
