"""The arithmetic of the forms in compiler/ops/chunks.py on arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from compiler.lower.named import Named, dot, where
from compiler.lower.registry import Array
from compiler.ops.chunks import AT, BLOCK, FROM

PARTS, EARLIER = "(part)", "(earlier part)"  # of a chunk


@dataclass(frozen=True)
class Arrays:
    """Factors of matrix products are in ``dtype``; everything else is float32."""

    dtype: Any
    precision: Any
    fixed: bool = False  # what is not asked for the compiler leaves out

    def dot(self, x: Named, y: Named, over: str, again: bool = True) -> Named:
        return dot(x, y, over, self.dtype, self.precision)

    def faded(self, pairs: Named, through: Named | None, total: Named | None, strict: bool) -> Named:
        seen = _lower(pairs.size(AT), AT, FROM, strict)
        if through is None or total is None:
            return where(seen, pairs)
        return pairs * _decay(through - total.renamed(AT, FROM), seen)

    def pairs_by_channel(self, x: Named, y: Named, over: str, through: Named, total: Named, strict: bool) -> Named:
        """In parts of BLOCK positions: within a part exp(through_t - total_s) is taken as it stands. For a writer in
        an earlier part it is split where the reader's part begins: neither factor is above 1, however fast a channel
        decays."""
        near = min(BLOCK, x.size(AT))
        count = x.size(AT) // near
        x, y, through, total = (v.split(AT, PARTS, near) for v in (x, y, through, total))
        there, seen = total.renamed(AT, FROM), _lower(near, AT, FROM, strict)
        pairs = (x * y.renamed(AT, FROM) * _decay(through - there, seen)).sum(over)
        if count > 1:
            begin = _shifted(total.last(AT), PARTS)
            far = _decay(begin - there.renamed(PARTS, EARLIER), _lower(count, PARTS, EARLIER, True))
            reader, writer = x * (through - begin).exp(), y.renamed(AT, FROM).renamed(PARTS, EARLIER) * far
            same = Named(jnp.eye(count, dtype=bool), (PARTS, EARLIER))
            pairs = self.dot(reader, writer, over) + where(same, pairs)
        else:
            pairs = pairs.expanded(EARLIER)
        rest = tuple(a for a in pairs.axes if a not in (PARTS, AT, EARLIER, FROM))
        return pairs.first(*rest, PARTS, AT, EARLIER, FROM).merged(PARTS, AT).merged(EARLIER, FROM)

    def inverse(self, pairs: Named) -> Named:
        """By halves: the inverse of [[A, 0], [B, D]] is [[A', 0], [-D' B A', D']] with the inverses of A and D."""
        rest = tuple(a for a in pairs.axes if a not in (AT, FROM))
        whole = pairs.first(*rest).array  # […, AT, FROM]
        size, batch = whole.shape[-1], whole.shape[:-2]
        made = jnp.ones((*batch, size, 1, 1), whole.dtype)
        half = 1
        while half < size:
            count = size // (2 * half)
            blocks = whole.reshape(*batch, count, 2 * half, count, 2 * half)
            below = jnp.diagonal(blocks[..., half:, :, :half], axis1=-4, axis2=-2)  # […, half, half, count]
            first, second = made[..., 0::2, :, :], made[..., 1::2, :, :]
            corner = -self._times(second, self._times(jnp.moveaxis(below, -1, -3), first))
            top = jnp.concatenate([first, jnp.zeros_like(corner)], -1)
            made = jnp.concatenate([top, jnp.concatenate([corner, second], -1)], -2)
            half *= 2
        return Named(made.reshape(*batch, size, size), (*rest, AT, FROM))

    def _times(self, a: Array, b: Array) -> Array:
        """Products of the last two axes; always in float32, small ones element by element."""
        if a.shape[-1] < BLOCK:
            return jnp.sum(a[..., :, :, None] * b[..., None, :, :], -2)
        return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)

    def states(self, log_decay: Named | None, value: Named, state: Named | None) -> Named:
        axes = (AT, *(a for a in value.axes if a != AT))
        if log_decay is not None:
            axes = (*axes, *(a for a in log_decay.axes if a not in axes))
        h = value.to(axes)
        shape = tuple(log_decay.size(a) if log_decay and a in log_decay.axes else 1 for a in axes)
        decay = jnp.ones(shape, h.dtype) if log_decay is None else jnp.exp(log_decay.to(axes))
        begin = jnp.zeros_like(h[0]) if state is None else jnp.broadcast_to(state.to(axes[1:]), h.shape[1:])
        return Named(_running(jnp.broadcast_to(decay, (h.shape[0], *decay.shape[1:])), h, begin), axes)

    def before(self, states: Named, state: Named | None) -> Named:
        h = states.first(AT)
        begin = jnp.zeros_like(h.array[:1]) if state is None else state.to(h.axes[1:])[None]
        return Named(jnp.concatenate([begin, h.array[:-1]]), h.axes)


def _lower(size: int, rows: str, columns: str, strict: bool) -> Named:
    return Named(jnp.tril(jnp.ones((size, size), bool), -1 if strict else 0), (rows, columns))


def _decay(log: Named, seen: Named) -> Named:
    """exp(log) where seen, else 0: what is not seen may be far above 1, and must not reach the exponential."""
    return where(seen, where(seen, log).exp())


def _shifted(x: Named, axis: str) -> Named:
    """One entry later along an axis, 0 in the first."""
    first = x.first(axis)
    return Named(jnp.concatenate([jnp.zeros_like(first.array[:1]), first.array[:-1]]), first.axes)


def _scan(decay: Array, value: Array, reverse: bool = False) -> tuple[Array, Array]:
    """Running products of the decays and running states along the first axis."""

    def join(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        return left[0] * right[0], right[0] * left[1] + right[1]

    return jax.lax.associative_scan(join, (decay, value), reverse=reverse)


@jax.custom_vjp
def _running(decay: Array, value: Array, state: Array) -> Array:
    """h_t = decay_t h_(t-1) + value_t along the first axis, from ``state`` on; decay may have axes of length 1."""
    products, states = _scan(decay, value)
    return states + products * state


def _running_forward(decay: Array, value: Array, state: Array) -> tuple[Array, Any]:
    h = _running(decay, value, state)
    return h, (decay, h, state)


def _running_back(saved: Any, g: Array) -> tuple[Array, Array, Array]:
    """The cotangents run back as the states run on: c_t = g_t + decay_(t+1) c_(t+1)."""
    decay, h, state = saved
    later = jnp.concatenate([decay[1:], jnp.zeros_like(decay[:1])])
    _, back = _scan(later, g, reverse=True)
    slope = back * jnp.concatenate([state[None], h[:-1]])
    wide = tuple(i for i, n in enumerate(decay.shape) if n != h.shape[i])
    return jnp.sum(slope, wide, keepdims=True), back, decay[0] * back[0]


_running.defvjp(_running_forward, _running_back)
