"""The roofline, node by node: the larger of compute and memory time, at peak rates, summed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from costmodel.machines import Machine, Rate
from costmodel.plan import Row, Time
from costmodel.price import Item, Price, Work, at


@dataclass(frozen=True)
class TimedNode:
    """Seconds of all runs of one node on one chip; work over all chips."""

    item: Item
    work: Work
    compute: float
    memory: float

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory)


@dataclass(frozen=True)
class TimedGraph:
    nodes: tuple[TimedNode, ...]
    notes: tuple[str, ...]  # rates that stand in for others

    @property
    def seconds(self) -> float:
        return sum(n.seconds for n in self.nodes)

    def time(self, tokens: int, label: str) -> Time:
        seconds = self.seconds
        memory = sum(n.seconds for n in self.nodes if n.memory >= n.compute)
        return Time(
            seconds=seconds,
            label=label,
            compute_seconds=sum(n.compute for n in self.nodes),
            memory_seconds=sum(n.memory for n in self.nodes),
            binds="memory" if 2 * memory >= seconds else "compute",
            memory_share=memory / seconds if seconds else 0.0,
            tokens_per_second=tokens / seconds if seconds else 0.0,
        )


def timed(priced: Price, place: Machine, env: Mapping[str, int], chips: int = 1) -> TimedGraph:
    """Every node's time on one of ``chips`` that share the work evenly."""
    rates: dict[str, Rate] = {}
    vector_rate = place.vector_flops_per_s.get("float32")
    nodes = []
    for item in priced.items:
        work = at(item, env)
        compute = 0.0
        if work.matrix:
            if item.dtype not in rates:
                rates[item.dtype] = place.matrix_rate(item.dtype)
            compute = work.matrix / rates[item.dtype].flops_per_s
        if vector_rate and not item.rides:  # beside the products, as both units run at once
            compute = max(compute, work.vector / vector_rate)
        nodes.append(TimedNode(item, work, compute / chips, work.fused / place.hbm_bytes_per_s / chips))
    return TimedGraph(tuple(nodes), tuple(r.note for r in rates.values() if r.note))


def rows(graph: TimedGraph, key: Callable[[Item], str]) -> tuple[Row, ...]:
    """Totals by ``key``, the slowest first; what takes no time and computes nothing is left out."""
    groups: dict[str, list[TimedNode]] = {}
    for node in graph.nodes:
        groups.setdefault(key(node.item), []).append(node)
    found = []
    for name, nodes in groups.items():
        seconds = sum(n.seconds for n in nodes)
        memory = sum(n.seconds for n in nodes if n.memory >= n.compute)
        work = sum((n.work for n in nodes), Work())
        if seconds or work.matrix or work.vector:
            binds = "nothing" if not seconds else "memory" if 2 * memory >= seconds else "compute"
            found.append(Row(name, work.matrix, work.vector, work.fused, seconds, binds))
    return tuple(sorted(found, key=lambda r: -r.seconds))
