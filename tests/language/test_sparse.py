"""DeepSeek-V3's published figures, and what its latents are for: a small cache that decode reads as it lies."""

from __future__ import annotations

import pytest

from blockgraph.inspect import summary
from compiler.errors import SpecError
from compiler.language.model import load, loads
from compiler.passes.phase import phase_graph


def test_parameters_of_one_token_and_cache_of_deepseek_v3() -> None:
    """arXiv:2412.19437, abstract: 671B parameters, 37B of them for a token (36.6 without the embedding's rows, 37.6
    with them). A cache of 576 numbers a layer and position (arXiv:2405.04434, table 1), here in bfloat16."""
    made = summary(load("deepseek-v3"), context=1)
    found = made["parameters"]
    assert round(found["total"] / 1e9) == 671
    assert found["active"] == 37_552_297_472
    assert abs(found["active"] - found["embedding"] / 2 - 37e9) < 0.5e9
    (cache,) = [s for s in made["state"]["kinds"] if s["kind"] == "cache"]
    assert cache["bytes"] == 61 * 576 * 2


def test_decode_makes_no_keys_of_what_is_cached() -> None:
    small = {"layers": 2, "dense": 1, "experts": 16}
    graph = phase_graph(load("deepseek-v3", small), "decode").graph
    cached = [v.type for n, _ in graph.walk() for v in n.results if "slots" in v.axes]
    assert cached and all(t.size("latent_heads") == 1 and t.size("head_dim") == 576 for t in cached)
    assert {n.op.name for n, _ in graph.walk()} & {"attend", "attend_latent"} == set()


def test_what_it_takes() -> None:
    dims = "dims: {vocab: 8, embed: 8, heads: 2, head_dim: 4, rank: 4, rotary_dim: 3}"
    with pytest.raises(SpecError, match="rotary turns pairs of channels"):
        loads(f"name: a\n{dims}\ngraph: [embed, latent_attention, unembed]", "a.yaml")
    with pytest.raises(SpecError, match="rank is missing: give it here or as the dim rank"):
        loads(f"name: a\n{dims.replace(', rank: 4', '')}\ngraph: [embed, latent_attention, unembed]", "a.yaml")
