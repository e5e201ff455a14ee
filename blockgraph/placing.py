"""Several files that belong together: made in a folder of their own, then put in place at once."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path


@contextlib.contextmanager
def staged(out: Path | None, names: Sequence[str], kept: Sequence[str] = ()) -> Iterator[Path]:
    """A folder to write into. When all went well its files replace those of ``names`` in ``out``: a run that was
    interrupted leaves nothing, and of two runs at once the later one's files lie there, all of them. After an error
    only the files of ``kept`` (a log) are put in place. Without ``out`` nothing stays. Raises OSError where ``out``
    cannot be written."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="blockgraph-") as alone:
            yield Path(alone)
        return
    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    inside = Path(tempfile.mkdtemp(prefix=".blockgraph-", dir=out))
    try:
        yield inside
        _place(inside, out, names)
    except Exception:
        with contextlib.suppress(OSError):
            _place(inside, out, kept)
        raise
    finally:
        shutil.rmtree(inside, ignore_errors=True)
        if new:
            with contextlib.suppress(OSError):  # it holds something
                out.rmdir()


def _place(inside: Path, out: Path, names: Sequence[str]) -> None:
    with _locked(out):
        for name in names:
            if (inside / name).exists():
                (inside / name).replace(out / name)
            else:  # what an earlier run left must not be taken for this one's
                (out / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone in a folder among the processes that ask; everybody at once where the system has no such locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
