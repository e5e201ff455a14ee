"""``python -m blockgraph.reference [FOLDER]``."""

from __future__ import annotations

import sys

from blockgraph.reference import FOLDER, write

for path in write(sys.argv[1] if len(sys.argv) > 1 else FOLDER):
    print(path)
