"""Weights in few bits: arrays into values and scales, and those into a file and back.

Quantised arrays are pairs under two labels: ``label`` in int4 or int8 and ``label:scale`` in the parameter's dtype, as
``compiler.passes.pack.held`` types them (what qwix calls qvalue and scale). In a file two int4 share a byte, the first
of each pair in the lower half.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from compiler.errors import Problem, WeightsError, nearest
from compiler.language.model import Model
from compiler.ops.packed import SCALE, Packed
from compiler.passes.pack import held
from runtime.weights import safetensors_io

FORMAT = "blockgraph packed"
TYPES: dict[str, Any] = {"int4": ml_dtypes.int4, "int8": np.int8}
ONCE = 1 << 24  # elements quantised at once: the temporaries in float32 stay some hundred megabytes


def packed_arrays(model: Model, arrays: Mapping[str, Any], where: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The arrays as a model's programs take them: those that the spec holds in few bits quantised, the rest as it is,
    and what is quantised already stays so. ``where``: shardings by label, for arrays that lie on a mesh."""
    made: dict[str, Any] = {}
    for label, (op, t) in model.parameters.items():
        if label not in arrays:
            continue
        x = arrays[label]
        if op.packed is None:
            made[label] = x
        elif label + SCALE in arrays:
            made[label], made[label + SCALE] = x, arrays[label + SCALE]
        elif where is not None and not isinstance(x, np.ndarray):
            made[label], made[label + SCALE] = _on_devices(x, label, op.packed, t.axes, where)
        else:
            made[label], made[label + SCALE] = quantise(np.asarray(x), op.packed, t.axes.index(op.packed.axis))
    made.update({k: x for k, x in arrays.items() if k not in made and k not in model.parameters})
    return made


def quantise(x: np.ndarray, how: Packed, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and scales of an array, in groups along ``axis``. A value is off by half a scale at most."""
    groups = x.shape[axis] // how.group
    values = np.empty(x.shape, TYPES[how.dtype])
    scales = np.empty((*x.shape[:axis], groups, *x.shape[axis + 1 :]), x.dtype)
    rows = x.shape[0] if axis else 1  # piece by piece along the first axis, where groups do not run along it
    step = max(1, ONCE // max(1, x.size // rows))
    for start in range(0, rows, step):
        cut = slice(start, start + step) if axis else slice(None)
        part = x[cut]
        whole = part.reshape(*part.shape[:axis], groups, how.group, *part.shape[axis + 1 :])
        found, scale = _rounded(np, whole.astype(np.float32), how, axis + 1, x.dtype)
        values[cut], scales[cut] = found.reshape(part.shape).astype(values.dtype), scale
    return values, scales


def _rounded(xp: Any, x: Any, how: Packed, axis: int, dtype: Any) -> tuple[Any, Any]:
    """Whole numbers in float32 [.., groups, group, ..] and scales [.., groups, ..] in ``dtype``: numbers are of the
    scale as it is stored. A group of zeros has the scale 1."""
    most = xp.max(xp.abs(x), axis=axis)
    scale = (xp.where(most > 0, most, how.largest) / how.largest).astype(dtype)
    wide = xp.expand_dims(scale.astype(xp.float32), axis)
    return xp.clip(xp.round(x / wide), -how.largest, how.largest), scale


def _on_devices(x: Any, label: str, how: Packed, axes: tuple[str, ...], where: Mapping[str, Any]) -> tuple[Any, Any]:
    """The same where an array of jax lies, each device its own part."""
    import jax
    import jax.numpy as jnp

    axis = axes.index(how.axis)
    groups = x.shape[axis] // how.group

    def fn(x: Any) -> tuple[Any, Any]:
        whole = x.reshape(*x.shape[:axis], groups, how.group, *x.shape[axis + 1 :]).astype(jnp.float32)
        values, scale = _rounded(jnp, whole, how, axis + 1, x.dtype)
        return values.reshape(x.shape).astype(how.dtype), scale

    made: tuple[Any, Any] = jax.jit(fn, out_shardings=(where[label], where[label + SCALE]))(x)
    return made


def unpack_array(values: np.ndarray, scales: np.ndarray, how: Packed, axis: int) -> np.ndarray:
    """What values and scales stand for, in the scales' dtype."""
    shape = (*values.shape[:axis], scales.shape[axis], how.group, *values.shape[axis + 1 :])
    whole = values.astype(scales.dtype).reshape(shape) * np.expand_dims(scales, axis + 1)
    return np.asarray(whole.reshape(values.shape))


# -- files
def save(
    model: Model,
    arrays: Mapping[str, Any],
    path: Path,
    rows: Mapping[str, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes a model's weights as they are held, under our own labels, into one .safetensors file. ``rows``: of padded
    axes, how many are real. Raises WeightsError where the file is there."""
    if path.suffix != ".safetensors":
        path = path / "model.safetensors"
    if path.exists():
        raise WeightsError(Problem("already-exists", f"there is {path} already"))
    path.parent.mkdir(parents=True, exist_ok=True)
    found = packed_arrays(model, arrays)
    types = held(model)
    entries = []
    for label, t in types.items():
        shape = tuple(int(s.constant) for s in t.sizes)
        four = t.dtype == "int4"
        count = -(-int(np.prod(shape)) // 2)
        entries.append((label, (count,) if four else shape, np.dtype(np.uint8) if four else found[label].dtype))
    total, done = len(entries), 0

    def bytes_of(label: str) -> np.ndarray:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)
        x = np.asarray(found[label])
        return pairs(x) if types[label].dtype == "int4" else x

    safetensors_io.write(path, entries, bytes_of, {"format": FORMAT, "rows": json.dumps(dict(rows or {}))})
    return path


def load(model: Model, path: Path) -> tuple[dict[str, np.ndarray], dict[str, int]] | None:
    """Arrays as they are held, and rows, of a file that ``save`` wrote; None where it is another file. Raises
    WeightsError for a file of another model, or of another way to hold it."""
    from safetensors import SafetensorError, safe_open

    file = path / "model.safetensors" if path.is_dir() else path
    if file.suffix != ".safetensors" or not file.is_file():
        return None
    try:
        with safe_open(str(file), "np") as source:
            said = source.metadata() or {}
            if said.get("format") != FORMAT:
                return None
            types, problems = held(model), []
            arrays: dict[str, np.ndarray] = {}
            names = set(source.keys())
            for label, t in types.items():
                shape = tuple(int(s.constant) for s in t.sizes)
                stored = [-(-int(np.prod(shape)) // 2)] if t.dtype == "int4" else list(shape)
                if label not in names:
                    hint = nearest(label, names)
                    problems.append(Problem("missing-tensor", f"{file.name} lacks {label}", None, (), hint))
                elif list(source.get_slice(label).get_shape()) != stored:
                    kind = "held otherwise, or of another size"
                    problems.append(Problem("misshaped-tensor", f"{label} is {kind}: {model.name} needs {t}"))
            extra = sorted(names - set(types))
            problems += [Problem("extra-tensor", f"{file.name} holds {n}, and {model.name} has it not") for n in extra]
            if problems:
                raise WeightsError(problems)
            for label, t in types.items():
                x = source.get_tensor(label)
                shape = tuple(int(s.constant) for s in t.sizes)
                arrays[label] = apart(x, shape) if t.dtype == "int4" else x
            return arrays, dict(json.loads(said.get("rows", "{}")))
    except SafetensorError:
        return None  # the usual reader says what is wrong with it


def pairs(x: np.ndarray) -> np.ndarray:
    """int4 as bytes, two in each."""
    flat = np.ascontiguousarray(x).reshape(-1).astype(np.int8).view(np.uint8) & 15
    flat = np.append(flat, np.uint8(0)) if flat.size % 2 else flat
    return np.asarray(flat[0::2] | (flat[1::2] << 4))


def apart(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Bytes as int4."""
    both = np.stack([x & 15, x >> 4], -1).reshape(-1)[: int(np.prod(shape))].astype(np.int8)
    return np.where(both > 7, both - 16, both).astype(ml_dtypes.int4).reshape(shape)
