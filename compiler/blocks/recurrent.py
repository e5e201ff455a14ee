"""The Griffin recurrent block's parts: a short causal convolution and the RG-LRU (arXiv:2402.19427, section 2.4)."""

from __future__ import annotations

from typing import Annotated, ClassVar

from compiler.graph.ir import Value
from compiler.language.block import Block, block
from compiler.language.env import Env
from compiler.language.fields import Count, Dim, Flag, Number
from compiler.language.scope import Fault, divisors


@block
class ShortConvBlock(Block):
    """Depthwise causal convolution over ``width`` positions; the last tap is the current one."""

    kind: ClassVar[str] = "short_conv"
    shorthand: ClassVar[str | None] = "width"
    width: Count
    bias: Flag = False

    def build(self, env: Env, x: Value, **ports: Value) -> Value:
        b, axis = env.b, x.axes[-1]
        size = x.type.size(axis)
        y = b.short_conv(env.compute(x), env.compute(env.weight("kernel", [(axis, size), ("window", self.width)])))
        if self.bias:
            y = b.add(y, env.compute(env.weight("bias", [(axis, size)], init="zeros")))
        return y


@block
class RGLRU(Block):
    """Real-gated linear recurrent unit: r, i = gates(x); log a = -c softplus(decay) r;
    h_t = a h_(t-1) + sqrt(1 - a^2) (i x), the factor being 1 at position 0. Gates are block-diagonal."""

    kind: ClassVar[str] = "rg_lru"
    blocks: Annotated[Count, Dim("heads")]
    c: Number = 8.0

    def build(self, env: Env, x: Value, **ports: Value) -> Value:
        b, axis = env.b, x.axes[-1]
        if not x.type.size(axis).is_constant:
            raise Fault("varying-size", f"rg_lru works on channels of a fixed size, found [{' '.join(x.axes)}]")
        size = int(x.type.size(axis).constant)
        width, rest = divmod(size, self.blocks)
        if rest:
            allowed = (str(n) for n in divisors(size))
            text = f"{axis} = {size} does not divide into {self.blocks} blocks"
            raise Fault("indivisible", text, allowed, key="blocks")
        parts = b.split(env.compute(x), axis, blocks=self.blocks, block=width)

        def gate(name: str) -> Value:
            w = env.weight(name, [("blocks", self.blocks), ("block", width)], to=[("block_out", width)])
            bias = env.weight(f"{name}_bias", [("blocks", self.blocks), ("block_out", width)], init="zeros")
            y = b.dot(parts, env.compute(w), ("block",), "float32")
            return b.merge(b.sigmoid(b.add(y, b.cast(bias, "float32"))), ("blocks", "block_out"), axis)

        enter, recur = gate("input_gate"), gate("recurrence_gate")
        decay = b.cast(env.weight("decay", [(axis, size)], init="rg_lru"), "float32")
        log_a = b.mul(b.mul(recur, b.softplus(decay)), -self.c)
        # the slope of the root is bounded, as where a = 1 it has none (RecurrentGemma, arXiv:2404.07839, section 2)
        factor = b.bounded_sqrt(b.sub(1.0, b.exp(b.mul(log_a, 2.0))))
        first = b.equal(b.positions(x), b.constant(0, "int32"))
        factor = b.select(first, b.add(b.mul(factor, 0.0), 1.0), factor)
        value = b.mul(b.mul(enter, b.cast(x, "float32")), factor)
        return env.compute(b.recur(value, log_a))
