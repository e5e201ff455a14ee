"""Choosing JAX's platform before it is imported: without an accelerator, JAX would try each installed plugin."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path


def prepare() -> None:
    """Imports JAX, on the CPU when no TPU or GPU is attached and the user has not chosen (JAX_PLATFORMS)."""
    if "jax" in sys.modules:
        return
    if not os.environ.get("JAX_PLATFORMS") and not _accelerator():
        os.environ["JAX_PLATFORMS"] = "cpu"
    if os.environ.get("JAX_PLATFORMS") != "cpu":
        import jax

        return
    with _quiet():  # the compile-only CUDA plugin prints that there is no driver, once a library
        import jax

        jax.devices()


def start() -> None:
    """Imports JAX and finds its devices."""
    prepare()
    import jax

    jax.devices()


def _accelerator() -> bool:
    tpu = any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    return tpu or Path("/dev/nvidia0").exists() or Path("/dev/kfd").exists()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back what C++ libraries print on standard error; given out after all when something fails."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
