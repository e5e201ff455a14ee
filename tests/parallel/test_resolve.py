"""From a strategy and a mesh to a plan: divisions, exceptions asked for by name, what they cost."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.errors import Problem, Problems, SpecError
from compiler.graph.ir import Graph
from compiler.language.model import load as load_model
from compiler.language.model import loads
from compiler.parallel.plan import Plan
from compiler.parallel.resolve import Resolved, resolve
from compiler.parallel.strategy import load, strategies
from compiler.parallel.tensors import is_training, tensors
from compiler.passes.phase import phase_graph
from tests.docs.pages import named

SIZES = {"batch": 16, "seq": 64, "capacity": 128}
HEAD = "name: t\ndims: {{vocab: 96, embed: 48, heads: {heads}, kv_heads: {kv}, head_dim: 8, mlp: 96}}\n"
LAYERS = """graph:
  - embed
  - repeat: {times: 2, cycle: [layer]}
  - rms_norm
  - unembed: {tied: embed}
blocks:
  layer: {body: [residual: [rms_norm, {attention: {position: rope}}], residual: [rms_norm, {mlp: {gate: silu}}]]}
"""


@lru_cache
def graph(heads: int = 8, kv: int = 4, phase: str = "forward") -> Graph:
    return phase_graph(loads(HEAD.format(heads=heads, kv=kv) + LAYERS), phase).graph


@lru_cache
def shipped(name: str, phase: str = "forward") -> Graph:
    return phase_graph(load_model(name), phase).graph


def plan(strategy: str, mesh: str, g: Graph | None = None, *, sizes: dict[str, int] | None = None, shard: Any = (),
         replicate: Any = (), **options: Any) -> Resolved:  # fmt: skip
    return resolve(load(strategy, shard, replicate), mesh, g or graph(), SIZES | (sizes or {}), **options)


def refused(*args: Any, **options: Any) -> list[Problem]:
    with pytest.raises(SpecError) as caught:
        plan(*args, **options)
    return list(caught.value.problems)


def test_tensor_parallel() -> None:
    made = plan("data+tensor", "data=2,model=4", devices=8)
    assert dict(made.mesh) == {"data": 2, "model": 4} and made.devices == 8 and made.strategy == "data+tensor"
    assert made.axes("activations", "data") == ("batch",) and made.axes("parameters", "data") == ()
    assert made.axes("parameters", "model")[:3] == ("heads", "kv_heads", "mlp")
    assert isinstance(made, Plan)


def test_bytes_per_device_are_the_divided_leaves() -> None:
    whole, made = plan("data", "data=1"), plan("data+tensor", "data=2,model=4")
    norms = 2 * (2 * 48 * 2 + 48)  # bfloat16: two a layer and the last
    assert made.bytes_per_device["parameters"] == (whole.bytes_per_device["parameters"] - norms) / 4 + norms
    assert made.undivided["parameters"] == norms


def test_axes_of_one_device_do_nothing() -> None:
    made = plan("fsdp+tensor", "fsdp=4,model=1,other=1")
    assert "model" not in made.rules["parameters"] and made.mesh["model"] == 1
    assert any(n.code == "idle" and "model" in n.text for n in made.notes)


def test_an_axis_of_a_file_that_no_tensor_has_is_a_note_and_one_of_the_user_an_error() -> None:
    assert any(n.code == "absent" and "rnn" in n.text for n in plan("tensor", "model=4").notes)
    (found,) = refused("tensor", "model=4", shard=["hed=model"])
    assert (found.code, found.suggestion, found.position.file) == ("unknown-axis", "heads", "--shard hed=model")
    assert refused("tensor", "model=4", replicate=["rnn"])[0].code == "unknown-axis"
    (found,) = refused("tensor", "model=4", shard=["state.mlp=model"])
    assert found.code == "unknown-axis" and "activations.mlp" in found.allowed


def test_mesh_axes_without_rules() -> None:
    (found,) = refused("fsdp", "fsdp=2,model=4")
    assert found.code == "unknown-mesh-axis" and found.allowed == ("fsdp",)
    assert "decode-length and sequence and tensor do" in found.message
    (found,) = refused("fsdp", "fsdp=2", shard=["mlp=other"])
    assert found.code == "unknown-mesh-axis" and found.position.file == "--shard mlp=other"


def test_everything_wrong_in_one_run() -> None:
    found = refused("fsdp+tensor", "fsdp=5,model=16,tp=2", shard=["hed=model"], devices=64)
    assert {p.code for p in found} == {"mesh-size", "unknown-mesh-axis", "unknown-axis", "indivisible"}
    assert {p.message.split()[0] for p in found if p.code == "indivisible"} >= {"batch", "heads", "kv_heads", "embed"}


def test_indivisible_names_the_axis_the_numbers_and_what_fits() -> None:
    (found,) = refused("fsdp", "fsdp=32", sizes={"batch": 64})
    assert found.message.startswith("embed = 48 does not divide by fsdp = 32 (in embed")
    assert found.allowed == ("fsdp=12", "fsdp=16", "fsdp=24", "fsdp=48")
    assert "--shard parameters.embed=none" in str(found.suggestion)
    assert found.position.file == "specs/parallelism/fsdp.yaml" and found.position.line > 1


def test_a_batch_smaller_than_its_devices() -> None:
    (found,) = refused("data", "data=8", sizes={"batch": 4})
    assert found.message.startswith("batch = 4 is less than data = 8") and "multiple of 8" in str(found.suggestion)
    assert found.allowed == ("data=2", "data=4")
    assert "batch a multiple of 8: 8 or 16" in str(refused("data", "data=8", sizes={"batch": 12})[0].suggestion)


def test_over_two_mesh_axes_the_product_counts() -> None:
    (found,) = refused("data+fsdp", "data=8,fsdp=4")
    assert "batch = 16 is less than data = 8 x fsdp = 4 = 32" in found.message


def test_one_position_is_never_divided() -> None:
    made = plan("context+tensor", "context=4,model=2", graph(phase="decode"), sizes={"seq": 1})
    for t in tensors(graph(phase="decode"), SIZES | {"seq": 1}, False, Problems()):
        assert "seq" not in t.divided(made)
    assert refused("context", "context=4", sizes={"seq": 63})[0].message.startswith("seq = 63")


def test_gradients_and_optimiser_count_in_training_only() -> None:
    assert plan("zero1", "data=5", graph(), sizes={"batch": 5}).rules["optimiser"]
    (found,) = refused("zero1", "data=5", graph(), sizes={"batch": 5}, training=True)
    assert found.message.startswith("embed = 48") and "--shard optimiser.embed=none" in str(found.suggestion)
    assert not is_training(graph())


def test_sizes_that_are_missing() -> None:
    with pytest.raises(SpecError) as caught:
        resolve("tensor", "model=2", graph(phase="decode"), {"batch": 8, "seq": 1})
    assert [p.code for p in caught.value.problems] == ["missing-size"]


def test_slices_take_the_batch() -> None:
    made = plan("fsdp+tensor", "dcn_data=2,fsdp=4,model=2")
    assert made.axes("activations", "dcn_data") == ("batch",) and made.axes("parameters", "dcn_data") == ()
    assert plan("fsdp", "dcn_fsdp=2,fsdp=4").axes("parameters", "dcn_fsdp")[0] == "embed"
    assert refused("fsdp", "dcn_model=2,fsdp=4")[0].code == "unknown-mesh-axis"


# -- heads that do not divide
def test_fewer_kv_heads_than_devices_is_refused_with_the_way_on() -> None:
    (found,) = refused("tensor", "model=8")
    assert found.message.startswith("kv_heads = 4 is less than model = 8")
    assert found.suggestion == "--replicate kv_heads, and 2 devices share one (model=4, model_copies=2)"
    assert found.allowed == ("model=2", "model=4")


def test_replicated_kv_heads_factor_the_mesh_axis() -> None:
    made = plan("data+tensor", "data=2,model=8", graph(phase="decode"), sizes={"seq": 1}, replicate=["kv_heads"])
    assert list(made.mesh.items()) == [("data", 2), ("model", 4), ("model_copies", 2)]
    for kind in ("parameters", "state", "activations"):
        assert "kv_heads" in made.axes(kind, "model") and "kv_heads" not in made.axes(kind, "model_copies")
        assert {*made.axes(kind, "model")} - {*made.axes(kind, "model_copies")} == {"kv_heads"}
    (note,) = [n for n in made.notes if n.code == "replicated"]
    cache = 2 * 2 * 16 * 128 * 4 * 8 * 2  # keys and values, layers, batch, slots, heads, head_dim, bytes
    keys = 2 * 2 * 48 * 4 * 8 * 2
    assert dict(note.bytes) == {"state": cache / 2 / 8, "parameters": keys / 8}
    assert "model = 8 becomes model = 4 x model_copies = 2" in note.text


def test_one_kv_head_goes_nowhere() -> None:
    g = graph(8, 1, "decode")
    made = plan("tensor+decode-length", "model=8", g, sizes={"seq": 1}, replicate=["kv_heads"])
    assert dict(made.mesh) == {"model": 8} and "kv_heads" not in made.axes("state", "model")
    (note,) = [n for n in made.notes if n.code == "replicated"]
    assert dict(note.bytes)["state"] == 0  # its slots are divided instead


def test_kv_heads_that_divide_need_no_copies() -> None:
    made = plan("tensor", "model=4", replicate=["kv_heads"])
    assert dict(made.mesh) == {"model": 4} and "kv_heads" in made.axes("parameters", "model")
    assert any("nothing is replicated" in n.text for n in made.notes)


def test_copies_that_cannot_be() -> None:
    (found,) = refused("tensor", "model=6", graph(12, 4), replicate=["kv_heads"])
    assert found.code == "cannot-replicate" and found.allowed[:3] == ("model=1", "model=2", "model=4")


def test_ten_heads_on_four() -> None:
    g = shipped("recurrentgemma-2b")
    found = {p.message.split()[0]: p for p in refused("tensor", "model=4", g)}
    assert set(found) == {"heads", "kv_heads", "blocks"}
    assert found["heads"].allowed == ("model=2", "model=5", "model=10")
    assert "--replicate heads, and attention runs whole on every device" in str(found["heads"].suggestion)
    assert "while mlp, rnn, vocab stay divided" in str(found["heads"].suggestion)
    made = plan("tensor", "model=4", g, replicate=["heads,blocks"])
    assert made.axes("parameters", "model") == ("mlp", "rnn", "vocab")
    costs = {n.axis: round(dict(n.bytes)["parameters"] / 1e6, 1) for n in made.notes if n.code == "replicated"}
    assert costs == {"heads": 157.3, "kv_heads": 15.7, "blocks": 35.5}


def test_a_mesh_axis_that_divides_nothing_is_told() -> None:
    made = plan("context", "context=4", graph(), sizes={"seq": 1})
    assert any("context = 4 divides nothing here" in n.text for n in made.notes)


@pytest.mark.parametrize("name", ["gemma2-2b", "recurrentgemma-9b", "mixtral-8x7b", "smollm2-135m"])
@pytest.mark.parametrize("strategy", strategies())
def test_shipped_models_on_a_small_mesh(name: str, strategy: str) -> None:
    (m,) = load(strategy).mesh
    options = {"replicate": ["kv_heads"]} if m == "model" else {}
    if name == "smollm2-135m" and m == "model":
        options = {"replicate": ["heads"]}
    if m == "model" and strategy != "tensor":
        strategy, m = f"tensor+{strategy}", "model"
    if strategy == "pipeline":
        options = {"replicate": ["vocab"]}
    n = 13 if (strategy, name) == ("pipeline", "gemma2-2b") else 2  # it repeats a pair of layers 13 times
    sizes = {"batch": 16, "seq": 1, "capacity": 2048}
    assert plan(strategy, f"{m}={n}", shipped(name, "decode"), sizes=sizes, **options).devices == n


def test_a_role_of_another_size_in_another_tower() -> None:
    towers = """graph:
  - embed
  - residual: [rms_norm, {mlp: {gate: silu}}]
  - residual: [{rms_norm: , name: second}, {mlp: {gate: silu, hidden: 36}, name: small}]
  - {rms_norm: , name: last}
  - unembed
"""
    g = phase_graph(loads(HEAD.format(heads=8, kv=4) + towers), "forward").graph
    (found,) = refused("tensor", "model=8", g)
    assert found.message.startswith("mlp = 36 does not divide by model = 8")
    assert found.allowed == ("model=2", "model=3", "model=4", "model=6", "model=12")


# -- properties
@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(
        ["data+tensor", "fsdp+tensor", "fsdp+tensor+sequence", "zero2+tensor+decode-length", "fsdp+context"]
    ),
    st.sampled_from([(8, 4), (8, 1), (12, 4), (10, 5), (6, 6)]),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 24),
    st.sampled_from([(), ("kv_heads",), ("heads",)]),
    st.sampled_from(["forward", "decode"]),
)
def test_a_plan_divides_without_a_rest(
    strategy: str, heads: tuple[int, int], outer: int, inner: int, batch: int, replicate: tuple[str, ...], phase: str
) -> None:
    g, chosen = graph(*heads, phase), load(strategy, replicate=replicate)
    sizes = {"batch": batch, "seq": 1 if phase == "decode" else 60, "capacity": 120}
    first, second = chosen.mesh
    try:
        made = resolve(chosen, f"{first}={outer},{second}={inner}", g, sizes, outer * inner, training=True)
    except SpecError as e:
        assert all(p.allowed or p.suggestion for p in e.problems) and all(p.position for p in e.problems)
        return
    assert made.devices == outer * inner
    for t in tensors(g, sizes, True, Problems()):
        divided = t.divided(made)
        used = [m for over in divided.values() for m in over]
        assert len(used) == len(set(used))
        for axis, over in divided.items():
            assert t.sizes[axis] % math.prod(made.mesh[m] for m in over) == 0


def test_the_example_of_the_page() -> None:
    space: dict[str, Any] = {}
    exec(named("resolve").text, space)
    assert dict(space["plan"].mesh) == {"data": 4, "model": 4, "model_copies": 2}
    assert space["layout"].numbers.shape == (4, 4, 2)
