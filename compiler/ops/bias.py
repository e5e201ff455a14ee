"""What is added to the scores of attention for where query and key lie. No such bias is ever a matrix of queries by
keys in memory: each tile of scores computes its own from positions, so blocked and cached attention have it too.

A bias is an attribute of the attention ops; its ``operands`` follow the keys and values. Their meaning in JAX is in
the file of the same name under ``compiler/lower``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from compiler.graph.sizes import Size
from compiler.graph.types import TensorType, TypeProblem
from compiler.ops.contract import Cost

FEW = 16  # queries of a call up to which each meets all gaps at once, whatever the rows hold


@dataclass(frozen=True)
class Bias:
    """``gap``: by how many positions a key lies before its query."""

    short: ClassVar[str] = ""  # in a word or two, as in pictures
    operands: ClassVar[tuple[str, ...]] = ()
    learned: ClassVar[tuple[str, ...]] = ()  # of the operands those that get a cotangent

    @property
    def whole(self) -> tuple[str, ...]:
        """Axes of the operands that shards need whole."""
        return ()

    def check(self, op: Any, q: TensorType, k: TensorType, given: Mapping[str, TensorType]) -> None:
        """Raises TypeProblem where an operand does not fit."""

    def cost(self, scores: Size, met: Size, channels: Size) -> Cost:
        """Of so many scores. ``met``: pairs of a query and a gap for which something is computed, where each tile
        has a range of gaps of its own."""
        return Cost(vector=scores)

    def back(self, scores: Size, met: Size, channels: Size) -> Cost:
        """Of the way back, the scores again included."""
        once = self.cost(scores, met, channels)
        return Cost(matrix=once.matrix * 3, vector=once.vector * 2)


def _axes(what: str, found: TensorType, wanted: Mapping[str, Size | None]) -> None:
    """The operand has these axes, of these sizes where they are given."""
    if set(found.axes) != set(wanted):
        raise TypeProblem("axis-mismatch", f"{what} are [{' '.join(wanted)}], found [{' '.join(found.axes)}]")
    for axis, size in wanted.items():
        if size is not None and found.size(axis) != size:
            raise TypeProblem("axis-mismatch", f"{what} have {axis} = {found.size(axis)}, where it is {size}")


@dataclass(frozen=True)
class Slopes(Bias):
    """ALiBi: minus slope times the distance (arXiv:2108.12409, section 3). Operand: slopes [heads], not learned."""

    short: ClassVar[str] = "alibi"
    operands: ClassVar[tuple[str, ...]] = ("slopes",)

    def check(self, op: Any, q: TensorType, k: TensorType, given: Mapping[str, TensorType]) -> None:
        _axes("slopes", given["slopes"], {op.heads: q.size(op.heads)})

    def cost(self, scores: Size, met: Size, channels: Size) -> Cost:
        return Cost(vector=scores * 2)


@dataclass(frozen=True)
class Buckets(Bias):
    """T5: a learned number for each head and range of gaps (arXiv:1910.10683, section 2.1). Half of the buckets are
    one gap each, the others grow geometrically up to ``distance``, from which on all gaps share the last. ``ahead``:
    keys after the query have half of the buckets to themselves; else they count as gap 0. Operand: the table [buckets
    heads]."""

    short: ClassVar[str] = "bias by distance"
    operands: ClassVar[tuple[str, ...]] = ("table",)
    learned: ClassVar[tuple[str, ...]] = ("table",)
    count: int = 32
    distance: int = 128
    ahead: bool = False

    def check(self, op: Any, q: TensorType, k: TensorType, given: Mapping[str, TensorType]) -> None:
        _axes("relative buckets", given["table"], {"buckets": Size.of(self.count), op.heads: q.size(op.heads)})
        if self.count % (4 if self.ahead else 2) or self.distance <= self.side // 2:
            need = f"a multiple of {4 if self.ahead else 2}, and a distance above {self.side // 2}"
            raise TypeProblem("indivisible", f"{self.count} buckets up to {self.distance}: needs {need}")

    @property
    def side(self) -> int:
        """Buckets of one direction."""
        return self.count // 2 if self.ahead else self.count

    def starts(self) -> tuple[int, ...]:
        """The smallest gap of each bucket of one direction."""
        return _starts(self.side // 2, self.side, self.distance)

    @property
    def whole(self) -> tuple[str, ...]:
        return ("buckets",)


@cache
def _starts(exact: int, count: int, distance: int) -> tuple[int, ...]:
    """In whole numbers, so that powers fall where the real logarithm has them: bucket b begins at the smallest d with
    (d / exact) ** (count - exact) >= (distance / exact) ** (b - exact)."""
    found, d, wide = list(range(exact)), max(exact, 1), count - exact
    for b in range(exact, count):
        while d**wide * exact ** (b - exact) < distance ** (b - exact) * exact**wide:
            d += 1
        found.append(d)
    return tuple(found)


@dataclass(frozen=True)
class Relative(Bias):
    """Transformer-XL: scale times a second query by a key of the gap (arXiv:1901.02860, section 3.3, terms b and d).
    Operands: these queries, as the others; and a key for each gap from 0 on [distance heads head_dim]."""

    short: ClassVar[str] = "keys of distances"
    operands: ClassVar[tuple[str, ...]] = ("position_queries", "position_keys")
    learned: ClassVar[tuple[str, ...]] = ("position_queries", "position_keys")

    def check(self, op: Any, q: TensorType, k: TensorType, given: Mapping[str, TensorType]) -> None:
        queries, keys = (given[name] for name in self.operands)
        if dict(queries.pairs) != dict(q.pairs):
            raise TypeProblem("axis-mismatch", f"position queries {queries} are not as the queries {q}")
        _axes("position keys", keys, {"distance": None, op.heads: q.size(op.heads), op.dim: q.size(op.dim)})
        if not op.causal or op.softcap:
            raise TypeProblem("axis-mismatch", "relative keys are for causal attention without a soft cap")

    @property
    def whole(self) -> tuple[str, ...]:
        return ("distance",)

    def cost(self, scores: Size, met: Size, channels: Size) -> Cost:
        return Cost(matrix=met * channels * 2, vector=scores)


@dataclass(frozen=True)
class Dense(Bias):
    """Any numbers, held whole: for maps of a fixed size, or of one value a key. Operand: [heads queries keys] or any
    of these axes, and batch; along the keys it may have an axis of another name, ``keys``, where queries and keys
    share theirs."""

    short: ClassVar[str] = "added bias"
    operands: ClassVar[tuple[str, ...]] = ("added",)
    learned: ClassVar[tuple[str, ...]] = ("added",)
    keys: str = "keys"

    @property
    def whole(self) -> tuple[str, ...]:
        return (self.keys,)

    def check(self, op: Any, q: TensorType, k: TensorType, given: Mapping[str, TensorType]) -> None:
        sizes = {**dict(q.drop(op.dim).pairs), self.keys: k.size(op.keys)}
        for axis, size in given["added"].pairs:
            if sizes.get(axis) != size:
                known = " ".join(f"{a}={s}" for a, s in sizes.items())
                raise TypeProblem("axis-mismatch", f"what is added to scores [{known}] is {given['added']}")
