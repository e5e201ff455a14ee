"""Narrow: collectives move values in the narrowest form that is around.

A value that was widened just before it is sent is sent narrow and widened where it arrives; one that is narrowed as
soon as it has arrived is narrowed before it is sent. Neither changes a number: a cast treats every element alike. Views
in between (axes split, merged, renamed, put in another order) are no obstacle. Sums stay as they are.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator

from compiler.graph.ir import Graph, Node, Value
from compiler.graph.types import DTYPE_BITS
from compiler.ops.collective import AllGather, AllToAll, Permute
from compiler.ops.control import Repeat
from compiler.ops.elementwise import Cast
from compiler.ops.shape import Arrange, Merge, Rename, Split
from compiler.passes.differentiate import last_id
from compiler.passes.placement import Placement

MOVES = (AllGather, AllToAll, Permute)
VIEWS = (Arrange, Merge, Rename, Split)


def narrow(graph: Graph, place: dict[int, Placement], why: dict[int, str]) -> Graph:
    """The graph with casts on the better side of what moves; new values are added to ``place`` and ``why``."""
    return _Narrow(place, why, itertools.count(last_id(graph) + 1)).graph(graph)


class _Narrow:
    def __init__(self, place: dict[int, Placement], why: dict[int, str], ids: Iterator[int]) -> None:
        self.place, self.why, self.ids = place, why, ids

    def graph(self, graph: Graph) -> Graph:
        nodes = []
        for n in graph.nodes:
            if isinstance(n.op, Repeat):
                n = dataclasses.replace(n, op=dataclasses.replace(n.op, body=self.graph(n.op.body)))
            nodes.append(n)
        return self.before(self.after(graph.with_nodes(nodes)))

    def after(self, graph: Graph) -> Graph:
        """Widened where it arrives."""
        made = graph.producers()
        nodes = []
        for n in graph.nodes:
            cast = made.get(n.operands[0].id) if isinstance(n.op, MOVES) else None
            if cast is None or not isinstance(cast.op, Cast) or not _less(cast.operands[0], n.result):
                nodes.append(n)
                continue
            thin = self.value(n.result, cast.operands[0].type.dtype)
            nodes.append(dataclasses.replace(n, operands=cast.operands, results=(thin,)))
            nodes.append(dataclasses.replace(n, op=Cast(n.result.type.dtype), operands=(thin,)))
            made[n.result.id] = nodes[-1]  # and sent on narrow, where it is sent again
            self.why[thin.id] = self.why.pop(n.result.id, "")
        return graph.with_nodes(nodes)

    def before(self, graph: Graph) -> Graph:
        """Narrowed before it is sent: from the last node to the first, so that it goes before all that move it."""
        readers = Counter(v.id for n in graph.nodes for v in n.operands) + Counter(v.id for _, v in graph.outputs)
        made, same = graph.producers(), dict[int, Value]()
        nodes: list[Node | None] = list(graph.nodes)
        index = {id(n): i for i, n in enumerate(graph.nodes)}
        extra: dict[int, list[Node]] = {}  # casts that go in front of a node
        for at in range(len(nodes) - 1, -1, -1):
            cast = nodes[at]
            if cast is None or not isinstance(cast.op, Cast) or not _less(cast.result, cast.operands[0]):
                continue
            chain: list[Node] = []
            value, moved = cast.operands[0], False
            while readers[value.id] == 1 and (n := made.get(value.id)) and isinstance(n.op, (*MOVES, *VIEWS)):
                chain.append(n)
                moved = moved or isinstance(n.op, MOVES)
                value = n.operands[0]
            while chain and not isinstance(chain[-1].op, MOVES):  # no further than to what is moved first
                chain.pop()
            if not moved or any(index[id(n)] not in range(at) or nodes[index[id(n)]] is not n for n in chain):
                continue
            dtype = cast.result.type.dtype
            source = chain[-1].operands[0]
            thin = self.value(source, dtype)
            extra.setdefault(index[id(chain[-1])], []).append(
                dataclasses.replace(chain[-1], op=cast.op, operands=(source,), results=(thin,))
            )
            for n in reversed(chain):
                result = Value(n.result.id, n.result.type.with_dtype(dtype))
                nodes[index[id(n)]] = dataclasses.replace(n, operands=(thin,), results=(result,))
                thin = result
            nodes[at] = None
            same[cast.result.id] = thin
        found: list[Node] = []
        for at, n in enumerate(nodes):
            for inner in (*extra.get(at, ()), *([n] if n is not None else ())):
                operands = tuple(_last(same, v) for v in inner.operands)
                found.append(dataclasses.replace(inner, operands=operands))
        outputs = tuple((name, _last(same, v)) for name, v in graph.outputs)
        final = {v.id: v for n in found for v in n.results}
        names = {name: final[_last(same, v).id] for name, v in graph.names.items()}
        return Graph(tuple(found), outputs, names)

    def value(self, like: Value, dtype: str) -> Value:
        made = Value(next(self.ids), like.type.with_dtype(dtype))
        self.place[made.id] = self.place[like.id]
        return made


def _less(a: Value, b: Value) -> bool:
    return DTYPE_BITS[a.type.dtype] < DTYPE_BITS[b.type.dtype]


def _last(same: dict[int, Value], v: Value) -> Value:
    while v.id in same:
        v = same[v.id]
    return v
