"""What ``compile --check`` says: a line for each kind of difference, its cause, and a verdict."""

from __future__ import annotations

import dataclasses

from blockgraph.checks import rows, verdict
from compiler.check import compare, explained
from tests.check.test_compare import GATHER, SCATTER, SUM, made

NORM = dataclasses.replace(SCATTER, dtype="float32", bytes=256, path="layer/norm", shape=(64,), along=0)


def test_what_is_not_as_asked_is_told_by_difference_with_its_cause_and_places() -> None:
    other = dataclasses.replace(NORM, path="norm")
    lost = made(NORM, kind="all-reduce", dtype="bf16", bytes=128, path="", count=12)  # no name left, and narrowed
    found = explained(compare([GATHER, NORM, other], [made(GATHER), lost]), "tpu")
    equal, changed = rows(found)
    assert (equal.status, equal.found_runs, equal.note) == ("equal", 6, "")
    assert (changed.status, changed.expected_runs, changed.found_runs) == ("changed", 12, 12)
    assert changed.note == "all-reduce in place of reduce-scatter, bf16 in place of f32, 128 bytes in place of 256"
    assert changed.paths == ("layer/norm", "norm") and "whole tiles" in changed.cause
    assert verdict(found).startswith("not as asked: 6 of 18 collectives are as asked; 12 changed. A device sends")


def test_missing_and_extra_say_what_that_means() -> None:
    missing, extra = rows(compare([SUM], [made(GATHER)]))
    assert "nothing in the program answers" in missing.note and "nobody asked" in extra.note
    assert "0 of 6 collectives are as asked; 6 missing, 6 extra" in verdict(compare([SUM], [made(GATHER)]))


def test_verdicts_of_what_is_as_asked() -> None:
    wide = made(SUM, dtype="f32", bytes=2 * SUM.bytes)
    assert verdict(compare([GATHER, SUM], [made(GATHER), wide])) == (
        "as asked: all 12 collectives are in the program, 6 of them in another form that does the same"
    )
    assert verdict(compare([], [])).startswith("no collectives: the graph asks for none")
