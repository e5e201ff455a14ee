"""From jax's op_name to the scopes of a program: which node of ours an instruction is from."""

from __future__ import annotations

import itertools
import re
from functools import lru_cache

# What jax and XLA write between the scopes of a program.
STRUCTURE = {
    "jit", "pjit", "jvp", "transpose", "vmap", "while", "body", "cond", "closed_call", "core_call", "checkpoint",
    "remat", "rematted_computation", "shard_map", "custom_jvp_call", "custom_vjp_call", "branch_0_fun", "branch_1_fun",
    "eval_jaxpr",
}  # fmt: skip


def alternatives(op_name: str) -> tuple[str, ...]:
    """The names in one that GPU made for several instructions: ``a/(b:c/d)`` is a/b and a/c/d."""
    for start in (k for k, letter in enumerate(op_name) if letter == "(" and op_name[k - 1 : k] in ("", "/")):
        depth, cuts = 0, [start]
        for k in range(start, len(op_name)):
            depth += {"(": 1, ")": -1}.get(op_name[k], 0)
            if depth == 0 or (depth == 1 and op_name[k] == ":"):
                cuts.append(k)
            if depth == 0:
                break
        if depth == 0 and len(cuts) > 2:
            parts = [op_name[a + 1 : b] for a, b in itertools.pairwise(cuts)]
            whole = [op_name[:start] + part + op_name[cuts[-1] + 1 :] for part in parts]
            return tuple(name for one in whole for name in alternatives(one))
    return (op_name,)


@lru_cache(maxsize=1 << 14)
def scopes(op_name: str) -> tuple[tuple[str, ...], ...]:
    """The scopes of an op_name, without what transformations and loops put around them; of each of its alternatives."""
    names = (re.split(r"[/():]", name) for name in alternatives(op_name))
    return tuple(tuple(part for part in name if part and part not in STRUCTURE) for name in names)


@lru_cache(maxsize=1 << 16)
def under(op_name: str, path: str) -> bool:
    """Whether an instruction comes from the node at ``path``."""
    (inside,) = scopes(path)
    size = len(inside)
    return size > 0 and any(inside == name[i : i + size] for name in scopes(op_name) for i in range(len(name)))
