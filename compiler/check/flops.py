"""FLOPs of the matrix products that a compiled program runs, counted from its text; one multiply-add is 2.

Products hide under several names: ``dot``, alone or in a fusion; ``convolution``, which is what TPU makes of every dot;
a ``multiply`` and a ``reduce`` that kept the name of a dot, which is what XLA makes of a product with one row; calls of
cuBLAS and cuDNN; and TPU's kernel for ragged products. What a custom call does otherwise is not known: those
are listed, not guessed.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from compiler.check.hlo import Computation, HloError, Instruction, Module, Shape, parse
from compiler.check.loops import Trips, Visit, walk

# Custom calls that multiply nothing.
PLAIN = {
    "AllocateBuffer", "AssumeGatherIndicesInBound", "AsyncCollectiveDone", "AsyncCollectiveStart", "ConcatBitcast",
    "GatherScatterIndicesBitpacked", "PrepareAsyncCallDone", "PrepareAsyncCallStart", "Sharding", "TopK",
    "PartialReduce", "SliceToDynamic", "PadToStatic", "MoveToHost", "MoveToDevice", "annotate_device_placement",
    "__cub$DeviceRadixSort", "SliceId", "ZeroCrop",
}  # fmt: skip
_REWRITTEN = "dot_general"  # how jax's name of a dot ends, on whatever XLA made of it
_WINDOW = re.compile(r"(\w+)=(\S+)")


@dataclass(frozen=True)
class Product:
    """One matrix product or convolution of the program text; ``flops`` of one execution on one device."""

    name: str
    path: str  # jax's op_name
    dtype: str  # of the left operand
    flops: int
    count: int
    exact: bool = True  # false below a loop whose trip count is unknown: counted once


@dataclass(frozen=True)
class Flops:
    """``total`` is what one device does in one run; of a conditional, its costliest branch."""

    total: int
    products: tuple[Product, ...]
    opaque: dict[str, int]  # target of a custom call whose work is not known -> how often it runs
    loops: tuple[Trips, ...]

    @property
    def exact(self) -> bool:
        return not self.opaque and all(p.exact for p in self.products)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"exact": self.exact}


def flops(program: Module | str) -> Flops:
    """Counts a whole program."""
    module = parse(program) if isinstance(program, str) else program
    loops: list[Trips] = []
    products: list[Product] = []
    branches: list[tuple[tuple[tuple[int, int], ...], int]] = []
    opaque: Counter[str] = Counter()
    for visit in walk(module, loops):
        i = visit.instruction
        count = _count(visit)
        if count is None:
            if i.opcode == "custom-call" and not _is_plain(i):
                opaque[_target(i)] += visit.times
            continue
        operands = visit.computation.operand_shapes(i)
        products.append(Product(i.name, i.op_name, operands[0].dtype, count, visit.times, visit.exact))
        branches.append((visit.branches, count * visit.times))
    return Flops(_costliest(branches), tuple(products), dict(opaque), tuple(loops))


def _costliest(items: Iterable[tuple[tuple[tuple[int, int], ...], int]]) -> int:
    total = 0
    within: dict[int, dict[int, list[tuple[tuple[tuple[int, int], ...], int]]]] = {}
    for branches, count in items:
        if branches:
            (conditional, branch), *rest = branches
            within.setdefault(conditional, {}).setdefault(branch, []).append((tuple(rest), count))
        else:
            total += count
    return total + sum(max(map(_costliest, choices.values())) for choices in within.values())


def _count(visit: Visit) -> int | None:
    """FLOPs of one execution; None when the instruction is no product, or its work is not known."""
    i = visit.instruction
    if i.opcode in ("multiply", "reduce"):
        return _rewritten(i, visit.computation)
    if i.opcode not in ("dot", "scaled-dot", "convolution", "ragged-dot", "custom-call"):
        return None
    shapes = visit.computation.operand_shapes(i)
    result = next(i.shape.leaves(), None)
    if i.opcode == "custom-call":
        return None if result is None else _custom(i, shapes, result)
    assert result is not None
    if i.opcode == "convolution":
        return _convolution(i, shapes[0], shapes[1], result)
    if i.opcode == "ragged-dot":
        return _ragged(shapes[0], result)
    return _dot(shapes[0], result, i.ints("lhs_contracting_dims"))


def _dot(left: Shape, result: Shape, contracted: Sequence[int]) -> int:
    return 2 * result.elements * math.prod(left.dims[d] for d in contracted)


def _rewritten(i: Instruction, within: Computation) -> int | None:
    """A dot as elementwise products: summed by a reduce of its name, or, where it sums over one element, not at all."""
    if not i.op_name.endswith(_REWRITTEN):
        return None
    if i.opcode == "multiply":
        return 2 * next(i.shape.leaves()).elements
    factors = within.get(i.operands[0])
    while factors is not None and factors.opcode in ("bitcast", "convert", "copy", "reshape", "transpose"):
        factors = within.get(factors.operands[0])
    if factors is None or factors.opcode != "multiply" or factors.op_name.endswith(_REWRITTEN):
        return None
    return 2 * next(factors.shape.leaves()).elements


def _ragged(left: Shape, result: Shape) -> int:
    """Each row of the left meets the matrix of its group alone; so in both gradients."""
    return 2 * left.elements * result.dims[-1]


def _is_plain(i: Instruction) -> bool:
    # TPU's ragged product is two kernels; the first lays out the second's tiles.
    return _target(i) in PLAIN or i.name.startswith("ragged-dot-metadata")


def _target(i: Instruction) -> str:
    return i.attributes.get("custom_call_target", "").strip('"')


def _custom(i: Instruction, shapes: Sequence[Shape], result: Shape) -> int | None:
    target = _target(i)
    if target.startswith("__cublas$"):
        config = i.backend_config.get("gemm_backend_config", i.backend_config)
        numbers = config.get("dot_dimension_numbers") if isinstance(config, dict) else None
        if not isinstance(numbers, dict):
            return None
        return _dot(shapes[0], result, [int(d) for d in numbers.get("lhs_contracting_dimensions", ())])
    if target.startswith(("__cudnn$convForward", "__cudnn$convBiasActivationForward")):
        return _convolution(i, shapes[0], shapes[1], result)
    if target == "__cudnn$convBackwardInput":
        return _convolution(i, result, shapes[1], shapes[0])
    if target == "__cudnn$convBackwardFilter":
        return _convolution(i, shapes[0], result, shapes[1])
    if "ragged_dot_tiling" in i.attributes.get("frontend_attributes", ""):
        return _ragged(shapes[-2], result)  # lists of places and sizes stand before the two matrices
    return None


def _convolution(i: Instruction, image: Shape, kernel: Shape, result: Shape) -> int:
    """Multiply-adds with an element of the image: what falls on padding or between dilated elements is no work, which
    is how TPU writes the batch of a dot as a dimension of space."""
    labels = re.fullmatch(r"(\w+)_(\w+)->(\w+)", i.attributes.get("dim_labels", ""))
    if labels is None:
        raise HloError(f"%{i.name} has no dim_labels")
    sizes = [dict(zip(t, s.dims, strict=True)) for t, s in zip(labels.groups(), (image, kernel, result), strict=True)]
    window = dict(_WINDOW.findall(i.attributes.get("window", "{}").strip("{}")))
    total = 2 * sizes[2]["b"] * sizes[2]["f"] * sizes[1]["i"]
    for d in range(len(sizes[1]) - 2):
        pad = _along(window, "pad", d, "0_0").split("_")
        numbers = [int(_along(window, key, d, "1")) for key in ("stride", "lhs_dilate", "rhs_dilate")]
        total *= _overlaps(sizes[0][str(d)], sizes[1][str(d)], sizes[2][str(d)], int(pad[0]), *numbers)
    return total


def _along(window: dict[str, str], key: str, dimension: int, default: str) -> str:
    return window[key].split("x")[dimension] if key in window else default


@lru_cache(maxsize=4096)
def _overlaps(image: int, kernel: int, result: int, pad: int, stride: int, dilated: int, kernel_dilated: int) -> int:
    """Pairs of a place of the result and one of the kernel that meet an element of the image."""
    found = 0
    end = (image - 1) * dilated  # where the last element of the image is
    for k in range(kernel):
        # The kernel's place k meets place r*stride + k*kernel_dilated - pad, for every r of the result.
        offset = k * kernel_dilated - pad
        first = max(0, -(offset // stride))
        last = min(result - 1, (end - offset) // stride)
        if last < first:
            continue
        if dilated == 1:
            found += last - first + 1
        else:
            found += sum((r * stride + offset) % dilated == 0 for r in range(first, last + 1))
    return found
