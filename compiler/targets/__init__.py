"""Targets: which machine a program is compiled for, and the real XLA compiler run in a child process.

Nothing imported here imports jax; ``topology`` and ``worker`` do.
"""

from compiler.targets.job import Job, run
from compiler.targets.result import Result
from compiler.targets.types import Target, parse_target

__all__ = ["Job", "Result", "Target", "parse_target", "run"]
