"""Trace: every node by a name with its layer, and the first node that differs from an earlier trace."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import blockgraph as bg
from compiler.errors import BlockgraphError
from compiler.language.model import loads
from compiler.lower.program import program
from runtime.trace import Record, first_difference, read_reference, records, save, trace
from runtime.weights.initial import random
from tests.huggingface import Case, case

LENGTH = 12
NESTED = """\
name: nested
dims: {vocab: 20, embed: 8, heads: 2, kv_heads: 2, head_dim: 4, mlp: 12}
args: {dtype: float32}
blocks:
  mix: {body: [{residual: [{rms_norm: }, {attention: }]}]}
  feed: {body: [{residual: [{rms_norm: }, {mlp: {gate: silu}}]}]}
  group: {body: [{repeat: {times: 2, cycle: [mix]}}, feed]}
graph: [embed, {repeat: {times: 3, cycle: [group]}}, unembed]
"""


NAMED = """\
name: named
dims: {vocab: 20, embed: 8, heads: 2, kv_heads: 2, head_dim: 4, mlp: 12}
dtypes: {params: float32, compute: float32}
blocks:
  gated:
    params: {up: embed -> mlp, gate: embed -> mlp, down: mlp -> embed}
    program: {wide: up(input), open: wide * sigmoid(gate(input)), output: down(open)}
  layer:
    body:
      - residual: [{rms_norm: , name: norm}, {attention: }]
      - residual: [gated]
graph: [embed, {repeat: {times: 4, cycle: [layer, layer]}}, unembed]
"""


@cache
def baseline(name: str) -> dict[str, Any]:
    return traced(case(name))


def traced(c: Case, params: Any = None) -> dict[str, Any]:
    return trace(c.model, params or c.params, {"tokens": c.tokens[:1, :LENGTH]})


def layers(names: Any, start: str) -> list[str]:
    """What stands in the brackets behind ``start``, in order, once each."""
    found = [n.removeprefix(start).split("]")[0].removeprefix("[") for n in names if n.startswith(start + "[")]
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("name", ["llama_tied", "gemma2", "recurrent_gemma", "mixtral"])
def test_names_and_values(name: str) -> None:
    """Layers are numbered through, as the weights number them: those of a cycle, and those left over behind it."""
    c, values = case(name), baseline(name)
    numbers = [str(i) for i in range({"llama_tied": 2, "gemma2": 5, "recurrent_gemma": 8, "mixtral": 3}[name])]
    made = records(values)
    assert len({r.name for r in made}) == len(made)
    assert layers(values, "layer.map") == numbers
    inside = [n for n in values if n.startswith("layer.")]
    assert inside and all("[" in n for n in inside)
    assert [n for n in values if "[" in n and not n.startswith("layer.")] == [f"layer[{i}]" for i in numbers]
    forward = program(c.model, "forward", {"batch": 1, "seq": LENGTH}).jitted()
    logits = forward(c.params, {}, {"tokens": c.tokens[:1, :LENGTH]})[0]["logits"]
    np.testing.assert_allclose(list(values.values())[-1][2], logits, atol=1e-5)
    np.testing.assert_allclose(logits[0], c.logits[0, :LENGTH], atol=1e-4)
    for r in made:
        array = values[r.name][2]
        assert len(r.axes) == len(r.shape) == array.ndim and "layers" not in r.axes
        assert r.finite and r.minimum <= r.mean <= r.maximum and r.rms >= 0 and r.difference is None


def test_layers_of_recurrent_gemma_hold_their_own_blocks() -> None:
    """Two recurrent layers, then a local one; the last two are written out."""
    values = baseline("recurrent_gemma")
    recurrent = sorted({n.split("[")[1].split("]")[0] for n in values if n.startswith("layer.recurrent.lru.")})
    local = sorted({n.split("[")[1].split("]")[0] for n in values if n.startswith("layer.local.")})
    assert recurrent == ["0", "1", "3", "4", "6", "7"] and local == ["2", "5"]


@pytest.mark.parametrize(
    ("name", "weight", "layer", "node"),
    [
        ("llama_tied", "layer.mlp.up", 1, "layer.mlp.dot[1]#2"),
        ("llama_tied", "layer.attention.query", 1, "layer.attention.dot[1]"),
        ("gemma2", "layer.pre_mlp.scale", 1, "layer.pre_mlp.map[1]"),
        ("gemma2", "layer.attention.out", 1, "layer.attention[1]"),
        ("gemma2", "layer.mlp.down", 4, "layer.mlp[4]"),  # left over behind the cycles
        ("recurrent_gemma", "layer.recurrent.out.weight", 4, "layer.recurrent.out.dot[4]"),
    ],
)
def test_an_injected_fault_is_found(name: str, weight: str, layer: int, node: str, tmp_path: Path) -> None:
    c = case(name)
    save(baseline(name), tmp_path / "reference.npz")
    found = {
        (op.path, op.stack[0].start + op.stack[0].step * i): (label, i)
        for label, (op, _) in c.model.parameters.items() if op.stack for i in range(op.stack[0].count)
    }  # fmt: skip
    label, index = found[weight, layer]
    params = {k: np.array(v) for k, v in c.params.items()}
    one = params[label][index] if c.model.parameters[label][0].stack[0].count > 1 else params[label]
    one.reshape(-1)[1] += 0.5
    assert not np.array_equal(params[label], c.params[label])
    made = records(traced(c, params), read_reference(tmp_path / "reference.npz"))
    first = first_difference(made, 1e-3)
    assert first is not None and first.name == node and first.where.split(":")[0].endswith(".yaml")
    before = made[: made.index(first)]
    assert before and all(r.difference == 0 for r in before)


def test_nothing_differs_from_itself(tmp_path: Path) -> None:
    c = case("gemma2")
    save(baseline("gemma2"), tmp_path / "reference.npz")
    made = records(traced(c), read_reference(tmp_path / "reference.npz"))
    assert {r.difference for r in made} == {0.0} and first_difference(made, 0.0) is None
    assert [p.name for p in tmp_path.iterdir()] == ["reference.npz"]


def test_a_nan_is_found_by_name() -> None:
    c = case("gemma2")
    label = next(k for k in c.params if k.startswith("layer.mlp.gate[1"))
    params = {**c.params, label: np.array(c.params[label])}
    params[label][1, 0, 0] = np.nan  # of layer 3
    made = records(traced(c, params))
    first = first_difference(made, 1e-3)
    assert first is not None and first.name == "layer.mlp.dot[3]" and not first.finite


def test_through_the_api(tmp_path: Path) -> None:
    c = case("llama_tied")
    tokens = [[3, 4, 5]]
    made, first = bg.trace(c.model, tokens=tokens, seed=3, out=tmp_path / "a.npz")
    assert first is None and made[-1].op == "dot" and (made[-1].name, made[-1].alias) == ("unembed", "unembed.dot")
    made, first = bg.trace(c.model, tokens=tokens, seed=3, reference=tmp_path / "a.npz")
    assert first is None and all(r.difference == 0 for r in made)
    made, first = bg.trace(c.model, tokens=tokens, seed=4, reference=tmp_path / "a.npz")
    assert first is not None and first.name == "embed"


def test_values_have_the_names_that_the_spec_gives_them(tmp_path: Path) -> None:
    """A named node, the result of a block, a line of a program; each has its op's name besides, and a reference may
    use either."""
    model = loads(NAMED)
    params, tokens = dict(random(model, 2).arrays), {"tokens": np.arange(6, dtype=np.int32)[None]}
    values = trace(model, params, tokens)
    ours = [n for n, v in values.items() if "[1]" in n and n != v.alias]
    assert ours == [
        "layer.norm[1]", "layer.attention[1]", "layer.gated.wide[1]", "layer.gated.open[1]", "layer.gated[1]",
        "layer[1]",
    ]  # fmt: skip
    made = records(values, {values[n].alias: values[n].array for n in ours})
    assert [r.name for r in made if r.difference is not None] == ours
    assert {r.path for r in made if r.name in ours[2:5]} == {"layer.gated"}


def test_nested_repeats_are_traced_too() -> None:
    model = loads(NESTED)
    params = dict(random(model, 2).arrays)
    tokens = np.arange(6, dtype=np.int32)[None]
    values = trace(model, params, {"tokens": tokens})
    names = list(values)
    attends = [n for n in names if ".attend[" in n]
    assert len(attends) == 6 and len(set(attends)) == 6
    assert len([v for v in values.values() if ".mlp.dot[" in v.alias]) == 3 * 3
    order = [n for n in names if ".attend[" in n or (".mlp.dot[" in n and "#" not in n)]
    assert [".attend[" in n for n in order] == [True, True, False] * 3  # as they are computed
    logits = program(model, "forward", {"batch": 1, "seq": 6}).jitted()(params, {}, {"tokens": tokens})[0]["logits"]
    np.testing.assert_allclose(values[names[-1]][2], logits, atol=1e-5)


def record(name: str, rms: float, difference: float | None, finite: bool = True) -> Record:
    return Record(name, "map", (), (), "float32", 0, 0, 0, rms, finite, "", difference)


def test_the_first_difference_is_relative_and_in_order() -> None:
    made = [record("a", 100, 0.09), record("b", 1, None), record("c", 0, 0.0), record("d", 1, 0.002), record("e", 1, 9)]
    assert first_difference(made, 1e-3) is made[3]
    assert first_difference(made, 0.01) is made[4]
    assert first_difference(made, 10) is None
    assert first_difference([record("f", 0, 1e-9)], 1e-3) is not None


def test_shapes_and_missing_numbers_count_as_differences() -> None:
    values = baseline("llama_tied")
    name = "embed"
    array = values[name].array
    hole = array.copy()
    hole[0, 0, 0] = np.nan
    for other in (array[:, :-1], hole):
        (found,) = [r for r in records(values, {name: other}) if r.difference is not None]
        assert found.name == name and found.difference == np.inf and first_difference([found], 1e-3) is found


def test_files_that_are_no_reference(tmp_path: Path) -> None:
    for name, data in (("a.npz", b"not a zip"), ("b.npz", b"PK\x03\x04cut"), ("c.npz", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BlockgraphError) as caught:
            read_reference(tmp_path / name)
        assert caught.value.problems[0].code == "bad-reference"
    np.savez(tmp_path / "d.npz", x=np.array([object()]))
    np.save(tmp_path / "e.npy", np.zeros(3))
    for path in (tmp_path / "d.npz", tmp_path / "none.npz", tmp_path / "e.npy"):
        with pytest.raises(BlockgraphError):
            read_reference(path)
