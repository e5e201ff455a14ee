"""Layouts against arrangements written out by hand; each must also be its own reverse."""

import numpy as np
import pytest

from runtime.weights.layout import LayoutFault, Part, parse, resolve

DIMS = {"heads": 4, "kv_heads": 2, "head_dim": 6, "embed": 5}
QUERY = Part("query", (("embed", 5), ("heads", 4), ("head_dim", 6)), 1)
KEY = Part("key", (("embed", 5), ("kv_heads", 2), ("head_dim", 6)), 1)
VALUE = Part("value", (("embed", 5), ("kv_heads", 2), ("head_dim", 6)), 1)
OUT = Part("out", (("heads", 4), ("head_dim", 6), ("embed", 5)), 2)


def array(part, seed=0):
    return np.random.default_rng(seed).normal(size=[n for _, n in part.axes]).astype("f4")


def theirs(layout, parts, arrays, limit):
    recipes = resolve(parse(layout), parts, DIMS)
    whole = np.full(recipes[0].shape or (1,), np.nan, "f4")
    for recipe, x in zip(recipes, arrays, strict=True):
        view = recipe.view(x)
        for rows, ours in recipe.steps(limit):
            recipe.own(whole[rows], ours.stop - ours.start)[...] = view[ours]
    return whole


def ours(layout, parts, whole, limit):
    found = []
    for part, recipe in zip(parts, resolve(parse(layout), parts, DIMS), strict=True):
        x = np.full([n for _, n in part.axes], np.nan, "f4")
        for rows, into in recipe.steps(limit):
            recipe.view(x)[into] = recipe.own(whole[rows], into.stop - into.start)
        found.append(x)
    return found


def halves_to_pairs(q):  # [embed, heads, head_dim] with the two halves' members side by side
    return np.stack([q[..., :3], q[..., 3:]], -1).reshape(q.shape)


CASES = {
    "torch linear": ("out in", [QUERY], lambda q: q.reshape(5, 24).T),
    "linear of two inputs": ("out in", [OUT], lambda o: o.reshape(24, 5).T),
    "ours": ("in out", [QUERY], lambda q: q.reshape(5, 24)),
    "merged": ("(head_dim heads) embed", [QUERY], lambda q: q.transpose(2, 1, 0).reshape(24, 5)),
    "an axis of one": ("embed 1 (heads head_dim)", [QUERY], lambda q: q.reshape(5, 1, 24)),
    "parts in a row": ("{} in", [QUERY, KEY, VALUE],
                       lambda q, k, v: np.concatenate([q.reshape(5, -1), k.reshape(5, -1), v.reshape(5, -1)], 1).T),
    "parts last": ("in {}", [QUERY, KEY],
                   lambda q, k: np.concatenate([q.reshape(5, -1), k.reshape(5, -1)], 1)),
    "an axis of parts": ("in {} (kv_heads head_dim)", [KEY, VALUE],
                         lambda k, v: np.stack([k.reshape(5, -1), v.reshape(5, -1)], 1)),
    "parts by key head": ("(kv_heads {} head_dim) embed", [QUERY, KEY, VALUE],
                          lambda q, k, v: np.concatenate([q.reshape(5, 2, 2, 6), k[:, :, None], v[:, :, None]], 2)
                          .reshape(5, -1).T),
}  # fmt: skip


@pytest.mark.parametrize("limit", [1, 40, 10**6])
@pytest.mark.parametrize("case", CASES)
def test_a_layout_and_its_reverse(case, limit):
    layout, parts, expected = CASES[case]
    arrays = [array(p, i) for i, p in enumerate(parts)]
    whole = theirs(layout, parts, arrays, limit)
    np.testing.assert_array_equal(whole, expected(*arrays))
    for x, back in zip(arrays, ours(layout, parts, whole, limit), strict=True):
        np.testing.assert_array_equal(back, x)


@pytest.mark.parametrize("layout", ["out in", "(kv_heads {} head_dim) embed"])
def test_interleaved_pairs(layout):
    parts = [Part(p.name, p.axes, p.inputs, "head_dim") for p in ((QUERY, KEY) if "{}" in layout else (QUERY,))]
    arrays = [array(p, i) for i, p in enumerate(parts)]
    whole = theirs(layout, parts, arrays, 30)
    plain = [Part(p.name, p.axes, p.inputs) for p in parts]
    np.testing.assert_array_equal(whole, theirs(layout, plain, [halves_to_pairs(a) for a in arrays], 30))
    for x, back in zip(arrays, ours(layout, parts, whole, 30), strict=True):
        np.testing.assert_array_equal(back, x)


def test_experts_are_neither_inputs_nor_outputs():
    part = Part("up", (("experts", 3), ("embed", 5), ("mlp", 7)), 2)
    x = array(part)
    np.testing.assert_array_equal(theirs("experts out in", [part], [x], 9), x.transpose(0, 2, 1))
    with pytest.raises(LayoutFault, match="no place for experts"):
        resolve(parse("out in"), [part], {})


@pytest.mark.parametrize(("layout", "message"), [
    ("(out in", "never closed"), ("out) in", "do not pair up"), ("out in out", "names out twice"),
    ("out +", "is no axis"), ("hedas in", "hedas"), ("embed", "no place for heads, head_dim"),
    ("embed in out", "no in that is not named"),
])  # fmt: skip
def test_bad_layouts(layout, message):
    with pytest.raises(LayoutFault, match=message):
        resolve(parse(layout), [QUERY], {})


def test_parts_need_their_place_and_the_same_rest():
    with pytest.raises(LayoutFault, match=r"needs \{\}"):
        resolve(parse("out in"), [QUERY, KEY], {})
    with pytest.raises(LayoutFault, match="no axis that divides into heads = 4"):
        resolve(parse("(heads {} head_dim) embed"), [QUERY, KEY], {})
    wide = Part("wide", (("embed", 9), ("kv_heads", 2), ("head_dim", 6)), 1)
    with pytest.raises(LayoutFault, match="differ outside"):
        resolve(parse("{} in"), [QUERY, wide], {})
