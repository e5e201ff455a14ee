"""A checkpoint onto shardings: each process reads what its own devices hold.

Where a tensor's layout is plain (our axes in some order, merged or side by side, not split), rows of a box are read
alone, and in safetensors columns of its rows too when they are long enough to be worth a read of their own. GGUF packs
numbers along rows, so whole rows are read. Where a layout splits an axis (interleaved rotary pairs, queries grouped
under keys), the whole tensor is read, one layer's at a time, and sliced. Layers and experts that no box reaches into
are not read at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from compiler.language.model import Model
from runtime.weights import mapping, packing, parts
from runtime.weights.layout import Recipe
from runtime.weights.load import CHUNK, NAMES, Progress, _copy, _in, choose, fit
from runtime.weights.mapping import Piece, Tensor
from runtime.weights.parts import Box
from runtime.weights.source import Source, open_source

LEAST = 4096  # bytes of a row that are read alone; shorter pieces come with their whole rows


@dataclass(frozen=True)
class Placed:
    """Arrays on devices by parameter label; ``rows`` and ``format`` as of Weights; ``bytes_read``: by this process."""

    arrays: dict[str, Any]
    rows: dict[str, int] = field(default_factory=dict)
    format: str | None = None
    bytes_read: int = 0


def load_onto(
    model: Model,
    path: str | Path,
    shardings: Mapping[str, Any],
    *,
    labels: Iterable[str] | None = None,
    format: str | None = None,
    dtype: str | None = None,
    progress: Progress | None = None,
) -> Placed:
    """Reads a checkpoint onto devices. ``shardings`` by label (a label without one lies whole on the first device);
    ``labels``: which parameters, all unless given. Raises WeightsError as ``load`` does."""
    wanted = set(labels) if labels is not None else set(model.parameters)
    with open_source(path) as source:
        table = mapping.compile(model, format) if format else choose(model, source)
        tensors, rows = fit(table, source)
        held: dict[str, dict[Box, np.ndarray]] = {}
        where: dict[str, Any] = {}
        shapes = {k: tuple(int(s.constant) for s in t.sizes) for k, (_, t) in model.parameters.items()}
        for label, (_, t) in model.parameters.items():
            if label in wanted:
                where[label] = shardings.get(label) or parts.one_device()
                held[label] = parts.empty(parts.boxes(shapes[label], where[label]), np.dtype(NAMES[dtype or t.dtype]))
        read = _Reader(source)
        done, total = 0, sum(len(t.pieces) for t in tensors)
        for tensor in tensors:
            for piece in tensor.pieces:
                if piece.label in held:
                    _fill(read, tensor, piece, held[piece.label])
                done += 1
                if progress:
                    progress(done, total)
    arrays = {label: parts.placed(shapes[label], where[label], held.pop(label)) for label in list(held)}
    return Placed(arrays, rows, table.format, read.bytes)


class Onto:
    """A checkpoint that will be read once it is known where its arrays lie: ``onto(shardings)`` gives the arrays.
    ``rows``: of padded axes, as of Weights. Raises WeightsError at once where the file does not fit the model."""

    def __init__(self, model: Model, path: str | Path, progress: Progress | None = None) -> None:
        self.model, self.path, self.progress = model, path, progress
        self.packed: dict[str, Any] | None = None
        held = packing.load(model, Path(path))
        if held is not None:
            self.packed, self.rows = held
            return
        with open_source(path) as source:
            _, self.rows = fit(choose(model, source), source)

    def __call__(self, shardings: Mapping[str, Any]) -> dict[str, Any]:
        if self.packed is not None:
            return self.packed
        return load_onto(self.model, self.path, shardings, progress=self.progress).arrays


class _Reader:
    """Reads of a source, counted."""

    def __init__(self, source: Source) -> None:
        self.source, self.bytes = source, 0

    def rows(self, name: str, start: int, stop: int, columns: tuple[int, int] | None = None) -> np.ndarray:
        """Rows start to stop; only ``columns`` of the flattened rest where the source can [rows, columns]."""
        t = self.source.tensors[name]
        count, wide = stop - start, math.prod(t.shape[1:])
        row = t.bytes // max(1, (t.shape or (1,))[0])
        if columns is not None:
            some = self.source.read_columns(name, start, stop, *columns)
            if some is not None:
                self.bytes += count * row * (columns[1] - columns[0]) // wide
                return some
        self.bytes += count * row
        values = self.source.read(name, start, stop)
        return values if columns is None else values.reshape(count, wide)[:, columns[0] : columns[1]]


def _fill(read: _Reader, tensor: Tensor, piece: Piece, held: dict[Box, np.ndarray]) -> None:
    """Writes what a tensor of the checkpoint has for each box of the array that a piece lies in."""
    for box, array in held.items():
        index: list[int | slice] = []
        inner: list[tuple[int, int]] = []  # of the piece's own axes, what this box holds
        sizes = iter(n for _, n in piece.part.axes)
        for at, (start, stop) in zip((*piece.index, *(slice(None),) * len(box))[: len(box)], box, strict=True):
            if isinstance(at, int):
                if not start <= at < stop:
                    break
                index.append(at - start)
            else:
                stop = min(stop, next(sizes))  # rows that the checkpoint does not have
                if stop <= start:
                    break
                index.append(slice(0, stop - start))
                inner.append((start, stop))
        else:
            into = array[(*index, ...)]
            if _plain(piece.recipe, piece):
                _read_box(read, tensor, piece.recipe, inner, into)
            else:
                whole = _whole(read, tensor, piece, into.dtype)
                into[...] = whole[tuple(slice(a, b) for a, b in inner)]


def _plain(recipe: Recipe, piece: Piece) -> bool:
    """Whether the layout only orders and merges our axes."""
    own = tuple(n for _, n in piece.part.axes)
    return recipe.split[: len(own)] == own and all(n == 1 for n in recipe.split[len(own) :])


def _read_box(read: _Reader, tensor: Tensor, recipe: Recipe, inner: list[tuple[int, int]], into: np.ndarray) -> None:
    """Reads a box of a plain piece. ``into`` [inner sizes] is ours; the view of it is in the checkpoint's order."""
    axes = [*inner, *((0, 1) for _ in recipe.split[len(inner) :])]
    wanted = [axes[i] for i in recipe.order]
    view = into.reshape([b - a for a, b in axes]).transpose(recipe.order)
    name, shape = tensor.name, recipe.shape or (1,)
    columns = _columns(recipe, wanted, read.source.tensors[name].bytes // max(1, math.prod(shape)))
    low, high = wanted[0]
    for theirs, ours in _steps(recipe, low, high):
        count = ours.stop - ours.start
        if columns is not None:
            values = read.rows(name, theirs.start, theirs.stop, columns)
            lead = recipe.full[1 : recipe.first]
            first, rest = wanted[recipe.first], recipe.full[recipe.first + 1 :]
            values = values.reshape(count, *lead, first[1] - first[0], *rest)
            cut = (*wanted[1 : recipe.first], (0, first[1] - first[0]), *((0, n) for n in rest))
        else:
            values = recipe.own(read.rows(name, theirs.start, theirs.stop), count)
            cut = tuple(wanted[1:])
        values = values[(slice(None), *(slice(a, b) for a, b in cut))]
        _copy(view[ours.start - low : ours.stop - low], _in(values, tensor), name)


def _steps(recipe: Recipe, low: int, high: int) -> Iterator[tuple[slice, slice]]:
    """The steps of a recipe that lie between two entries of the view's first axis."""
    for theirs, ours in recipe.steps(CHUNK):
        a, b = max(ours.start, low), min(ours.stop, high)
        if a < b:
            each = (theirs.stop - theirs.start) // (ours.stop - ours.start)
            start = theirs.start + (a - ours.start) * each
            yield slice(start, start + (b - a) * each), slice(a, b)


def _columns(recipe: Recipe, wanted: list[tuple[int, int]], item: int) -> tuple[int, int] | None:
    """The columns of the flattened rest of a row that hold a box, where they lie together and are worth it."""
    at = recipe.first
    if recipe.cut is not None or len(wanted) != len(recipe.full) or at >= len(wanted):
        return None
    if any((0, n) != w for w, n in zip(wanted[at + 1 :], recipe.full[at + 1 :], strict=True)):
        return None
    (a, b), rest = wanted[at], math.prod(recipe.full[at + 1 :])
    if (a, b) == (0, recipe.full[at]) or (b - a) * rest * item < LEAST:
        return None
    return a * rest, b * rest


def _whole(read: _Reader, tensor: Tensor, piece: Piece, dtype: Any) -> np.ndarray:
    """One piece, whole, in our order."""
    ours = np.empty(tuple(n for _, n in piece.part.axes), dtype)
    view = piece.recipe.view(ours)
    for theirs, into in piece.recipe.steps(CHUNK):
        values = piece.recipe.own(read.rows(tensor.name, theirs.start, theirs.stop), into.stop - into.start)
        _copy(view[into], _in(values, tensor), tensor.name)
    return ours
