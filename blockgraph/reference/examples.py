"""The smallest use of every block kind and form, as YAML. Elaborating them gives the weights and state that the pages
show, so an example that does not work stops the pages, and a new kind without one is named."""

from __future__ import annotations

from compiler.language.block import kinds
from compiler.language.forms import FORMS
from compiler.language.model import Model, loads

HEAD = """\
name: example
dims: {vocab: 1000, embed: 64, heads: 4, kv_heads: 2, head_dim: 16, mlp: 256, rnn: 96, experts: 8, active: 2}
"""
AFTER_IMAGE = "inputs:\n  images: {kind: image, size: [32, 32]}\ngraph:\n  - "
AFTER_EMBED = "graph:\n  - embed\n  - "
NODES: dict[str, str] = {
    "attention": "attention: {window: 32, position: rope, softcap: 50}",
    "conv": "conv: {to: 64, kernel: 3, stride: 2, bias: true}",
    "fill": "{fill: {where: 999}, from: {features: seen, ids: tokens}}",
    "gain": "gain: {over: last}",
    "latent_attention": "latent_attention: {rank: 32, rotary_dim: 8, query_rank: 48}",
    "latest": "latest: {count: 64, keep: 56}",
    "linear": "linear: {to: mlp, bias: true}",
    "merge": "merge: {axes: [height, width], to: patches}",
    "mlp": "mlp: {gate: gelu_tanh}",
    "model": "model: {spec: nfnet-f0, output: features, set: {resolution: 32}}",
    "moe": "moe: {gate: silu}",
    "pool": "pool: {by: max, window: 3, stride: 2}",
    "position_table": "position_table: 512",
    "scale": "scale: embed ** -0.5",
    "short_conv": "short_conv: {width: 4, bias: true}",
    "softcap": "softcap: 30",
    "unembed": "unembed: {tied: embed, softcap: 30}",
    "identity": "sum: [identity, {mlp: {act: relu}}]",
    "residual": "residual: [rms_norm, attention]",
    "sum": "sum: [attention, {mlp: {act: gelu}}]",
    "product": "product: [[{linear: {to: rnn}, name: gate}, silu], {linear: {to: rnn}, name: main}]",
    "concat": "concat: {axis: hidden, of: [{linear: {to: 32}, name: left}, {linear: {to: 96}, name: right}]}",
    "repeat": "repeat: {times: 6, cycle: [{rms_norm: , name: norm}, {mlp: {act: gelu}}]}",
}  # fmt: skip
FILLED = """\
inputs: {tokens: {kind: tokens}, images: {kind: image, size: [32, 32]}}
graph:
  seen: [{conv: {to: embed, kernel: 8, stride: 8}, from: images}, {merge: {axes: [height, width], to: patches}}]
  logits:
    - {embed: , from: tokens}
    - {fill: {where: 999}, from: {features: seen, ids: tokens}}
    - unembed
"""
WHOLE: dict[str, str] = {
    "fill": FILLED,
    "embed": "graph:\n  - embed: {scale: sqrt(embed)}\n",
    "conv": f"{AFTER_IMAGE}{NODES['conv']}\n",
    "merge": f"{AFTER_IMAGE}conv: {{to: embed, kernel: 8, stride: 8}}\n  - {NODES['merge']}\n",
    "pool": f"{AFTER_IMAGE}{NODES['pool']}\n",
    "latest": """\
graph:
  inputs: [{embed: , from: tokens}]
  logits:
    - {latest: {count: 64, keep: 56}, from: inputs}
    - residual: [{attention: {over: recent, position: rope, drop: 0.5}, name: cross, from: {context: inputs}}]
    - repeat: {times: 6, cycle: [{residual: [{attention: {over: recent, position: rope}}]}]}
    - unembed
""",
    "model": f"{AFTER_IMAGE}{NODES['model']}\n",
}
PORTED: dict[tuple[str, str], str] = {
    ("fill", "features"): FILLED,
    ("fill", "ids"): FILLED,
    ("attention", "table"): """\
blocks: {bias: {dims: {buckets: 32}, params: {table: buckets heads}, program: {output: table}}}
graph:
  relative: [bias]
  logits:
    - embed
    - repeat:
        times: 4
        cycle: [{residual: [{attention: {position: buckets}, from: {table: relative}}]}]
""",
    ("attention", "added"): """\
inputs:
  tokens: {kind: tokens}
  frames: {kind: features, axes: [frames, embed]}
  weight: {kind: features, axes: [frames]}
graph:
  - embed
  - attention:
    from: {context: frames, added: weight}
""",
    ("attention", "entry"): """\
inputs: {tokens: {kind: tokens}, images: {kind: image, size: [32, 32], count: any, marker: 999}}
blocks:
  markers: {program: {found: "1 - min(abs(float32(input) - 999), 1)", output: "recur(found, 0 * found)"}}
graph:
  seen: [{conv: {to: embed, kernel: 8, stride: 8}, from: images}, {merge: {axes: [height, width], to: patches}}]
  last: [{markers: , from: tokens}]
  logits:
    - {embed: , from: tokens}
    - attention:
      from: {context: seen, entry: last}
""",
    ("attention", "lengths"): """\
inputs:
  tokens: {kind: tokens}
  frames: {kind: features, axes: [frames, embed]}
  useful: {kind: count}
graph:
  - embed
  - attention:
    from: {context: frames, lengths: useful}
""",
    ("attention", "prefix"): """\
inputs: {tokens: {kind: tokens}, prompt: {kind: count}}
graph:
  - embed
  - attention:
    from: {prefix: prompt}
""",
}  # fmt: skip
MORE = tuple(f"{AFTER_EMBED}{node}\n" for node in (  # options that bring in ops of their own
    "moe: {gate: silu, capacity: 1.25}", "moe: {gate: silu, choice: expert}",
))  # fmt: skip
MORE += (f"dtypes: {{weights: int4}}\n{AFTER_EMBED}moe: {{gate: silu}}\n  - unembed: {{tied: embed}}\n",)
# Ops that no kind uses, but programs do.
PROGRAMS: tuple[str, ...] = (
    """\
blocks:
  retention:
    dims: {key_dim: head_dim}
    params: {query: embed -> heads key_dim, key: embed -> heads key_dim, value: embed -> heads head_dim}
    program:
      keep: 1 - exp(-log(2) * (5 + index(query(input), axis=heads)))
      output: recur(value(input), log(keep), key=key(input), query=query(input))
graph:
  - embed
  - retention
""",
)
PORTS = """\
inputs: {tokens: {kind: tokens}, frames: {kind: features, axes: [frames, embed]}}
graph:
  - embed
"""


def node(name: str) -> str:
    """The node that the example is about. A kind without options of its own stands for itself."""
    return NODES.get(name, name)


def graph(name: str) -> str:
    """The example without the dims that all share."""
    return WHOLE.get(name) or f"{AFTER_EMBED}{node(name)}\n"


def with_port(name: str, port: str) -> str:
    """An example that fills a port, from another input where nothing else is said."""
    if (name, port) in PORTED:
        return PORTED[name, port]
    return f"{PORTS}  - {name}:\n    from: {{{port}: frames}}\n"


def build(text: str) -> Model:
    """Elaborates an example. Raises SpecError where it does not work."""
    return loads(HEAD + text, "<example>")


def all_models() -> list[Model]:
    """Every example, elaborated."""
    names = sorted({*kinds(), *FORMS})
    ported = [with_port(name, port) for name, cls in sorted(kinds().items()) for port in cls.ports]
    return [build(text) for text in [*(graph(n) for n in names), *ported, *PROGRAMS, *MORE]]
