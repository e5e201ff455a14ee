"""Cases of the seats of experts: who sits where, tokens to seats and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from compiler.graph.sizes import Size
from compiler.ops.seats import ChooseTokens, FromSeats, Seats, ToSeats
from tests.ops.build import Case

CHOSEN = np.array([[[0, 2], [1, 0], [2, 0], [0, 1]], [[2, 0], [2, 1], [0, 2], [2, 1]]])
AT = np.array([[[0, 2], [1, 4], [3, 1]], [[4, 4], [0, 1], [2, 0]]])  # [batch experts seats] of 4 tokens; 4 is empty


def first_come(chosen: Any, experts: int, seats: int) -> Any:
    rows, tokens, _ = chosen.shape
    out = np.full((rows, experts, seats), tokens)
    for row in range(rows):
        for e in range(experts):
            sitting = [t for t in range(tokens) if e in chosen[row, t]][:seats]
            out[row, e, : len(sitting)] = sitting
    return out


def expert_choice(scores: Any, seats: int, lengths: Any = None) -> Any:
    rows, tokens, experts = scores.shape
    out = np.full((rows, experts, seats), tokens)
    for row in range(rows):
        real = tokens if lengths is None else lengths[row]
        best = np.argsort(-scores[row, :real], 0, kind="stable")[:seats].T
        out[row, :, : best.shape[1]] = best
    return out


def to_seats(x: Any, at: Any) -> Any:
    """x [batch tokens ..] to [batch experts seats ..]."""
    padded = np.concatenate([x, np.zeros_like(x[:, :1])], 1)
    return np.stack([row[places] for row, places in zip(padded, at, strict=True)])


def from_seats(y: Any, at: Any, tokens: int = 4) -> Any:
    out = np.zeros((y.shape[0], tokens + 1, *y.shape[3:]), y.dtype)
    for row, (places, values) in enumerate(zip(at, y, strict=True)):
        np.add.at(out[row], places.reshape(-1), values.reshape(-1, *y.shape[3:]))
    return out[:, :tokens]


def _own(x: Any, at: Any) -> Any:
    return np.stack([to_seats(x[:, :, e], at[:, e : e + 1])[:, 0] for e in range(x.shape[2])], 1)


def _kept(y: Any, at: Any) -> Any:
    return np.stack([from_seats(y[:, e : e + 1], at[:, e : e + 1]) for e in range(y.shape[1])], 2)


def _filled(x: Any, f: Any, ids: Any) -> Any:
    out = x.copy()
    for row, held in enumerate(ids):
        for n, t in enumerate(np.flatnonzero(held == 3)):
            out[row, t] = f[row, n] if n < f.shape[1] else 0
    return out


def cases() -> list[Case]:
    x, y, at = "batch=2 seq=4 embed=3", "batch=2 experts=3 seats=2 embed=3", "batch=2 experts=3 seats=2:int32"

    def one(op: Any) -> Any:
        return lambda b, *xs: b.one(op, *xs)

    return [
        Case("seats", {"x": x, "c": "batch=2 seq=4 active=2:int32"},
             lambda b, x, c: b.one(ToSeats(), x, b.one(Seats(experts=Size.of(3), seats=Size.of(2)), c)),
             lambda x, c: to_seats(x, first_come(c, 3, 2)), {"c": CHOSEN}),
        Case("choose_tokens", {"x": "batch=2 seq=4 experts=3"},
             lambda b, x: b.one(ToSeats(), x, b.one(ChooseTokens(seats=Size.of(2)), x)),
             lambda x: _own(x, expert_choice(x, 2))),
        Case("choose_tokens_of_padded_rows", {"x": "batch=2 seq=4 experts=3", "n": "batch=2:int32"},
             one(ChooseTokens(seats=Size.of(3))), lambda x, n: expert_choice(x, 3, n), {"n": [4, 2]},
             differentiable=False),
        Case("to_seats", {"x": x, "at": at}, one(ToSeats()), to_seats, {"at": AT}),
        Case("to_seats_of_experts", {"x": "batch=2 seq=4 experts=3", "at": at}, one(ToSeats()), _own, {"at": AT}),
        Case("to_seats_of_another_axis", {"x": "batch=2 patches=4 embed=3", "at": "batch=2 seq=5:int32"},
             one(ToSeats("patches", ("seq",))), to_seats, {"at": [[4, 0, 1, 4, 2], [0, 4, 4, 1, 1]]}),
        Case("fill", {"x": "batch=2 seq=4 embed=3", "f": "batch=2 patches=2 embed=3", "ids": "batch=2 seq=4:int32"},
             lambda b, x, f, ids: b.fill(x, f, ids, 3), _filled, {"ids": [[3, 1, 3, 3], [0, 3, 2, 1]]}),
        Case("from_seats", {"y": y, "at": at}, one(FromSeats(size=Size.of(4))), from_seats, {"at": AT}),
        Case("from_seats_each", {"y": y, "at": at}, one(FromSeats(size=Size.of(4), each=True)), _kept, {"at": AT}),
    ]  # fmt: skip
