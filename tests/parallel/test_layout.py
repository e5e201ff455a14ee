"""Mesh to machine: layouts worked out by hand, and what holds for every layout."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.errors import SpecError
from compiler.parallel.layout import Layout, lay
from compiler.parallel.network import Dim, Network, network, wraps
from compiler.targets.types import parse_target
from costmodel.machines import machine

MACHINES = {"7x": "tpu7x"}


def on(target: str, traffic: dict[str, float] | None = None, *, whole: bool = True, **mesh: int) -> Layout:
    place = parse_target(target)
    return lay(mesh, network(place, machine(MACHINES.get(place.chip, place.chip))), traffic, whole=whole)


def parts(made: Layout, axis: str) -> list[str]:
    return [str(p) for p in made.links[axis].parts]


def rate(made: Layout, axis: str) -> float:
    """GB/s."""
    return round(made.links[axis].bytes_per_s / 1e9, 3)


# -- by hand: a v5e link is 45 GB/s one way, v5p 90, NVLink 4 of an H100 450, its network 50
def test_v5e_pod_a_ring_each() -> None:
    made = on("tpu:v5e:16x16", data=16, model=16)
    assert parts(made, "data") == ["x 16 ring"] and parts(made, "model") == ["y 16 ring"]
    assert rate(made, "data") == rate(made, "model") == 2 * 45
    assert made.links["model"].kinds == ("ici",)
    assert made.numbers[3, 5] == 3 + 16 * 5


def test_v5p_whole_sides() -> None:
    made = on("tpu:v5p:8x8x4", data=32, model=8)
    assert parts(made, "data") == ["x 8 ring", "z 4 ring"] and rate(made, "data") == 4 * 90
    assert parts(made, "model") == ["y 8 ring"] and rate(made, "model") == 2 * 90


def test_v5p_by_time_alone_the_heavy_axis_takes_parts_of_two_sides() -> None:
    made = on("tpu:v5p:8x8x4", {"data": 1, "model": 100}, whole=False, data=32, model=8)
    assert rate(made, "model") == 90 + 2 * 90  # a line of 2 and the ring of 4
    assert rate(made, "data") == 2 * 90 + 2 * 90 / 2  # a ring of 8, and a ring of 4 whose links two groups share


def test_lines_where_ends_are_not_joined() -> None:
    made = on("tpu:v5e:4x8", data=4, model=8)
    assert parts(made, "data") == ["x 4 line"] and rate(made, "data") == 45 == rate(made, "model")


def test_a_side_that_must_be_cut_gives_its_inside_to_the_heavier() -> None:
    made = on("tpu:v5e:4x4", {"data": 1, "model": 10}, data=2, model=8)
    assert parts(made, "model") == ["x 2 of 4 line", "y 4 line"] and rate(made, "model") == 2 * 45
    assert parts(made, "data") == ["x 2 of 4 line, stride 2"] and rate(made, "data") == 45 / 2
    other = on("tpu:v5e:4x4", {"data": 10, "model": 1}, data=2, model=8)
    assert rate(other, "data") == 45 and rate(other, "model") == 45 + 45 / 2


def test_h100_hosts() -> None:
    made = on("gpu:h100:2x8", data=2, model=8)
    assert made.links["model"].kinds == ("nvlink",) and rate(made, "model") == 18 * 25
    assert made.links["data"].kinds == ("dcn",) and rate(made, "data") == 50
    assert made.numbers.tolist() == [list(range(8)), list(range(8, 16))]
    assert rate(on("gpu:h100:2x8", data=16), "data") == 8 * 50  # eight cards' network, less than NVLink


def test_traffic_decides() -> None:
    made = on("gpu:h100:2x8", {"data": 100, "model": 1}, data=2, model=8)
    assert made.links["data"].kinds == ("nvlink",) and made.links["model"].kinds == ("dcn", "nvlink")


def test_slices() -> None:
    made = on("tpu:v5e:16x16:slices=2", dcn_data=2, data=16, model=16)
    assert made.links["dcn_data"].kinds == ("dcn",) and rate(made, "dcn_data") == 3.125
    assert rate(made, "model") == 90 and made.numbers[1].min() == 256
    inside = on("tpu:v5e:4x4:slices=2", data=8, model=4)  # without an axis of its own
    assert rate(inside, "data") == 4 * 3.125 and inside.links["model"].kinds == ("ici",)
    with pytest.raises(SpecError) as caught:
        on("tpu:v5e:4x4:slices=2", dcn_data=4, model=8)
    assert caught.value.problems[0].allowed == ("dcn_data=1", "dcn_data=2")


def test_two_devices_of_a_chip() -> None:
    made = on("tpu:7x:4x4x4", data=64, model=2)
    assert made.links["model"].kinds == ("chip",) and parts(made, "model") == ["core 2"]
    assert rate(made, "data") == 6 * 100 / 2  # three rings, which both devices of a chip share
    assert rate(on("tpu:7x:4x4x4", data=128), "data") == 6 * 100
    assert made.network.notes


def test_the_cpu_needs_no_machine() -> None:
    made = lay({"data": 2, "model": 4}, network(parse_target("cpu:8")))
    assert made.numbers.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]] and made.seconds == 0
    assert made.links["data"].kinds == ("cpu",)
    with pytest.raises(SpecError):
        network(parse_target("tpu:v5e:4x4"))


def test_rings() -> None:
    assert wraps((8, 8, 4), (16, 20, 28)) == (True,) * 3 and wraps((2, 2, 4), (16, 16, 16)) == (False,) * 3
    assert wraps((8, 16), (16, 16)) == (False, True)


@pytest.mark.parametrize(("mesh", "code"), [({"data": 4}, "mesh-size"), ({"data": 3, "model": 5}, "mesh-size")])
def test_refused(mesh: dict[str, int], code: str) -> None:
    with pytest.raises(SpecError) as caught:
        on("tpu:v5e:4x4", **mesh)
    assert caught.value.problems[0].code == code


def test_traffic_of_an_unknown_axis() -> None:
    with pytest.raises(SpecError) as caught:
        on("tpu:v5e:4x4", {"modle": 1}, data=4, model=4)
    assert caught.value.problems[0].suggestion == "model"


# -- devices as jax gives them
@dataclass(frozen=True)
class Device:
    id: int
    coords: tuple[int, int, int]
    core_on_chip: int = 0
    slice_index: int | None = None


def test_arrange_goes_by_coordinates() -> None:
    made = on("tpu:7x:2x2x4", data=16, model=2)
    devices = [
        Device(c + 2 * (x + 2 * (y + 2 * z)), (x, y, z), c)
        for y, x, z, c in itertools.product(range(2), range(2), range(4), range(2))
    ]
    ids = np.vectorize(lambda d: d.id)(made.arrange(devices))
    assert (ids == made.numbers).all()
    with pytest.raises(SpecError):
        made.arrange(devices[1:])
    with pytest.raises(SpecError):
        made.arrange([*devices[1:], Device(99, (5, 5, 5))])


def test_arrange_without_coordinates_goes_by_order() -> None:
    made = on("gpu:h100:2x8", data=2, model=8)
    assert made.arrange(list("abcdefghijklmnop")).tolist() == [list("abcdefgh"), list("ijklmnop")]


# -- properties
@st.composite
def problems(draw: st.DrawFn) -> tuple[Network, dict[str, int], dict[str, float]]:
    """A torus of two or three sides, and a mesh of as many devices."""
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 4, 6, 8]), min_size=2, max_size=3))
    wrap = draw(st.booleans())
    torus = tuple(Dim(n, side, "torus", 10.0, wrap) for n, side in zip("xyz", shape, strict=False))
    outer = Dim("slice", draw(st.sampled_from([1, 2])), "network", 1.0)
    core = Dim("core", draw(st.sampled_from([1, 2])), "core", 60.0)
    net = Network((outer, *torus, core), ("slice", *(d.name for d in reversed(torus)), "core"))
    left, mesh = net.devices, {}
    for name in ("a", "b", "c"):
        mesh[name] = draw(st.sampled_from([d for d in range(1, left + 1) if left % d == 0]))
        left //= mesh[name]
    mesh["d"] = left
    return net, mesh, {name: draw(st.sampled_from([0.0, 1.0, 5.0, 100.0])) for name in mesh}


@settings(max_examples=80, deadline=None)
@given(problems(), st.booleans())
def test_every_layout_is_a_permutation(problem: tuple[Network, dict[str, int], dict[str, float]], whole: bool) -> None:
    net, mesh, traffic = problem
    made = lay(mesh, net, traffic, whole=whole)
    assert made.numbers.shape == tuple(mesh.values())
    assert sorted(made.numbers.ravel().tolist()) == list(range(net.devices))
    assert made.places.reshape(-1, len(net.dims)).max(0).tolist() == [d.size - 1 for d in net.dims]
    for name, links in made.links.items():
        assert math.prod(p.size for p in links.parts) == mesh[name] and links.bytes_per_s > 0
        for dim in net.dims:
            assert all(p.size <= dim.size for p in links.parts if p.dim == dim.name)
    for dim in net.dims:
        assert math.prod(p.size for ls in made.links.values() for p in ls.parts if p.dim == dim.name) == dim.size


@settings(max_examples=60, deadline=None)
@given(problems())
def test_what_an_axis_gets_is_what_its_links_carry(
    problem: tuple[Network, dict[str, int], dict[str, float]],
) -> None:
    """Axes with a part of one side: send from each device to the next of its group, and count who uses a link."""
    net, mesh, traffic = problem
    made = lay(mesh, net, traffic)
    for i, links in enumerate(made.links.values()):
        if len(links.parts) != 1 or links.parts[0].kind != "torus":
            continue
        (part,) = links.parts
        column = net.names.index(part.dim)
        used: Counter[tuple[int, ...]] = Counter()
        groups = np.moveaxis(made.places, i, 0)
        for here, there in itertools.pairwise(groups):
            for a, b in zip(here.reshape(-1, len(net.dims)), there.reshape(-1, len(net.dims)), strict=True):
                for step in range(a[column], b[column]):
                    at = a.copy()
                    at[column] = step
                    at[-1] = 0  # links are the chip's
                    used[tuple(at.tolist())] += 1
        busiest = max(used.values())
        whole_ring = next(d.wrap for d in net.dims if d.name == part.dim) and part.size * part.stride == part.of
        assert links.bytes_per_s == pytest.approx(10.0 * (2 if whole_ring else 1) / busiest)


@settings(max_examples=40, deadline=None)
@given(problems())
def test_exchanging_two_axes_never_helps(problem: tuple[Network, dict[str, int], dict[str, float]]) -> None:
    """Where two axes are alike in size, the one with more traffic has the better wires."""
    net, mesh, traffic = problem
    made = lay(mesh, net, traffic, whole=False)
    for a, b in itertools.combinations(mesh, 2):
        if mesh[a] == mesh[b] > 1 and traffic[a] > traffic[b]:
            assert made.links[a].bytes_per_s >= made.links[b].bytes_per_s * (1 - 1e-9)


@settings(max_examples=30, deadline=None)
@given(problems())
def test_cutting_freely_is_never_slower(problem: tuple[Network, dict[str, int], dict[str, float]]) -> None:
    net, mesh, traffic = problem
    assert lay(mesh, net, traffic, whole=False).seconds <= lay(mesh, net, traffic).seconds * (1 + 1e-6)


def test_large_meshes_are_quick() -> None:
    import time

    start = time.perf_counter()
    on("tpu:v5p:16x16x24", data=24, fsdp=16, context=2, model=4, model_copies=2)
    on("tpu:v4:16x16x16", data=64, fsdp=16, model=4)
    assert time.perf_counter() - start < 5
