"""The tutorial's model: the paper's counts, and the numbers of a reference through its mapping."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import blockgraph as bg
from blockgraph.inspect import summary
from compiler.language.model import loads
from runtime.weights import mapping
from tests.docs.pages import examples

FIXTURE = Path(__file__).parents[1] / "fixtures" / "hf" / "gpt_neox"
TEXT = "".join(e.text for e in examples("yaml") if e.word == "pythia")


@pytest.mark.parametrize(
    ("sizes", "paper"),
    [
        ({}, 85_056_000),
        ({"layers": 6, "embed": 512, "heads": 8}, 18_915_328),
        ({"layers": 24, "embed": 1024, "heads": 16}, 302_311_424),
        ({"layers": 24, "embed": 2048, "heads": 16}, 1_208_602_624),
    ],
)
def test_parameters_equal_table_1(sizes: dict[str, Any], paper: int) -> None:
    made = loads(TEXT, overrides=sizes)
    assert summary(made)["parameters"]["non_embedding"] == paper
    assert mapping.check(made) == []


def test_the_page_prints_the_counts() -> None:
    page = (Path(__file__).parents[2] / "docs" / "from-a-paper.md").read_text("utf-8")
    blocks = summary(loads(TEXT))["parameters"]["by_block"]
    for block in blocks:
        assert f"{block['parameters']:,}" in page, block["path"]


def _tiny(**changes: Any) -> Any:
    config = json.loads((FIXTURE / "config.json").read_text())
    sizes = {
        "dtype": "float32", "vocab": config["vocab_size"], "embed": config["hidden_size"],
        "heads": config["num_attention_heads"], "mlp": config["intermediate_size"],
        "layers": config["num_hidden_layers"], "rotary": config["rope_parameters"]["partial_rotary_factor"],
    }  # fmt: skip
    return loads(TEXT, overrides=sizes | changes)


@pytest.mark.parametrize("rotary", [0.5, 1.0])
def test_trace_against_a_reference(rotary: float, tmp_path: Path) -> None:
    """The checkpoint of another implementation gives its logits; a wrong rotary share is found."""
    with np.load(FIXTURE / "reference.npz") as file:
        tokens, logits = file["tokens"][:1], file["logits"][:1]
    np.savez(tmp_path / "reference.npz", unembed=logits)
    records, first = bg.trace(
        _tiny(rotary=rotary), FIXTURE, tokens=tokens.tolist(), reference=tmp_path / "reference.npz", tolerance=1e-4
    )
    assert {"layer[0]", "layer.attention.dot[0]", "layer.attention.rotate[0]", "layer.attention.attend[0]",
            "layer.mlp.dot[0]"} <= {r.name for r in records}  # fmt: skip
    assert (first is None) == (rotary == 0.5)
    assert first is None or first.name == "unembed"
