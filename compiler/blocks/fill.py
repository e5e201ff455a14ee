"""What other towers see, in the places of tokens that stand for it."""

from __future__ import annotations

from typing import ClassVar

from compiler.graph.ir import Value
from compiler.language.block import Block, block
from compiler.language.env import Env
from compiler.language.fields import Index
from compiler.language.scope import Fault


@block
class Fill(Block):
    """The features of another tower in the places where the tokens are ``where``: the n-th such place of a row has the
    n-th feature (soft tokens, as in PaLI, arXiv:2209.06794, and Gemma 3, arXiv:2503.19786). Ports: ``features`` [batch
    places width], ``ids``, the tokens."""

    kind: ClassVar[str] = "fill"
    ports: ClassVar[tuple[str, ...]] = ("features", "ids")
    shorthand: ClassVar[str | None] = "where"
    where: Index  # the token

    def build(self, env: Env, x: Value, **ports: Value) -> Value:
        for port in self.ports:
            if port not in ports:
                hint = f"from: {{{port}: a node's name}}"
                raise Fault("missing-port", f"fill needs its input {port}", self.ports, hint, key="from")
        return env.b.fill(x, ports["features"], ports["ids"], self.where)
