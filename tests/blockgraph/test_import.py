"""Published configs become specs: the same from either spelling, with the names and shapes of their checkpoints, and
with transformers' logits; what is not known is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import blockgraph as bg
from blockgraph.importing import types
from blockgraph.importing.config import Imported, import_config
from tests.blockgraph.command_line import run, run_json
from tests.huggingface import FIXTURES

CASES = tuple(sorted(p.parent.name for p in FIXTURES.glob("*/config.hub.json")))
TOLERANCE = 1e-4


def body(made: Imported) -> list[str]:
    """A spec's lines without the one that names its source."""
    return made.text.splitlines()[1:]


def changed(tmp_path: Path, case: str = "llama", **fields: Any) -> Path:
    """A case's config with other fields; those that are ... are left out."""
    config = json.loads((FIXTURES / case / "config.hub.json").read_text()) | fields
    path = tmp_path / "config.json"
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    return path


def refused(path: Path, *options: str) -> list[dict[str, Any]]:
    return list(run_json("import", path, *options, code=2)["problems"])


@pytest.mark.parametrize("case", CASES)
def test_either_spelling_fits_the_checkpoint(case: str) -> None:
    """What transformers saves and what published files say is one spec, whose weights have the names and shapes of the
    file's: importing a folder with a checkpoint refuses anything else."""
    saved = import_config(FIXTURES / case)
    assert saved.weights == FIXTURES / case and not saved.dropped
    assert body(import_config(FIXTURES / case / "config.hub.json", name=case)) == body(saved)


def test_every_type_has_a_case_and_reads_its_config() -> None:
    covered = {json.loads((FIXTURES / c / "config.json").read_text())["model_type"] for c in CASES}
    assert covered == set(types.names())


@pytest.mark.parametrize("case", CASES)
def test_logits(case: str) -> None:
    check_logits(case)


def check_logits(case: str) -> None:
    """Forward, and token by token with unequal rows, as transformers."""
    from compiler.lower.program import program
    from runtime.weights.load import load

    model = import_config(FIXTURES / case).model
    params = load(model, FIXTURES / case).arrays
    with np.load(FIXTURES / case / "reference.npz") as r:
        tokens, lengths, expected = r["tokens"], r["lengths"], r["logits"]
    rows, length = tokens.shape
    valid = (np.arange(length) < lengths[:, None])[..., None]

    def error(logits: Any) -> float:
        return float(np.abs(np.where(valid, np.asarray(logits) - expected, 0)).max())

    forward = program(model, "forward", {"batch": rows, "seq": length}).jitted()
    assert error(forward(params, {}, {"tokens": tokens})[0]["logits"]) < TOLERANCE
    made = program(model, "decode", {"batch": rows, "seq": 1, "capacity": 48})
    step, state, got = made.jitted(), made.empty_state(), []
    for t in range(length):
        out, state = step(params, state, {"tokens": tokens[:, t : t + 1], "valid": (t < lengths).astype(np.int32)})
        got.append(np.asarray(out["logits"]))
    assert error(np.concatenate(got, 1)) < TOLERANCE


def test_the_command_writes_a_spec_that_is_valid_and_runs(tmp_path: Path) -> None:
    out = tmp_path / "my.yaml"
    text = run("import", FIXTURES / "llama3", "-o", out, "--name", "my llama").output
    assert "llama" in text and "names and shapes" in text
    assert run_json("validate", out)["specs"][0]["name"] == "my-llama"
    assert bg.load(out).spec.weights.keys() == {"huggingface"}
    assert run("import", FIXTURES / "llama3").stdout.splitlines()[1] == "name: llama3"
    again = refused(FIXTURES / "llama3", "-o", str(out))
    assert again[0]["code"] == "already-exists"
    found = run_json("import", FIXTURES / "llama3", "-o", out, "--force")
    assert found["read"]["rope_parameters.factor"] == 8 and "use_cache" in found["without_effect"]
