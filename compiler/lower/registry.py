"""The JAX meaning of each op: ``lower(ctx, node, *arrays) -> tuple of arrays``, registered by op class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from compiler.graph.ir import Node, Value
from compiler.graph.sizes import Size
from compiler.ops.contract import Op

Array = jax.Array
Lowering = Callable[..., tuple[Any, ...]]
LOWERINGS: dict[type[Op], Lowering] = {}


def lowers(*ops: type[Op]) -> Callable[[Lowering], Lowering]:
    """Registers the lowering of op classes."""

    def register(fn: Lowering) -> Lowering:
        for op in ops:
            if op in LOWERINGS:
                raise ValueError(f"{op.__name__} is lowered twice")
            LOWERINGS[op] = fn
        return fn

    return register


@dataclass
class Context:
    """What lowering knows besides the arrays: numbers for the symbolic sizes, values of leaves by label."""

    sizes: Mapping[str, int]
    leaves: Mapping[str, Any] = field(default_factory=dict)
    watch: Callable[[Node, tuple[Any, ...]], None] | None = None
    widen: bool = False  # products of narrow floats in float32: XLA for CPU lacks some of the narrow ones
    mesh: Mapping[str, int] = field(default_factory=dict)  # mesh axes, inside a shard_map
    split: Callable[[Value], Mapping[str, tuple[str, ...]]] = lambda value: {}  # axis -> mesh axes that shard it

    def size(self, s: Size) -> int:
        return int(s.evaluate(self.sizes))

    def length(self, value: Value, axis: str) -> int:
        """Entries of an axis of a value that are here: a shard's share where the axis is sharded."""
        length = self.size(value.type.size(axis))
        for mesh_axis in self.split(value).get(axis, ()):
            length //= self.mesh[mesh_axis]
        return length

    def shape(self, value: Value) -> tuple[int, ...]:
        return tuple(self.length(value, a) for a in value.axes)

    def factors(self, *xs: Array) -> tuple[Array, ...]:
        """Operands of a product as this platform multiplies them; exact either way."""
        return tuple(x.astype(jnp.float32) for x in xs) if self.widen else xs

    def precision(self, dtype: Any) -> jax.lax.Precision:
        """float32 products keep float32 everywhere (TPU and GPU would use bfloat16 or TF32 passes by default);
        narrower types run at the hardware's native precision, accumulating in float32."""
        return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


@dataclass
class StackSlot:
    """One layer's slice of a state stack, read and written in place in the scan's carry. One index for each repeat
    around, outermost first."""

    stack: Array
    index: tuple[Array, ...]

    def read(self) -> Array:
        rest = self.stack.shape[len(self.index) :]
        starts = (*self.index, *[jnp.zeros((), jnp.int32)] * len(rest))
        sizes = (*[1] * len(self.index), *rest)
        return jax.lax.dynamic_slice(self.stack, starts, sizes).reshape(rest)


def read(x: Any) -> Array:
    return x.read() if isinstance(x, StackSlot) else x
