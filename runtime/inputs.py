"""The inputs of a call by name: read from a file, held against the model, and drawn at random where none is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import BlockgraphError, Problem, Problems, nearest
from compiler.graph.types import TensorType
from compiler.language.model import Model
from compiler.ops.leaves import Input
from compiler.ops.lookup import Lookup
from compiler.passes.call import missing_size
from runtime import markers

LENGTHS = "_lengths"


@dataclass(frozen=True)
class Inputs:
    """All inputs of a model, the sizes that they have, and the names of those that are random."""

    arrays: dict[str, np.ndarray]
    sizes: dict[str, int]
    drawn: tuple[str, ...] = ()


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors file. Raises BlockgraphError where it is none."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if path.suffix != ".safetensors":
        raise BlockgraphError(Problem("unknown-format", f"--inputs {path}: tensors by name", None, (".safetensors",)))
    if not path.is_file():
        raise BlockgraphError(Problem("file-missing", f"--inputs: there is no file {path}"))
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as e:
        raise BlockgraphError(Problem("bad-inputs", f"{path} cannot be read as safetensors: {e}")) from None


def complete(model: Model, given: Mapping[str, Any], sizes: Mapping[str, int] | None = None, seed: int = 0) -> Inputs:
    """All inputs: the given ones, lengths that take everything, and for the rest random numbers from a seed. Axes
    that vary have the size that a given input or ``sizes`` says; one row where nothing says how many. Raises
    BlockgraphError with every fault."""
    types = {n.op.label: n.result.type for n in model.graph.leaves(Input) if isinstance(n.op, Input)}
    problems, known = Problems(), dict(sizes or {})
    arrays: dict[str, np.ndarray] = {}
    for name, value in given.items():
        if name not in types:
            near = nearest(name, types)
            problems.add("unknown-input", f"{model.name} has no input {name}", allowed=types, suggestion=near)
            continue
        array = np.asarray(value)
        _fit(name, array, types[name], known, problems)
        arrays[name] = array.astype(types[name].dtype, copy=False)
    problems.raise_if_any(BlockgraphError)
    known.setdefault("batch", 1)
    tables = _tables(model)
    for name in [n for n in arrays if n in tables]:
        wrong = arrays[name][(arrays[name] < 0) | (arrays[name] >= tables[name])]
        if wrong.size:
            allowed = (f"ids from 0 to {tables[name] - 1:,}",)
            problems.add("bad-tokens", f"{name}: {wrong.flat[0]} is no token id", allowed=allowed)
    drawn = []
    draw = np.random.default_rng(seed)
    for name, t in types.items():
        if name in arrays:
            continue
        needed = t.elements.symbols | ({name.removesuffix(LENGTHS)} if name.endswith(LENGTHS) else set())
        missing = sorted(needed - set(known))
        if missing:
            problems.put(missing_size(missing, "the input in --inputs"))
            continue
        shape = [int(s.evaluate(known)) for s in t.sizes]
        if name.endswith(LENGTHS):
            arrays[name] = np.full(shape, known[name.removesuffix(LENGTHS)], np.int32)
            continue
        drawn.append(name)
        if t.dtype.startswith("int"):
            arrays[name] = draw.integers(0, tables.get(name, 2), shape).astype(t.dtype)
        else:
            arrays[name] = draw.standard_normal(shape).astype(t.dtype)
    problems.raise_if_any(BlockgraphError)
    _mark(model, arrays, drawn, given, tables, draw, problems)
    problems.raise_if_any(BlockgraphError)
    return Inputs(arrays, known, tuple(drawn))


def _mark(
    model: Model, arrays: dict[str, np.ndarray], drawn: list[str], given: Mapping[str, Any], tables: Mapping[str, int],
    draw: np.random.Generator, problems: Problems,
) -> None:  # fmt: skip
    """Markers in random tokens, as many as a row has images; of given tokens, as many images as they have markers
    where nothing else says how many."""
    tokens = str(model.streaming_input)
    for name, marker in model.markers.items():
        there = markers.counted(model, arrays[tokens])[name]
        count = model.spec.inputs[name].count
        if tokens in drawn:
            counts = markers.given(model, arrays, len(there))[name]
            arrays[tokens] = markers.placed(arrays[tokens], marker, counts, tables[tokens], draw)
        elif name in drawn and count in (None, "any") and markers.LENGTHS not in given:
            arrays[markers.LENGTHS] = np.minimum(there, arrays[name].shape[1]).astype(np.int32)
    batch = len(arrays[tokens]) if model.markers else 0
    if model.markers:
        images = markers.given(model, arrays, batch)
        problems.items += markers.misfits(model, markers.counted(model, arrays[tokens]), images)


def _fit(name: str, array: np.ndarray, t: TensorType, known: dict[str, int], problems: Problems) -> None:
    """An array against its type; sizes that vary become known."""
    if len(array.shape) != len(t.axes):
        text = f"{name} has {len(array.shape)} axes, and takes [{' '.join(t.axes)}]"
        problems.add("axis-mismatch", text)
        return
    if array.dtype.kind not in ("iu" if t.dtype.startswith("int") else "fiu"):
        problems.add("dtype-mismatch", f"{name} holds {array.dtype}, and takes {t.dtype}")
    for (axis, size), found in zip(t.pairs, array.shape, strict=True):
        wanted = int(size.constant) if size.is_constant else known.setdefault(str(size), found)
        if wanted != found:
            problems.add("axis-mismatch", f"{name} has {axis} = {found}, where {wanted} is the size of {axis}")


def _tables(model: Model) -> dict[str, int]:
    """Rows of the table that each input of ids looks up."""
    inputs = {n.result.id: n.op.label for n in model.graph.leaves(Input) if isinstance(n.op, Input)}
    found: dict[str, int] = {}
    for node in model.graph.nodes:
        if isinstance(node.op, Lookup) and node.operands[1].id in inputs:
            rows = node.operands[0].type.size(node.op.axis)
            if rows.is_constant:
                name = inputs[node.operands[1].id]
                found[name] = min(int(rows.constant), found.get(name, int(rows.constant)))
    return found
