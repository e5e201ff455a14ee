"""Latent attention: keys and values as linear maps of one narrow latent a position."""

from __future__ import annotations

from typing import Annotated, ClassVar

from compiler.blocks.position import Rope
from compiler.graph.ir import Value
from compiler.language.block import Block, block
from compiler.language.env import Env
from compiler.language.fields import Count, Dim, Epsilon, OptionalCount, OptionalNumber
from compiler.language.scope import Fault
from compiler.ops.latent import LATENT, ROTARY


@block
class LatentAttention(Block):
    """Causal attention by a latent of ``rank`` channels a position, from which each head makes its keys and values, and
    a rotary key of ``rotary_dim`` channels that all heads share (MLA, arXiv:2405.04434, section 2.1, equations 37 to
    47). A cache holds rank + rotary_dim numbers a position; decode never makes the keys and values of what is cached.
    ``query_rank``: queries come of a latent of their own; null: of the input. Both latents are RMS-normalised."""

    kind: ClassVar[str] = "latent_attention"
    heads: Annotated[Count, Dim("heads")]
    head_dim: Annotated[Count, Dim("head_dim")]
    rank: Annotated[Count, Dim("rank")]
    rotary_dim: Annotated[Count, Dim("rotary_dim")]
    value_dim: Annotated[OptionalCount, Dim("value_dim")] = None  # default: head_dim
    query_rank: Annotated[OptionalCount, Dim("query_rank")] = None
    position: Rope = Rope()
    scale: OptionalNumber = None  # default: (head_dim + rotary_dim) ** -0.5
    eps: Epsilon = 1e-6

    def build(self, env: Env, x: Value, **ports: Value) -> Value:
        b = env.b
        if not {"batch", "seq"} <= set(x.axes[:-1]):
            text = f"latent_attention runs along seq of [batch seq width], found [{' '.join(x.axes)}]"
            raise Fault("missing-axis", text, x.axes)
        source = x
        if self.query_rank is not None:
            source = self._normed(env, env.linear(x, "query_down", [("query_rank", self.query_rank)]), "query_norm")
        q = env.linear(source, "query", [("heads", self.heads), ("head_dim", self.head_dim)])
        q_rotary = env.linear(source, "query_rotary", [("heads", self.heads), (ROTARY, self.rotary_dim)])
        latent = self._normed(env, env.linear(x, "latent", [(LATENT, self.rank)]), "latent_norm")
        k_rotary = env.linear(x, "key_rotary", [(ROTARY, self.rotary_dim)])
        at, how = b.positions(x), self.position.how()
        q_rotary, k_rotary = (b.rotate(v, at, axis=ROTARY, **how) for v in (q_rotary, k_rotary))
        rank = [(LATENT, self.rank)]
        key = env.compute(env.weight("key", rank, to=[("heads", self.heads), ("head_dim", self.head_dim)]))
        width = self.value_dim or self.head_dim
        value = env.compute(env.weight("value", rank, to=[("heads", self.heads), ("value_dim", width)]))
        h = b.attend_latent(q, q_rotary, latent, k_rotary, key, value, scale=self.scale)
        return env.linear(h, "out", [(x.axes[-1], x.type.sizes[-1])], over=("heads", "value_dim"))

    def _normed(self, env: Env, x: Value, name: str) -> Value:
        b, axis = env.b, x.axes[-1]
        weight = b.cast(env.weight(name, [(axis, x.type.sizes[-1])], init="ones"), "float32")
        return env.compute(b.mul(b.norm(x, "rms", axis, self.eps), weight))
