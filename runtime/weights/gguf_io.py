"""GGUF files: header, metadata and tensors, dequantised row by row.

The header is read here: the ``gguf`` package's reader makes several objects for every token of the vocabulary and
leaves a map of the whole file. Block sizes and dequantisation are the package's.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from runtime.weights.source import Files, Source, Stored, refuse

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
MAX_COUNT = 1 << 26  # entries of an array or bytes of a text: a foreign file's numbers must not allocate
MAX_AXES = 4


class _Cut(Exception):
    """The file ended, or a count was beyond sense."""


class _Header:
    """Reads a GGUF header's values one after another."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def take(self, count: int) -> bytes:
        data = self.file.read(count) if 0 <= count <= 8 * MAX_COUNT else b""
        if len(data) < count:
            raise _Cut
        return data

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY or depth > 2:
            raise _Cut
        inner, count = self.number("I"), self.number("Q")
        if count > MAX_COUNT:
            raise _Cut
        if inner in _SCALARS:
            code = _SCALARS[inner]
            return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(f"<{code}"))))
        return [self.value(inner, depth + 1) for _ in range(count)]


class GGUFSource(Source):
    """Shapes are given in NumPy's order (GGUF writes the fastest axis first); values come as float32."""

    kind = "gguf"

    def __init__(self, path: Path) -> None:
        self.path, self.files = path, Files()
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, Stored] = {}
        self.size = path.stat().st_size
        with path.open("rb") as file:
            try:
                self._header(_Header(file), file)
            except _Cut:
                refuse("weights-truncated", f"{path} is cut off or damaged: its header breaks at byte {file.tell():,} "
                                            f"of {self.size:,}")  # fmt: skip

    def _header(self, h: _Header, file: BinaryIO) -> None:
        magic = file.read(4)
        if magic != b"GGUF":
            refuse("bad-header", f"{self.path} is no GGUF file: it begins with {magic!r}, not b'GGUF'")
        version = h.number("I")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3)
            refuse("bad-header", f"{self.path}: GGUF " + ("is big-endian" if swapped else f"version {version}"),
                   allowed=("versions 2 and 3, little-endian",))  # fmt: skip
        tensors, pairs = h.number("Q"), h.number("Q")
        if max(tensors, pairs) > MAX_COUNT:
            raise _Cut
        for _ in range(pairs):
            key = h.text()
            self.metadata[key] = h.value(h.number("I"))
        infos = []
        for _ in range(tensors):
            name, axes = h.text(), h.number("I")
            if axes > MAX_AXES:
                raise _Cut
            shape = tuple(h.number("Q") for _ in range(axes))[::-1]
            infos.append((name, shape, h.number("I"), h.number("Q")))
        align = self.metadata.get("general.alignment", 32)
        if not isinstance(align, int) or align < 1:
            raise _Cut
        base = -(-file.tell() // align) * align
        for name, shape, kind, offset in infos:
            self._add(name, shape, kind, base + offset)

    def _add(self, name: str, shape: tuple[int, ...], number: int, offset: int) -> None:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            refuse("unknown-dtype", f"{self.path}: {name} has GGML type {number}, unknown to this gguf package")
        block, width = GGML_QUANT_SIZES[kind]
        if shape and shape[-1] % block:
            refuse("bad-header", f"{self.path}: {name} has rows of {shape[-1]}, {kind.name} packs {block} at a time")
        count = math.prod(shape) // block * width
        if offset + count > self.size:
            refuse("weights-truncated", f"{self.path} is cut off: {name} ends at byte {offset + count:,}, the file has "
                                        f"{self.size:,}")  # fmt: skip
        if name in self.tensors:
            refuse("duplicate-tensor", f"{self.path} holds {name} twice")
        self.tensors[name] = Stored(shape, kind.name, self.path, offset, count)

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        t = self.tensors[name]
        shape = t.shape or (1,)
        block, width = GGML_QUANT_SIZES[GGMLQuantizationType[t.dtype]]
        if len(shape) == 1 and block > 1:  # blocks run along the only axis
            return self._dequantised(t, t.offset, t.bytes, dequantize)[start:stop]
        row = t.bytes // shape[0] if shape[0] else 0
        values = self._dequantised(
            t, t.offset + start * row, (stop - start) * row, dequantize, shape[-1] // block * width
        )
        return values.reshape(stop - start, *shape[1:])

    def _dequantised(self, t: Stored, offset: int, count: int, dequantize: Any, width: int = 0) -> np.ndarray:
        from gguf.constants import GGMLQuantizationType

        data = self.files.read(t.file, offset, count)
        if t.dtype == "F64":
            return data.view(np.float64)
        rows = data.reshape(-1, width) if width and t.shape[1:] else data
        try:
            return dequantize(rows, GGMLQuantizationType[t.dtype])
        except NotImplementedError:
            refuse("unknown-dtype", f"{self.path}: the gguf package cannot dequantise {t.dtype}")

    def close(self) -> None:
        self.files.close()
