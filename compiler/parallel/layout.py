"""From the mesh to the machine: which mesh axis runs over which wires, and so which device stands where in the mesh.

Every way to give the machine's dimensions to the mesh axes is tried: an axis may take several dimensions, a dimension
may be cut among several axes. The bytes that an axis sends a step, over the bytes a second that its wires carry, are
its time; the layout with the least total wins. What an axis gets:

- a torus dimension whole: two links where it is a ring, one where it is a line; several dimensions add up
- the inner part of a cut dimension: a line. An outer part: its neighbours are ``stride`` chips apart and share each
  link with ``stride`` groups like it
- the devices of a chip share the chip's links, unless they are in the same group
- the data-centre network: its share of each device of the group that is in the same slice (or host), together
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler.errors import Problem, SpecError, nearest
from compiler.parallel.mesh import NETWORK, divisors
from compiler.parallel.network import Dim, Network

STEEP = 16.0  # without traffic: how much more an axis is taken to send than the one before it
MOST_TRIED = 20_000  # cuts; real meshes have some hundreds
MOST_ORDERED = 4  # axes in one dimension whose orders are all looked at
FEW = 36
Cut = tuple[int, ...]  # of one mesh axis: how much of each dimension it takes


@dataclass(frozen=True)
class Part:
    """What a mesh axis has of one dimension of the machine."""

    dim: str
    kind: str  # as of the dimension
    size: int
    of: int  # the dimension's size
    stride: int  # chips from one to the next
    ring: bool

    def __str__(self) -> str:
        text = f"{self.dim} {self.size}" if self.size == self.of else f"{self.dim} {self.size} of {self.of}"
        text += " ring" if self.ring else " line" if self.kind == "torus" else ""
        return text + (f", stride {self.stride}" if self.stride > 1 and self.kind == "torus" else "")


@dataclass(frozen=True)
class Links:
    """Where one mesh axis runs. ``bytes_per_s``: what one device can send in collectives over it, one way."""

    axis: str
    parts: tuple[Part, ...]
    bytes_per_s: float

    @property
    def kinds(self) -> tuple[str, ...]:
        """What it runs over: "ici", "nvlink", "xgmi", "dcn", "chip" (within one), "cpu" (simulated devices)."""
        return tuple(dict.fromkeys(KINDS[p.kind] for p in self.parts))

    def __str__(self) -> str:
        rate = "" if math.isinf(self.bytes_per_s) else f": {self.bytes_per_s / 1e9:g} GB/s"
        return f"{self.axis} on {' x '.join(map(str, self.parts)) or 'one device'}{rate}"


KINDS = {
    "torus": "ici", "core": "chip", "switch": "nvlink", "full_mesh": "xgmi", "network": "dcn", "simulated": "cpu",
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """``places``: shape of the mesh + (dimensions of the machine,), each device's coordinates; ``numbers``: shape of
    the mesh, each device's number when x runs fastest (a permutation of 0 …)."""

    mesh: Mapping[str, int]
    network: Network
    links: Mapping[str, Links]
    seconds: float  # bytes over bandwidth, all axes one after another, for the traffic given
    places: np.ndarray
    numbers: np.ndarray

    def arrange(self, devices: Sequence[Any]) -> np.ndarray:
        """The devices of jax in the shape of the mesh, for ``jax.sharding.Mesh``: by their own coordinates where they
        have some, else in the order given."""
        if len(devices) != self.network.devices:
            message = f"the layout is of {self.network.devices:,} devices, and {len(devices):,} are given"
            raise SpecError(Problem("mesh-size", message))
        by_place = {self._place(i, d): d for i, d in enumerate(devices)}
        flat = self.places.reshape(-1, self.places.shape[-1])
        made = np.empty(len(flat), object)
        for i, place in enumerate(map(tuple, flat.tolist())):
            if place not in by_place:
                at = ", ".join(f"{n} = {v}" for n, v in zip(self.network.names, place, strict=True))
                raise SpecError(Problem("mesh-size", f"none of the devices given is at {at}"))
            made[i] = by_place[place]
        return made.reshape(self.numbers.shape)

    def _place(self, index: int, device: Any) -> tuple[int, ...]:
        if "x" not in self.network.names:
            strides, sizes = self.network.strides(), [d.size for d in self.network.dims]
            return tuple(index // stride % size for stride, size in zip(strides, sizes, strict=True))
        known = {"slice": getattr(device, "slice_index", None) or 0, "core": getattr(device, "core_on_chip", 0)}
        known |= dict(zip("xyz", device.coords, strict=False))
        return tuple(int(known[name]) for name in self.network.names)

    def __str__(self) -> str:
        return "\n".join(map(str, self.links.values()))


def lay(
    mesh: Mapping[str, int],
    network: Network,
    traffic: Mapping[str, float] | None = None,
    *,
    whole: bool = True,
) -> Layout:
    """The best layout of mesh axes (major first) on a machine. ``traffic``: bytes that a device sends a step over each
    axis; without it each axis is taken to send far more than the one before it. ``whole``: cut no more torus
    dimensions than must be, as compilers are known to use whole ones; else only time counts. Axes whose names begin
    with ``dcn_`` run over the network between slices (or hosts) only. Raises SpecError."""
    names, sizes = tuple(mesh), tuple(mesh.values())
    if math.prod(sizes) != network.devices:
        shown = ",".join(f"{n}={s}" for n, s in mesh.items())
        message = f"the mesh {shown} has {math.prod(sizes):,} devices, and the machine has {network.devices:,}"
        raise SpecError(Problem("mesh-size", message))
    for name in traffic or ():
        if name not in mesh:
            message = f"traffic is given for {name}, which is no axis of the mesh"
            raise SpecError(Problem("unknown-mesh-axis", message, None, names, nearest(name, names)))
    weights = tuple(float(traffic.get(n, 0)) if traffic is not None else STEEP**i for i, n in enumerate(names))
    search = _Search(names, sizes, network, weights, whole)
    best = search.best()
    if best is None:
        raise _impossible(names, mesh, network)
    cuts, orders = best
    parts = [_parts(a, cuts, orders, network.dims) for a in range(len(names))]
    links = {n: Links(n, tuple(ps), _rate(ps, network)) for n, ps in zip(names, parts, strict=True)}
    seconds = sum(w / links[n].bytes_per_s for n, w in zip(names, weights, strict=True) if w)
    places = _places(sizes, parts, network)
    numbers = (places * np.array(network.strides())).sum(-1)
    return Layout(dict(mesh), network, links, seconds, places, numbers)


def _rounded(seconds: float) -> float:
    """So that sums in another order tie."""
    return float(f"{seconds:.9e}")


def _impossible(names: Sequence[str], mesh: Mapping[str, int], network: Network) -> SpecError:
    over = [n for n in names if n.startswith(NETWORK)]
    outer = [d for d in network.dims if d.kind == "network"]
    shown, joined = ", ".join(f"{n} = {mesh[n]}" for n in over), math.prod(d.size for d in outer)
    message = f"{shown} does not fit the network between {outer[0].name if outer else 'slice'}s, which joins {joined}"
    allowed = [f"{over[0]}={n}" for n in divisors(joined)] if len(over) == 1 else []
    return SpecError(Problem("mesh-size", message, None, tuple(allowed)))


# -- what is tried
@dataclass
class _Search:
    names: Sequence[str]
    sizes: Sequence[int]
    network: Network
    weights: Sequence[float]
    whole: bool

    def best(self) -> tuple[tuple[Cut, ...], tuple[Cut, ...]] | None:
        """The cuts of the axes, and for each dimension the axes that have a part of it, outermost first."""
        found: tuple[tuple[Cut, ...], tuple[Cut, ...]] | None = None
        least: tuple[float, ...] = ()
        dims = self.network.dims
        for cuts in itertools.islice(_cuts(self.names, self.sizes, dims, tuple(d.size for d in dims)), MOST_TRIED):
            columns = list(zip(*cuts, strict=True))
            if any(a.alike(b) and x < y for (a, x), (b, y) in itertools.pairwise(zip(dims, columns, strict=True))):
                continue  # the same with two like dimensions exchanged
            having = [tuple(a for a, n in enumerate(column) if n > 1) for column in columns]
            split = sum(d.kind == "torus" and len(h) > 1 for d, h in zip(dims, having, strict=True))
            pieces = sum(map(len, having))
            rank = (split if self.whole else 0, _rounded(self.bound(cuts)), pieces, split)
            if found is not None and rank >= least:  # its best order is not better
                continue
            for orders in self.orders(cuts, having):
                rank = (rank[0], _rounded(self.seconds(cuts, orders)), pieces, split)
                if found is None or rank < least:
                    found, least = (cuts, orders), rank
        return found

    def seconds(self, cuts: Sequence[Cut], orders: Sequence[Cut]) -> float:
        return sum(
            w / _rate(_parts(a, cuts, orders, self.network.dims), self.network) for a, w in enumerate(self.weights) if w
        )

    def bound(self, cuts: Sequence[Cut]) -> float:
        """No order is faster: as if every axis had its dimensions for itself."""
        total = 0.0
        for cut, w in zip(cuts, self.weights, strict=True):
            having = [(n, d) for n, d in zip(cut, self.network.dims, strict=True) if n > 1]
            total += w / _rate([Part(d.name, d.kind, n, d.size, 1, d.wrap) for n, d in having], self.network)
        return total

    def orders(self, cuts: Sequence[Cut], having: Sequence[Cut]) -> Iterator[tuple[Cut, ...]]:
        """Orders worth trying: all of them where they are few, else those that no change of one dimension betters."""
        torus = [d.kind == "torus" for d in self.network.dims]
        choices = [
            list(itertools.permutations(h)) if t and len(h) <= MOST_ORDERED else [tuple(sorted(h, key=self.weight))]
            for t, h in zip(torus, having, strict=True)
        ]
        if math.prod(map(len, choices)) <= FEW:
            yield from itertools.product(*choices)
            return
        now = tuple(tuple(sorted(h, key=self.weight)) for h in having)  # the heaviest inside
        for _ in range(len(choices) * 2):
            before = now
            for i, orders in enumerate(choices):
                tried = [(*now[:i], order, *now[i + 1 :]) for order in orders]
                now = min(tried, key=lambda orders: self.seconds(cuts, orders))
            if now == before:
                break
        yield now

    def weight(self, axis: int) -> float:
        return self.weights[axis]


def _cuts(
    names: Sequence[str], sizes: Sequence[int], dims: Sequence[Dim], left: tuple[int, ...]
) -> Iterator[tuple[Cut, ...]]:
    """All ways to make the axes' sizes of what is left of the dimensions."""
    if not sizes:
        if all(n == 1 for n in left):
            yield ()
        return
    over_network = names[0].startswith(NETWORK)
    room = tuple(n if d.kind == "network" or not over_network else 1 for n, d in zip(left, dims, strict=True))
    for cut in _factored(sizes[0], room):
        rest = tuple(n // c for n, c in zip(left, cut, strict=True))
        for others in _cuts(names[1:], sizes[1:], dims, rest):
            yield (cut, *others)


def _factored(n: int, room: tuple[int, ...]) -> Iterator[Cut]:
    """All ways to write ``n`` as a product with a divisor of each ``room``."""
    if not room:
        if n == 1:
            yield ()
        return
    for d in reversed(divisors(math.gcd(n, room[0]))):
        for rest in _factored(n // d, room[1:]):
            yield (d, *rest)


# -- what an axis gets
def _parts(axis: int, cuts: Sequence[Cut], orders: Sequence[Cut], dims: Sequence[Dim]) -> list[Part]:
    found = []
    for i, dim in enumerate(dims):
        size = cuts[axis][i]
        if size == 1:
            continue
        order = orders[i]
        stride = math.prod(cuts[a][i] for a in order[order.index(axis) + 1 :])
        ring = dim.wrap and size * stride == dim.size
        found.append(Part(dim.name, dim.kind, size, dim.size, stride, ring))
    return found


def _rate(parts: Sequence[Part], network: Network) -> float:
    """Bytes a second that a device can send in a collective over these wires."""
    dims = {d.name: d for d in network.dims}
    mine = next((p.size for p in parts if p.kind == "core"), 1)
    sharing = network.size("core") / mine
    torus = sum(
        (2 if p.ring else 1) * dims[p.dim].bytes_per_s / (p.stride * sharing) for p in parts if p.kind == "torus"
    )
    rates = [torus] if torus else []
    inner = 1
    for p in parts:
        if p.kind != "network":
            inner *= p.size
        if p.kind in ("core", "switch"):
            rates.append(dims[p.dim].bytes_per_s)
        elif p.kind == "full_mesh":
            rates.append(dims[p.dim].bytes_per_s * (p.size - 1))
    rates += [dims[p.dim].bytes_per_s * inner for p in parts if p.kind == "network"]
    return min(rates, default=math.inf)


def _places(sizes: Sequence[int], parts: Sequence[Sequence[Part]], network: Network) -> np.ndarray:
    """Coordinates of the device at each place of the mesh. Along an axis of several parts the last runs fastest."""
    column = {name: i for i, name in enumerate(network.names)}
    places = np.zeros((*sizes, len(network.dims)), int)
    for i, (size, mine) in enumerate(zip(sizes, parts, strict=True)):
        rest = np.arange(size)
        for part in reversed(mine):
            rest, step = np.divmod(rest, part.size)
            shape = [1] * len(sizes)
            shape[i] = size
            places[..., column[part.dim]] += (step * part.stride).reshape(shape)
    return places
