"""Linear attention: a scan over chunks of positions, each run by one of the forms in compiler/ops/chunks.py; on the way
back the states at the chunks' beginnings first, then from the last chunk to the first the derivative of the form."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from compiler.graph.ir import Node
from compiler.lower.chunks import Arrays
from compiler.lower.named import Named, where
from compiler.lower.registry import Array, Context, lowers, read
from compiler.ops.chunks import AT, FORMS
from compiler.ops.linear_attend import WRITING, LinearAttend, LinearAttendGradient

CHUNKS = "(chunk)"
Inputs = dict[str, Named]  # of one chunk, or stacked: then the arrays have one axis more in front
Results = tuple[Named | None, Named | None]  # what queries read, the state after


class _Run:
    """One node's operands by name."""

    def __init__(self, ctx: Context, node: Node, arrays: tuple[Any, ...]) -> None:
        op: Any = node.op
        operands = node.operands[: len(op.given)]
        given = {n: Named(read(x), v.axes) for n, x, v in zip(op.given, arrays, operands, strict=False)}
        types = {n: v.type for n, v in zip(op.given, operands, strict=True)}
        self.op, self.state_axes = op, op.state(types).axes
        self.read_axes = op.read(types).axes if op.has("query") else ()
        self.length = given["value"].size(op.axis)
        self.count = -(-self.length // op.chunk)
        dtype = jnp.result_type(*(given[n].array.dtype for n in ("value", "key", "query") if n in given))
        dtype = jnp.dtype(jnp.float32) if ctx.widen and dtype.itemsize < 4 else dtype
        self.arithmetic = Arrays(dtype, ctx.precision(dtype))
        self.valid = given.pop("valid", None)
        self.state = given.pop("state", None)
        self.still = {n: given.pop(n) for n in ("bonus",) if n in given}  # the same for all positions
        self.inputs = given

    # -- chunks
    def apart(self, x: Named) -> Named:
        """A value of all positions in chunks, stacked. Positions beyond the last are zeros: they write nothing and
        let nothing decay."""
        x = x.renamed(self.op.axis, AT)
        at, extra = x.axes.index(AT), self.count * self.op.chunk - self.length
        widths = [(0, extra if i == at else 0) for i in range(len(x.axes))]
        whole = Named(jnp.pad(x.array, widths) if extra else x.array, x.axes)
        return Named(whole.split(AT, CHUNKS, self.op.chunk).first(CHUNKS).array, x.axes)

    def together(self, x: Named, axes: tuple[str, ...]) -> Array:
        """The way back: an array with its axes in this order."""
        at = axes.index(self.op.axis)
        split = (*axes[:at], CHUNKS, AT, *axes[at + 1 :])
        whole = Named(x.array, (CHUNKS, *x.axes)).to(split)
        whole = whole.reshape(*whole.shape[:at], -1, *whole.shape[at + 2 :])
        return jax.lax.slice_in_dim(whole, 0, self.length, axis=at)

    def masked(self, name: str, x: Named) -> Named:
        """Zeros from ``valid`` on, in what the state depends on."""
        if self.valid is None or name not in WRITING:
            return x
        seen = Named(jnp.arange(self.length), (self.op.axis,))._join(self.valid, jnp.less)
        return where(seen, x)  # which has rows now, if it was the same for all

    def chunks(self) -> Inputs:
        return {n: self.apart(self.masked(n, x)) for n, x in self.inputs.items()}

    def first_state(self) -> Named:
        """The state before the first chunk: zeros if none is given."""
        if self.state is not None:
            return Named(self.state.to(self.state_axes).astype(jnp.float32), self.state_axes)
        sizes = {a: x.size(a) for x in self.inputs.values() for a in x.axes}
        return Named(jnp.zeros([sizes[a] for a in self.state_axes], jnp.float32), self.state_axes)

    def given_state(self) -> Named | None:
        return None if self.state is None else self.first_state()

    def form(self, x: Inputs, still: Inputs, state: Named | None, ends: bool) -> Results:
        """One chunk; results float32, their axes in the op's order."""
        wide = {n: Named(v.array.astype(jnp.float32), v.axes) for n, v in (x | still).items()}
        y, end = FORMS[self.op.implementation](self.arithmetic, self.op.over, wide, state, ends)
        axes = tuple(AT if a == self.op.axis else a for a in self.read_axes)
        return (
            None if y is None else Named(y.to(axes), axes),
            None if end is None else Named(end.to(self.state_axes), self.state_axes),
        )

    # -- forward
    def forward(self) -> Results:
        """What queries read, stacked, and the state after the last position."""
        x = self.chunks()
        if self.count == 1:
            y, end = self.form(_at(x, 0), self.still, self.given_state(), self.op.ends)
            return jax.tree.map(lambda v: v[None], y), end

        def step(state: Any, chunk: Inputs) -> tuple[Any, Any]:
            y, end = self.form(chunk, self.still, state, True)
            return end, y

        end, ys = jax.lax.scan(step, self.first_state(), x)
        return ys, end

    # -- back
    def starts(self, x: Inputs) -> Named:
        """The states before all chunks, stacked."""
        first = self.first_state()
        writing = {n: v for n, v in x.items() if n in WRITING}

        def step(state: Any, chunk: Inputs) -> tuple[Any, Any]:
            _, end = self.form(chunk, {}, state, True)
            return end, end

        if self.count == 2:
            ends = jax.tree.map(lambda v: v[None], self.form(_at(writing, 0), {}, self.given_state(), True)[1])
        else:
            _, ends = jax.lax.scan(step, first, jax.tree.map(lambda v: v[:-1], writing))
        return Named(jnp.concatenate([first.array[None], ends.array]), first.axes)

    def back(self, read: Named | None, after: Named | None) -> dict[str, Named]:
        """Cotangents of the inputs, stacked, of what is the same for all positions and of the state before the first,
        from those of what queries read, stacked, and of the state after the last."""
        x = self.chunks()

        def pull(chunk: Inputs, state: Any, g: Results) -> Any:
            _, back = jax.vjp(lambda x, still, s: self.form(x, still, s, g[1] is not None), chunk, self.still, state)
            return back(g)

        if self.count == 1:
            given, still, state = pull(_at(x, 0), self.given_state(), (_at(read, 0), after))
            return {**jax.tree.map(lambda v: v[None], given), **still, **({} if state is None else {"state": state})}

        def step(carry: Any, xs: Any) -> tuple[Any, Any]:
            after, total = carry
            chunk, start, g = xs
            given, still, before = pull(chunk, start, (g, after))
            return (before, jax.tree.map(jnp.add, total, still)), given

        nothing = jax.tree.map(jnp.zeros_like, (self.first_state(), self.still))
        begin = (nothing[0] if after is None else after, nothing[1])
        (state, still), given = jax.lax.scan(step, begin, (x, self.starts(x), read), reverse=True)
        return {**given, **still, "state": state}


def _at(stack: Any, index: int) -> Any:
    return jax.tree.map(lambda v: v[index], stack)


@lowers(LinearAttend)
def _linear_attend(ctx: Context, node: Node, *arrays: Any) -> tuple[Array, ...]:
    run = _Run(ctx, node, arrays)
    y, end = run.forward()
    made = []
    if y is not None:
        t = node.results[0].type
        made.append(run.together(y, t.axes).astype(t.dtype))
    if run.op.ends:
        assert end is not None
        made.append(end.to(node.results[-1].axes))
    return tuple(made)


@lowers(LinearAttendGradient)
def _linear_attend_gradient(ctx: Context, node: Node, *arrays: Any) -> tuple[Array, ...]:
    run = _Run(ctx, node, arrays)
    count = len(run.op.given)
    grads = [Named(g.astype(jnp.float32), v.axes) for g, v in zip(arrays[count:], node.operands[count:], strict=True)]
    after = grads.pop() if run.op.ends else None
    if after is not None:
        after = Named(after.to(run.state_axes), run.state_axes)
    read = None
    if grads:
        axes = tuple(AT if a == run.op.axis else a for a in run.read_axes)
        read = Named(Named(run.apart(grads[0]).array, (CHUNKS, *_positions(run, grads[0]))).to((CHUNKS, *axes)), axes)
    found = run.back(read, after)
    made = []
    for name, result in zip((n for n in run.op.given if n != "valid"), node.results, strict=True):
        g = found[name]
        if name in run.inputs:
            rows = tuple(a for a in g.axes if a not in (AT, *result.axes))
            whole = run.masked(name, Named(run.together(g, (*rows, *result.axes)), (*rows, *result.axes))).array
            whole = jnp.sum(whole, tuple(range(len(rows))))
        else:
            whole = g.to(result.axes)
        made.append(whole.astype(result.type.dtype))
    return tuple(made)


def _positions(run: _Run, x: Named) -> tuple[str, ...]:
    return x.renamed(run.op.axis, AT).axes
