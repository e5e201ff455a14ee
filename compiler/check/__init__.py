"""Reads what a compiler made: the collectives and FLOPs of optimised HLO text, against those that were asked for.

Pure Python; nothing here imports jax.
"""

from compiler.check.causes import explained
from compiler.check.collectives import Collective, Found, collectives
from compiler.check.compare import Comparison, Expected, Match, Total, compare
from compiler.check.flops import Flops, Product, flops
from compiler.check.hlo import HloError, Module, parse
from compiler.check.loops import Trips, unexpected, walk

__all__ = [
    "Collective",
    "Comparison",
    "Expected",
    "Flops",
    "Found",
    "HloError",
    "Match",
    "Module",
    "Product",
    "Total",
    "Trips",
    "collectives",
    "compare",
    "explained",
    "flops",
    "parse",
    "unexpected",
    "walk",
]
