"""How edges run: forks where a value enters a cluster, columns for the parts of a cycle, skips, where shapes stand."""

from __future__ import annotations

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
    for e in edges:
        after.setdefault(e.source, []).append(e.target)

    def longer(start: Item, end: Item) -> bool:
        seen: set[Item] = set()
        todo = [i for i in after.get(start, ()) if i is not end]
        while todo:
            item = todo.pop()
            if item is end:
                return True
            if item not in seen:
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
    found = set()
    for item in root.walk():
        if side_by_side(item):
            inside = {below: part for part in item.children for below in part.walk()}
            found |= {(e.source, e.target) for e in edges
                      if e.source in inside and e.target in inside and inside[e.source] is not inside[e.target]}  # fmt: skip
    return found


def side_by_side(item: Item) -> bool:
    return item.kind == REPEAT and len(item.children) > 1 and all(c.is_cluster for c in item.children)


def before(across: Edge, edges: list[Edge]) -> list[Item]:
    """What enters the repeat in which the edge goes from column to column."""
    columns = next(i for i in across.source.above() if side_by_side(i) and i in across.target.above())
    inside = set(columns.walk())
    found = (e.source for e in edges if e.target in inside and e.source not in inside and not e.side)
    return list(dict.fromkeys(found))


def order(root: Item, edges: list[Edge], across: set[Pair]) -> list[Pair]:
    """Invisible edges that keep side-by-side parts between what comes before and what comes after."""
    found: list[Pair] = []
    for item in root.walk():
        if not side_by_side(item):
            continue
        inside = {below: part for part in item.children for below in part.walk()}
        before = list(dict.fromkeys(e.source for e in edges if e.target in inside and e.source not in inside and not e.side))
        after = list(dict.fromkeys(e.target for e in edges if e.source in inside and e.target not in inside))
        for part in item.children:
            own = [i for i in part.walk() if not i.is_cluster]
            local = [e for e in edges if inside.get(e.source) is part and inside.get(e.target) is part]
            heads = [i for i in own if not any(e.target is i for e in local)]
            tails = [i for i in own if not any(e.source is i for e in local)]
            known = {(e.source, e.target) for e in edges if (e.source, e.target) not in across}
            found += [(a, b) for a in before for b in heads if (a, b) not in known]
            found += [(a, b) for a in tails for b in after if (a, b) not in known]
    return found


