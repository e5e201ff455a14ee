"""Random damage to a spec, for the fuzz tests: keys deleted, doubled, renamed and moved, scalars swapped."""

from __future__ import annotations

import copy
from random import Random
from typing import Any

import yaml

SCALARS = [
    None, True, False, 0, 1, -1, 3, 7.5, 10**15, 1e300, 1e-300, "", " ", "embed", "heads", "layers", "layer", "x" * 300,
    "gelu_tahn", "relu", "block", "size", "input", "tokens", "norm", "repeat", "residual", "identity", "final", "1 / 0",
    "9**9**9", "layer * 2", "heads - heads", "-embed", "embed -> mlp", "a b", "__import__('os')", "../x", "out in", [],
    {}, [[]], [None], ["embed"], {"times": 2}, {"name": "x"}, {"repeat": {"times": "layers", "cycle": ["layer"]}},
    {"mlp": None}, "linear", {"linear": "embed"}, {"linear": "mlp"}, "bfloat16", "float32", "features", "(", ")", "a.b",
]  # fmt: skip


def places(tree: Any) -> list[tuple[Any, Any]]:
    """(collection, key or index) of everything in a tree."""
    found: list[tuple[Any, Any]] = []
    if isinstance(tree, dict):
        for key, value in tree.items():
            found += [(tree, key), *places(value)]
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            found += [(tree, i), *places(value)]
    return found


def damaged(tree: Any, random: Random) -> str:
    """The text of a spec after one to four mutations."""
    tree = copy.deepcopy(tree)
    for _ in range(random.randint(1, 4)):
        known = places(tree)
        if not known:
            break
        owner, key = random.choice(known)
        how = random.randrange(7)
        if how == 0:
            del owner[key]
        elif how == 1:
            owner[key] = copy.deepcopy(random.choice(SCALARS))
        elif how == 2:
            other, at = random.choice(known)
            owner[key], other[at] = (
                copy.deepcopy(other.get(at) if isinstance(other, dict) else _get(other, at)),
                owner[key],
            )
        elif how == 3 and isinstance(owner, dict):
            word = str(random.choice([k for o, k in known if isinstance(o, dict)]))
            owner[word] = owner.pop(key)
        elif how == 4 and isinstance(owner, dict):
            owner[f"{str(key)[1:]}"] = copy.deepcopy(owner[key])
        elif how == 5 and isinstance(owner, list):
            owner.insert(key, copy.deepcopy(owner[key]))
        else:
            owner[key] = [copy.deepcopy(owner[key])]
    text = yaml.dump(tree, Dumper=_Plain, sort_keys=False, default_flow_style=random.choice([None, True, False]))
    if random.random() < 0.25:  # and what only text can have wrong
        at = random.randrange(len(text))
        text = (
            text[:at]
            + random.choice(["", "\t", "{", "]", ": ", "- ", "&a ", "*a ", "\n", "#", "'", "\0"])
            + text[at + 1 :]
        )
    return text


def _get(items: list[Any], at: int) -> Any:
    return items[at] if at < len(items) else None


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True
