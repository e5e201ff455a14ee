"""Cases of packed weights: unpacked, and read by a product."""

from __future__ import annotations

from typing import Any

import numpy as np

from compiler.ops.packed import DotPacked, Unpack
from tests.ops.build import Case


def _whole(q: Any, s: Any) -> Any:
    return q * np.repeat(s, q.shape[0] // s.shape[0], 0)


def cases() -> list[Case]:
    values, scales = "embed=6 mlp=4", "embed=2 mlp=4"

    def dot(b: Any, x: Any, q: Any, s: Any) -> Any:
        return b.one(DotPacked(("embed",), "float32", "embed"), x, q, s)

    return [
        Case("unpack", {"q": values, "s": scales}, lambda b, q, s: b.one(Unpack("embed", "float32"), q, s), _whole),
        Case("unpack_integers", {"q": f"{values}:int32", "s": scales},
             lambda b, q, s: b.one(Unpack("embed", "float32"), q, s), _whole),
        Case("dot_packed", {"x": "batch=2 seq=3 embed=6", "q": f"{values}:int32", "s": scales}, dot,
             lambda x, q, s: x @ _whole(q, s)),
    ]  # fmt: skip
