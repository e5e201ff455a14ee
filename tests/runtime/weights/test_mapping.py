"""Every fault of a `weights:` section is told at its line, all at once."""

import pytest

from compiler.errors import WeightsError
from compiler.language import load as loading
from compiler.language.model import loads
from runtime.weights import mapping
from tests.runtime.weights.specs import LLAMA, MIXTRAL


def told(text, *edits):
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    problems = mapping.check(loads(text, "tiny.yaml"))
    return [(p.code, text.split("\n")[p.position.line - 1].strip().split(":")[0], p.suggestion) for p in problems]


def test_the_tables_of_correct_lines():
    table = mapping.compile(loads(LLAMA), "huggingface")
    assert len(table.tensors) == 3 * 9 + 3
    assert table.tensors["model.layers.2.self_attn.k_proj.weight"].shape == (16, 32)
    table = mapping.compile(loads(MIXTRAL), "huggingface")
    assert table.tensors["model.layers.1.block_sparse_moe.experts.3.w2.weight"].shape == (32, 24)


@pytest.mark.parametrize(("edits", "expected"), [
    ([("layer.mlp.up:", "layer.mlp.upp:")],
     [("unknown-path", "layer.mlp.upp", "layer.mlp.up"), ("unmapped-parameter", "huggingface", None)]),
    ([("model.layers.<layer>.mlp.up_proj", "model.layers.up_proj")],
     [("duplicate-tensor", "layer.mlp.up", "write <layer> in its name")]),
    ([("<layer>.mlp.up_proj", "<layer>.mlp.gate_proj")], [("duplicate-tensor", "layer.mlp.up", None)]),
    ([("<layer>.mlp.up_proj", "<leyer>.mlp.up_proj")], [("unknown-placeholder", "layer.mlp.up", "layer")]),
    ([("mlp.up_proj.weight", "mlp.up_proj.weight = out embd")], [("bad-layout", "layer.mlp.up", "embed")]),
    ([("mlp.up_proj.weight", "mlp.up_proj.weight = (out in")], [("bad-layout", "layer.mlp.up", None)]),
    ([("model.norm.weight", "{tensor: model.norm.weight, adds: 1}")], [("unknown-key", "final.scale", "add")]),
    ([("layer.attention.query:", "layer.{attention.query, mlp.up}:"), ("      layer.mlp.up:", "      layer.x:")],
     [("unknown-path", "layer.x", None), ("bad-layout", "layer.{attention.query, mlp.up}", None)]),
    ([("    layout: out in", "    padded: [vocabs]\n    layout: out in")], [("unknown-axis", "padded", "vocab")]),
    ([("rms_norm: , name: pre_mlp", "rms_norm: "), ("rms_norm: , name: pre_attention", "rms_norm: "),
      ("layer.pre_mlp", "layer.rms_norm_2"), ("layer.pre_attention", "layer.rms_norm")],
     [("ambiguous-path", "layer.rms_norm.scale", "give each of the nodes a name"),
      ("ambiguous-path", "layer.rms_norm_2.scale", "give each of the nodes a name")]),
])  # fmt: skip
def test_faults(edits, expected):
    found = told(LLAMA, *edits)
    assert sorted((c, line) for c, line, _ in found) == sorted((c, line) for c, line, _ in expected)
    for code, line, hint in expected:
        assert hint is None or (code, line, hint) in found


def test_optional_lines_and_variables():
    text = LLAMA.replace("  - unembed\n", "  - unembed: {tied: embed}\n")
    assert [c for c, *_ in told(text)] == ["unknown-path"]
    text = text.replace("unembed.out: lm_head.weight", "unembed.out: {tensor: lm_head.weight, optional: true}")
    assert told(text) == []
    text = LLAMA.replace("    layout: out in", "    layout: out in\n    variables: {n: 10 * layer + 5}")
    table = mapping.compile(loads(text.replace("<layer>", "<n>")), "huggingface")
    assert "model.layers.25.mlp.up_proj.weight" in table.tensors


def test_an_unknown_format_names_the_known_ones():
    with pytest.raises(WeightsError, match=r"no weights\.hugginface") as e:
        mapping.compile(loads(LLAMA), "hugginface")
    assert e.value.problems[0].suggestion == "huggingface"


def test_the_shipped_specs_map_their_parameters():
    from compiler.language.model import load

    for name in loading.names() if hasattr(loading, "names") else ["gemma2-9b", "recurrentgemma-2b", "smollm2-135m"]:
        assert mapping.check(load(name)) == [], name
