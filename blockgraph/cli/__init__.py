"""The command line. ``main`` is the entry point; each command imports what it needs when it runs."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import NoReturn

INTERRUPTED = 130  # as a shell says it: 128 + SIGINT
PIPE_CLOSED = 141  # 128 + SIGPIPE
ENDED = 143  # 128 + SIGTERM


def main() -> NoReturn:
    """Runs the command line and ends the process: 0 done, 1 a "no" (refused, different), 2 bad input,
    70 a fault of our own; 130, 141 and 143 after SIGINT, SIGPIPE and SIGTERM."""
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, _end)  # as a scheduler ends it: children and temporary files go too
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal that lacks a sign
    code: object = 0
    try:
        from blockgraph.cli.app import app

        app(prog_name="blockgraph")
    except SystemExit as stop:
        code = stop.code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        code = PIPE_CLOSED
    if not _flushed():
        code = PIPE_CLOSED
    sys.exit(code)  # type: ignore[arg-type]


def _end(number: int, frame: object) -> NoReturn:
    raise SystemExit(ENDED)


def _flushed() -> bool:
    """Whether all output could be written; a reader that left is no reason for a traceback at exit."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


__all__ = ["main"]
