"""Published configs become specs: the same from either spelling, with the names and shapes of their checkpoints, the op
graph of the family's hand-written spec or transformers' logits, and the published sizes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import blockgraph as bg
from blockgraph.importing import types
from blockgraph.importing.config import Imported, import_config
from blockgraph.importing.kinds import Only
from compiler.errors import Problems
from compiler.language.model import Model
from compiler.source.yaml import load_file
from tests.blockgraph.command_line import run, run_json
from tests.docs.pages import named
from tests.huggingface import FIXTURES, SPECS, model

CASES = tuple(sorted(p.parent.name for p in FIXTURES.glob("*/config.hub.json")))
BY_HAND = tuple(c for c in CASES if c in SPECS)
RUN = tuple(c for c in CASES if c not in SPECS and c != "t5")  # what no other test runs
DECODED = ("gemma3_text", "olmo2", "opt", "qwen2_moe")  # the others token by token in slow tests
DEEPER = {"qwen3_next": 8}  # layers, where a single cycle would be written as runs
TOLERANCE = 1e-4


def body(made: Imported) -> list[str]:
    """A spec's lines without the one that names its source."""
    return [line for line in made.text.splitlines() if not line.startswith("# Written by")]


def graph(made: Model) -> list[str]:
    return [re.sub("pre_moe", "pre_mlp", line) for line in made.graph.lines()]


@pytest.mark.parametrize("case", CASES)
def test_either_spelling_fits_the_checkpoint(case: str) -> None:
    """What transformers saves and what published files say is one spec, whose weights have the names and shapes of the
    file's: importing a folder with a checkpoint refuses anything else."""
    saved = import_config(FIXTURES / case)
    assert saved.weights == FIXTURES / case and not saved.dropped
    assert body(import_config(FIXTURES / case / "config.hub.json", name=case)) == body(saved)


@pytest.mark.parametrize("case", BY_HAND)
def test_the_op_graph_is_that_of_the_hand_written_spec(case: str, tmp_path: Path) -> None:
    """So all that test_huggingface.py runs of the one holds for the other."""
    config = json.loads((FIXTURES / case / "config.hub.json").read_text())
    layers = DEEPER.get(case, config.get("num_hidden_layers", config.get("n_layer")))
    if case in DEEPER:
        config["num_hidden_layers"] = layers
    (tmp_path / "config.json").write_text(json.dumps(config))
    made = import_config(tmp_path).model
    assert made.policy.params == "float32"
    assert graph(made) == graph(model(case, layers=layers))


def test_t5_has_the_op_graph_of_its_spec() -> None:
    from tests.runtime.test_t5 import SIZES

    assert graph(import_config(FIXTURES / "t5").model) == graph(bg.load("t5", SIZES))


def check_logits(case: str, decode: bool = True) -> None:
    """Forward, and token by token with unequal rows, as transformers."""
    from compiler.lower.program import program
    from runtime.weights.load import load

    made = import_config(FIXTURES / case).model
    params = load(made, FIXTURES / case).arrays
    with np.load(FIXTURES / case / "reference.npz") as r:
        tokens, lengths, expected = r["tokens"], r["lengths"], r["logits"]
    rows, length = tokens.shape
    valid = (np.arange(length) < lengths[:, None])[..., None]

    def error(logits: Any) -> float:
        return float(np.abs(np.where(valid, np.asarray(logits) - expected, 0)).max())

    forward = program(made, "forward", {"batch": rows, "seq": length}).jitted()
    assert error(forward(params, {}, {"tokens": tokens})[0]["logits"]) < TOLERANCE
    if not decode:
        return
    one = program(made, "decode", {"batch": rows, "seq": 1, "capacity": 48})
    step, state, got = one.jitted(), one.empty_state(), []
    for t in range(length):
        out, state = step(params, state, {"tokens": tokens[:, t : t + 1], "valid": (t < lengths).astype(np.int32)})
        got.append(np.asarray(out["logits"]))
    assert error(np.concatenate(got, 1)) < TOLERANCE


@pytest.mark.parametrize("case", RUN)
def test_logits(case: str) -> None:
    check_logits(case, decode=case in DECODED)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in CASES if c not in (*DECODED, "t5")])
def test_logits_token_by_token(case: str) -> None:
    check_logits(case)


PROBLEMS = Problems()
PUBLISHED = load_file(Path(__file__).parent / "published.yaml", PROBLEMS) or {}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]["config"]))
    made = import_config(tmp_path, name=name)
    assert made.model.parameter_count() == int(PUBLISHED[name]["parameters"].replace("_", ""))
    assert made.model.name == name.replace("/", "-")


def test_a_file_saved_without_the_head_has_shorter_names(tmp_path: Path) -> None:
    """As openai-community/gpt2 has: no `transformer.` in front."""
    from safetensors.numpy import load_file as read
    from safetensors.numpy import save_file

    stored = read(FIXTURES / "gpt2" / "model.safetensors")
    save_file({n.removeprefix("transformer."): a for n, a in stored.items()}, tmp_path / "model.safetensors")
    config = json.loads((FIXTURES / "gpt2" / "config.hub.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "torch_dtype"}))
    text = import_config(tmp_path).text
    assert "embed.table: wte.weight = vocab embed" in text
    assert "dtypes: {params: float32, compute: float32}  # torch_dtype is not given: as the checkpoint has it" in text
    del stored["transformer.wpe.weight"]
    save_file(stored, tmp_path / "other.safetensors")
    weights = ("--weights", tmp_path / "other.safetensors")
    (problem,) = run_json("import", tmp_path / "config.json", *weights, code=2)["problems"]
    assert problem["code"] == "missing-tensor" and "transformer.wpe.weight" in problem["message"]


def test_an_output_matrix_that_is_said_to_be_tied_and_is_not(tmp_path: Path) -> None:
    """transformers 5 takes both then, so it is not the model that the config says."""
    config = json.loads((FIXTURES / "llama" / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = ("--weights", FIXTURES / "llama" / "model.safetensors")
    (problem,) = run_json("import", tmp_path / "config.json", *weights, code=2)["problems"]
    assert "lm_head.weight, another one than model.embed_tokens.weight" in problem["message"]
    assert "tie_word_embeddings to false" in problem["suggestion"]


def test_the_command_writes_a_spec_that_is_valid_and_runs(tmp_path: Path) -> None:
    out, folder = tmp_path / "my.yaml", FIXTURES / "llama3"
    text = run("import", folder, "-o", out, "--name", "my llama").output
    assert "my-llama, llama" in text and "names and shapes" in text and "use_cache" in text
    assert run_json("validate", out)["specs"][0]["name"] == "my-llama"
    traced = run_json("trace", out, "--weights", folder, "--tokens", "3 4 5")
    assert traced["model"] == "my-llama"
    assert run("import", folder).stdout.splitlines()[2] == "name: llama3"
    assert run_json("import", folder, "-o", out, code=2)["problems"][0]["code"] == "already-exists"
    found = run_json("import", folder, "-o", out, "--force")
    assert found["read"]["rope_parameters.factor"] == 8 and found["without_effect"]["use_cache"]
    assert {t["model_type"] for t in run_json("import", "--types")["types"]} == set(types.names())


def test_every_type_has_a_checkpoint_and_reads_nothing_in_vain() -> None:
    covered = {json.loads((FIXTURES / c / "config.json").read_text())["model_type"] for c in CASES}
    assert covered == set(types.names())
    for name in types.names():
        kind = types.model_type(name)
        used = " ".join([kind.text, *kind.parts.values(), str(kind.values), str(kind.checks)])
        defaults = " ".join(str(k.default) for k in kind.fields.values())
        words = set(re.findall(r"\w+", f"{used} {defaults}"))
        limits = {"bounds", *(n for n, k in kind.fields.items() if isinstance(k, Only) or k.default is None or k.when)}
        unused = [n for n in kind.fields if n not in words | limits]
        assert not unused, f"{name} reads {unused} and does nothing with it"


def test_the_page_shows_a_type_as_it_is() -> None:
    shown = named("mistral", "yaml")
    assert shown.text == (types.folder() / "types" / "mistral.yaml").read_text()
