"""Tiny specs whose graphs fit on a page."""

from __future__ import annotations

from compiler.language.model import Model, loads

HEAD = """
name: tiny
dims: {vocab: 40, embed: 8, mlp: 16, heads: 2, kv_heads: 2, head_dim: 4, rnn: 8}
dtypes: {params: float32, compute: float32}
"""
SPECS = {
    "mlp": "graph: [embed, {mlp: {act: relu}}, unembed]",
    "attention": "graph: [embed, {residual: [{attention: {window: 4}}]}, unembed]",
    "shift": "graph: [embed, {short_conv: 2}, unembed]",
    "repeat": "graph: [embed, {repeat: {times: 3, cycle: [{residual: [{linear: {to: embed}}, tanh]}]}}, unembed]",
    "experts": "dims: {experts: 4, active: 2}\ngraph: [embed, {moe: {act: relu}}, unembed]",
    "frozen": "graph: [{embed: , frozen: true}, {linear: {to: embed}, name: first, frozen: true}, "
              "{linear: {to: embed}, name: second}, unembed]",
}  # fmt: skip


def spec(name: str) -> Model:
    text = HEAD + SPECS[name]
    if SPECS[name].startswith("dims:"):
        head, _, rest = SPECS[name].partition("\n")
        text = HEAD.replace("rnn: 8}", "rnn: 8, " + head.removeprefix("dims: {")) + rest
    return loads(text, f"{name}.yaml")
