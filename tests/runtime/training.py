"""What the tests of training share: a small spec, a text, commands in processes of their own."""

from __future__ import annotations

import argparse
import datetime
import decimal
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.children import ROOT, environment
from tests.runtime.weights.specs import LLAMA

SPEC = LLAMA.replace("vocab: 96", "vocab: 256").replace("kv_heads: 2", "kv_heads: 4")
OPTIONS = ("--batch", "8", "--length", "32", "--lr", "1e-2")


def write(folder: Path) -> tuple[Path, Path]:
    """The spec's file and the text's: docstrings of Python."""
    spec, text = folder / "tiny.yaml", folder / "text.txt"
    spec.write_text(SPEC)
    documented = (argparse, decimal, datetime, json, argparse.ArgumentParser, json.dumps, json.JSONEncoder, os.walk)
    text.write_text("\n".join(d.__doc__ or "" for d in documented))
    return spec, text


def start(*arguments: str | Path, devices: int = 1, **environ: str) -> subprocess.Popen[str]:
    """A command of the command line in a process with so many CPU devices."""
    command = [sys.executable, "-m", "blockgraph", *map(str, arguments)]
    return subprocess.Popen(
        command,
        env=environment(devices, **environ),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_group(count: int, *arguments: str | Path, more: tuple[str, ...] = ()) -> list[subprocess.Popen[str]]:
    """The same command as so many processes of one group."""
    port = free_port()
    group = ("--coordinator", f"127.0.0.1:{port}", "--processes", str(count), *more)
    return [start(*arguments, *group, "--process-id", str(i)) for i in range(count)]


def finish(process: subprocess.Popen[str], timeout: float = 120) -> str:
    """What a process printed; it must end well."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == 0, err[-3000:]
    return out


def lines(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
