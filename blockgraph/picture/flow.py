"""How edges run: forks where a value enters a cluster, columns for the parts of a cycle, skips, where shapes stand."""

from __future__ import annotations

from dataclasses import dataclass

from blockgraph.picture.items import FORK, INPUT, OUTPUT, REPEAT, Edge, Item

Pair = tuple[Item, Item]


def forked(root: Item, edges: list[Edge]) -> list[Edge]:
    """A value that goes to several places of one cluster enters it once, at a small fork."""
    for cluster in _clusters(root):
        inside = set(cluster.walk())
        entering: dict[tuple[Item, object], list[Edge]] = {}
        for e in edges:
            if e.target in inside and e.source not in inside and not e.side:
                entering.setdefault((e.source, e.type.pairs), []).append(e)
        for (source, _), group in entering.items():
            if len(group) < 2:
                continue
            fork = Item(FORK, "", parent=cluster)
            cluster.children.insert(0, fork)
            at = edges.index(group[0])
            edges = [Edge(fork, e.target, e.type) if e in group else e for e in edges]
            edges.insert(at, Edge(source, fork, group[0].type))
    return edges


def _clusters(item: Item) -> list[Item]:
    """Clusters inside, inner first; not those whose parts stand side by side."""
    found = [c for child in item.children for c in _clusters(child)]
    return [*found, item] if item.is_cluster and item.parent is not None and not side_by_side(item) else found


def skips(edges: list[Edge]) -> set[Pair]:
    """Edges beside a longer way."""
    after: dict[Item, list[Item]] = {}
    above: dict[Item, list[Item]] = {}
    for e in edges:
        after.setdefault(e.source, []).append(e.target)
        above.setdefault(e.target, []).append(e.source)
    items = list(dict.fromkeys(i for e in edges for i in (e.source, e.target)))
    rank = {item: n for n, item in enumerate(_downwards(items, above))}

    def longer(start: Item, end: Item) -> bool:
        seen: set[Item] = set()
        todo = [i for i in after.get(start, ()) if i is not end]
        while todo:
            item = todo.pop()
            if item is end:
                return True
            if item not in seen and rank[item] < rank[end]:  # what comes after the end leads to it no more
                seen.add(item)
                todo += after.get(item, ())
        return False

    return {(e.source, e.target) for e in edges if longer(e.source, e.target)}


def changes(e: Edge, edges: list[Edge]) -> bool:
    """Shapes stand where they change: an edge as its source's main input needs no label."""
    if e.source.kind == INPUT or e.target.kind == OUTPUT:
        return False
    first = next((a for a in edges if a.source is e.source and a.type.pairs == e.type.pairs), e)
    arriving = [a.type.pairs for a in edges if a.target is e.source and not a.side]
    return first is e and e.type.pairs not in arriving


def columns(root: Item, edges: list[Edge]) -> set[Pair]:
    """Edges from one part of a cycle to the next: the parts stand side by side, so these do not push down."""
    found: set[Pair] = set()
    for item in root.walk():
        if side_by_side(item):
            part = {below: child for child in item.children for below in child.walk()}
            inner = [(e.source, e.target) for e in edges if e.source in part and e.target in part]
            found |= {(a, b) for a, b in inner if part[a] is not part[b]}
    return found


def side_by_side(item: Item) -> bool:
    """Do the parts of a cycle stand beside each other?"""
    parts = item.kind == REPEAT and len(item.children) > 1 and all(c.is_cluster for c in item.children)
    return parts and not item.stacked


def stack(root: Item, edges: list[Edge]) -> None:
    """A cycle that takes more than one value from outside, or takes it in a later part, has its parts one below the
    other: beside each other Graphviz would order them by what leads there, and no longer as they run."""
    for item in root.walk():
        if side_by_side(item):
            part = {below: child for child in item.children for below in child.walk()}
            entering = [e for e in edges if e.target in part and e.source not in part]
            later = any(part[e.target] is not item.children[0] for e in entering)
            item.stacked = later or len({e.source for e in entering}) > 1


def column(across: Edge) -> Item:
    """The column that the edge leaves for another."""
    around = [across.source, *across.source.above()]
    return next(i for i in around if i.parent and side_by_side(i.parent) and i.parent in across.target.above())


def heads(part: Item, edges: list[Edge]) -> list[Item]:
    """Where the chain of a part begins."""
    inside = set(part.walk())
    reached = {e.target for e in edges if e.source in inside and e.target in inside}
    return [i for i in part.walk() if not i.is_cluster and i not in reached]


@dataclass(frozen=True)
class Exit:
    """How an edge out of side-by-side parts is drawn: from where, over how many ranks, and from which frame."""

    source: Item
    ranks: int
    frame: Item | None  # None: from the source itself


def exits(root: Item, edges: list[Edge], across: set[Pair]) -> dict[Pair, Exit]:
    """Edges out of side-by-side parts reach below the deepest of them. One from another part than the last (the
    cycle is cut short there) leaves the frame as a whole, which says so in words: Graphviz would else put that part
    last. For the same reason no unseen edges tell it what is below what."""
    above: dict[Item, list[Item]] = {}
    for e in edges:
        if (e.source, e.target) not in across:
            above.setdefault(e.target, []).append(e.source)
    found: dict[Pair, Exit] = {}
    for item in root.walk():
        if not side_by_side(item):
            continue
        part = {below: child for child in item.children for below in child.walk()}
        rank: dict[Item, int] = {}
        for i in _downwards([i for i in part if not i.is_cluster], above):
            rank[i] = max((rank[s] + 1 for s in above.get(i, ()) if part.get(s) is part[i]), default=0)
        last = item.children[-1]
        foot = max((i for i in rank if part[i] is last), key=lambda i: rank[i])
        for e in edges:
            if e.source in part and e.target not in part:
                own = part[e.source] is last
                source = e.source if own else foot
                ranks = max(rank.values()) - rank[source] + 1
                found[e.source, e.target] = Exit(source, ranks, None if own else item)
    return found


def _downwards(items: list[Item], above: dict[Item, list[Item]]) -> list[Item]:
    """The items, each behind those above it."""
    wanted, done = set(items), dict[Item, None]()
    todo = items[::-1]
    while todo:
        item = todo[-1]
        waits = [s for s in above.get(item, ()) if s in wanted and s not in done]
        if item in done or not waits:
            done[todo.pop()] = None
        else:
            todo += waits
    return list(done)
