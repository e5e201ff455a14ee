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
