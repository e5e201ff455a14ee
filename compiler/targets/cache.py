"""Verdicts kept on disk: a program that was compiled once by this compiler is not compiled again.

One entry is ``<key>.json`` and, when there is one, the optimised HLO in ``<key>.hlo.gz``. The JSON comes last
and carries the text's hash, so a half-written or damaged entry counts as absent.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import secrets
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMAT = 2


def folder() -> Path:
    """$BLOCKGRAPH_CACHE, or ~/.cache/blockgraph/compiled."""
    chosen = os.environ.get("BLOCKGRAPH_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "blockgraph" / "compiled"


def key(program_hash: str, versions: Mapping[str, str]) -> str:
    text = json.dumps([FORMAT, program_hash, sorted(versions.items())])
    return hashlib.sha256(text.encode()).hexdigest()


def load(entry: str) -> tuple[dict[str, Any], str | None] | None:
    """The stored result and optimised HLO, or None when there is none that can be trusted."""
    try:
        stored = json.loads((folder() / f"{entry}.json").read_text(encoding="utf-8"))
        result, digest = stored["result"], stored["hlo_sha256"]
        if not isinstance(result, dict) or stored["key"] != entry:
            return None
        if digest is None:
            return result, None
        data = gzip.decompress((folder() / f"{entry}.hlo.gz").read_bytes())
        return (result, data.decode()) if hashlib.sha256(data).hexdigest() == digest else None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zlib.error):
        return None


def store(entry: str, result: Mapping[str, Any], hlo: str | None) -> str | None:
    """Keep a result; returns why not when the folder cannot be written, which never stops a compile."""
    try:
        digest = None
        if hlo is not None:
            data = hlo.encode()
            digest = hashlib.sha256(data).hexdigest()
            write_whole(folder() / f"{entry}.hlo.gz", gzip.compress(data, compresslevel=3, mtime=0))
        stored = {"key": entry, "result": dict(result), "hlo_sha256": digest}
        write_whole(folder() / f"{entry}.json", json.dumps(stored).encode())
    except OSError as error:
        return f"the result is not kept in the cache: {error}"
    return None


def write_whole(path: Path, data: bytes) -> None:
    """Write under a temporary name and rename, so that nobody reads half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
