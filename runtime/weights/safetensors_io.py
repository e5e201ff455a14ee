"""Safetensors files: one file or shards with an index, read row by row and written tensor by tensor.

The header is checked here rather than by the library, which says little about what is wrong with a cut or foreign file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from runtime.weights.source import Files, Source, Stored, refuse

INDEX = "model.safetensors.index.json"
MAX_HEADER = 100_000_000  # bytes; the library's own limit
DTYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U64": np.uint64, "U32": np.uint32,
    "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


class SafetensorsSource(Source):
    kind = "safetensors"

    def __init__(self, path: Path) -> None:
        self.path, self.files = path, Files()
        self.tensors: dict[str, Stored] = {}
        files = [path] if path.is_file() else _shards(path)
        for file in files:
            for name, stored in read_header(file).items():
                if name in self.tensors:
                    refuse("duplicate-tensor", f"{name} is in both {self.tensors[name].file.name} and {file.name}")
                self.tensors[name] = stored

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        t = self._float(name)
        shape = t.shape or (1,)
        row = t.bytes // shape[0] if shape[0] else 0
        data = self.files.read(t.file, t.offset + start * row, (stop - start) * row)
        return data.view(DTYPES[t.dtype]).reshape(stop - start, *shape[1:])

    def read_columns(self, name: str, start: int, stop: int, left: int, right: int) -> np.ndarray | None:
        t = self._float(name)
        row = t.bytes // t.shape[0]
        item = row // math.prod(t.shape[1:])
        rows = [self.files.read(t.file, t.offset + r * row + left * item, (right - left) * item)
                for r in range(start, stop)]  # fmt: skip
        return np.stack(rows).view(DTYPES[t.dtype])

    def _float(self, name: str) -> Stored:
        t = self.tensors[name]
        if t.dtype not in FLOATS:
            refuse("not-a-float", f"{name} holds {t.dtype}; a weight is one of", allowed=FLOATS)
        return t

    def close(self) -> None:
        self.files.close()


def _shards(directory: Path) -> list[Path]:
    single, index = directory / "model.safetensors", directory / INDEX
    if single.exists():
        return [single]
    try:
        table = json.loads(index.read_text("utf-8"))
        names = sorted({str(v) for v in table["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        refuse("bad-index", f"{index} is no index with a weight_map: {e or type(e).__name__}")
    for name in names:  # a name such as ../x or /etc/x would read outside the checkpoint
        if not name or "/" in name or "\\" in name or name in (".", "..") or "\0" in name:
            refuse("bad-index", f"{index} names a shard outside its directory: {name!r}")
        if not (directory / name).is_file():
            refuse("file-missing", f"{index} names {name}, which is not there", allowed=tuple(names))
    return [directory / n for n in names]


def read_header(path: Path) -> dict[str, Stored]:
    """Names, shapes and places of a file's tensors. Raises WeightsError saying what differs from the format."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            refuse(
                "weights-truncated", f"{path} has {size} bytes; a safetensors file begins with 8 bytes of header length"
            )
        length = int.from_bytes(start, "little")
        if length > min(MAX_HEADER, size - 8):
            if start[:2] == b"PK" or start[:1] == b"\x80":
                refuse("pickle-refused", f"{path} is a pickle under another name, which can run any code")
            what = "longer than any header" if length > MAX_HEADER else f"but only {size - 8:,} bytes follow"
            refuse(
                "bad-header",
                f"{path} is no safetensors file or is cut off: its header would be {length:,} bytes, {what}",
            )
        raw = file.read(length)
    try:
        table = json.loads(raw.decode("utf-8"))
        if not isinstance(table, dict):
            raise ValueError("not a mapping")
    except (ValueError, RecursionError) as e:
        refuse("bad-header", f"{path}: the header of {length:,} bytes is no JSON mapping: {e}")
    table.pop("__metadata__", None)
    found = {str(name): _stored(path, str(name), entry, 8 + length) for name, entry in table.items()}
    end = 8 + length
    for name, t in sorted(found.items(), key=lambda item: (item[1].offset, item[1].bytes)):
        if t.offset != end:
            refuse("bad-header", f"{path}: {name} begins at byte {t.offset:,}, the tensor before it ends at {end:,}")
        end = t.offset + t.bytes
    if end != size:
        code, word = ("weights-truncated", "cut off") if end > size else ("bad-header", "too long")
        refuse(code, f"{path} is {word}: its header describes {end:,} bytes, the file has {size:,}")
    return found


def _stored(path: Path, name: str, entry: Any, base: int) -> Stored:
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if dtype not in DTYPES:
            raise ValueError(f"unknown dtype {dtype}")
        if not all(type(n) is int and n >= 0 for n in (*shape, start, stop)):
            raise ValueError("sizes and offsets must be whole numbers")
        needs = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
        if stop - start != needs:
            raise ValueError(f"{dtype} {shape} needs {needs:,} bytes, its offsets give {stop - start:,}")
    except (KeyError, TypeError, ValueError) as e:
        refuse("bad-header", f"{path}: tensor {name}: {e if isinstance(e, ValueError) else 'malformed entry'}")
    return Stored(tuple(shape), dtype, path, base + start, stop - start)


def name_of(dtype: np.dtype[Any]) -> str:
    """What safetensors calls a dtype."""
    return next(name for name, d in DTYPES.items() if np.dtype(d) == dtype)


Written = tuple[str, tuple[int, ...], "np.dtype[Any]"]  # name, shape, dtype


def write(
    path: Path, tensors: Iterable[Written], read: Callable[[str], np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes a file of tensors that ``read`` gives one by one, so that one at a time is in memory."""
    entries = list(tensors)
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, shape, dtype in entries:
        start, end = end, end + math.prod(shape) * dtype.itemsize
        table[name] = {"dtype": name_of(dtype), "shape": list(shape), "data_offsets": [start, end]}
    raw = json.dumps(table, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # tensors start aligned
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little"))
        file.write(raw)
        for name, _, _ in entries:
            file.write(np.ascontiguousarray(read(name)).reshape(-1).view(np.uint8).data)
