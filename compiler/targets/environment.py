"""What a process needs in its environment before its compiler is loaded, and whether that compiler is here.

No jax import: the parent calls this to start a child that compiles.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import site
import sys
from collections.abc import Mapping
from pathlib import Path

from compiler.errors import TargetError
from compiler.targets.types import Target

ROOT = Path(__file__).resolve().parents[2]  # the repository, or site-packages when installed

TPU_VARIABLES = {
    "TPU_SKIP_MDS_QUERY": "1",  # do not ask a cloud for the machine's metadata
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # any valid one; the topology asked for decides
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # or two compiles at once collide on a lock file
}
# Settings of the person's shell that would change what is compiled, or keep this process from its compiler.
DROPPED = ("JAX_", "XLA_", "TPU_", "LIBTPU_", "PJRT_", "PYTHON", "MEGASCALE_", "TF_")

EXTRAS = {"tpu": ("libtpu",), "gpu": ("jax_cuda12_plugin", "jax_plugins.xla_cuda12", "nvidia.cuda_nvcc")}
DISTRIBUTIONS = {
    "cpu": (),
    "tpu": ("libtpu",),
    "gpu": ("jax-cuda12-plugin", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12"),
}
NAMES = {"tpu": "TPU", "gpu": "GPU"}


def check_installed(target: Target) -> None:
    """A TargetError with the one line to type when the target's compiler is not installed."""
    if any(not _found(module) for module in EXTRAS.get(target.platform, ())):
        extra = target.platform
        raise TargetError(
            f"{target} needs the {NAMES[extra]} compiler, which is not installed here: "
            f'pip install "blockgraph[{extra}]"',
            "missing-extra",
        )


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


def versions(target: Target) -> dict[str, str]:
    """The packages whose versions decide what the compiler emits."""
    found = {}
    for name in ("jax", "jaxlib", *DISTRIBUTIONS[target.platform]):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def xla_flags(target: Target) -> str:
    """The flags of XLA that a target is compiled with; they are part of a program's hash."""
    if target.platform == "cpu":
        return f"--xla_force_host_platform_device_count={target.devices}"
    if target.platform == "gpu":
        return "--xla_gpu_autotune_level=0"  # tuning runs kernels; here there is no card to run them on
    return ""


def compiler_variables(target: Target) -> dict[str, str]:
    """Environment variables to set before jax is imported. The host backend is CPU whatever the target."""
    flags = xla_flags(target)
    if target.platform == "gpu":
        spec = importlib.util.find_spec("nvidia.cuda_nvcc")
        places = list(spec.submodule_search_locations or ()) if spec else []
        flags += f" --xla_gpu_cuda_data_dir={places[0]}" if places and " " not in places[0] else ""
    tpu = TPU_VARIABLES if target.platform == "tpu" else {}
    return {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false", "XLA_FLAGS": flags, **tpu}


def child_environment(target: Target, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The whole environment of the child that compiles for ``target``."""
    kept = {k: v for k, v in (os.environ if base is None else base).items() if not k.startswith(DROPPED)}
    kept.update(compiler_variables(target), PYTHONHASHSEED="0", PYTHONUTF8="1")
    # Not where Python looks anyway: ahead of the standard library, site-packages could hide parts of it.
    if str(ROOT) not in {*map(_resolved, site.getsitepackages()), _resolved(site.getusersitepackages())}:
        kept["PYTHONPATH"] = str(ROOT)
    return kept


def _resolved(folder: str) -> str:
    return str(Path(folder).resolve())


def python_command(module: str) -> list[str]:
    """Start ``module`` without the current folder on the path: a ``runtime.py`` there cannot hide ours."""
    return [sys.executable, "-P", "-m", module]
