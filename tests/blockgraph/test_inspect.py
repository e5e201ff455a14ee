from __future__ import annotations

from pathlib import Path

import pytest

import blockgraph.inspect as inspect
from blockgraph.difference import difference
from compiler.errors import BlockgraphError
from compiler.language.model import load, loads
from tests.blockgraph.command_line import TINY

PAPERS = {  # embedding, non-embedding
    "gemma-2b": (524_550_144, 1_981_884_416),
    "gemma-7b": (786_825_216, 7_751_248_896),
    "gemma2-2b": (590_118_912, 2_024_517_888),
    "gemma2-9b": (917_962_752, 8_324_201_984),
    "gemma2-27b": (1_180_237_824, 26_047_480_320),
    "recurrentgemma-2b": (655_360_000, 2_027_502_080),
    "recurrentgemma-9b": (1_048_576_000, 7_531_401_216),
}


@pytest.mark.parametrize("name", PAPERS)
def test_parameters_equal_the_papers(name: str) -> None:
    found = inspect.summary(load(name))["parameters"]
    assert (found["embedding"], found["non_embedding"]) == PAPERS[name]
    assert found["total"] == sum(PAPERS[name])


def test_an_untied_output_matrix_is_embedding_whatever_its_name() -> None:
    renamed = TINY.replace("  - embed\n", "  - {embed: , name: words}\n").replace(
        "- unembed", "- {unembed: , name: head}"
    )
    for text in (TINY, renamed):
        found = inspect.summary(loads(text))["parameters"]
        assert found["embedding"] == 2 * 1000 * 16


def test_blocks_add_up_and_count_their_layers() -> None:
    model = loads(TINY)
    made = inspect.blocks(model)
    assert list(made)[:2] == ["embed", "layer"]
    assert list(made)[-2:] == ["final", "unembed"]
    inner = [b for path, b in made.items() if path.startswith("layer.")]
    assert made["layer"].parameters == sum(b.parameters for b in inner)
    assert sum(b.parameters for path, b in made.items() if "." not in path) == model.parameter_count()
    assert made["layer"].layers == 6
    assert made["layer.attention"].per_layer == 16 * (4 + 2 + 2) * 4 + 16 * 16


def test_state_grows_only_where_attention_sees_all() -> None:
    state = inspect.summary(loads(TINY), context=100)["state"]
    kinds = {k["kind"]: k for k in state["kinds"]}
    entry = 2 * 2 * 4 * 2  # key and value, kv_heads, head_dim, bytes
    assert kinds["ring"]["bytes"] == 3 * 8 * entry and kinds["ring"]["bytes_per_token"] == 0
    assert kinds["cache"]["bytes"] == 3 * 100 * entry and kinds["cache"]["bytes_per_token"] == 3 * entry
    assert state["bytes_per_token"] == 3 * entry


def test_recurrent_state_is_fixed() -> None:
    state = inspect.summary(load("recurrentgemma-2b"), context=100_000)["state"]
    assert state["bytes_per_token"] == 0
    assert {k["kind"] for k in state["kinds"]} == {"length", "ring", "recurrent", "tail"}


def test_a_model_that_looks_ahead_has_no_state_and_says_why() -> None:
    model = loads(TINY.replace("attention: {window: window, ", "attention: {causal: false, "))
    made = inspect.summary(model)
    assert made["phases"]["decode"] is False
    assert "looks ahead" in made["state"]["none"]


def test_the_graph_after_each_pass() -> None:
    model = loads(TINY)
    sizes = {"batch": 1, "seq": 1, "capacity": 64}
    assert "attend<" in str(inspect.after(model, "elaborate", "decode", sizes))
    assert "attend_cached" in str(inspect.after(model, "phase", "decode", sizes))
    for name, phase in (("partition", "forward"), ("differentiate", "decode"), ("selct", "decode")):
        with pytest.raises(BlockgraphError) as refused:
            inspect.after(model, name, phase, sizes)
        assert refused.value.problems[0].code == "unknown-pass"
    assert refused.value.problems[0].suggestion == "select"


def test_an_unknown_size_is_refused_by_name() -> None:
    with pytest.raises(BlockgraphError, match="frames"):
        inspect.summary(loads(TINY), sizes={"frames": 3})


def test_difference_of_equal_models_is_empty() -> None:
    made = difference(loads(TINY), loads(TINY))
    assert made["same"] and not made["dims"] and not made["parameters"]["by_block"] and not made["ops"]


def test_difference_tells_dims_blocks_ops_and_state() -> None:
    other = TINY.replace("embed: 16", "embed: 32").replace("gate: silu", "gate: gelu_tanh")
    other = other.replace("- {norm: , name: final}", "- {linear: {to: embed}, name: extra}")
    made = difference(loads(TINY), loads(other), context=64)
    assert made["dims"] == {"embed": [16, 32]}
    assert made["blocks"] == {"added": ["extra"], "removed": ["final"], "moved": []}
    assert made["parameters"]["by_block"]["final"]["parameters"] == {"only_in": "a", "value": 16}
    assert made["parameters"]["embedding"] == [32_000, 64_000]
    assert any(row["path"] == "layer.mlp" and row["a"] and row["b"] for row in made["ops"])
    assert made["state"]["bytes"][0] == made["state"]["bytes"][1]
    assert not made["same"]


def test_what_one_lacks_is_only_in_the_other_and_never_null() -> None:
    a, b = (loads(TINY.replace("window: 8", args)) for args in ("window: 8, cap: null", "window: 8, other: 3"))
    made = difference(a, b)
    assert made["args"] == {"other": {"only_in": "b", "value": 3}, "cap": {"only_in": "a", "value": None}}


def test_what_has_another_name_is_moved() -> None:
    """A layer that is called otherwise, its feed-forward too, and an op without weights."""
    text = TINY.replace("  - {norm: , name: final}\n", "  - {softcap: 3, name: cap}\n  - {norm: , name: final}\n")
    other = text.replace("{mlp: {gate: silu}}", "{mlp: {gate: silu}, name: feed}").replace("name: cap", "name: limit")
    other = other.replace("  layer:", "  block:").replace("{layer:", "{block:").replace(", layer]", ", block]")
    made = difference(loads(text), loads(other))
    assert made["blocks"]["moved"] == [{"a": "layer", "b": "block"}, {"a": "layer.mlp", "b": "block.feed"}]
    assert made["blocks"]["added"] == made["blocks"]["removed"] == []
    assert made["parameters"]["tensors"] == {"same": 3, "moved": 9, "changed": 0, "only_in_a": 0, "only_in_b": 0}
    assert made["ops"] == [{"path": "limit", "moved_from": "cap", "a": [], "b": []}]
    assert not made["parameters"]["by_block"] and not made["parameters"]["shapes"] and not made["same"]


def test_what_could_be_either_is_not_paired() -> None:
    nodes = "{{linear: embed, name: {}}}"
    text = "name: m\ndims: {{vocab: 8, embed: 4}}\ngraph: [embed, {}, {}, unembed]\n"
    a, b = (loads(text.format(*(nodes.format(n) for n in names))) for names in (("a", "b"), ("c", "d")))
    assert difference(a, b)["blocks"] == {"added": ["c", "d"], "removed": ["a", "b"], "moved": []}


def test_shapes_that_leave_the_count_are_a_difference() -> None:
    other = TINY.replace("heads: 4, kv_heads: 2, head_dim: 4", "heads: 8, kv_heads: 4, head_dim: 2")
    made = difference(loads(TINY), loads(other))
    assert not made["parameters"]["by_block"] and made["parameters"]["tensors"]["changed"] == 4
    assert made["parameters"]["shapes"]["layer.attention.key"] == [
        "6 x bfloat16[embed=16 kv_heads=2 head_dim=4]", "6 x bfloat16[embed=16 kv_heads=4 head_dim=2]",
    ]  # fmt: skip


def test_a_window_alone_is_a_difference(tiny: Path) -> None:
    made = difference(load(tiny), load(tiny, {"window": 16}), context=64)
    assert made["args"] == {"window": [8, 16]}
    assert made["state"]["kinds"]["ring"] == [3 * 8 * 32, 3 * 16 * 32]
    assert [row["path"] for row in made["ops"]] == ["layer.attention"]
