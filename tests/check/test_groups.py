"""The notations of groups, and the mesh axes they are."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.check.groups import Move, fibres, groups, mesh_axes, move, pairs
from compiler.check.hlo import HloError

MESH = {"data": 2, "model": 4}
ROWS = [[0, 1, 2, 3], [4, 5, 6, 7]]
COLUMNS = [[0, 4], [1, 5], [2, 6], [3, 7]]
HALVES = [[0, 2], [1, 3], [4, 6], [5, 7]]


@pytest.mark.parametrize(
    ("text", "listed", "axes"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", ROWS, ("model",)),
        ("{{3,2,1,0},{4,5,6,7}}", ROWS, ("model",)),
        ("{{0,4},{1,5},{2,6},{3,7}}", COLUMNS, ("data",)),
        ("{{0,2},{1,3},{4,6},{5,7}}", HALVES, None),
        ("{{0},{1},{2},{3},{4},{5},{6},{7}}", [[i] for i in range(8)], ()),
        ("{}", [list(range(8))], ("data", "model")),
        ("{{}}", [list(range(8))], ("data", "model")),
        ("[2,4]<=[8]", ROWS, ("model",)),
        ("[1,8]<=[8]", [list(range(8))], ("data", "model")),
        ("[4,2]<=[2,4]T(1,0)", COLUMNS, ("data",)),
        ("[4,2]<=[2,2,2]T(0,2,1)", HALVES, None),
        ("mesh['axis_0'=1,'axis_1'=1,'axis_2'=2,'axis_3'=4] {'axis_2'}", COLUMNS, ("data",)),
        ("mesh['axis_0'=2,'axis_1'=1,'axis_2'=4] {'axis_0','axis_2'}", [list(range(8))], ("data", "model")),
        ("mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}", ROWS, ("model",)),
        ("mesh['axis_0'=4,'axis_1'=2], device_ids=(0,4,1,5,2,6,3,7) {'axis_1'}", COLUMNS, ("data",)),
        ("mesh[a=2,b=4] {b}", ROWS, ("model",)),
        ("mesh['a'=8] {'a':(2)2}", HALVES, None),
        ("mesh['a'=8] {'a':(1)2}", COLUMNS, ("data",)),
        ("mesh['a'=8] {'a':(2)4}", ROWS, ("model",)),
        ("mesh['a'=8] {'a':(1)2,'a':(4)2}", [[0, 1, 4, 5], [2, 3, 6, 7]], None),
    ],
)
def test_notations(text: str, listed: list[list[int]], axes: tuple[str, ...] | None) -> None:
    found = groups(text, 8)
    assert found == frozenset(map(frozenset, listed))
    assert mesh_axes(found, MESH) == axes


@pytest.mark.parametrize("text", ["", "(0,1)", "[8", "mesh['a'=8] {'b'}", "mesh['a'=8]", "[2,4]<=8"])
def test_what_is_no_notation(text: str) -> None:
    with pytest.raises(HloError):
        groups(text, 8)


def test_another_order_of_devices() -> None:
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    assert mesh_axes(groups("{{0,4,1,5},{2,6,3,7}}", 8), MESH, order) == ("model",)
    assert mesh_axes(groups("[4,2]<=[2,4]T(1,0)", 8), MESH, order) is None


def test_axes_of_size_one_are_not_named() -> None:
    assert mesh_axes(groups("[2,4]<=[8]", 8), {"one": 1, "data": 2, "model": 4}) == ("model",)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_fibres_are_named_again(sizes: list[int], data: st.DataObject) -> None:
    mesh = {f"m{i}": n for i, n in enumerate(sizes)}
    total = math.prod(sizes)
    order = data.draw(st.permutations(range(total)))
    for chosen in itertools.chain.from_iterable(itertools.combinations(mesh, n) for n in range(len(mesh) + 1)):
        wide = tuple(a for a in chosen if mesh[a] > 1)
        assert mesh_axes(fibres(chosen, mesh, order), mesh, order) == wide


def test_iota_and_mesh_agree() -> None:
    iota = groups("[8,3]<=[2,3,4]T(0,2,1)", 24)
    assert iota == groups("mesh['a'=2,'b'=3,'c'=4] {'b'}", 24) == fibres(["b"], {"a": 2, "b": 3, "c": 4})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}", Move(("model",), 1, True)),
        ("{{1,0},{2,1},{3,2},{0,3},{5,4},{6,5},{7,6},{4,7}}", Move(("model",), 3, True)),
        ("{{0,1},{1,2},{2,3},{4,5},{5,6},{6,7}}", Move(("model",), 1, False)),
        ("{{0,4},{1,5},{2,6},{3,7}}", Move(("data",), 1, False)),
        ("{{0,0},{1,1},{2,4},{3,5},{4,2},{5,3},{6,6},{7,7}}", Move(("data", "model"))),
        ("{{0,1},{1,0},{2,3},{3,2}}", Move(("model",))),
        ("{{0,0},{1,1}}", Move(())),
    ],
)
def test_moves(text: str, expected: Move) -> None:
    assert move(pairs(text), MESH) == expected


def test_pairs_are_two() -> None:
    with pytest.raises(HloError):
        pairs("{{0,1,2}}")
