"""Normalisation with learned scale and bias. Computed in float32."""

from __future__ import annotations

from typing import ClassVar

from compiler.graph.ir import Value
from compiler.language.block import Block, block
from compiler.language.env import Env
from compiler.language.fields import Epsilon, Flag, Number


class _Norm(Block):
    normaliser: ClassVar[str] = ""
    eps: Epsilon = 1e-6
    scale: Flag = True
    bias: Flag = False
    offset: Number = 0.0  # the scale applied is offset + weight

    def build(self, env: Env, x: Value, **ports: Value) -> Value:
        b, axis = env.b, x.axes[-1]
        y = b.norm(x, self.normaliser, axis, self.eps)
        size = x.type.size(axis)
        if self.scale:
            init = "zeros" if self.offset else "ones"
            weight = b.cast(env.weight("scale", [(axis, size)], init=init), "float32")
            y = b.mul(y, b.add(weight, self.offset) if self.offset else weight)
        if self.bias:
            y = b.add(y, b.cast(env.weight("bias", [(axis, size)], init="zeros"), "float32"))
        return env.compute(y)


@block
class RMSNorm(_Norm):
    """x / sqrt(mean(x^2) + eps) * (offset + scale) over the last axis (arXiv:1910.07467, equation 4)."""

    kind: ClassVar[str] = "rms_norm"
    normaliser: ClassVar[str] = "rms"


@block
class LayerNorm(_Norm):
    """(x - mean) / sqrt(variance + eps) * scale + bias over the last axis (arXiv:1607.06450, equation 4)."""

    kind: ClassVar[str] = "layer_norm"
    normaliser: ClassVar[str] = "layer"
    eps: Epsilon = 1e-5
    bias: Flag = True
