"""Starting jax without what its plugins say about machines that are not there."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

NOISE = (b"All log messages before absl", b"cudart_stub", b"Could not find cuda drivers")


def start_jax() -> None:
    """Imports jax and finds its devices. All it writes to stderr is kept, but for the known noise."""
    with _without_noise():
        from runtime import device

        device.start()


@contextmanager
def _without_noise() -> Iterator[None]:
    """Holds back what is written to the process's stderr, by C++ too, and hands on the lines that say something."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            lines = [line for line in held if not any(noise in line for noise in NOISE)]
            if lines:
                os.write(2, b"".join(lines))
