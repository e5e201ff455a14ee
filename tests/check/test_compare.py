"""What was asked for against what is there: every verdict, and every excuse with its name."""

from __future__ import annotations

import dataclasses
import json

import pytest

from compiler.check.collectives import Collective
from compiler.check.compare import NORMALISED, Comparison, Expected, compare, hlo_dtype

GATHER = Expected("all-gather", ("data",), "bfloat16", 4096, 6, "layer/up", 2)
SUM = Expected("all-reduce", ("model",), "bfloat16", 1024, 6, "layer/down", 4)
SCATTER = Expected("reduce-scatter", ("data",), "bfloat16", 4096, 6, "layer/up", 2)


def made(e: Expected, **changes: object) -> Collective:
    """The collective that ``e`` asks for, but for the changes."""
    taken, whole = e.bytes // e.group if e.kind == "all-gather" else e.bytes, e.bytes
    path = f"jit(f)/while/body/{e.path}/x"
    c = Collective(e.kind, e.axes, e.group, hlo_dtype(e.dtype), taken, whole, e.count, path, "c", trips=(e.count,))
    if "bytes" in changes:
        size = changes.pop("bytes")
        changes |= {"operand_bytes": size, "result_bytes": size}
    return dataclasses.replace(c, **changes)  # type: ignore[arg-type]


def verdicts(comparison: Comparison) -> list[tuple[str, int, tuple[str, ...]]]:
    return [(m.status, m.count, m.how) for m in comparison.matches]


def test_equal() -> None:
    asked = [GATHER, SUM, SCATTER]
    found = compare(asked, [made(e) for e in reversed(asked)])
    assert verdicts(found) == [("equal", 6, ())] * 3 and found.as_asked
    assert found.runs == {"equal": 18, "normalised": 0, "changed": 0, "missing": 0, "extra": 0}
    assert [(t.kind, t.axes, t.expected, t.found, t.ratio) for t in found.totals] == [
        ("all-gather", ("data",), 6 * 2048, 6 * 2048, 1.0), ("all-reduce", ("model",), 6 * 1536, 6 * 1536, 1.0),
        ("reduce-scatter", ("data",), 6 * 2048, 6 * 2048, 1.0),
    ]  # fmt: skip
    json.dumps(found.to_json())


def test_the_axes_order_and_two_percent_do_not_matter() -> None:
    both = Expected("all-reduce", ("model", "data"), "float32", 1000, 1, "layer", 8)
    assert verdicts(compare([both], [made(both, axes=("data", "model"), bytes=1019)])) == [("equal", 1, ())]
    assert verdicts(compare([both], [made(both, axes=("data", "model"), bytes=1030)]))[0][0] == "changed"


def test_counts_are_shared_out() -> None:
    """A pipelined loop has a trip peeled off; an unrolled one has each trip apart."""
    assert verdicts(compare([GATHER], [made(GATHER, count=5), made(GATHER, count=1)])) == [("equal", 6, ())]
    assert verdicts(compare([GATHER], [made(GATHER, count=1)] * 6)) == [("equal", 6, ())]
    twice = dataclasses.replace(GATHER, count=2)
    assert verdicts(compare([twice] * 3, [made(GATHER)])) == [("equal", 2, ())] * 3
    short = compare([GATHER], [made(GATHER, count=5)])
    assert verdicts(short) == [("equal", 5, ()), ("missing", 1, ())] and not short.as_asked
    assert verdicts(compare([GATHER], [made(GATHER, count=7)])) == [("equal", 6, ()), ("extra", 1, ())]


def test_a_node_gets_its_own() -> None:
    other = dataclasses.replace(GATHER, path="layer/gate")
    found = compare([GATHER, other], [made(other), made(GATHER)])
    assert [(m.expected[0].path, m.found[0].path) for m in found.matches] == [
        ("layer/up", made(GATHER).path), ("layer/gate", made(other).path),
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "bf16"])
def test_promoted(dtype: str) -> None:
    narrow = dataclasses.replace(SUM, dtype=dtype)
    times = 4 if dtype.startswith("float8") else 2
    found = compare([narrow], [made(narrow, dtype="f32", bytes=narrow.bytes * times)])
    assert verdicts(found) == [("normalised", 6, ("promoted",))] and found.as_asked
    assert found.totals[0].ratio == times
    assert verdicts(compare([narrow], [made(narrow, dtype="f32")]))[0][0] == "changed"  # half of its elements


def test_combined_and_split() -> None:
    parts = [dataclasses.replace(SUM, bytes=n, path=p) for n, p in ((100, "a"), (200, "b"), (400, "c"))]
    assert verdicts(compare(parts, [made(SUM, bytes=700)])) == [("normalised", 6, ("combined",))]
    two = compare(parts, [made(SUM, bytes=500), made(parts[1])])
    assert verdicts(two) == [("equal", 6, ()), ("normalised", 6, ("combined",))]
    wide = made(SUM, dtype="f32", bytes=1400)
    assert verdicts(compare(parts, [wide])) == [("normalised", 6, ("combined", "promoted"))]
    whole = dataclasses.replace(SUM, bytes=700)
    assert verdicts(compare([whole], [made(e) for e in parts])) == [("normalised", 6, ("split",))]


def test_merged() -> None:
    """Gathers of one value; where the values are named and differ, one is missing."""
    twin = dataclasses.replace(GATHER, path="layer/gate")
    found = compare([GATHER, twin], [made(GATHER)])
    assert verdicts(found) == [("equal", 6, ()), ("normalised", 6, ("merged",))]
    assert "not known" in found.matches[1].note
    named = [dataclasses.replace(e, value=v) for e, v in ((GATHER, "x"), (twin, "x"))]
    assert compare(named, [made(GATHER)]).matches[1].note == ""
    differ = [named[0], dataclasses.replace(twin, value="y")]
    assert verdicts(compare(differ, [made(GATHER)])) == [("equal", 6, ()), ("missing", 6, ())]
    sums = [SUM, dataclasses.replace(SUM, path="other")]
    assert verdicts(compare(sums, [made(SUM)])) == [("equal", 6, ()), ("missing", 6, ())]


def test_hoisted() -> None:
    outside = made(SUM, count=1, trips=())  # written in a loop, running outside of it
    assert verdicts(compare([SUM], [outside])) == [("normalised", 6, ("hoisted",))]
    assert compare([SUM], [outside]).matches[0].note == "6 runs became 1"
    stacked = made(SUM, count=1, trips=(), bytes=6 * SUM.bytes)
    assert verdicts(compare([SUM], [stacked])) == [("normalised", 6, ("hoisted",))]
    inside = made(SUM, count=1, trips=(1,))
    assert verdicts(compare([SUM], [inside])) == [("equal", 1, ()), ("missing", 5, ())]


def test_padded() -> None:
    padded = made(SCATTER, bytes=4096 + 160)
    shift = Collective("collective-permute", ("data",), 2, "bf16", 80, 80, 6, "", "p", by=1)
    found = compare([SCATTER], [padded, shift])
    assert verdicts(found) == [("normalised", 6, ("padded",))] and len(found.matches[0].found) == 2
    assert verdicts(compare([SCATTER], [made(SCATTER, bytes=5000)]))[0][0] == "changed"


def test_changed() -> None:
    summed = compare([SCATTER], [made(SCATTER, kind="all-reduce", path="")])
    assert verdicts(summed) == [("changed", 6, ())] and not summed.as_asked
    assert summed.matches[0].note == "all-reduce in place of reduce-scatter"
    assert [(t.kind, t.ratio) for t in summed.totals] == [("all-reduce", None), ("reduce-scatter", 0.0)]
    moved = compare([GATHER], [made(GATHER, axes=("model",), group=4, bytes=9000)])
    assert moved.matches[0].note == "over model in place of data, 9,000 bytes in place of 4,096"
    nowhere = compare([GATHER], [made(GATHER, axes=None, dtype="s8")])
    assert nowhere.matches[0].note.startswith("over no mesh axes in place of data, s8 in place of bf16")


def test_narrowed_without_a_name_is_changed() -> None:
    """A sum in float32 that the program does in bfloat16, after its loop or in it."""
    wide = dataclasses.replace(SUM, dtype="float32", bytes=256)
    found = compare([wide], [made(wide, dtype="bf16", bytes=128, path="")])
    assert verdicts(found) == [("changed", 6, ())]
    hoisted = compare([wide], [made(wide, dtype="bf16", bytes=6 * 128, path="", count=1, trips=())])
    assert verdicts(hoisted) == [("changed", 6, ())]
    assert hoisted.matches[0].note == "6 runs became 1, bf16 in place of f32"


def test_missing_extra_and_what_moves_nothing() -> None:
    alone = dataclasses.replace(SUM, group=1)
    assert compare([alone], [made(SUM, group=1)]).matches == ()
    found = compare([SUM], [made(GATHER)])
    assert verdicts(found) == [("missing", 6, ()), ("extra", 6, ())]


def test_every_excuse_is_explained() -> None:
    assert set(NORMALISED) == {"promoted", "combined", "split", "merged", "padded", "hoisted"}


def test_dtypes() -> None:
    names = ["bfloat16", "float32", "int32", "uint8", "bool", "float8_e4m3fn", "float8_e5m2", "f32"]
    assert [hlo_dtype(n) for n in names] == ["bf16", "f32", "s32", "u8", "pred", "f8e4m3fn", "f8e5m2", "f32"]
