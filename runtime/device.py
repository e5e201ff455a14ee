"""Choosing JAX's platform before it is imported: without an accelerator, JAX would try each installed plugin."""

from __future__ import annotations

import os
from pathlib import Path


def prepare() -> None:
    """Sets JAX_PLATFORMS to the CPU when no TPU or GPU is attached and the user has not chosen."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # the plugins' lines about absent drivers
    if os.environ.get("JAX_PLATFORMS"):
        return
    tpu = any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    gpu = Path("/dev/nvidia0").exists() or Path("/dev/kfd").exists()
    if not tpu and not gpu:
        os.environ["JAX_PLATFORMS"] = "cpu"
