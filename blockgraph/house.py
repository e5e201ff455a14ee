"""Keeps the project's packages together: `runtime`, `specs` … are common names, and a folder of the user's that
holds its own must neither be taken for ours nor be hidden by it unnoticed.

In a process that imports blockgraph, these names are Blockgraph's, whatever is in the working folder or on the path:
our own code must find our own code. A script that has a `runtime.py` of its own beside it gets

- a UserWarning at `import blockgraph` that names the hidden file (from then on `import runtime` is ours);
- an ImportError at `import blockgraph` when it had imported its own first.

Either way the cure is to rename the file, or to keep it in a package. A folder without `__init__.py` (a `specs/` full
of YAML, say) hides nothing, so it is not warned of; neither is anything by ``python -m blockgraph``, which runs no code
of the user's.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

FLOORS = ("compiler", "costmodel", "runtime", "specs")
ROOT = Path(__file__).resolve().parent.parent


class _Siblings(MetaPathFinder):
    """Finds the floors beside this package, whatever else is on the path."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(fullname, [str(ROOT)]) if fullname in FLOORS else None


def secure() -> None:
    """Installs the finder. Raises ImportError where a module of the same name that is not ours came first."""
    if any(isinstance(f, _Siblings) for f in sys.meta_path):
        return
    for name in FLOORS:
        known = sys.modules.get(name)
        if known is not None and not _ours(known.__spec__):
            raise ImportError(
                f"a module called {name} ({_place(known.__spec__)}) was imported before blockgraph, which has a "
                f"package of that name: rename yours, or keep it in a package"
            )
    if sys.argv[:1] != ["-m"]:  # so it reads while ``python -m`` looks for what to run
        for name in FLOORS:
            _warn_if_hidden(name)
    sys.meta_path.insert(0, _Siblings())


def _warn_if_hidden(name: str) -> None:
    found = PathFinder.find_spec(name)
    if found is not None and found.origin is not None and not _ours(found):
        warnings.warn(
            f"{found.origin} is hidden: in a process that imports blockgraph, `import {name}` is Blockgraph's package. "
            "Rename yours, or keep it in a package",
            stacklevel=4,  # the line that imports blockgraph
        )


def _ours(found: ModuleSpec | None) -> bool:
    return found is not None and found.origin is not None and Path(found.origin).resolve().parent.parent == ROOT


def _place(found: ModuleSpec | None) -> str:
    """Where a module is from: its file, or the folders of a namespace package."""
    if found is None:
        return "made by hand"
    return found.origin or ", ".join(found.submodule_search_locations or ["unknown"])
