"""Broken specs: positions, and what attention sees."""

from tests.language.bad_specs import case, graph


def attention(options: str, beside: str = "") -> str:
    return graph(f"[embed, {{attention: {{kv_heads: 2, {options}}}{beside}}}, unembed]")


case("positions misspelt", attention("position: §alibbi"), "unknown-word", "alibi")
case("positions in two ways", attention("position: §{rope: {}, alibi: {}}"), "conflicting-keys",
     says="takes one of its options, found rope and alibi")  # fmt: skip
case("frequencies that grow", attention("position: {rope: {scaling: {dynamic: §{factor: 4}}}}"), "unknown-word",
     says="keys in a cache would have to be turned again")  # fmt: skip
case("a ramp downwards", attention("position: {rope: {scaling: {llama3: §{factor: 2, original: 8, low: 4, high: 1}}}}"),
     "out-of-range", says="from low up to high")  # fmt: skip
case("relative keys ahead", attention("causal: false, position: §transformer_xl"), "axis-mismatch", says="needs causal")
case("relative keys with a cap", attention("position: transformer_xl, softcap: §30"), "conflicting-keys")
case("a table of odd buckets", attention("position: {buckets: {count: 5}}").replace("{attention", "{§attention"),
     "indivisible", says="a multiple of 2")  # fmt: skip
case(
    "a table that nothing reads",
    graph("[{embed: , name: rows}, {attention: {position: rope}, from: §{table: rows}}, unembed]"),
    "unknown-port",
    says="position: buckets",
)
case("an odd width of sinusoids", graph("[embed, {linear: 5}, §sinusoid, {linear: 4}, unembed]"), "indivisible")

# -- the last positions of a sequence
LAST = "name: t\ndims: {vocab: 8, embed: 8, heads: 2, kv_heads: 2, head_dim: 4, latents: 6}\n"


def last(*nodes: str) -> str:
    return f"{LAST}graph:\n  inputs: [{{embed: , from: tokens}}]\n  logits: [{', '.join(nodes)}, unembed]\n"


LATEST = "{latest: , from: inputs}"
case("more made anew than there are", last("{latest: {keep: §7}, from: inputs}"), "out-of-range",
     says="keep = 7 of the last 6 positions")  # fmt: skip
case("the last ones of the last ones", last(LATEST, "{§latest: , name: second}"), "missing-axis",
     says="found [batch recent embed]")  # fmt: skip
case("a window across", last(LATEST, "{attention: {over: recent, window: §4}, from: {context: inputs}}"),
     "conflicting-keys", says="of which a window would keep too little")  # fmt: skip
case("chunks of the last ones", last(LATEST, "{attention: {over: recent, chunk: §4}}"), "conflicting-keys",
     says="count from the first token")  # fmt: skip
case("dropout of itself", attention("drop: §0.5"), "conflicting-keys", says="positions of a context")
case("all left out", last(LATEST, "{attention: {over: recent, drop: §1}, from: {context: inputs}}"), "out-of-range",
     says="would leave nothing")  # fmt: skip
case("a grid without a period", last("{position_table: {rows: 4, each: §2}, from: inputs}"), "missing-key",
     says="whose coordinate has a period")  # fmt: skip
case("a grid that is larger", last("{position_table: {rows: §4, period: 4, after: 1}, from: inputs}"), "out-of-range",
     says="1 + 4 positions in a table of 4")  # fmt: skip
