"""Every op in a small case: what it takes, how it is built, what NumPy says. A new op needs a case here."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from compiler.graph.sizes import Size
from compiler.ops.attention import Attend
from compiler.ops.bias import Buckets, Dense, Relative, Slopes
from compiler.ops.elementwise import TABLE
from compiler.ops.experts import Collect, Dispatch, ExpertDot, OneHot, PickExperts
from compiler.ops.frequencies import Yarn
from compiler.ops.lookup import Put, ScatterAdd
from compiler.ops.loss import Pick, Place, cross_entropy, masked_mean
from compiler.ops.recurrence import Recur, ShortConv
from compiler.ops.rotate import Rotate
from compiler.ops.rows import FromRows, ToRows
from compiler.ops.shape import Merge, Pad, Split
from tests.ops import latest_cases, linear_cases, packed_cases, seat_cases, window_cases
from tests.ops import reference as ref
from tests.ops.build import Case

N: Any = np
UNARY = {
    "neg": N.negative, "abs": N.abs, "sign": N.sign, "exp": N.exp, "tanh": N.tanh, "square": N.square,
    "erf": N.vectorize(math.erf), "sigmoid": lambda x: 1 / (1 + N.exp(-x)), "softplus": lambda x: N.log1p(N.exp(x)),
    "relu": lambda x: N.maximum(x, 0), "squared_relu": lambda x: N.maximum(x, 0) ** 2,
    "silu": lambda x: x / (1 + N.exp(-x)), "gelu": lambda x: x * 0.5 * (1 + N.vectorize(math.erf)(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + N.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}  # fmt: skip
POSITIVE = {"log": N.log, "sqrt": N.sqrt, "bounded_sqrt": N.sqrt, "rsqrt": lambda x: 1 / N.sqrt(x)}
BINARY = {"add": N.add, "sub": N.subtract, "mul": N.multiply, "max": N.maximum, "min": N.minimum, "div": N.divide}
ABOVE = np.random.default_rng(7).uniform(0.5, 3, (2, 3))
IDS = np.array([[0, 3, 1], [3, 3, 2]])
CHOSEN = np.array([[[0, 2], [1, 0], [2, 1]], [[2, 0], [2, 1], [0, 1]]])


def _call(fn: str, *args: Any, **options: Any) -> Any:
    return lambda b, *xs: getattr(b, fn)(*xs, *args, **options)


def _op(op: Any) -> Any:
    return lambda b, *xs: b.apply(op, *xs)


def _elementwise() -> list[Case]:
    x = {"x": "batch=2 seq=3"}
    made = [Case(fn, x, _call(fn), f, differentiable=fn != "sign") for fn, f in UNARY.items()]
    made += [Case(fn, x, _call(fn), f, {"x": ABOVE}) for fn, f in POSITIVE.items()]
    for fn, f in BINARY.items():
        # broadcast by name: y lacks an axis of x and stands in another order
        values = {"y": [[1.5, -2, 0.7], [2, 1, -1]]} if fn == "div" else {}
        inputs = {"x": "batch=2 seq=3 embed=4", "y": "batch=2 seq=3"}
        made.append(Case(fn, inputs, _call(fn), lambda x, y, f=f: f(x, y[..., None]), values))
    made.append(Case("power", {"x": "batch=2 seq=3", "y": "batch=2 seq=3"}, _call("power"), N.power, {"x": ABOVE}))
    ties = {"x": [[1, 2, 3], [1, 1, 1]], "y": [[1, 3, 2], [0, 1, 2]]}
    flat = {"x": "batch=2 seq=3", "y": "batch=2 seq=3"}
    made += [
        *(Case(fn, flat, lambda b, x, y, fn=fn: b.cast(getattr(b, fn)(x, y), "float32"), f, ties, differentiable=False)
          for fn, f in (("greater", N.greater), ("equal", N.equal))),
        Case(
            "select", {"c": "batch=2 seq=3", "x": "batch=2 seq=3", "y": "batch=2 seq=3"},
            lambda b, c, x, y: b.select(b.greater(b.stop_gradient(c), 0.0), x, y),
            lambda c, x, y: np.where(c > 0, x, y), differentiable=False,
        ),
        Case("select_both", flat, lambda b, x, y: b.select(b.greater(x, y), x, y), N.maximum),
        Case("softcap", x, _call("softcap", 5.0), lambda x: 5 * np.tanh(x / 5)),
        Case("cast", {"x": "seq=3"}, lambda b, x: b.cast(b.cast(x, "bfloat16"), "float32"), lambda x: x, atol=1e-2),
        Case("stop_gradient", {"x": "seq=3"}, lambda b, x: b.mul(x, b.stop_gradient(x)), np.square),
    ]  # fmt: skip
    return made


def _shapes() -> list[Case]:
    x = {"x": "batch=2 seq=3 embed=4"}
    return [
        Case("index", {"x": "batch=2 heads=3"}, lambda b, x: b.mul(x, b.index(x, "heads")), lambda x: x * np.arange(3)),
        *(Case(f"{fn}_of_two", {"x": "batch=2 heads=3 embed=4"}, _call(fn, ["heads", "embed"], 1e-3),
               lambda x, k=kind: ref.norm(k, 1e-3)(x.reshape(2, 12)).reshape(2, 3, 4))
          for fn, kind in (("rms_norm", "rms"), ("layer_norm", "layer"), ("l2_norm", "l2"))),
        Case("arrange", x, _call("arrange", ("embed", "batch", "seq")), lambda x: x.transpose(2, 0, 1)),
        Case("rename", x, _call("rename", embed="mlp"), lambda x: x),
        Case("split", x, lambda b, x: b.one(Split("embed", ("a", "b"), (Size.of(2), Size.of(2))), x),
             lambda x: x.reshape(2, 3, 2, 2)),
        Case("merge", x, lambda b, x: b.one(Merge(("batch", "seq"), "rows"), x), lambda x: x.reshape(6, 4)),
        Case("sum", x, _call("reduce", "sum", ("seq",)), lambda x: x.sum(1)),
        Case("mean", x, _call("reduce", "mean", ("embed", "batch")), lambda x: x.mean((0, 2))),
        Case("mean_of_symbols", {"x": "batch=rows seq=time"}, _call("reduce", "mean", ("batch", "seq")),
             lambda x: x.mean(), sizes={"rows": 2, "time": 3}),
        Case("largest", x, _call("reduce", "max", ("seq",)), lambda x: x.max(1)),
        Case("expand", {"x": "seq=3"}, _call("expand", [("batch", 2)]), lambda x: np.stack([x, x])),
        Case("concat", {"x": "seq=3 embed=4", "y": "seq=2 embed=4"}, _call("concat", axis="seq"),
             lambda x, y: np.concatenate([x, y])),
        Case("slice", x, _call("slice", "seq", 1, 2), lambda x: x[:, 1:]),
        Case("take", x, _call("take", seq=2), lambda x: x[:, 2]),
        Case("pad", x, lambda b, x: b.one(Pad("seq", Size.of(1), Size.of(2)), x),
             lambda x: np.pad(x, [(0, 0), (1, 2), (0, 0)])),
        Case("shift_later", x, _call("shift", "seq", 1), lambda x: np.pad(x, [(0, 0), (1, 0), (0, 0)])[:, :3]),
        Case("shift_earlier", x, _call("shift", "seq", -2), lambda x: np.pad(x, [(0, 0), (0, 2), (0, 0)])[:, 2:]),
        Case("shift_out", x, _call("shift", "seq", 5), np.zeros_like),
    ]  # fmt: skip


def _products() -> list[Case]:
    x, table = "batch=2 seq=3 embed=4", {"table": "vocab=5 embed=4", "ids": "batch=2 seq=3:int32"}
    logits = {"x": "batch=2 seq=3 vocab=4", "ids": "batch=2 seq=3:int32"}

    def nll(x: Any, ids: Any) -> Any:
        return -np.log(np.take_along_axis(ref.softmax(x.astype(float)), ids[..., None], -1)[..., 0])

    return [
        Case("dot", {"x": x, "w": "embed=4 mlp=5"}, _call("dot", ("embed",)), lambda x, w: x @ w),
        Case("dot_two", {"x": "batch=2 heads=3 dim=4", "w": "heads=3 dim=4 embed=5"}, _call("dot", ("heads", "dim")),
             lambda x, w: np.einsum("bhd,hde->be", x, w)),
        Case("dot_batched", {"x": "batch=2 blocks=3 a=4", "w": "blocks=3 a=4 c=2"}, _call("dot", ("a",)),
             lambda x, w: np.einsum("bka,kac->bkc", x, w)),
        Case("dot_outer", {"x": "batch=2 a=4", "w": "batch=2 c=3"}, _call("dot"),
             lambda x, w: x[:, :, None] * w[:, None]),
        *(Case(f"norm_{kind}", {"x": x}, _call("norm", kind, "embed", 1e-3), ref.norm(kind, 1e-3))
          for kind in ("rms", "layer", "l2")),
        Case("softmax", {"x": x}, _call("softmax"), ref.softmax),
        Case("lookup", table, _call("lookup"), lambda t, i: t[i], {"ids": IDS}),
        Case("lookup_outside", table, _call("lookup"), lambda t, i: t[np.where((i >= 0) & (i < 5), i, 0)],
             {"ids": [[-1, 9, 1], [4, 5, 0]]}),
        Case("put", {"table": "held=3 seq=2 embed=4", "x": "seq=2 embed=4", "id": ":int32"},
             lambda b, t, x, i: b.one(Put("held"), t, x, i),
             lambda t, x, i: np.where(np.arange(3)[:, None, None] == i, x, t), {"id": 1}),
        Case("scatter_add", {"g": x, "ids": "batch=2 seq=3:int32"},
             lambda b, g, ids: b.one(ScatterAdd("vocab", Size.of(5)), ids, g), _scattered, {"ids": IDS}),
        Case("pick", logits, _op(Pick("vocab")), lambda x, i: np.take_along_axis(x, i[..., None], -1)[..., 0],
             {"ids": IDS}),
        Case("place", {"g": "batch=2 seq=3", "ids": "batch=2 seq=3:int32"}, _op(Place("vocab", Size.of(5))),
             lambda g, i: np.eye(5)[i] * g[..., None], {"ids": IDS}),
        Case("cross_entropy", logits, cross_entropy, nll, {"ids": IDS}),
        Case("masked_mean", {"x": "batch=2 seq=3", "m": "batch=2 seq=3"},
             lambda b, x, m: masked_mean(b, x, b.stop_gradient(m)), lambda x, m: (x * m).sum() / m.sum(),
             {"m": [[1, 1, 0], [1, 0, 0]]}, differentiable=False),
    ]  # fmt: skip


def _scattered(g: Any, ids: Any) -> Any:
    out = np.zeros((5, 4))
    np.add.at(out, ids.reshape(-1), g.reshape(-1, 4))
    return out


def _attention() -> list[Case]:
    def one(id: str, q: str, k: str, v: str = "", lengths: str = "", **options: Any) -> Case:
        inputs = {"q": q, "k": k, "v": v or k} | ({"lengths": lengths} if lengths else {})
        implementation = options.pop("implementation", "plain")

        def build(b: Any, q: Any, k: Any, v: Any, *lengths: Any) -> Any:
            fields = {"causal": True, "scale": 0.6, **options}
            return b.apply(Attend(**fields, implementation=implementation), q, k, v, *lengths)[0]

        def expect(q: Any, k: Any, v: Any, n: Any = None) -> Any:
            given = {key: options[key] for key in ("causal", "window", "softcap", "chunk") if key in options}
            return ref.attend(q, k, v, scale=0.6, lengths=n, **given)

        return Case(id, inputs, build, expect, {"lengths": [4, 2]})

    def biased(id: str, bias: Any, operands: dict[str, str], added: Any, k: str = "", **options: Any) -> Case:
        """``added`` of the operands gives the reference's function of (b, t, s, h)."""
        lengths = {"lengths": "batch=2:int32"} if options.get("causal") is False else {}
        inputs = {"q": q, "k": k or keys, "v": k or keys, **operands, **lengths}

        def build(b: Any, *xs: Any) -> Any:
            return b.apply(Attend(scale=0.6, bias=bias, **options), *xs)[0]

        def expect(q: Any, k: Any, v: Any, *rest: Any) -> Any:
            given = {key: options[key] for key in ("causal", "window", "softcap") if key in options}
            rest, n = (rest[:-1], rest[-1]) if lengths else (rest, None)
            return ref.attend(q, k, v, scale=0.6, lengths=n, added=added(*rest), **given)

        return Case(id, inputs, build, expect, {"lengths": [4, 2]}, differentiable=not isinstance(bias, Slopes))

    q, k = "batch=2 seq=5 heads=4 head_dim=3", "batch=2 seq=5 kv_heads=2 head_dim=3"
    keys, slopes, far = k, {"slopes": "heads=4"}, Buckets(8, 5)
    table = {"table": "buckets=8 heads=4"}
    relative = {"position_queries": q, "position_keys": "distance=5 heads=4 head_dim=3"}

    def alibi(m: Any) -> Any:
        return lambda b, t, s, h: -m[h] * abs(t - s)

    def t5(kind: Buckets) -> Any:
        return lambda table: lambda b, t, s, h: table[ref.bucket(t - s, kind.count, kind.distance, kind.ahead), h]

    def xl(queries: Any, keys: Any) -> Any:
        return lambda b, t, s, h: 0.6 * float(queries[b, t, h] @ keys[t - s, h])

    def dense(x: Any) -> Any:
        return lambda b, t, s, h: x[t, h, s]

    def segmented(implementation: str) -> Case:
        """Numbers of keys alike in all rows; a query whose number no key has; keys behind a row's length."""
        op = Attend(scale=0.6, segments=True, implementation=implementation, **cross)
        inputs = {"q": q, "k": frames, "v": frames, "mine": "batch=2 seq=5:int32", "theirs": "frame=6:int32",
                  "n": "batch=2:int32"}  # fmt: skip
        values = {"mine": [[0, 1, 1, 2, 3], [3, 3, 0, 1, 2]], "theirs": [1, 1, 2, 2, 3, 3], "n": [6, 5]}

        def expect(q: Any, k: Any, v: Any, mine: Any, theirs: Any, n: Any) -> Any:
            segments = mine, np.stack([theirs, theirs])
            return ref.attend(q, k, v, scale=0.6, causal=False, lengths=n, segments=segments)

        return Case(f"attend_segments_{implementation}", inputs, lambda b, *xs: b.apply(op, *xs)[0], expect, values)

    both = Buckets(8, 5, ahead=True)
    one_kv, wide = "batch=2 seq=5 kv_heads=1 head_dim=3", "batch=2 seq=5 kv_heads=2 value_dim=6"
    frames = "batch=2 frame=6 kv_heads=2 head_dim=3"
    cross: dict[str, Any] = {"causal": False, "keys": "frame"}
    tiles = ("plain", "blocked")
    return [
        one("attend", q, k),
        one("attend_one_kv", q, one_kv),
        one("attend_wide_values", q, k, wide),
        one("attend_window_cap", q, k, window=2, softcap=2.0),
        one("attend_both_ways", q, k, lengths="batch=2:int32", causal=False),
        one("attend_both_ways_window", q, k, window=2, causal=False),
        one("attend_both_ways_tiles", q, k, lengths="batch=2:int32", window=2, causal=False, implementation="blocked"),
        one("attend_cross", q, frames, lengths="batch=2:int32", **cross),
        one("attend_blocked", q, k, wide, window=3, softcap=2.0, implementation="blocked"),
        one("attend_cross_blocked", q, frames, lengths="batch=2:int32", implementation="blocked", **cross),
        one("attend_chunks", q, k, chunk=2),
        one("attend_chunks_both_ways", q, k, chunk=2, causal=False, implementation="blocked"),
        biased("attend_slopes", Slopes(), slopes, alibi, softcap=2.0),
        biased("attend_slopes_both_ways", Slopes(), slopes, alibi, causal=False),
        biased("attend_buckets", far, table, t5(far), window=4, implementation="blocked"),
        biased("attend_buckets_ahead", both, table, t5(both), causal=False),
        *(biased(f"attend_relative_{i}", Relative(), relative, xl, window=4, implementation=i) for i in tiles),
        biased("attend_dense", Dense(), {"added": "seq=5 heads=4 keys=5"}, dense, implementation="blocked"),
        biased("attend_dense_of_keys", Dense("frame"), {"added": "batch=2 frame=6"},
               lambda x: lambda b, t, s, h: x[b, s], frames, softcap=2.0, **cross),
        Case("attend_prefix", {"q": q, "k": k, "v": k, "p": "batch=2:int32"},
             lambda b, q, k, v, p: b.attend(q, k, v, prefix=p, scale=0.6),
             lambda q, k, v, p: ref.attend(q, k, v, scale=0.6, prefix=p), {"p": [3, 0]}),
        *(segmented(i) for i in tiles),
        Case("attend_packed", {"q": q, "k": k, "v": k, "n": "batch=2 seq=5:int32"},
             lambda b, q, k, v, n: b.attend(q, k, v, scale=0.6, query_segments=n, key_segments=n),
             lambda q, k, v, n: ref.attend(q, k, v, scale=0.6, segments=(n, n)),
             {"n": [[0, 0, 1, 1, 1], [2, 2, 2, 2, 0]]}),
        Case("attend_sinks", {"q": q, "k": k, "v": wide, "sinks": "heads=4"},
             lambda b, q, k, v, s: b.attend(q, k, v, window=2, scale=0.6, sinks=s),
             lambda q, k, v, s: ref.attend(q, k, v, scale=0.6, window=2, sinks=s)),
        Case("attend_latent",
             {"q": q, "q_rotary": "batch=2 seq=5 heads=4 rotary_dim=2", "latent": "batch=2 seq=5 latent=6",
              "k_rotary": "batch=2 seq=5 rotary_dim=2", "key": "latent=6 heads=4 head_dim=3",
              "value": "latent=6 heads=4 value_dim=5"}, _call("attend_latent"), _latent),
    ]  # fmt: skip


def _latent(q: Any, q_rotary: Any, latent: Any, k_rotary: Any, key: Any, value: Any) -> Any:
    keys = np.einsum("bsl,lhd->bshd", latent, key)
    shared = np.broadcast_to(k_rotary[:, :, None], (*keys.shape[:3], k_rotary.shape[-1]))
    k = np.concatenate([keys, shared], -1)
    return ref.attend(np.concatenate([q, q_rotary], -1), k, np.einsum("bsl,lhd->bshd", latent, value), scale=5**-0.5)


def _recurrences() -> list[Case]:
    decay = -np.abs(np.random.default_rng(3).normal(size=(2, 6, 4)))
    values, x = {"decay": decay}, "batch=2 seq=6 rnn=4"
    made = []
    for reverse in (False, True):
        for kind in ("step", "associative", "blocked"):
            made.append(
                Case(f"recur_{kind}_{reverse}", {"x": x, "decay": x}, _op(Recur("seq", reverse, kind)),
                     lambda v, d, r=reverse: ref.recur(v, d, reverse=r), values))  # fmt: skip
        made += [
            Case(f"recur_state_{reverse}", {"x": x, "decay": x, "state": "batch=2 rnn=4"}, _op(Recur("seq", reverse)),
                 lambda v, d, s, r=reverse: ref.recur(v, d, s, r), values),
            Case(f"short_conv_{reverse}", {"x": x, "kernel": "rnn=4 window=3"},
                 _op(ShortConv("seq", "window", reverse)), lambda x, k, r=reverse: ref.short_conv(x, k, reverse=r)),
            Case(f"short_conv_tail_{reverse}",
                 {"x": x, "kernel": "rnn=4 window=3", "tail": "batch=2 taps=2 rnn=4"},
                 _op(ShortConv("seq", "window", reverse)), lambda x, k, t, r=reverse: ref.short_conv(x, k, t, r)),
            Case(f"short_conv_longer_tail_{reverse}",
                 {"x": "batch=2 seq=1 rnn=4", "kernel": "rnn=4 window=4", "tail": "batch=2 taps=3 rnn=4"},
                 _op(ShortConv("seq", "window", reverse)), lambda x, k, t, r=reverse: ref.short_conv(x, k, t, r)),
        ]  # fmt: skip
    heads, at = {"x": "batch=2 seq=3 heads=2 head_dim=6", "p": "batch=2 seq=3:int32"}, {"p": [[0, 1, 2], [5, 900, 31]]}
    made += [
        Case(
            f"rotate_{pairs}_{channels}",
            heads,
            _op(Rotate("head_dim", 100.0, channels, pairs)),
            lambda x, p, c=channels, k=pairs: ref.rotate(x, p, [100.0 ** (-2 * i / c) for i in range(c // 2)], k),
            at,
        )
        for pairs in ("half", "interleaved")
        for channels in (6, 4)
    ]
    waves = 10.0 ** np.array([0, -0.5]) * np.array([[0], [1], [900]])  # a position and a pair
    made += [
        Case(
            f"sinusoid_{pairs}",
            {"x": "batch=1 seq=3 embed=4", "p": "batch=1 seq=3:int32"},
            lambda b, x, p, k=pairs: b.mul(x, b.sinusoid(p, "embed", 4, theta=10.0, pairs=k)),
            lambda x, p, o=order: x * np.concatenate([np.sin(waves), np.cos(waves)], 1)[:, o],
            {"p": [[0, 1, 900]]},
        )
        for pairs, order in (("half", [0, 1, 2, 3]), ("interleaved", [0, 2, 1, 3]))
    ]
    yarn = Yarn(factor=4.0, original=64.0, attention=1.5)  # of three pairs, a third is kept and a third stretched
    made += [
        Case(f"rotate_scaled_{pairs}", heads, _op(Rotate("head_dim", 100.0, 6, pairs, scaling=yarn)),
             lambda x, p, k=pairs: ref.rotate(x, p, [1, 100 ** (-1 / 3) * 0.625, 100 ** (-2 / 3) / 4], k, 1.5), at)
        for pairs in ("half", "interleaved")
    ]  # fmt: skip
    return made


def _experts() -> list[Case]:
    logits, weights, chosen = "batch=2 seq=3 experts=4", "batch=2 seq=3 active=2", "batch=2 seq=3 active=2:int32"

    def mixture(kind: str) -> Any:
        def build(b: Any, x: Any, weights: Any, chosen: Any, w: Any) -> Any:
            rows, order, groups = b.apply(Dispatch(Size.of(3), implementation=kind), x, chosen)
            y = b.one(ExpertDot(("embed",), kind, Size.of(3)), rows, w, groups)
            return b.one(Collect(Size.of(3), implementation=kind), y, weights, chosen, order)

        return build

    def two(kind: str) -> Any:
        def build(b: Any, x: Any, weights: Any, chosen: Any, w: Any) -> Any:
            rows, order, groups = b.apply(Dispatch(Size.of(3), implementation=kind), x, chosen)
            back = b.arrange(b.rename(w, embed="mlp", mlp="embed"), ("experts", "mlp", "embed"))
            h = b.one(ExpertDot(("embed",), kind, Size.of(3)), rows, w, groups)
            y = b.one(ExpertDot(("mlp",), kind, Size.of(3)), b.tanh(h), back, groups)
            return b.one(Collect(Size.of(3), implementation=kind), y, weights, chosen, order)

        return build

    books = {"c": chosen, "o": "pairs=12:int32"}
    values = {"c": CHOSEN, "o": np.argsort(np.asarray(CHOSEN).reshape(-1), kind="stable")}
    inputs = {"x": "batch=2 seq=3 embed=4", "weights": weights, "chosen": chosen, "w": "experts=3 embed=4 mlp=4"}
    return [
        *(Case(f"route_{n}", {"x": logits}, _call("route", 2, n), ref.route(2, n)) for n in (True, False)),
        Case("route_sigmoid", {"x": "batch=2 seq=3 experts=8", "c": "experts=8"},
             lambda b, x, c: b.route(x, 3, score="sigmoid", correction=c),
             ref.route(3, score="sigmoid"), differentiable=False),
        Case("route_sigmoid_scaled", {"x": "batch=2 seq=3 experts=8"}, _call("route", 3, score="sigmoid", scale=2.5),
             ref.route(3, score="sigmoid", scale=2.5)),
        *(Case(f"route_groups_{by}", {"x": "batch=2 seq=3 experts=8"},
               _call("route", 3, False, groups=4, active_groups=2, by=by),
               ref.route(3, False, groups=4, open_=2, by=by)) for by in ("max", "top2")),
        *(Case(f"experts_{k}", inputs, mixture(k), ref.mixture, {"chosen": CHOSEN}) for k in ("ragged", "dense")),
        *(Case(f"two_experts_{k}", inputs, two(k), None, {"chosen": CHOSEN}) for k in ("ragged", "dense")),
        Case("one_hot", {"w": weights, "c": chosen}, _op(OneHot(Size.of(4))),
             lambda w, c: (np.eye(4)[c] * w[..., None]).sum(2), {"c": CHOSEN}),
        Case("pick_experts", {"x": logits, "c": chosen}, _op(PickExperts()),
             lambda x, c: np.take_along_axis(x, c, -1), {"c": CHOSEN}),
        Case("to_rows", {"x": "batch=2 seq=3 embed=4", **books}, _op(ToRows(Size.of(3))),
             lambda x, c, o: x.reshape(6, 4)[o // 2], values),
        Case("to_rows_each", {"x": weights, **books}, _op(ToRows(Size.of(3))),
             lambda x, c, o: x.reshape(12)[o], values),
        Case("from_rows", {"y": "rows=12 embed=4", **books}, _op(FromRows(Size.of(3))),
             lambda y, c, o: y[np.argsort(o)].reshape(2, 3, 2, 4), values),
    ]  # fmt: skip


CASES = [
    *_elementwise(), *_shapes(), *_products(), *_attention(), *_recurrences(), *_experts(), *seat_cases.cases(),
    *packed_cases.cases(), *window_cases.cases(), *linear_cases.cases(), *latest_cases.cases(),
]  # fmt: skip
untested = set(TABLE) - {c.id for c in CASES}
assert not untested, f"functions without a case: {untested}"
