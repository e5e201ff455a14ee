"""What a checkpoint on disk is to the loader: names, shapes, and rows read when asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NoReturn

import numpy as np

from compiler.errors import Problem, WeightsError

FORMS = ("model.safetensors", "model.safetensors.index.json", "a file *.safetensors", "a file *.gguf")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its shape, its dtype as the file calls it, and where its bytes lie."""

    shape: tuple[int, ...]
    dtype: str
    file: Path
    offset: int
    bytes: int


class Source(ABC):
    """An open checkpoint. Rows are read with file reads, never through a whole memory map, whose touched pages
    would count as resident memory."""

    kind: str
    path: Path
    tensors: Mapping[str, Stored]

    @abstractmethod
    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Entries start to stop along the first axis (a scalar has one), as floats [stop - start, ...]."""

    def read_columns(self, name: str, start: int, stop: int, left: int, right: int) -> np.ndarray | None:
        """Of the rows start to stop along the first axis, the entries left to right of the flattened rest
        [stop - start, right - left]; None where a format has no way to read less than a row."""
        return None

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Source:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Files:
    """Open files of a checkpoint, read at offsets without buffering."""

    def __init__(self) -> None:
        self._open: dict[Path, object] = {}

    def read(self, path: Path, offset: int, count: int) -> np.ndarray:
        """``count`` bytes at ``offset``."""
        if path not in self._open:
            self._open[path] = path.open("rb", buffering=0)
        file = self._open[path]
        data = np.empty(count, np.uint8)
        into = data.data
        file.seek(offset)  # type: ignore[attr-defined]
        done = 0
        while done < count:  # an unbuffered read may give less than asked for
            got = file.readinto(into[done:])  # type: ignore[attr-defined]
            if not got:
                refuse("weights-truncated", f"{path} ended at byte {offset + done:,} while tensors were read")
            done += got
        return data

    def close(self) -> None:
        for file in self._open.values():
            file.close()  # type: ignore[attr-defined]
        self._open.clear()


def refuse(code: str, message: str, *, allowed: tuple[str, ...] = (), suggestion: str | None = None) -> NoReturn:
    raise WeightsError(Problem(code, message, None, allowed, suggestion))


def check_there(path: Path) -> None:
    """Raises where a checkpoint's path leads to nothing."""
    if not path.exists():
        refuse("file-missing", f"there are no weights at {path}", allowed=FORMS)


def open_source(path: str | Path) -> Source:
    """The checkpoint at a path: a .safetensors file, a directory that holds one or its shards, or a .gguf file."""
    from runtime.weights.gguf_io import GGUFSource
    from runtime.weights.safetensors_io import SafetensorsSource

    path, forms = Path(path), FORMS
    check_there(path)
    if path.is_dir():
        if (path / "model.safetensors").exists() or (path / "model.safetensors.index.json").exists():
            return SafetensorsSource(path)
        names = sorted(p.name for p in path.iterdir())
        found = [n for n in names if n.endswith((".safetensors", ".gguf"))]
        if len(found) == 1:
            return open_source(path / found[0])
        pickles = [n for n in names if n.endswith(PICKLES)]
        holds = f"pickled weights only ({pickles[0]}), which can run any code" if pickles and not found else (
            f"{len(found)} weights files: name one of them" if found else "no weights")  # fmt: skip
        refuse("no-weights", f"the directory {path} holds {holds}", allowed=tuple(found) or forms)
    if path.suffix == ".gguf":
        return GGUFSource(path)
    if path.suffix == ".safetensors":
        return SafetensorsSource(path)
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"GGUF":
        return GGUFSource(path)
    if path.suffix in PICKLES or start[:2] == b"PK" or start[:1] == b"\x80":
        refuse(
            "pickle-refused", f"{path} is a pickle, which can run any code: convert it to safetensors", allowed=forms
        )
    if path.name.endswith(".index.json"):
        return SafetensorsSource(path.parent)
    refuse("unknown-weights", f"{path} is neither safetensors nor GGUF", allowed=forms)
