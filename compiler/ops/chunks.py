"""The forms of a recurrence whose state is a matrix, one chunk of positions at a time, written once for two readers:
compiler/lower/linear_attend.py runs them on arrays, ``Tally`` counts them for the cost of the op. What is priced is
what runs.

    S' = exp(log_decay_t) S_(t-1)
    S_t = S' + key_t value_t - remove_t (erase_t S')      without remove: S' + key_t (value_t - erase_t S')
    y_t = query_t S_t                                     with bonus: query_t (S_(t-1) + bonus key_t value_t)

where products along ``over`` are summed. A chunk's inputs have an axis AT, its positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from compiler.graph.sizes import ZERO, Size, product

AT, FROM = "(position)", "(earlier position)"
BLOCK = 16  # positions whose decays by channel are taken pair by pair; the smallest factors of an inverse's products


class Tensor(Protocol):
    """Element-wise arithmetic on named axes."""

    @property
    def axes(self) -> tuple[str, ...]: ...
    def __mul__(self, other: Any) -> Any: ...
    def __add__(self, other: Any) -> Any: ...
    def __sub__(self, other: Any) -> Any: ...
    def __neg__(self) -> Any: ...
    def exp(self) -> Any: ...
    def sum(self, axis: str) -> Any: ...
    def running_sum(self, axis: str) -> Any: ...
    def last(self, axis: str) -> Any: ...
    def renamed(self, old: str, new: str) -> Any: ...


class Arithmetic(Protocol):
    """What is more than element-wise. ``fixed``: the way back is not asked for the decays' cotangent."""

    @property
    def fixed(self) -> bool: ...

    def dot(self, x: Any, y: Any, over: str, again: bool = True) -> Any:
        """The sum of x times y along ``over``. ``again``: the way back needs the result once more."""

    def faded(self, pairs: Any, through: Any, total: Any, strict: bool) -> Any:
        """pairs [AT, FROM] times exp(through_t - total_s); 0 where s > t or, if strict, s = t. Both may be None."""

    def pairs_by_channel(self, x: Any, y: Any, over: str, through: Any, total: Any, strict: bool) -> Any:
        """The same of the products of x_t and y_s, each channel along ``over`` with its own decay."""

    def inverse(self, pairs: Any) -> Any:
        """The inverse of 1 + pairs, which are strictly lower triangular."""

    def states(self, log_decay: Any, value: Any, state: Any) -> Any:
        """h_t = exp(log_decay_t) h_(t-1) + value_t along AT, from ``state`` on (None: from 0)."""

    def before(self, states: Any, state: Any) -> Any:
        """The states one position earlier."""


Inputs = Mapping[str, Any]
Form = Callable[[Arithmetic, str, Inputs, Any, bool], tuple[Any, Any]]


def _by(x: Any, log: Any) -> Any:
    return x if log is None else x * log.exp()


def _plus(x: Any, y: Any) -> Any:
    return y if x is None else x if y is None else x + y


def _own(x: Inputs, over: str) -> Any:
    """What a query with a bonus reads of its own position."""
    return (x["query"] * x["bonus"] * x["key"]).sum(over) * x["value"]


def step(a: Arithmetic, over: str, x: Inputs, state: Any, ends: bool) -> tuple[Any, Any]:
    """One position, element by element: no matrix product has more than one row."""
    key, value = x["key"], x["value"]
    now = None if state is None else _by(state, x.get("log_decay"))
    if "erase" in x and now is not None:
        found = (x["erase"] * now).sum(over)
        new = now + (key * value - x["remove"] * found if "remove" in x else key * (value - found))
    else:
        new = _plus(now, key * value)
    y = None
    if "bonus" in x:
        y = _plus(_own(x, over), None if state is None else (x["query"] * state).sum(over))
    elif "query" in x:
        y = (x["query"] * new).sum(over)
    return y, new.last(AT) if ends else None


def scan(a: Arithmetic, over: str, x: Inputs, state: Any, ends: bool) -> tuple[Any, Any]:
    """The states of all positions by an associative scan: for states hardly larger than what writes them."""
    states, y = a.states(x.get("log_decay"), x["key"] * x["value"], state), None
    if "bonus" in x:
        y = _own(x, over) + (x["query"] * a.before(states, state)).sum(over)
    elif "query" in x:
        y = (x["query"] * states).sum(over)
    return y, states.last(AT) if ends else None


def chunked(a: Arithmetic, over: str, x: Inputs, state: Any, ends: bool) -> tuple[Any, Any]:
    """By matrix products within the chunk and with the state before it: SSD (arXiv:2405.21060, section 6), GLA
    (arXiv:2312.06635, section 4); what the delta rule takes back is solved first (arXiv:2406.06484, section 3.2)."""
    key, value, decay = x["key"], x["value"], x.get("log_decay")
    total = None if decay is None else decay.running_sum(AT)
    channels = decay is not None and over in decay.axes

    def pairs(reader: Any, writer: Any, through: Any, strict: bool) -> Any:
        if channels:
            return a.pairs_by_channel(reader, writer, over, through, total, strict)
        return a.faded(a.dot(reader, writer.renamed(AT, FROM), over), through, total, strict)

    def found(reader: Any, through: Any, again: bool) -> Any:
        """In the state before the chunk."""
        if state is None:
            return None
        if channels or total is None:
            return a.dot(_by(reader, through), state, over, again)
        return _by(a.dot(reader, state, over, again or not a.fixed), through)

    def mixed(weights: Any, values: Any, again: bool) -> Any:
        return a.dot(weights, values.renamed(AT, FROM), FROM, again)

    written = [(key, value)]
    if "erase" in x:
        erase, remove, known = x["erase"], x.get("remove", key), found(x["erase"], total, True)
        inverse = a.inverse(pairs(erase, remove, total, True))
        if "remove" in x:
            known = _plus(known, mixed(pairs(erase, key, total, True), value, True))
            written.append((remove, -mixed(inverse, known, True)))
        else:
            written = [(key, mixed(inverse, value if known is None else value - known, True))]
    y = end = None
    if "query" in x:
        query, bonus = x["query"], "bonus" in x
        through = total - decay if bonus and total is not None else total
        y = found(query, through, False)
        for writer, values in written:
            y = _plus(y, mixed(pairs(query, writer, through, bonus), values, False))
        if bonus:
            y = y + _own(x, over)
    if ends:
        whole = None if total is None else total.last(AT)
        rest = None if total is None else whole - total
        end = None if state is None else _by(state, whole)
        for writer, values in written:
            own = (_by(writer, rest), values) if channels else (writer, _by(values, rest))
            end = _plus(end, a.dot(*own, AT, again=False))
    return y, end


FORMS: dict[str, Form] = {"step": step, "scan": scan, "chunked": chunked}


def levels(chunk: int) -> list[int]:
    """Sizes of the blocks of an inverse that are joined by matrix products; smaller ones are joined element-wise."""
    return [BLOCK << i for i in range(chunk.bit_length()) if BLOCK << i < chunk]


class Sized:
    """A tensor of which only the sizes are known: what is done with it is counted."""

    def __init__(self, tally: Tally, sizes: Mapping[str, Size]) -> None:
        self.tally, self.sizes = tally, dict(sizes)

    @property
    def axes(self) -> tuple[str, ...]:
        return tuple(self.sizes)

    @property
    def elements(self) -> Size:
        return product(self.sizes.values())

    def _joined(self, other: Sized) -> Sized:
        made = Sized(self.tally, self.sizes | other.sizes)
        self.tally.vector += made.elements
        return made

    __mul__ = __add__ = __sub__ = _joined

    def __neg__(self) -> Sized:
        return self

    def exp(self) -> Sized:
        self.tally.transcendental += self.elements
        return self

    def _without(self, axis: str) -> Sized:
        return Sized(self.tally, {a: s for a, s in self.sizes.items() if a != axis})

    def sum(self, axis: str) -> Sized:
        self.tally.vector += self.elements
        return self._without(axis)

    def running_sum(self, axis: str) -> Sized:
        self.tally.vector += self.elements * 2
        return self

    def last(self, axis: str) -> Sized:
        return self._without(axis)

    def renamed(self, old: str, new: str) -> Sized:
        return Sized(self.tally, {new if a == old else a: s for a, s in self.sizes.items()})


class Tally:
    """Counts a form. ``matrix``: FLOPs of matrix products, of which the way back does those in ``again`` once more
    before its own two for each."""

    def __init__(self, chunk: int, fixed: bool = False) -> None:
        self.chunk, self.fixed = chunk, fixed
        self.matrix = self.again = self.vector = self.transcendental = ZERO

    def _product(self, flops: Size, again: bool) -> None:
        self.matrix += flops
        self.again += flops if again else ZERO

    def dot(self, x: Sized, y: Sized, over: str, again: bool = True) -> Sized:
        sizes = x.sizes | y.sizes
        self._product(product(sizes.values()) * 2, again)
        return Sized(self, sizes)._without(over)

    def faded(self, pairs: Sized, through: Sized | None, total: Sized | None, strict: bool) -> Sized:
        return pairs * Sized(self, {AT: pairs.sizes[AT], FROM: pairs.sizes[FROM]}) if through is None else (
            pairs * (through - total.renamed(AT, FROM)).exp()  # type: ignore[union-attr]
        )  # fmt: skip

    def pairs_by_channel(self, x: Sized, y: Sized, over: str, through: Sized, total: Sized, strict: bool) -> Sized:
        made = Sized(self, x.sizes | y.sizes | total.sizes | {FROM: x.sizes[AT]})
        near = min(BLOCK, self.chunk)
        parts = self.chunk // near
        pairs = made._without(FROM)
        self.vector += pairs.elements * near * 4
        self.transcendental += through.elements * near
        if parts > 1:
            self.vector += (x * total).elements + (y * total).elements * parts
            self.transcendental += through.elements * (1 + parts)
            self._product(made.elements * 2, True)
        return made._without(over)

    def inverse(self, pairs: Sized) -> Sized:
        each = pairs._without(AT)._without(FROM).elements * (2 * self.chunk)
        large = levels(self.chunk)
        self._product(each * sum(s * s for s in large), True)
        self.vector += each * sum(4**i for i in range(self.chunk.bit_length() - 1) if 1 << i not in large)
        return pairs

    def states(self, log_decay: Sized | None, value: Sized, state: Sized | None) -> Sized:
        if log_decay is not None:
            log_decay.exp()
        self.vector += value.elements * 5  # an associative scan does about twice the work of a loop
        return value

    def before(self, states: Sized, state: Sized | None) -> Sized:
        return states


def count(
    form: str, over: str, inputs: Mapping[str, Mapping[str, Size]], state: Mapping[str, Size] | None, ends: bool,
    chunk: int, fixed: bool = False,
) -> Tally:  # fmt: skip
    """What one chunk of ``chunk`` positions costs. ``inputs``: the sizes of their axes, without positions; ``state``:
    those of the state before it, None where it begins from nothing."""
    tally = Tally(chunk, fixed)
    x = {n: Sized(tally, s if n == "bonus" else {AT: Size.of(chunk), **s}) for n, s in inputs.items()}
    FORMS[form](tally, over, x, None if state is None else Sized(tally, state), ends)
    return tally
