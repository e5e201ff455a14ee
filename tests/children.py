"""Child processes of tests: so many simulated CPU devices, code that the compiler does not spend long on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

# Most of a test's time is LLVM's optimiser at work on programs that run once; XLA's own passes, and so the optimised
# HLO, are the same without it.
QUICK = "--xla_backend_optimization_level=0"


def environment(devices: int, **more: str) -> dict[str, str]:
    """This process's environment with so many CPU devices, and what else is given."""
    flags = f"{QUICK} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, **more}


@cache
def rows(module: str, *arguments: str, devices: int, timeout: float = 900) -> dict[str, dict[str, Any]]:
    """What a module of the tests prints on so many devices, a line of JSON a case: by its ``case``. ``timeout`` in
    seconds. Run once for all tests of a process."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment(devices), capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-4000:]
    return {r["case"]: r for r in map(json.loads, done.stdout.splitlines())}
