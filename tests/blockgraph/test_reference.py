"""The reference pages: written from the code, whole, and the committed ones are those."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from blockgraph.reference import blocks, examples, gallery, ops, text, write
from compiler.language.block import kinds
from compiler.language.forms import FORMS
from compiler.language.load import shipped
from compiler.ops.contract import all_ops
from compiler.ops.leaves import Leaf

ROOT = Path(__file__).resolve().parents[2]


def test_the_committed_pages_are_what_the_code_says(tmp_path: Path) -> None:
    for page in write(tmp_path):
        committed = ROOT / "docs" / "reference" / page.name
        assert committed.is_file() and committed.read_text(encoding="utf-8") == page.read_text(encoding="utf-8"), (
            f"{committed.name} is out of date: run python -m blockgraph.reference docs/reference"
        )
    assert {p.name for p in (ROOT / "docs" / "reference").glob("*.md")} == {p.name for p in tmp_path.iterdir()}


@pytest.mark.parametrize("name", sorted(kinds()))
def test_every_block_kind_says_what_it_is_and_has_an_example_that_works(name: str) -> None:
    assert text.doc(kinds()[name]), f"{name} has no docstring"
    model = examples.build(examples.graph(name))
    assert any(node.path.split(".")[0] == name for node, _ in model.graph.walk()), f"{name} is not in its example"


@pytest.mark.parametrize("name", sorted(FORMS))
def test_every_form_says_what_it_is_and_has_an_example_that_uses_it(name: str) -> None:
    assert text.doc(FORMS[name]), f"{name} has no docstring"
    assert name in examples.graph(name)
    examples.build(examples.graph(name))


def test_every_op_has_a_docstring_and_a_sample() -> None:
    found = ops.samples()
    for cls in all_ops():
        assert text.doc(cls), f"op {cls.name} has no docstring"
        assert issubclass(cls, Leaf) or cls.name in found, f"no graph of the examples holds op {cls.name}"


def test_pages_name_defaults_words_and_weights() -> None:
    page = blocks.blocks_page()
    assert "| `heads` | whole number | the dim `heads` |" in page
    assert "| `position.rope.pairs` | `half`, `interleaved` | `half` |" in page
    assert "| `scale` | number or null | `null` | default: head_dim ** -0.5 |" in page
    assert "| `query` | 64 embed → 4 heads × 16 head_dim | `fan_in` |" in page
    assert "2*batch*embed*head_dim*heads*seq" in ops.ops_page()


def test_pages_do_not_depend_on_the_order_of_imports_or_hashes(tmp_path: Path) -> None:
    script = (
        "import sys; import compiler.ops.state, compiler.ops.experts; from blockgraph.reference import write; "
        f"write({str(tmp_path)!r}); assert 'jax' not in sys.modules"
    )
    env = os.environ | {"PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", script], env=env, check=True, cwd=ROOT)
    for page in write(tmp_path / "here"):
        assert page.read_text(encoding="utf-8") == (tmp_path / page.name).read_text(encoding="utf-8")


def test_the_committed_gallery_is_what_the_specs_say() -> None:
    """Every picture is there; that each is the present one is for who changes a spec (the command takes seconds)."""
    committed = ROOT / "docs" / "gallery.md"
    assert committed.read_text(encoding="utf-8") == gallery.page().rstrip() + "\n", (
        "gallery.md is out of date: run blockgraph docs --gallery"
    )
    pictures = {p.stem for p in (ROOT / "docs" / gallery.PICTURES).glob("*.svg")}
    assert pictures == set(shipped())
