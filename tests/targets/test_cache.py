"""The store of verdicts."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.targets import cache


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BLOCKGRAPH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_stored_is_found(folder: Path) -> None:
    entry = cache.key("hash", {"jax": "1"})
    assert cache.load(entry) is None
    assert cache.store(entry, {"verdict": "accepted"}, "HloModule\n") is None
    assert cache.load(entry) == ({"verdict": "accepted"}, "HloModule\n")
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_refusal_has_no_text(folder: Path) -> None:
    cache.store("k", {"verdict": "refused"}, None)
    assert cache.load("k") == ({"verdict": "refused"}, None)


def test_another_compiler_is_another_key() -> None:
    assert cache.key("hash", {"jax": "1"}) != cache.key("hash", {"jax": "2"})


@pytest.mark.parametrize("name", ["k.json", "k.hlo.gz"])
@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b"\x1f\x8b\x08\x00rubbish", b"\xff\xfe", None])
def test_a_damaged_entry_counts_as_absent(folder: Path, name: str, damage: bytes | None) -> None:
    cache.store("k", {"verdict": "accepted"}, "HloModule\n" * 100)
    path = folder / name
    path.write_bytes(path.read_bytes()[:-9] if damage is None else damage)
    assert cache.load("k") is None


def test_an_entry_under_another_name_is_not_believed(folder: Path) -> None:
    cache.store("k", {"verdict": "accepted"}, None)
    (folder / "k.json").rename(folder / "other.json")
    assert cache.load("other") is None


def test_a_folder_that_cannot_be_written_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BLOCKGRAPH_CACHE", str(tmp_path / "file" / "cache"))
    assert "not kept" in (cache.store("k", {}, None) or "")
    assert cache.load("k") is None
