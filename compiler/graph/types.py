"""Tensor types: named axes with symbolic sizes and a dtype."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from compiler.errors import nearest
from compiler.graph.sizes import Size, SizeLike, product

DTYPE_BITS = {
    "float64": 64, "float32": 32, "bfloat16": 16, "float16": 16, "int64": 64, "int32": 32, "int8": 8, "int4": 4,
    "bool": 8,
}  # fmt: skip


class TypeProblem(Exception):
    """An op's operands do not fit; the caller adds the place in the spec."""

    def __init__(self, code: str, message: str, allowed: Iterable[str] = (), suggestion: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.allowed, self.suggestion = code, message, tuple(allowed), suggestion


@dataclass(frozen=True)
class TensorType:
    axes: tuple[str, ...]
    sizes: tuple[Size, ...]
    dtype: str

    def __post_init__(self) -> None:
        if len(set(self.axes)) != len(self.axes):
            raise TypeProblem("repeated-axis", f"a tensor would have axes [{' '.join(self.axes)}], one twice")

    @staticmethod
    def make(axes: Iterable[tuple[str, SizeLike]], dtype: str) -> TensorType:
        pairs = list(axes)
        return TensorType(tuple(a for a, _ in pairs), tuple(Size.of(s) for _, s in pairs), dtype)

    def size(self, axis: str) -> Size:
        if axis not in self.axes:
            found = f"needs an axis {axis}, found [{' '.join(self.axes)}]"
            raise TypeProblem("missing-axis", found, self.axes, nearest(str(axis), self.axes))
        return self.sizes[self.axes.index(axis)]

    @property
    def pairs(self) -> tuple[tuple[str, Size], ...]:
        return tuple(zip(self.axes, self.sizes, strict=True))

    @property
    def elements(self) -> Size:
        return product(self.sizes)

    @property
    def bytes(self) -> Size:
        """Size in bytes (a Size; int4 counts half a byte)."""
        bits = DTYPE_BITS[self.dtype]
        return self.elements * (bits // 8 if bits >= 8 else bits / 8)

    def drop(self, *names: str) -> TensorType:
        return TensorType.make([(a, s) for a, s in self.pairs if a not in names], self.dtype)

    def rename(self, names: dict[str, str]) -> TensorType:
        return TensorType(tuple(names.get(a, a) for a in self.axes), self.sizes, self.dtype)

    def with_dtype(self, dtype: str) -> TensorType:
        return TensorType(self.axes, self.sizes, dtype)

    def resize(self, axis: str, size: SizeLike) -> TensorType:
        return TensorType.make([(a, size if a == axis else s) for a, s in self.pairs], self.dtype)

    def __str__(self) -> str:
        return f"{self.dtype}[{' '.join(f'{a}={s}' for a, s in self.pairs)}]"


def broadcast(types: Iterable[TensorType]) -> tuple[tuple[str, Size], ...]:
    """Axes of an element-wise result: the first operand's order, then new axes as they come."""
    seen: dict[str, Size] = {}
    longest = sorted(types, key=lambda t: -len(t.axes))
    for t in longest:
        for axis, size in t.pairs:
            if axis in seen and seen[axis] != size:
                raise TypeProblem("axis-mismatch", f"axis {axis} is {seen[axis]} on one side and {size} on the other")
            seen.setdefault(axis, size)
    return tuple(seen.items())
