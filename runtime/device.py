"""Choosing JAX's platform before it is imported: without an accelerator, JAX would try each installed plugin."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# what plugins for compiling without the machine print when they find none
NOISE = (b"All log messages before absl", b"cudart_stub", b"Could not find cuda drivers")


def prepare() -> None:
    """Imports JAX, on the CPU when no TPU or GPU is attached and the user has not chosen (JAX_PLATFORMS), and finds
    its devices."""
    if "jax" in sys.modules:
        return
    if not os.environ.get("JAX_PLATFORMS") and not _accelerator():
        os.environ["JAX_PLATFORMS"] = "cpu"
    with _without_noise():
        import jax

        jax.devices()


def _accelerator() -> bool:
    tpu = any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    return tpu or Path("/dev/nvidia0").exists() or Path("/dev/kfd").exists()


@contextlib.contextmanager
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
