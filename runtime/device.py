"""Choosing JAX's platform before it is imported: without an accelerator, JAX would try each installed plugin."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from compiler.errors import Problem, TargetError
from compiler.targets.types import GPU_CHIPS, GRAMMAR

GPUS_A_HOST = 8  # of more GPUs than that; fewer are taken to be in one host
# words of JAX's names of chips, the longer first
TPU_KINDS = (("v5 lite", "v5e"), ("v5e", "v5e"), ("v6 lite", "v6e"), ("v6e", "v6e"), ("v5", "v5p"), ("v4", "v4"),
             ("tpu7x", "7x"), ("v7x", "7x"))  # fmt: skip

# what plugins for compiling without the machine print when they find none
NOISE = (b"All log messages before absl", b"cudart_stub", b"Could not find cuda drivers")


def prepare() -> None:
    """Imports JAX, on the CPU when no TPU or GPU is attached and the user has not chosen (JAX_PLATFORMS), and finds
    its devices."""
    if "jax" in sys.modules:
        return
    choose()
    with without_noise():
        import jax

        jax.devices()


def choose() -> None:
    """The CPU when no TPU or GPU is attached and the user has not chosen; before JAX is imported."""
    if not os.environ.get("JAX_PLATFORMS") and not _accelerator():
        os.environ["JAX_PLATFORMS"] = "cpu"


def processes() -> int:
    """How many processes JAX runs in together."""
    import jax

    return int(jax.process_count())


def first() -> bool:
    """Whether this process is the first of them."""
    import jax

    return int(jax.process_index()) == 0


def attached() -> tuple[str, str, int]:
    """(platform, kind, how many) of the devices of all processes together."""
    import jax

    found = jax.devices()
    return found[0].platform, found[0].device_kind, len(found)


def own_target() -> str:
    """The name of the target that this machine's devices are, of all processes together: "cpu:8", "tpu:v5e:2x4",
    "gpu:h100:1x8". Raises TargetError where its kind has no name."""
    import jax

    found = jax.devices()
    kind, count = found[0].device_kind.lower(), len(found)
    if found[0].platform == "cpu":
        return f"cpu:{count}"
    if found[0].platform == "tpu":
        type_ = next((name for word, name in TPU_KINDS if word in kind), None)
        if type_ is not None:
            places = [d.coords[: 2 if type_ in ("v5e", "v6e") else 3] for d in found]
            sides = [max(axis) - min(axis) + 1 for axis in zip(*places, strict=True)]
            slices = len({getattr(d, "slice_index", None) or 0 for d in found})
            more = f":slices={slices}" if slices > 1 else ""
            return f"tpu:{type_}:{'x'.join(map(str, sides))}{more}"
    else:
        type_ = next((name for name in GPU_CHIPS if name.lower() in kind), None)
        if type_ is not None:
            each = min(count, GPUS_A_HOST)
            return f"gpu:{type_.lower()}:{count // each}x{each}"
    raise TargetError(Problem("unknown-target", f"{found[0].device_kind} is no machine on file", None, GRAMMAR))


def _accelerator() -> bool:
    tpu = any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    return tpu or Path("/dev/nvidia0").exists() or Path("/dev/kfd").exists()


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
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
