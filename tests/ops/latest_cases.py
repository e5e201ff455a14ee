"""Cases of the last positions of a sequence, of attention from them to all of it, and of what is left out."""

from __future__ import annotations

from typing import Any

import numpy as np

from compiler.graph.axes import first_of
from compiler.graph.sizes import Size
from compiler.ops.attention import Attend
from compiler.ops.latest import Latest
from tests.ops import reference as ref
from tests.ops.build import Case

SIZES = {"seq": 5}


def attends(implementation: str, **options: Any) -> Case:
    """The last 2 of 5 positions look at all that lie before them."""
    op = Attend(
        "recent", "seq", offset=first_of("recent", Size.of(2)), scale=0.6, implementation=implementation, **options
    )
    inputs = {"q": "batch=2 recent=2 heads=4 head_dim=3", "k": "batch=2 seq=5 kv_heads=2 head_dim=3",
              "v": "batch=2 seq=5 kv_heads=2 head_dim=3"}  # fmt: skip
    return Case(f"attend_recent_{implementation}", inputs, lambda b, *xs: b.apply(op, *xs)[0],
                lambda q, k, v: ref.attend(q, k, v, scale=0.6, first=3), sizes=SIZES)  # fmt: skip


def cases() -> list[Case]:
    heads = {"q": "batch=2 seq=5 heads=4 head_dim=3", "k": "batch=2 seq=5 kv_heads=2 head_dim=3",
             "v": "batch=2 seq=5 kv_heads=2 head_dim=3"}  # fmt: skip
    return [
        Case("latest", {"x": "batch=2 seq=5 embed=3"}, lambda b, x: b.one(Latest(Size.of(2), Size.of(1)), x),
             lambda x: x[:, 3:], sizes=SIZES),
        attends("plain"), attends("blocked"),
        Case("attend_kept", heads, lambda b, q, k, v: b.attend(q, k, v, scale=0.6, query_segments=b.kept(q, "seq"),
                                                               key_segments=b.kept(k, "seq", 0.5)),
             lambda q, k, v: ref.attend(q, k, v, scale=0.6)),
    ]  # fmt: skip


def held(tail: Any, x: Any, start: Any, valid: Any, keep: int) -> Any:
    """The last positions of each row, from those before, of which ``tail`` [batch taps …] has the last ones."""
    rows = [
        np.concatenate([t[len(t) - min(s, len(t)) :], y[:n]]) for t, y, s, n in zip(tail, x, start, valid, strict=True)
    ]
    return [row[-keep:] for row in rows]
