"""What can be wrong with a machine file or with a plan that is asked for."""

from __future__ import annotations

from compiler.errors import BlockgraphError


class MachineError(BlockgraphError):
    """A machine that nobody described, or whose description is not whole."""


class PlanError(BlockgraphError):
    """A plan that makes no sense: a size that is no size, a phase that is not priced."""
