"""Arrays with named axes: for lowerings that match axes by name, whatever their order."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from compiler.lower.basic import align
from compiler.lower.registry import Array

Sides = tuple[str, str, str]  # letters of the axes of two factors and of their product


@partial(jax.tree_util.register_dataclass, data_fields=["array"], meta_fields=["axes"])
@dataclass(frozen=True)
class Named:
    """Element-wise arithmetic broadcasts by name: the left operand's axes, then the right one's further ones."""

    array: Array
    axes: tuple[str, ...]

    def size(self, axis: str) -> int:
        return int(self.array.shape[self.axes.index(axis)])

    def to(self, axes: Sequence[str]) -> Array:
        """The array with its axes in this order, and length-1 axes where it has none."""
        return align(self.array, self.axes, tuple(axes))

    def _join(self, other: Named, f: Callable[[Array, Array], Array]) -> Named:
        axes = (*self.axes, *(a for a in other.axes if a not in self.axes))
        return Named(f(self.to(axes), other.to(axes)), axes)

    def __mul__(self, other: Named) -> Named:
        return self._join(other, jnp.multiply)

    def __add__(self, other: Named) -> Named:
        return self._join(other, jnp.add)

    def __sub__(self, other: Named) -> Named:
        return self._join(other, jnp.subtract)

    def __neg__(self) -> Named:
        return Named(-self.array, self.axes)

    def exp(self) -> Named:
        return Named(jnp.exp(self.array), self.axes)

    def sum(self, axis: str) -> Named:
        return Named(jnp.sum(self.array, self.axes.index(axis)), tuple(a for a in self.axes if a != axis))

    def running_sum(self, axis: str) -> Named:
        return Named(jnp.cumsum(self.array, self.axes.index(axis)), self.axes)

    def last(self, axis: str) -> Named:
        at = self.axes.index(axis)
        return Named(jax.lax.index_in_dim(self.array, -1, at, False), tuple(a for a in self.axes if a != axis))

    def renamed(self, old: str, new: str) -> Named:
        return Named(self.array, tuple(new if a == old else a for a in self.axes))

    def first(self, *axes: str) -> Named:
        """These axes in front."""
        order = (*axes, *(a for a in self.axes if a not in axes))
        return Named(self.to(order), order)

    def expanded(self, axis: str) -> Named:
        """With one more axis, of length 1."""
        return Named(self.array[..., None], (*self.axes, axis))

    def split(self, axis: str, outer: str, size: int) -> Named:
        """An axis in parts of ``size``: [outer, axis]."""
        at, shape = self.axes.index(axis), self.array.shape
        cut = self.array.reshape(*shape[:at], -1, size, *shape[at + 1 :])
        return Named(cut, (*self.axes[:at], outer, *self.axes[at:]))

    def merged(self, outer: str, axis: str) -> Named:
        """The way back, for axes that stand side by side."""
        at, shape = self.axes.index(outer), self.array.shape
        return Named(self.array.reshape(*shape[:at], -1, *shape[at + 2 :]), tuple(a for a in self.axes if a != outer))


def where(seen: Named, x: Named) -> Named:
    """x where seen, else 0."""
    return x._join(seen, lambda v, m: jnp.where(m, v, jnp.zeros((), v.dtype)))


def dot(x: Named, y: Named, over: str, dtype: Any, precision: Any) -> Named:
    """The sum of x times y along ``over``: factors in ``dtype``, accumulated in float32. On the way back cotangents
    are narrowed to ``dtype`` too, so that every product runs at its width."""
    axes = tuple(a for a in dict.fromkeys((*x.axes, *y.axes)) if a != over)
    letters = dict(zip(dict.fromkeys((*x.axes, *y.axes)), string.ascii_letters, strict=False))
    left, right, out = ("".join(letters[a] for a in names) for names in (x.axes, y.axes, axes))
    return Named(_einsum((left, right, out), precision, x.array.astype(dtype), y.array.astype(dtype)), axes)


def _product(left: str, right: str, out: str, precision: Any, a: Array, b: Array) -> Array:
    return jnp.einsum(f"{left},{right}->{out}", a, b, precision=precision, preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _einsum(sides: Sides, precision: Any, a: Array, b: Array) -> Array:
    return _product(*sides, precision, a, b)


def _einsum_forward(sides: Sides, precision: Any, a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    return _product(*sides, precision, a, b), (a, b)


def _einsum_back(sides: Sides, precision: Any, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    (a, b), (left, right, out) = saved, sides
    narrow = g.astype(a.dtype)
    da = _product(out, right, left, precision, narrow, b)
    return da.astype(a.dtype), _product(out, left, right, precision, narrow, a).astype(b.dtype)


_einsum.defvjp(_einsum_forward, _einsum_back)
