"""Prices of graphs small enough to count by hand."""

import numpy as np
import pytest

from compiler.graph.builder import Builder
from compiler.graph.ir import Graph, Value
from compiler.graph.region import Region
from compiler.graph.sizes import BATCH, CAPACITY, SEQ
from compiler.graph.types import TensorType
from compiler.ops.attention import AttendCached
from compiler.ops.leaves import Input, Parameter, State
from costmodel.memory import activation_bytes
from costmodel.origins import Stored
from costmodel.price import price

EMBED, MLP, VOCAB, LAYERS = 8, 32, 100, 3
ENV = {"batch": 2, "seq": 5, "capacity": 7}
TOKENS = 2 * 5


def leaf(b: Builder, op: Parameter | State | Input, axes: list[tuple[str, object]], dtype: str) -> Value:
    return b.append(op, (), (TensorType.make(axes, dtype),))[0]  # type: ignore[arg-type]


def weight(b: Builder, label: str, *axes: tuple[str, int], dtype: str = "bfloat16") -> Value:
    return leaf(b, Parameter(label, label, 1), list(axes), dtype)


def tokens(b: Builder) -> Value:
    return leaf(b, Input("tokens"), [("batch", BATCH), ("seq", SEQ)], "int32")


def mlp(b: Builder, weights_dtype: str = "bfloat16") -> Graph:
    """Lookup, one product up, gelu, one product down."""
    table = weight(b, "embed.table", ("vocab", VOCAB), ("embed", EMBED))
    up = weight(b, "mlp.up", ("embed", EMBED), ("mlp", MLP), dtype=weights_dtype)
    down = weight(b, "mlp.down", ("mlp", MLP), ("embed", EMBED))
    with b.at("embed"):
        x = b.lookup(table, tokens(b))
    with b.at("mlp"):
        h = b.dot(x, b.cast(up, "bfloat16"), ("embed",))
        y = b.dot(b.gelu_tanh(h), down, ("mlp",))
    return b.finish([("y", y)])


def test_flops_of_two_products() -> None:
    """Given two products of [10, 8] x [8, 32], when priced, then 2 FLOPs a multiply-add and none for the lookup."""
    work = price(mlp(Builder())).at(ENV)
    assert work.matrix == 2 * TOKENS * EMBED * MLP * 2
    assert (work.vector, work.transcendental) == (8 * TOKENS * MLP, TOKENS * MLP)


def test_bytes_unfused_and_fused() -> None:
    priced = price(mlp(Builder()))
    work = priced.at(ENV)
    x, h, w = TOKENS * EMBED * 2, TOKENS * MLP * 2, EMBED * MLP * 2
    lookup = 4 * TOKENS + x + x  # ids, rows read, rows written
    assert work.unfused == lookup + (x + w + h) + (h + h) + (h + w + x)
    assert work.parameters == 2 * w
    assert work.activations == lookup + (x + h) + (h + x)  # gelu rides
    assert work.fused == work.parameters + work.activations


def test_a_cast_weight_is_read_as_it_is_stored() -> None:
    wide = price(mlp(Builder(), "float32"))
    assert wide.at(ENV).parameters == EMBED * MLP * (4 + 2)
    assert wide.parameter_bytes() == {"bfloat16": 2 * (VOCAB * EMBED + MLP * EMBED), "float32": 4 * MLP * EMBED}


def test_weights_stored_in_other_dtypes() -> None:
    small = price(mlp(Builder()), Stored(weights="int8"))
    assert small.at(ENV).parameters == 2 * EMBED * MLP
    assert small.parameter_bytes() == {"int8": VOCAB * EMBED + 2 * MLP * EMBED}
    smaller = price(mlp(Builder()), Stored(weights="int4"))
    assert smaller.at(ENV).parameters == EMBED * MLP


def test_embedding_and_other_parameters() -> None:
    priced = price(mlp(Builder()))
    assert priced.parameter_count() == VOCAB * EMBED + 2 * MLP * EMBED
    assert priced.parameter_count(embedding=True) == VOCAB * EMBED
    assert priced.parameter_count(embedding=False) == 2 * MLP * EMBED


def repeated(b: Builder) -> Graph:
    """A product with its own weight on each of three trips."""
    x = leaf(b, Input("x"), [("batch", BATCH), ("seq", SEQ), ("embed", EMBED)], "bfloat16")
    stack = weight(b, "layer.w", ("layers", LAYERS), ("embed", EMBED), ("embed_out", EMBED))
    region = Region(b, LAYERS)
    with region.at("layer"):
        inside = region.carry(x)
        y = region.dot(inside, region.stacked(stack), ("embed",))
        out = region.rename(y, embed_out="embed")
    carried, _, _ = region.close([out])
    return b.finish([("y", carried[0])])


def test_a_repeat_counts_every_trip() -> None:
    priced = price(repeated(Builder()))
    work = priced.at(ENV)
    assert work.matrix == LAYERS * 2 * TOKENS * EMBED * EMBED
    assert work.parameters == LAYERS * EMBED * EMBED * 2 == priced.parameter_bytes()["bfloat16"]
    assert work.activations == LAYERS * 2 * TOKENS * EMBED * 2


def test_totals_by_op_and_path() -> None:
    priced = price(mlp(Builder()))
    by_op = priced.by(lambda item: item.op, ENV)
    assert by_op["dot"].matrix == priced.at(ENV).matrix
    assert set(priced.by(lambda item: item.path, ENV)) == {"embed", "mlp"}


def cached(b: Builder) -> Graph:
    """Attention of 4 heads of 16 over 2 cached key-value heads."""
    q = leaf(b, Input("q"), [("batch", BATCH), ("seq", SEQ), ("heads", 4), ("head_dim", 16)], "bfloat16")
    kv = [("batch", BATCH), ("seq", SEQ), ("kv_heads", 2), ("head_dim", 16)]
    store = [("batch", BATCH), ("slots", CAPACITY), ("kv_heads", 2), ("head_dim", 16)]
    k, v = (leaf(b, Input(n), kv, "bfloat16") for n in "kv")
    old_k, old_v = (leaf(b, State(f"a.{n}", "cache"), store, "bfloat16") for n in ("key", "value"))
    start = leaf(b, State("length", "length"), [("batch", BATCH)], "int32")
    out, _ = b.apply(AttendCached(), q, k, v, old_k, old_v, start)
    return b.finish([("out", out)])


def test_attention_over_a_cache() -> None:
    priced = price(cached(Builder()))
    scores = 2 * 5 * 4 * (5 + 7)  # batch, queries, heads, keys: own and slots, masked or not
    assert priced.at(ENV).matrix == scores * 2 * (16 + 16)
    cache = 2 * 7 * 2 * 16 * 2 * 2  # batch, slots, heads, channels, bytes, keys and values
    assert priced.state_bytes(ENV) == {"cache": cache, "length": 8}
    assert priced.at(ENV).state == cache + 8
    half = price(cached(Builder()), Stored(cache="int8"))
    assert half.at(ENV).state == cache / 2 + 8


def test_arrays_broadcast() -> None:
    priced = price(cached(Builder()))
    batches, contexts = np.array([1.0, 2.0, 4.0])[:, None], np.array([7.0, 70.0])[None, :]
    many = priced.at({"batch": batches, "seq": 5.0, "capacity": contexts})
    assert many.matrix.shape == (3, 2)
    for i, b in enumerate((1, 2, 4)):
        for j, c in enumerate((7, 70)):
            one = priced.at({"batch": b, "seq": 5, "capacity": c})
            assert many.matrix[i, j] == one.matrix
            assert many.fused[i, j] == one.fused


def test_symbols_that_a_price_needs() -> None:
    assert price(cached(Builder())).symbols == {"batch", "seq", "capacity"}


def test_live_bytes_of_a_chain() -> None:
    """Given x -> h -> gelu(h) -> y, where gelu writes over h, when h lives with x or y, then that is the peak."""
    graph = mlp(Builder())
    h, x = TOKENS * MLP * 2, TOKENS * EMBED * 2
    assert activation_bytes(graph, ENV, price(graph).origins) == max(x + h, h, h + x)


def test_live_bytes_of_plain_attention_hold_its_scores() -> None:
    graph = cached(Builder())
    out, sums = 2 * 5 * 4 * 16 * 2, 2 * 5 * 4 * 4
    assert activation_bytes(graph, ENV, price(graph).origins) == out + sums + 2 * 5 * 4 * 12 * 4


@pytest.mark.parametrize("batch", [1, 3])
def test_a_repeat_needs_what_one_trip_needs(batch: int) -> None:
    graph = repeated(Builder())
    y = batch * 5 * EMBED * 2
    live = activation_bytes(graph, {**ENV, "batch": batch}, price(graph).origins)
    assert live == 2 * y  # the repeat's result and its trip's
