"""The mesh as people write it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.errors import Problem, SpecError
from compiler.parallel.mesh import Mesh, divisors, parse, slices


def refused(text: str, devices: int | None = None, groups: int = 1) -> list[Problem]:
    with pytest.raises(SpecError) as caught:
        parse(text, groups).fill(devices, "tpu:v5e:2x4")
    return list(caught.value.problems)


def test_reads() -> None:
    mesh = parse(" data = 64, model=4 ")
    assert dict(mesh.sizes) == {"data": 64, "model": 4} and mesh.devices == 256 and str(mesh) == "data=64,model=4"
    assert str(mesh.fill(256)) == str(mesh.fill(None)) == str(mesh)


def test_the_rest() -> None:
    assert dict(parse("data=-1,model=4").fill(32).sizes) == {"data": 8, "model": 4}
    (found,) = refused("data=-1,model=3", 8)
    assert (found.code, found.suggestion) == ("mesh-size", "data=-1,model=4")
    assert refused("data=-1")[0].code == "bad-mesh"


def test_not_the_machines_size() -> None:
    (found,) = refused("data=4,model=4", 8)
    assert found.code == "mesh-size" and "has 16 devices" in found.message and "tpu:v5e:2x4 has 8" in found.message
    assert found.allowed == ("data=2,model=4", "data=4,model=2")
    assert refused("a=3,b=5", 8)[0].suggestion == "a=2,b=4"


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("", ["bad-mesh"]),
        ("data", ["bad-mesh"]),
        ("data=x", ["bad-mesh"]),
        ("data=0", ["bad-mesh"]),
        ("data=-2", ["bad-mesh"]),
        ("data=999999999", ["bad-mesh"]),
        ("2d=4", ["bad-mesh"]),
        ("data=4,data=2", ["mesh-axis-twice"]),
        ("data=-1,model=-1", ["bad-mesh"]),
        ("x,data=0,y=-1,z=-1", ["bad-mesh"] * 3),
        ("dcn_data=-1", ["bad-mesh"]),
    ],
)
def test_refused(text: str, codes: list[str]) -> None:
    assert [p.code for p in refused(text)] == codes


def test_slices() -> None:
    mesh = parse("fsdp=-1,model=2", 2).fill(16)
    assert dict(mesh.sizes) == {"dcn_data": 2, "fsdp": 4, "model": 2}
    assert mesh.network == ("dcn_data",) and slices(mesh) == 2
    assert list(parse("fsdp=4,dcn_fsdp=2", 2).sizes) == ["dcn_fsdp", "fsdp"]
    assert refused("dcn_data=2,fsdp=4", None, 4)[0].code == "mesh-size"


sizes = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(1, 64), min_size=1)


@given(sizes, st.integers(1, 512))
def test_what_is_named_fits(sizes: dict[str, int], devices: int) -> None:
    mesh = parse(",".join(f"{n}={s}" for n, s in sizes.items()))
    try:
        assert mesh.fill(devices).devices == devices
    except SpecError as e:
        (found,) = e.problems
        for text in found.allowed:
            assert parse(text).fill(devices).devices == devices and list(parse(text).sizes) == list(sizes)


@given(st.integers(1, 5000))
def test_divisors(n: int) -> None:
    assert divisors(n) == [d for d in range(1, n + 1) if n % d == 0]


def test_a_mesh_made_by_hand() -> None:
    position = parse("a=1").position
    assert Mesh({"a": 2}, position).fill(2).devices == 2
