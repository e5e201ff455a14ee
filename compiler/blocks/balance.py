"""Terms of the training loss that keep a router of experts in order: one number a row of the batch, float32."""

from __future__ import annotations

from compiler.graph.ir import Value
from compiler.graph.sizes import Size
from compiler.language.env import Env
from compiler.ops.experts import OneHot


def load_balance(env: Env, logits: Value, chosen: Value, score: str, over: str) -> Value:
    """experts / active * sum over experts of the share of tokens that chose it times its mean score, [batch]: 1 where
    all are chosen alike. Tokens of a ``row``, or of the whole ``batch`` (then the same number for each row). Scores
    are the softmax, or the sigmoids over their sum (arXiv:2101.03961, equation 4; arXiv:2412.19437, equations 17 to
    20)."""
    b = env.b
    if score == "softmax":
        scores = b.softmax(logits, "experts")
    else:
        scores = b.sigmoid(logits)
        scores = b.div(scores, b.reduce(scores, "sum", ("experts",)))
    ones = b.expand(b.constant(1.0, "float32"), chosen.type.pairs)
    hits = b.one(OneHot(chosen_of(logits)), ones, chosen)
    share, mean = (_mean(env, v, over) for v in (hits, scores))
    factor = float(chosen_of(logits).constant) / float(chosen.type.size("active").constant)
    total = b.mul(b.reduce(b.mul(share, mean), "sum", ("experts",)), factor)
    return total if "batch" in total.axes else b.expand(total, [("batch", logits.type.size("batch"))])


def router_z(env: Env, logits: Value) -> Value:
    """The mean over a row's tokens of log(sum(exp(logits))) ** 2, [batch] (arXiv:2202.08906, equation 5)."""
    b = env.b
    top = b.stop_gradient(b.reduce(logits, "max", ("experts",)))
    total = b.add(b.log(b.reduce(b.exp(b.sub(logits, top)), "sum", ("experts",))), top)
    return _mean(env, b.square(total), "row")


def chosen_of(logits: Value) -> Size:
    return logits.type.size("experts")


def _mean(env: Env, x: Value, over: str) -> Value:
    """The mean over tokens, of each row or of the batch; padding does not count. The number of tokens is summed beside
    the numbers: where they lie on several devices, all travel together."""
    b = env.b
    tokens = tuple(a for a in x.axes if a not in ("batch", "experts"))
    gone = (*(("batch",) if over == "batch" else ()), *tokens)
    padded = [(a, n) for a in tokens if (n := env.lengths(a)) is not None]
    if not padded:
        return b.reduce(x, "mean", gone)
    axis, lengths = padded[0]
    real = b.cast(b.greater(lengths, b.positions(x, axis)), "float32")
    each = x if "experts" in x.axes else b.expand(x, [("experts", 1)])
    count = each.type.size("experts")
    ones = b.expand(b.constant(1.0, "float32"), [*each.type.drop("experts").pairs, ("experts", 1)])
    sums = b.reduce(b.mul(b.concat(b.arrange(each, ones.axes), ones, axis="experts"), real), "sum", gone)
    number = b.max(b.take(sums, experts=int(count.constant)), 1.0)
    found = b.slice(sums, "experts", 0, count) if "experts" in x.axes else b.take(sums, experts=0)
    return b.div(found, number)
