"""Files that belong together: all in place, or none but the log."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockgraph.placing import staged

NAMES = ("text", "summary", "log")


def held(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in folder.iterdir()}


def test_a_run_replaces_all_of_an_earlier_one(tmp_path: Path) -> None:
    for name in ("text", "summary", "mine"):
        (tmp_path / name).write_text("old")
    with staged(tmp_path, NAMES) as inside:
        (inside / "summary").write_text("new")
        assert (tmp_path / "summary").read_text() == "old"
    assert held(tmp_path) == {"summary": "new", "mine": "old"}


def test_an_error_leaves_the_log_alone_and_an_interrupt_nothing(tmp_path: Path) -> None:
    for fault, left in ((ValueError, {"log": "why"}), (KeyboardInterrupt, None)):
        out = tmp_path / fault.__name__
        with pytest.raises(fault), staged(out, NAMES, kept=("log",)) as inside:
            (inside / "log").write_text("why")
            (inside / "text").write_text("half")
            raise fault
        assert (held(out) if out.exists() else None) == left


def test_without_a_folder_nothing_stays() -> None:
    with staged(None, NAMES) as inside:
        (inside / "text").write_text("x")
    assert not inside.exists()
