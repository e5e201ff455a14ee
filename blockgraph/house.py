"""Keeps the project's packages together: `runtime`, `specs` … are common names, and a folder of the user's that
holds its own must neither be taken for ours nor be hidden by it unnoticed."""

from __future__ import annotations

import sys
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
    for name in FLOORS:
        known = sys.modules.get(name)
        origin = getattr(known, "__file__", None)
        if known is not None and (origin is None or Path(origin).resolve().parent.parent != ROOT):
            raise ImportError(f"a module called {name} ({origin}) was imported before blockgraph, which has one of that name: "
                              "import blockgraph first")  # fmt: skip
    if not any(isinstance(f, _Siblings) for f in sys.meta_path):
        sys.meta_path.insert(0, _Siblings())
