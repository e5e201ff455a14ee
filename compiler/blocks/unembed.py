"""Logits over the vocabulary."""

from __future__ import annotations

from typing import Annotated, ClassVar

from compiler.errors import nearest
from compiler.graph.ir import Value
from compiler.language.block import Block, block
from compiler.language.env import Env
from compiler.language.fields import Count, Dim, Flag, OptionalNumber, OptionalPositive, Word
from compiler.language.scope import Fault


@block
class Unembed(Block):
    """[batch seq embed] -> float32 logits [batch seq vocab]; ``tied`` names the embed node whose table serves;
    ``softcap``: cap * tanh(logits / cap)."""

    kind: ClassVar[str] = "unembed"
    vocab: Annotated[Count, Dim("vocab")]
    tied: Annotated[str | None, Word] = None
    softcap: OptionalPositive = None
    scale: OptionalNumber = None
    bias: Flag = False

    def build(self, env: Env, x: Value, **ports: Value) -> Value:
        b = env.b
        if self.tied is None:
            y = env.linear(x, "out", [("vocab", self.vocab)], bias=self.bias, dtype="float32")
        else:
            label = next((n for n in self._labels(env.b.path) if n in env.weights.leaves), None)
            if label is None:
                tables = [k.removesuffix(".table") for k in env.weights.leaves if k.endswith(".table")]
                message = f"unembed.tied: no embed node before is called {self.tied}"
                raise Fault("unknown-name", message, tables, nearest(self.tied, tables), key="tied")
            y = b.dot(env.compute(x), env.compute(env.weights.leaves[label]), (x.axes[-1],), "float32")
            if self.bias:
                y = b.add(y, b.cast(env.weight("out_bias", [("vocab", self.vocab)], init="zeros"), "float32"))
        if self.scale is not None:
            y = b.scale(y, self.scale)
        return b.softcap(y, self.softcap) if self.softcap else y

    def _labels(self, path: str) -> list[str]:
        """What the table may be called, of a node at ``path``: one beside it, or beside what it is in."""
        around = path.split(".")[:-1]
        return [".".join([*around[:n], f"{self.tied}.table"]) for n in range(len(around), -1, -1)]
