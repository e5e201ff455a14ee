from __future__ import annotations

from pathlib import Path

import pytest

from tests.blockgraph.command_line import TINY


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The path of a small spec: windowed and whole attention, an untied output matrix."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path
