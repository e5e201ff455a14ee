"""The sizes of a call: what has no use is refused."""

from __future__ import annotations

import pytest

from compiler.errors import SpecError
from compiler.passes.call import VERIFIED, check_chunk


@pytest.mark.parametrize(
    ("phase", "length", "chunk", "words"),
    [
        ("decode", 64, 8, "this is decode"),
        ("train", 64, 8, "this is train"),
        ("prefill", 4, 8, "a prefill call of 8 tokens does not fit a length of 4"),
        ("verify", VERIFIED - 1, None, f"a verify call of {VERIFIED} tokens"),
    ],
)
def test_a_chunk_without_a_use_is_refused(phase: str, length: int, chunk: int | None, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        check_chunk(phase, length, chunk)


def test_other_calls_are_legal() -> None:
    for phase, length, chunk in (("prefill", 8, 8), ("verify", 8, 3), ("decode", 1, None), ("forward", 3, None)):
        check_chunk(phase, length, chunk)
