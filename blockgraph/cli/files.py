"""Writing files: under a temporary name first, then renamed, and never outside the folder that was given."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from compiler.errors import BlockgraphError, Problem


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``, of the same suffix; it becomes ``path`` when all went well."""
    if path.is_dir():
        raise BlockgraphError(Problem("not-a-file", f"{path} is a directory"))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.filename == str(temporary):
            error.filename = str(path)  # the name that was asked for
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with whole(path) as temporary:
        temporary.write_text(text, "utf-8")


def file_name(name: str, suffix: str) -> str:
    """A file name from a model's name, which is any text: nothing in it can lead out of a folder."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "model"
    return safe[:100] + suffix


def folder(path: str | Path) -> Path:
    """The folder to write into; it need not exist. Raises where it cannot be one."""
    found = Path(path).expanduser()
    if found.exists() and not found.is_dir():
        raise BlockgraphError(Problem("not-a-folder", f"{found} is a file, and --out names a folder"))
    return found


def new_folder(path: str | Path, option: str = "--out") -> Path:
    """The same of a folder that must be new or empty, so that files of two runs are never mixed."""
    found = Path(path).expanduser()
    if found.exists() and not found.is_dir():
        raise BlockgraphError(Problem("not-a-folder", f"{found} is a file, and {option} names a folder"))
    if found.is_dir() and (held := sorted(p.name for p in found.iterdir())):
        shown = ", ".join(held[:3]) + (", …" if len(held) > 3 else "")
        message = f"{option}: the folder {found} is not empty, it holds {shown}"
        raise BlockgraphError(Problem("already-exists", message, None, ("a new or empty folder",)))
    place = next(p for p in (found, *found.absolute().parents) if p.exists())
    if not os.access(place, os.W_OK):  # told now, and not when hours of work are to be written
        raise BlockgraphError(Problem("file-error", f"{option} {found}: {place} cannot be written"))
    return found


def within(files: Iterable[str | Path], out: Path) -> list[Path]:
    """The files that were written; each must lie inside ``out``."""
    root, found = out.resolve(), [Path(f) for f in files]
    for path in found:
        if root not in path.resolve().parents:
            raise BlockgraphError(Problem("outside-folder", f"{path} is not inside {out}"))
    return found
