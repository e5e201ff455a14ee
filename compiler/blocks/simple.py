"""Small blocks: multiply by a number, a learned gain, soft cap, merged axes."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from compiler.errors import nearest
from compiler.graph.ir import Value
from compiler.language.block import Block, block
from compiler.language.env import Env
from compiler.language.fields import Axes, PerLayer, Positive, Word
from compiler.language.scope import Fault


@block
class Scale(Block):
    """x times a number, which may differ by layer."""

    kind: ClassVar[str] = "scale"
    shorthand: ClassVar[str | None] = "by"
    by: PerLayer

    def build(self, env: Env, x: Value, **ports: Value) -> Value:
        return env.b.mul(x, env.number(self.by, x.type.dtype))


@block
class SoftCap(Block):
    """cap * tanh(x / cap)."""

    kind: ClassVar[str] = "softcap"
    shorthand: ClassVar[str | None] = "cap"
    cap: Positive

    def build(self, env: Env, x: Value, **ports: Value) -> Value:
        return env.b.softcap(x, self.cap)


@block
class Gain(Block):
    """x times a learned number (``over: all``) or vector over the last axis, through ``act`` if given."""

    kind: ClassVar[str] = "gain"
    over: Annotated[Literal["all", "last"], Word] = "last"
    act: Annotated[Literal["tanh", "sigmoid"] | None, Word] = None

    def build(self, env: Env, x: Value, **ports: Value) -> Value:
        pairs = [] if self.over == "all" else [(x.axes[-1], x.type.sizes[-1])]
        g = env.b.cast(env.weight("gain", pairs, init="ones"), x.type.dtype)
        return env.b.mul(x, getattr(env.b, self.act)(g) if self.act else g)


@block
class Merge(Block):
    """Axes become one, the first slowest, where the first of them stands: the patches of an image, the frames of
    videos."""

    kind: ClassVar[str] = "merge"
    axes: Axes
    to: Annotated[str, Word]

    def build(self, env: Env, x: Value, **ports: Value) -> Value:
        for axis in self.axes:
            if axis not in x.axes:
                text = f"merge: no axis {axis} in [{' '.join(x.axes)}]"
                raise Fault("missing-axis", text, x.axes, nearest(axis, x.axes), key="axes")
        if self.to in x.axes and self.to not in self.axes:
            raise Fault("repeated-axis", f"merge: there is another axis {self.to} in [{' '.join(x.axes)}]", key="to")
        return env.b.merge(x, self.axes, self.to)
