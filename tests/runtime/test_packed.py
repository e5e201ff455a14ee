"""Weights in few bits: packed in memory, priced, run, saved and loaded as packed, and how far off they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import blockgraph as bg
from blockgraph.inspect import summary
from compiler.errors import SpecError, WeightsError
from compiler.language.model import Model, load
from compiler.ops.packed import SCALE, Packed, packed
from compiler.passes.pack import held
from costmodel.simulate import simulate
from runtime.session import Session
from runtime.weights import packing
from runtime.weights.load import load as read
from runtime.weights.packing import packed_arrays, quantise, unpack_array
from tests.huggingface import SPECS, case, overrides

FOUR = Packed("int4", "embed", 32)


def spec(name: str, weights: str = "int4") -> Model:
    found = Path(__file__).parents[1] / "specs" / f"{SPECS[name]}.yaml"
    return load(found if found.exists() else SPECS[name], {**overrides(name), "weights": weights})


def unpacked(model: Model, arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    """What packed arrays stand for, in float32."""
    made = {}
    for label, (op, t) in model.parameters.items():
        x = arrays[label]
        if op.packed is not None:
            x = unpack_array(x, arrays[label + SCALE], op.packed, t.axes.index(op.packed.axis))
        made[label] = x
    return made


@pytest.mark.parametrize("name", ["gemma", "deepseek_v3"])
def test_what_runs_is_what_the_packed_weights_stand_for(name: str) -> None:
    """Prefill in chunks and decode of int4 weights against a float32 model with the same weights unpacked."""
    c, model = case(name), spec(name)
    arrays = packed_arrays(model, c.params)
    assert arrays["embed.table"].dtype.name == "int4" and not any("router" + SCALE in k for k in arrays)
    plain = unpacked(model, arrays)
    prompts = [list(map(int, row[:n])) for row, n in zip(c.tokens, c.lengths, strict=True)]
    few, full = (Session(m, p, batch=3, capacity=48, chunk=16) for m, p in ((model, arrays), (c.model, plain)))
    np.testing.assert_allclose(few.prefill(prompts), full.prefill(prompts), atol=1e-4)
    for token in ([3, 4, 5], [6, 7, 8]):
        np.testing.assert_allclose(few.decode(token), full.decode(token), atol=1e-4)


@pytest.mark.parametrize(("dtype", "error"), [("int4", 0.097), ("int8", 0.00535)])
def test_the_error_of_a_product(dtype: str, error: float) -> None:
    """Of normal weights in groups of 32: a scale is 2.36 deviations over 7 (or 127), and an error is uniform over one
    scale, so a product is off by 9.7 % (0.53 %) of its rms. No weight is off by more than half a scale."""
    draw = np.random.default_rng(0)
    w = draw.normal(size=(512, 256)).astype(np.float32)
    how = Packed(dtype, "embed", 32)
    values, scales = quantise(w, how, 0)
    off = unpack_array(values, scales, how, 0) - w
    assert (np.abs(off) <= np.repeat(scales, 32, 0) / 2 + 1e-6).all()
    x = draw.normal(size=(64, 512)).astype(np.float32)
    found = np.sqrt(((x @ off) ** 2).mean() / ((x @ w) ** 2).mean())
    assert found == pytest.approx(error, rel=0.02)


def test_groups() -> None:
    assert packed("int4", "a", 4096, 32).group == 32
    assert packed("int4", "a", 80, 32).group == 20  # the largest divisor
    assert packed("int4", "a", 1031, 32).group == 1031  # a prime: one scale for all
    zeros, ones = quantise(np.zeros((32, 2), np.float32), FOUR, 0)
    assert not zeros.astype(int).any() and (ones == 1).all()


def test_priced_as_held() -> None:
    """Half a byte a weight and two for each group of 32; the routers, norms and biases as they are."""
    model = load("gemma-2b", {"weights": "int4"})
    table, scales = held(model)["embed.table"], held(model)["embed.table" + SCALE]
    assert (table.dtype, scales.dtype, int(scales.size("embed").constant)) == ("int4", "bfloat16", 64)
    few, full = (simulate(m, "v5e", "decode", 1, 1024) for m in (model, load("gemma-2b")))
    assert few.parameters.count == full.parameters.count == 2_506_434_560
    assert few.memory.parameters == sum(float(t.bytes.constant) for t in held(model).values())
    assert few.memory.parameters / full.memory.parameters == pytest.approx(0.5625 / 2, rel=1e-3)
    # a step reads what is held: of the table once, for the logits
    assert few.traffic.parameters == pytest.approx(few.memory.parameters, rel=0.01)
    assert few.flops.matrix == full.flops.matrix
    told = summary(model)
    assert told["parameters"]["bytes"] == few.memory.parameters and told["dtypes"]["weights"] == "int4 by 32"


def test_saved_and_loaded(tmp_path: Path) -> None:
    c, model = case("llama"), spec("llama")
    arrays = packed_arrays(model, c.params)
    (file,) = bg.export(model, Path(__file__).parents[1] / "fixtures" / "hf" / "llama", tmp_path / "few")
    again = read(model, file)
    assert again.format == packing.FORMAT and set(again.arrays) == set(arrays) == set(held(model))
    for label, x in arrays.items():
        assert again.arrays[label].dtype == x.dtype
        np.testing.assert_array_equal(again.arrays[label].astype(np.float32), x.astype(np.float32))
    whole = sum(float(t.bytes.constant) for t in held(model).values())
    assert whole <= file.stat().st_size < whole + 8192
    tokens = [t.id for t in _generate(model, again.arrays)]
    assert tokens == [t.id for t in _generate(model, c.params)]  # packed as they are given to a session
    with pytest.raises(WeightsError, match="held otherwise"):
        read(spec("llama", "int8"), file)


def _generate(model: Model, arrays: Any) -> Any:
    from runtime.generate import generate

    return generate(model, arrays, [[3, 4, 5]], max_tokens=6)


def test_what_a_spec_may_say() -> None:
    with pytest.raises(SpecError, match=r"dtypes.weights: 'int5' is not one of its words"):
        load("gemma-2b", {"weights": "int5"})
    model = load("mixtral-8x7b", {"weights": "int8"})
    kept = [op.path for op, _ in model.parameters.values() if op.packed is None]
    assert {p.split(".")[-1] for p in kept} == {"scale", "router"}
    assert held(model)["layer.moe.up[0:32:1]"].dtype == "int8"
