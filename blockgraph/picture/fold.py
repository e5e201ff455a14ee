"""Folding: equal layers in a row become one cluster that says how often it runs."""

from __future__ import annotations

from collections.abc import Hashable

from blockgraph.picture.items import BOX, GROUP, INPUT, OUTPUT, REPEAT, Edge, Item

MANY = 4  # so many layers in a row that differ in options alone are one cluster


def fold(root: Item, edges: list[Edge]) -> list[Edge]:
    """Folds below ``root``; returns the edges that are left."""
    stands_for: dict[Item, Item] = {}
    _fold(root, stands_for)
    order = {item: i for i, item in enumerate(root.walk())}
    kept: dict[tuple[int, int, Hashable, bool], Edge] = {}
    for e in edges:
        source, target = _final(e.source, stands_for), _final(e.target, stands_for)
        moved = source is not e.source or target is not e.target
        if moved and order[source] >= order[target]:
            continue  # from one layer to the next of the same fold
        kept.setdefault((order[source], order[target], e.type.pairs, e.side), Edge(source, target, e.type, e.side))
    return list(kept.values())


def _final(item: Item, stands_for: dict[Item, Item]) -> Item:
    while item in stands_for:
        item = stands_for[item]
    return item


def _signature(item: Item, options: bool = True) -> Hashable:
    """What makes two items equal; without ``options``, alike."""
    facts = tuple(n.op.text() if options else n.op.name for n in item.ops) if item.kind == BOX else ()
    weights = _sizes(item)
    inner = tuple(_signature(c, options) for c in item.children)
    return (item.kind, item.name, item.times, item.frozen, facts, weights, len(item.borrowed), inner)


def _sizes(item: Item) -> tuple[tuple[str, int], ...]:
    """Elements of each parameter, of one run."""
    found: dict[str, int] = {}
    for label, size in item.weights.items():
        path = label.split("[")[0]
        found[path] = found.get(path, 0) + size
    return tuple(sorted((path, size // item.runs()) for path, size in found.items()))


def _fold(item: Item, stands_for: dict[Item, Item]) -> None:
    for child in item.children:
        _fold(child, stands_for)
    before = 0
    while len(item.children) != before:
        before = len(item.children)
        item.children = _runs(item, stands_for)
    item.children = _runs(item, stands_for, options=False, least=MANY)
    _cut_short(item, stands_for)
    if item.kind == REPEAT and len(item.children) == 1 and item.children[0].kind in (GROUP, REPEAT):
        only = item.children[0]  # a repeat of one part: one cluster says both
        if only.kind == GROUP or not only.name:
            item.name, item.path = only.name or item.name, only.path or item.path
            item.times *= only.times
            item.children = only.children
            for child in item.children:
                child.parent = item


def _cut_short(item: Item, stands_for: dict[Item, Item]) -> None:
    """What follows a repeat and equals its first parts: the cycle's last round, cut short."""
    kept: list[Item] = []
    cycle, part = None, 0
    for child in item.children:
        first = cycle.children[part] if cycle is not None and part < len(cycle.children) else None
        if first is not None and cycle is not None and _alike(first, child):
            numbers = child.layers()
            which = f"layer{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}" if numbers else first.name
            cycle.tail += f"{', ' if cycle.tail else 'then '}{which} alike"
            first.extra += child.times
            _merge(first, child, stands_for)
            part += 1
            continue
        kept.append(child)
        cycle, part = (child if child.kind == REPEAT and len(child.children) > 1 else None), 0
    item.children = kept


def _alike(first: Item, child: Item) -> bool:
    """Whether ``child`` is ``first`` once more, perhaps fewer times."""
    if not (first.is_cluster and child.is_cluster) or first.name != child.name or first.times < child.times:
        return False
    return [_signature(c) for c in first.children] == [_signature(c) for c in child.children]


def _runs(item: Item, stands_for: dict[Item, Item], options: bool = True, least: int = 2) -> list[Item]:
    children, out, i = item.children, list[Item](), 0
    numbers: dict[Hashable, int] = {}
    marks = [numbers.setdefault(_signature(c, options), len(numbers)) for c in children]
    while i < len(children):
        period, count = _best(children, marks, i)
        if count < least:
            out.append(children[i])
            i += 1
            continue
        first = children[i : i + period]
        for copy in range(1, count):
            for a, b in zip(first, children[i + copy * period : i + (copy + 1) * period], strict=True):
                _merge(a, b, stands_for)
        if period == 1 and first[0].kind in (GROUP, REPEAT):
            first[0].times *= count
            first[0].kind = REPEAT
            out.append(first[0])
        else:
            cluster = Item(REPEAT, "", item.path, item, count, level=item.level)
            for a in first:
                a.parent = cluster
                cluster.children.append(a)
            out.append(cluster)
        i += period * count
    return out


def _best(children: list[Item], marks: list[int], i: int) -> tuple[int, int]:
    """The shortest period that repeats from ``i`` on, and how often it stands there."""
    for period in range(1, (len(marks) - i) // 2 + 1):
        unit = marks[i : i + period]
        if marks[i] != marks[i + period] or marks[i + period : i + 2 * period] != unit:
            continue
        solid = any(c.is_cluster or c.kind == BOX for c in children[i : i + period])
        if not solid or any(c.kind in (INPUT, OUTPUT) for c in children[i : i + period]):
            continue
        count = 2
        while marks[i + count * period : i + (count + 1) * period] == unit:
            count += 1
        return period, count
    return 1, 1


def _merge(a: Item, b: Item, stands_for: dict[Item, Item]) -> None:
    for x, y in zip(a.walk(), b.walk(), strict=True):
        stands_for[y] = x
        x.weights |= y.weights
        if x.kind == BOX and _signature(x) != _signature(y):
            x.others.append(y)
        x.stacks |= y.stacks
