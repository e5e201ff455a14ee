"""What import refuses: by name, with the place, never in silence and never with a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from blockgraph.importing.config import import_config, spec_name
from blockgraph.importing.json_file import MAX_BYTES, MAX_DEPTH, loads_json
from compiler.errors import BlockgraphError
from tests.blockgraph.command_line import run, run_json
from tests.huggingface import FIXTURES


def changed(tmp_path: Path, case: str = "llama", **fields: Any) -> Path:
    """A case's config with other fields; those that are ... are left out."""
    config = json.loads((FIXTURES / case / "config.hub.json").read_text()) | fields
    path = tmp_path / "config.json"
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}, indent=1))
    return path


def refused(path: Path, *options: str) -> list[dict[str, Any]]:
    return list(run_json("import", path, *options, code=2)["problems"])


@pytest.mark.parametrize(
    ("case", "fields", "code", "words", "allowed"),
    [
        ("llama", {"head_scale": 3}, "unknown-field", "head_scale", None),
        ("llama", {"partial_rotary_factor": 0.5}, "unknown-field", "partial_rotary_factor", None),
        ("llama", {"rope_scaling": {"type": "default", "low": 1}}, "unknown-field", "rope_scaling.low", None),
        ("llama", {"hidden_act": "gleu"}, "unsupported-value", "hidden_act is 'gleu'", "gelu"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2}}, "unsupported-value", "grows", "yarn"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "unsupported-value", "a factor of 1", None),
        ("llama", {"rope_scaling": {"factor": 2.0}}, "unsupported-value", "only with not rope_type = default", None),
        ("llama", {"rope_parameters": {"rope_theta": 7.0}}, "conflicting-keys", "rope_theta", None),
        ("llama", {"vocab_size": "96"}, "unsupported-value", "vocab_size is '96'", "a whole number from 1 on"),
        ("llama", {"hidden_size": ...}, "missing-field", "hidden_size", None),
        ("llama", {"num_hidden_layers": 10**9}, "unsupported-value", "1000000000", "a whole number from 1 to 1,000"),
        ("llama", {"num_key_value_heads": 3}, "unsupported-value", "no legal spec", None),
        ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "unsupported-value", "another head", None),
        ("llama", {"quantization_config": {"bits": 4}}, "unsupported-value", "--ignore quantization_config", "null"),
        ("llama", {"model_type": "lama"}, "unknown-model-type", "'lama'", "llama"),
        ("llama", {"model_type": "bert"}, "unknown-model-type", "an encoder", None),
        ("llama", {"model_type": ...}, "unknown-model-type", "names no model_type", "llama"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 2}, "unsupported-value", "use_sliding_window", None),
        ("gemma2", {"layer_types": ["full_attention"]}, "unsupported-value", "1 entries", None),
        ("falcon", {"alibi": True}, "unsupported-value", "alibi is true", "false"),
        ("opt", {"word_embed_proj_dim": 7}, "unsupported-value", "hidden_size", None),
        ("t5", {"feed_forward_proj": "gated-gelu"}, "unsupported-value", "T5 1.1", "'relu'"),
        ("mamba2", {"time_step_limit": [0.01, 1.0]}, "unsupported-value", "time_step_limit", "[0, Infinity]"),
        ("deepseek_v3", {"q_lora_rank": None}, "unsupported-value", "q_lora_rank", None),
    ],
)  # fmt: skip
def test_by_name(tmp_path: Path, case: str, fields: Any, code: str, words: str, allowed: str | None) -> None:
    path = changed(tmp_path, case, **fields)
    (problem,) = refused(path)
    assert (problem["code"], words in f"{problem['message']}") == (code, True), problem
    assert allowed is None or allowed in problem["allowed"]
    placed = code == "unknown-field" or (code == "unsupported-value" and str(next(iter(fields.values()))) in words)
    assert not placed or problem["file"] == str(path)


def test_all_faults_in_one_run_with_their_places_and_nearest_names(tmp_path: Path) -> None:
    path = changed(tmp_path, hidden_act="sillu", vocab_sizes=7, mlp_bias="no")
    result = run("import", path)
    assert result.exit_code == 2 and result.stdout == ""
    for words in ("did you mean: silu", "vocab_sizes", "vocab_size, or leave it out knowingly: --ignore vocab_sizes",
                  "mlp_bias is 'no'", "allowed: true or false", f"{path}:6:16:"):  # fmt: skip
        assert words in result.stderr, result.stderr


def test_fields_are_left_out_when_asked_for(tmp_path: Path) -> None:
    path = changed(tmp_path, head_scale=3, rope_scaling={"type": "dynamic", "factor": 2})
    made = import_config(path, ["head_scale", "rope_scaling"])
    assert set(made.dropped) == {"head_scale", "rope_scaling.type", "rope_scaling.factor"}
    result = run("import", path, "--ignore", "head_scale", "--ignore", "rope_scaling")
    assert result.exit_code == 0 and "may change the numbers" in result.stderr
    assert "bad-option" in [p["code"] for p in refused(path, "--ignore", "head_scal")]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "json-syntax"),
        ('{"a": 1', "json-syntax"),
        ('{"a": 01}', "json-syntax"),
        ('{"a": 1} {}', "json-syntax"),
        ('{"a": "\x01"}', "json-syntax"),
        ("[1]", "not-a-mapping"),
        ('{"a": 1, "a": 2}', "duplicate-key"),
        ('{"a": 1e999}', "number-out-of-range"),
        ('{"a": ' + "9" * 5000 + "}", "number-out-of-range"),
        ("[" * 10_000, "too-deep"),
        ('{"a": [' + "1," * 200_000 + "1]}", "too-large"),
    ],
    ids=range(11),
)
def test_json_is_bounded(text: str, code: str) -> None:
    with pytest.raises(BlockgraphError) as caught:
        loads_json(text, "config.json")
    assert [p.code for p in caught.value.problems] == [code]


def test_json_says_what_json_says() -> None:
    text = '{"a": [1, -2.5e3, true, null, "x\\u00e9\\n\\ud800"], "b": {"c": {}}, "d": []}\n'
    found = loads_json(text, "config.json")
    assert found == {"a": [1, -2500.0, True, None, "xé\n?"], "b": {"c": {}}, "d": []}
    assert str(found.value_position["b"]) == "config.json:1:56"
    assert loads_json("\ufeff" + '{"a": ' + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1) + "}", "f")


def test_files_that_are_none(tmp_path: Path) -> None:
    big = tmp_path / "big.json"
    big.write_text(" " * (MAX_BYTES + 1))
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe{}")
    found = [refused(p)[0]["code"] for p in (tmp_path, tmp_path / "none.json", big, binary, Path("/dev/zero"))]
    assert found == ["file-missing", "file-missing", "too-large", "not-utf8", "not-a-file"]


def test_nothing_of_a_config_steers_the_written_file(tmp_path: Path) -> None:
    """Names become plain; texts are looked up in tables or refused."""
    assert (
        spec_name("../../x\n- evil: {") == "x-evil" and spec_name("7 b") == "model-7-b" and spec_name("\0") == "model"
    )
    text = "silu}\nweights: {huggingface: {}}\n#"
    for field in ("hidden_act", "torch_dtype", "rope_theta"):
        (problem,) = refused(changed(tmp_path, **{field: text}))
        assert problem["code"] == "unsupported-value"
    made = import_config(changed(tmp_path, _name_or_path=text, bos_token_id=text))
    assert text not in made.text and made.text.count("weights:") == 1


@pytest.mark.slow
def test_any_value_is_answered() -> None:
    """Each field of each type with values of every kind: a spec or a refusal, never another error."""
    from blockgraph.importing.reading import read

    values = ("0", "-1", "7", "1e7", "1e12", "0.5", '"x"', "null", "true", "[]", "[1]", '{"a": 1}', "NaN", "Infinity")
    for case in sorted(FIXTURES.glob("*/config.hub.json")):
        config = json.loads(case.read_text())
        for field in config:
            for value in values:
                lines = [f"{json.dumps(k)}: {value if k == field else json.dumps(v)}" for k, v in config.items()]
                try:
                    read(loads_json("{" + ",\n".join(lines) + "}", "config.json"))
                except BlockgraphError as error:
                    assert all(p.code for p in error.problems)
