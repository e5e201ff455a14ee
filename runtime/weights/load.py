"""Weights in and out: a checkpoint into the model's stacked arrays, and back under its published names.

``load`` makes whole arrays in this process; ``runtime.weights.shards.load_onto`` reads onto shardings, each process its
own part."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from compiler.errors import Problem, WeightsError, nearest
from compiler.language.model import Model
from runtime import memory
from runtime.weights import mapping, packing, safetensors_io
from runtime.weights.mapping import Mapping_, Tensor
from runtime.weights.source import Source, open_source

Progress = Callable[[int, int], None]  # (bytes done, bytes in all), of our arrays
CHUNK = 1 << 20  # elements read at once: a dequantised piece and its temporaries stay a few megabytes
NAMES: dict[str, Any] = {
    "float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16,
    "int8": np.int8, "int32": np.int32,
}  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """Arrays by parameter label. ``rows``: for a padded axis, how many rows the checkpoint had; the rest is zero."""

    arrays: dict[str, np.ndarray]
    rows: dict[str, int] = field(default_factory=dict)
    format: str | None = None

    @property
    def bytes(self) -> int:
        return sum(a.nbytes for a in self.arrays.values())


def load(
    model: Model,
    path: str | Path,
    format: str | None = None,
    dtype: str | None = None,
    progress: Progress | None = None,
) -> Weights:
    """Reads a checkpoint. ``format`` is a key of the spec's `weights:`, by default the one whose names the file has;
    ``dtype`` replaces the parameters' own. Of a file of packed weights (runtime/weights/packing.py) the arrays are as
    they are held. Raises WeightsError naming every missing, extra or misshaped tensor."""
    held = packing.load(model, Path(path))
    if held is not None:
        return Weights(*held, packing.FORMAT)
    with open_source(path) as source:
        table = mapping.compile(model, format) if format else choose(model, source)
        tensors, rows = fit(table, source)
        types = {label: np.dtype(NAMES[dtype or t.dtype]) for label, (_, t) in model.parameters.items()}
        shapes = {label: tuple(int(s.constant) for s in t.sizes) for label, (_, t) in model.parameters.items()}
        whole = sum(math.prod(shapes[k]) * types[k].itemsize for k in shapes)
        memory.require_bytes(model.name, {"parameters": whole}, memory.free_bytes())
        arrays = {label: np.zeros(shapes[label], types[label]) for label in model.parameters}  # pages come when written
        done, total = 0, sum(a.nbytes for a in arrays.values())
        for tensor in tensors:
            for piece in tensor.pieces:
                ours = piece.of(arrays[piece.label])
                view = piece.recipe.view(ours)
                for theirs, into in piece.recipe.steps(CHUNK):
                    values = piece.recipe.own(
                        source.read(tensor.name, theirs.start, theirs.stop), into.stop - into.start
                    )
                    _copy(view[into], _in(values, tensor), tensor.name)
                done += ours.nbytes
                if progress:
                    progress(done, total)
        if progress and done < total:  # rows that the checkpoint does not have
            progress(total, total)
    return Weights(arrays, rows, table.format)


def choose(model: Model, source: Source) -> Mapping_:
    """The format with the largest share of its names in the file."""
    best: tuple[float, Mapping_] | None = None
    fault: WeightsError | None = None
    for format in (*model.spec.weights, mapping.OWN):
        try:
            table = mapping.compile(model, format)
        except WeightsError as e:
            fault = e
            continue
        share = sum(name in source.tensors for name in table.tensors) / max(1, len(table.tensors))
        if share > 0 and (best is None or share > best[0]):
            best = share, table
    if best is not None:
        return best[1]
    if fault is not None:
        raise fault
    if not model.spec.weights:
        message = f"the spec of {model.name} maps no published weights, and {source.path} is not under its own labels"
        mend = "blockgraph train --save DIR writes such files"
        raise WeightsError(Problem("unknown-format", message, None, tuple(model.parameters)[:4], mend))
    held = ", ".join(list(source.tensors)[:3]) or "no tensor"
    message = f"{source.path} has none of the names that {model.name} maps; it holds {held}, …"
    raise WeightsError(Problem("unknown-format", message, None, tuple(model.spec.weights)))


def fit(table: Mapping_, source: Source) -> tuple[list[Tensor], dict[str, int]]:
    """The tensors in the file's shapes, and the rows of padded axes. Raises WeightsError with all misfits."""
    problems: list[Problem] = []
    extra = [n for n in source.tensors if n not in table.tensors and not table.ignores(n)]
    found: list[Tensor] = []
    rows: dict[str, int] = {}
    guesses = 20  # the nearest name costs time
    for name, tensor in table.tensors.items():
        stored, where = source.tensors.get(name), tensor.line.position
        if stored is None:
            hint = nearest(name, extra) if guesses > 0 else None
            guesses -= 1
            problems.append(
                Problem("missing-tensor", f"{source.path.name} lacks {name} ({tensor.line.key})", where, (), hint)
            )
            continue
        fitted = table.fitted(tensor, stored.shape)
        if fitted is None or any(rows.get(a, n) != n for a, n in fitted[1].items()):
            wanted, has = list(tensor.shape), list(stored.shape)
            problems.append(Problem("misshaped-tensor", f"{name} is {has}, {tensor.line.key} needs {wanted}", where))
            continue
        found.append(fitted[0])
        rows.update(fitted[1])
    for name in extra:
        hint = nearest(name, table.tensors) if guesses > 0 else None
        guesses -= 1
        message = f"{source.path.name} holds {name}, which no line of weights.{table.format} maps or ignores"
        problems.append(Problem("extra-tensor", message, None, (), hint))
    if problems:
        raise WeightsError(problems)
    return found, rows


def _in(values: np.ndarray, tensor: Tensor) -> np.ndarray:
    line = tensor.line
    if line.scale == 1 and line.add == 0:
        return values
    return values.astype(np.float32) * np.float32(line.scale) + np.float32(line.add)


def _copy(into: np.ndarray, values: np.ndarray, name: str) -> None:
    """Assigns with conversion. Equal types are copied as integers, which NumPy does faster than for its guest types."""
    if into.dtype == values.dtype:
        bits = np.dtype(f"u{into.dtype.itemsize}")
        into.view(bits)[...] = values.view(bits)
        return
    if into.dtype == np.float16 and values.dtype != np.float32:
        values = values.astype(np.float32)
    try:
        with np.errstate(over="raise"):
            into[...] = values
    except FloatingPointError:
        message = f"{name} has values beyond {into.dtype}"
        raise WeightsError(Problem("overflow", message, None, ("bfloat16", "float32"))) from None


def export(
    model: Model,
    weights: Weights | Mapping[str, np.ndarray],
    out: str | Path,
    format: str = "huggingface",
    shard_bytes: float = 5e9,
    progress: Progress | None = None,
    whole: Callable[[Any], np.ndarray] = np.asarray,
) -> list[Path]:
    """Writes safetensors under a format's names: one file if ``out`` ends so, else a directory with model.safetensors
    or shards and their index. Gives the files. Rows that padding added are left out again. ``whole``: makes an array
    of this process from one of ``weights``, when its turn comes."""
    arrays: Mapping[str, np.ndarray] = weights.arrays if isinstance(weights, Weights) else weights
    rows = weights.rows if isinstance(weights, Weights) else {}
    table = mapping.compile(model, format)
    _check_arrays(model, arrays)
    tensors = {t.name: t for t in (_cut_rows(table, t, rows) for t in table.tensors.values())}
    types = {name: arrays[t.pieces[0].label].dtype for name, t in tensors.items()}
    sizes = {name: int(np.prod(t.shape, dtype=np.int64)) * types[name].itemsize for name, t in tensors.items()}
    total, done = sum(sizes.values()), 0

    def theirs(name: str) -> np.ndarray:
        nonlocal done
        done += sizes[name]
        if progress:
            progress(done, total)
        return assemble(tensors[name], arrays, whole)

    out = Path(out)
    single = out.suffix == ".safetensors"
    shards = [list(tensors)] if single else _shards(sizes, shard_bytes)
    directory = out.parent if single else out
    directory.mkdir(parents=True, exist_ok=True)
    count = len(shards)
    names = [out.name] if single else ["model.safetensors"] if count == 1 else [
        f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]  # fmt: skip
    there = (
        [directory / names[0]] if single else [*directory.glob("model*.safetensors"), directory / safetensors_io.INDEX]
    )
    if old := [p.name for p in there if p.exists()]:
        raise WeightsError(Problem("already-exists", f"{directory} already holds {', '.join(sorted(old)[:3])}"))
    written: list[tuple[Path, Path]] = []
    try:
        for name, members in zip(names, shards, strict=True):
            part = directory / f".{name}.{os.getpid()}.part"
            written.append((part, directory / name))
            entries = [(m, tensors[m].shape, types[m]) for m in members]
            safetensors_io.write(part, entries, theirs, {"format": "pt"})  # transformers asks for this word
        if count > 1:
            where = {m: name for name, members in zip(names, shards, strict=True) for m in members}
            part = directory / f".{safetensors_io.INDEX}.{os.getpid()}.part"
            written.append((part, directory / safetensors_io.INDEX))
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
            part.write_text(json.dumps(index, indent=1) + "\n", "utf-8")
        for part, final in written:  # the index last: until it is there, nobody finds the shards
            part.replace(final)
    finally:
        for part, _ in written:
            part.unlink(missing_ok=True)
    return [final for _, final in written]


def assemble(tensor: Tensor, arrays: Mapping[str, Any], whole: Callable[[Any], np.ndarray] = np.asarray) -> np.ndarray:
    """A checkpoint's tensor from our arrays: the reverse of loading, by the same recipes."""
    made = np.empty(tensor.shape or (1,), arrays[tensor.pieces[0].label].dtype)
    line = tensor.line
    for piece in tensor.pieces:
        view = piece.recipe.view(piece.of(whole(arrays[piece.label])))
        for theirs, ours in piece.recipe.steps(CHUNK):
            values = view[ours]
            if line.scale != 1 or line.add != 0:
                values = (values.astype(np.float32) - np.float32(line.add)) / np.float32(line.scale)
            _copy(piece.recipe.own(made[theirs], ours.stop - ours.start), values, tensor.name)
    return made.reshape(tensor.shape)


def _cut_rows(table: Mapping_, tensor: Tensor, rows: Mapping[str, int]) -> Tensor:
    _, placed = table.layout(tensor)
    shape = tuple(rows.get(p[0], n) if len(p) == 1 else n for p, n in zip(placed, tensor.shape, strict=True))
    fitted = table.fitted(tensor, shape)
    return fitted[0] if fitted else tensor


def _shards(sizes: Mapping[str, int], limit: float) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, n in sizes.items():
        if shards[-1] and size + n > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += n
    return shards


def _check_arrays(model: Model, arrays: Mapping[str, np.ndarray]) -> None:
    problems = []
    for label, (_, t) in model.parameters.items():
        shape = tuple(int(s.constant) for s in t.sizes)
        if label not in arrays:
            problems.append(Problem("missing-tensor", f"no array for {label}", None, (), nearest(label, arrays)))
        elif arrays[label].shape != shape:
            problems.append(
                Problem("misshaped-tensor", f"{label} is {list(arrays[label].shape)}, the model has {list(shape)}")
            )
    problems += [Problem("extra-tensor", f"the model has no parameter {n}", None, (), nearest(n, model.parameters))
                 for n in arrays if n not in model.parameters]  # fmt: skip
    if problems:
        raise WeightsError(problems)
