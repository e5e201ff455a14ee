"""The picture of a model: blocks as boxes, repeated layers folded, drawn from the op graph and nothing else.

>>> draw(load("gemma2-9b"), Path("gemma2-9b.svg"))
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blockgraph.picture import facts
from blockgraph.picture.dot import dot
from blockgraph.picture.fold import fold
from blockgraph.picture.items import BOX, Edge, Item
from blockgraph.picture.state import states
from blockgraph.picture.svg import fitted
from blockgraph.picture.tree import Tree
from compiler.errors import BlockgraphError, Problem
from compiler.language.model import Model

FORMATS = ("svg", "png")
TIME_LIMIT = 60.0
DPI = "144"
MOST_DRAWN = 2000  # boxes that Graphviz is given: more take minutes
MOST_BOXES = 40  # of a picture whose depth nobody said: more cannot be read


def draw(model: Model, out: str | Path, depth: int | None = None) -> Path:
    """Writes the picture as SVG or PNG, by the suffix of ``out``. ``depth``: blocks down to this level of nesting
    (default: the deepest that does not make too many boxes). Raises BlockgraphError where nothing here can draw it."""
    out = Path(out)
    kind = out.suffix.removeprefix(".").lower()
    if kind not in FORMATS:
        raise BlockgraphError(Problem("unknown-format", f"{out.name}: a picture is .svg or .png", None, FORMATS))
    root, edges = _tree(model, depth)
    boxes = sum(not item.is_cluster for item in root.walk())
    if boxes > MOST_DRAWN:
        message = f"the picture would have {boxes:,} boxes, and at most {MOST_DRAWN:,} are drawn"
        mend = "a smaller --depth" if depth is not None and depth > 1 else "repeat: equal layers become one box"
        raise BlockgraphError(Problem("picture-too-large", message, None, (), mend))
    text = dot(model.name, model.parameter_count(), root, edges).source
    made = _drawn(text, kind)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(made)
    return out


def _drawn(text: str, kind: str) -> bytes:
    """The picture of a Graphviz text."""
    with tempfile.TemporaryDirectory(prefix="blockgraph-") as folder:
        picture, placed = Path(folder) / f"picture.{kind}", Path(folder) / "picture.json"
        more = [f"-Gdpi={DPI}"] if kind == "png" else ["-Tjson", f"-o{placed}"]
        command = [_binary(), f"-T{kind}", f"-o{picture}", *more]
        try:
            done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=TIME_LIMIT, check=False)
        except subprocess.TimeoutExpired:
            told = f"the picture took over {TIME_LIMIT:.0f} s to lay out: give a smaller depth"
            raise BlockgraphError(Problem("picture-too-large", told)) from None
        if done.returncode or not picture.is_file():
            said = " ".join(done.stderr.decode(errors="replace").strip().splitlines()[-1:])
            raise BlockgraphError(Problem("no-picture", f"{Path(command[0]).name} could not draw: {said}"))
        if kind == "png":
            return picture.read_bytes()
        return fitted(picture.read_text("utf-8"), placed.read_text("utf-8")).encode()


def source(model: Model, depth: int | None = None) -> str:
    """The picture as Graphviz text."""
    return str(dot(model.name, model.parameter_count(), *_tree(model, depth)).source)


def layout(model: Model, depth: int | None = None) -> dict[str, Any]:
    """The picture's content: nodes, edges and clusters, with exact parameter counts and shapes."""
    root, edges = _tree(model, depth)
    ids = _ids(root)
    nodes, clusters = [], []
    for item in list(root.walk())[1:]:
        record: dict[str, Any] = {"id": ids[item], "kind": item.kind, "name": item.name, "path": item.path}
        record["cluster"] = ids.get(item.parent) if item.parent else None
        if item.is_cluster:
            clusters.append(record | {"times": item.times, "layers": item.layers(), "parameters": item.total()})
            continue
        if item.type is not None:
            record["shape"] = facts.shape_json(item.type)
        if item.kind == BOX:
            record |= {
                "family": facts.family(item), "parameters": item.total(), "runs": item.runs(),
                "frozen": item.all_frozen(), "inside": facts.inner_sizes(item, edges),
                "options": facts.options(item), "state": facts.state_json(item),
                "uses": sorted(set(item.borrowed.values())),
            }  # fmt: skip
        nodes.append(record)
    links = [{"from": ids[e.source], "to": ids[e.target], **facts.shape_json(e.type), "side": e.side} for e in edges]
    return {
        "name": model.name, "parameters": model.parameter_count(), "nodes": nodes, "edges": links, "clusters": clusters,
    }  # fmt: skip


def _tree(model: Model, depth: int | None) -> tuple[Item, list[Edge]]:
    if depth is not None and depth < 1:
        raise BlockgraphError(Problem("out-of-range", f"depth = {depth}", None, ("at least 1",)))
    held = states(model)
    levels = (None, *range(_levels(model), 0, -1)) if depth is None else (depth,)
    for level in levels:
        tree = Tree(model.graph, held, level)
        edges = fold(tree.root, tree.edges)
        if level == levels[-1] or sum(not item.is_cluster for item in tree.root.walk()) <= MOST_BOXES:
            break
    return tree.root, edges


def _levels(model: Model) -> int:
    """How many levels of blocks a model has."""
    return max((node.path.count(".") + 1 for node, _ in model.graph.walk() if node.path), default=1)


def _ids(root: Item) -> dict[Item, str]:
    """Readable names: the path, numbered where several share it."""
    ids: dict[Item, str] = {}
    taken: dict[str, int] = {}
    for item in list(root.walk())[1:]:
        named = item.path and (item.kind == BOX or item.is_cluster)
        base = item.path if named else f"{item.path}:{item.name or item.kind}".lstrip(":")
        taken[base] = taken.get(base, 0) + 1
        ids[item] = base if taken[base] == 1 else f"{base}#{taken[base]}"
    return ids


def _package_folders() -> Iterator[str]:
    """Where the package says that it put its command: elsewhere for an environment that sees another's packages."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("graphviz-pure") or ():
            if file.stem == "graphviz-pure":
                yield str(Path(str(file.locate())).parent)


def _binary() -> str:
    """The system's ``dot``, or the one that the package graphviz-pure installs, in most cases beside Python."""
    found = shutil.which("dot")
    for folder in (sysconfig.get_path("scripts"), str(Path(sys.executable).parent), None, *_package_folders()):
        found = found or shutil.which("graphviz-pure", path=folder)
    if found is None:
        text = "nothing here draws graphs: neither the system's dot nor the package graphviz-pure is installed"
        raise BlockgraphError(Problem("no-dot", text, suggestion="pip install graphviz-pure"))
    return found


__all__ = ["draw", "layout", "source"]
