"""The picture: boxes from the op graph, folds, counts, state, and that it draws the same bytes everywhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockgraph import picture
from compiler.errors import BlockgraphError
from compiler.language.load import shipped
from compiler.language.model import load, loads

DIMS = (
    "name: tiny\ndims: {vocab: 100, embed: 64, heads: 4, kv_heads: 2, head_dim: 16, mlp: 256, width: 96, frames: 20}\n"
)
LAYER = """\
blocks:
  layer:
    args: {w: 4}
    body:
      - residual: [{rms_norm: , name: before}, {attention: {window: w}}]
      - residual: [{rms_norm: , name: after}, {mlp: {act: relu}}]
"""
TWO_INPUTS = (
    DIMS
    + """\
inputs: {tokens: {kind: tokens}, audio: {kind: features, axes: [frames, width]}}
blocks:
  cross:
    inputs: [context]
    body: [{residual: [rms_norm, {attention: , from: {context: context}}]}]
graph:
  encoder: [{linear: {to: embed}, from: audio, frozen: true, name: project}]
  logits:
    - embed
    - repeat: {times: 4, cycle: [{cross: , from: {context: encoder}}]}
    - {rms_norm: , name: final}
    - unembed
  value: [{linear: {to: 1}, from: final, name: head}]
outputs: {logits: logits, value: value}
"""
)


def named(made: dict[str, Any], part: str, name: str) -> list[dict[str, Any]]:
    return [n for n in made[part] if n["name"] == name]


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_parameter_is_in_one_box_and_every_edge_between_boxes(name: str) -> None:
    model = load(name)
    made = picture.layout(model)
    assert sum(n.get("parameters", 0) for n in made["nodes"]) == model.parameter_count() == made["parameters"]
    ids = [n["id"] for n in (*made["nodes"], *made["clusters"])]
    assert len(set(ids)) == len(ids)
    ends = {e[side] for e in made["edges"] for side in ("from", "to")}
    assert ends == {n["id"] for n in made["nodes"]}, "a box stands alone, or an edge leads nowhere"
    assert len(made["nodes"]) <= 40, "repeated layers are not folded"


def test_alternating_layers_are_two_parts_of_one_repeat() -> None:
    made = picture.layout(load("gemma2-9b"))
    repeat, local, globally = made["clusters"]
    assert (repeat["kind"], repeat["times"]) == ("repeat", 21)
    assert local["layers"] == list(range(0, 42, 2)) and globally["layers"] == list(range(1, 42, 2))
    first, second = named(made, "nodes", "attention")
    assert "window 4,096" in first["options"] and {s["kind"] for s in first["state"]} == {"ring"}
    assert {s["kind"] for s in second["state"]} == {"cache"}
    assert named(made, "nodes", "unembed")[0]["uses"] == ["embed"]
    assert first["runs"] == 21 and first["parameters"] // 21 == 3584 * 256 * (16 + 8 + 8 + 16)


def test_a_cycle_cut_short_is_folded_into_its_first_part() -> None:
    made = picture.layout(load("recurrentgemma-2b"))
    recurrent = next(c for c in made["clusters"] if c["name"] == "layer" and c["times"] == 2)
    assert recurrent["layers"] == [n for n in range(26) if n % 3 != 2]
    assert named(made, "nodes", "conv")[0]["runs"] == 18
    assert {s["kind"] for s in named(made, "nodes", "lru")[0]["state"]} == {"recurrent"}


def test_layers_that_were_written_out_are_folded_with_a_range() -> None:
    graph = "graph: [embed, {repeat: {times: 6, cycle: [{layer: {w: 4 + layer}}]}}, unembed]\n"
    model = loads(DIMS + LAYER + graph)
    assert model.warnings
    made = picture.layout(model)
    (cluster,) = made["clusters"]
    assert (cluster["times"], cluster["layers"]) == (6, list(range(6)))
    assert "window 4 … 9" in named(made, "nodes", "attention")[0]["options"]


def test_inputs_outputs_context_and_frozen_boxes() -> None:
    made = picture.layout(loads(TWO_INPUTS))
    assert [n["name"] for n in made["nodes"] if n["kind"] == "input"] == ["tokens", "audio"]
    assert [n["name"] for n in made["nodes"] if n["kind"] == "output"] == ["logits", "value"]
    assert named(made, "nodes", "project")[0]["frozen"] and not named(made, "nodes", "head")[0]["frozen"]
    (side,) = [e for e in made["edges"] if e["side"]]
    assert (side["from"], side["to"]) == ("project", "cross.attention")
    assert {s["kind"] for s in named(made, "nodes", "attention")[0]["state"]} == {"context"}


def test_branches_meet_in_joins() -> None:
    graph = (
        "graph:\n  - embed\n  - sum: [{mlp: {act: relu}, name: a}, {mlp: {act: gelu}, name: b}, identity]\n  - silu\n"
    )
    made = picture.layout(loads(DIMS + graph))
    (join,) = [n for n in made["nodes"] if n["kind"] == "join"]
    assert join["name"] == "+" and len([e for e in made["edges"] if e["to"] == join["id"]]) == 3
    assert [n["name"] for n in made["nodes"] if n["kind"] == "function"] == ["silu"]


def test_a_long_chain_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "MOST_DRAWN", 500)
    nodes = "".join(f"  - {{linear: {{to: {64 + i}}}, name: l{i}}}\n" for i in range(600))
    model = loads(f"{DIMS}graph:\n  - embed\n{nodes}")
    started = time.process_time()
    with pytest.raises(BlockgraphError, match="would have 603 boxes, and at most 500"):
        picture.draw(model, tmp_path / "x.svg")
    assert time.process_time() - started < 2  # looking for what repeats took 4 s, and grew with the cube


def test_depth_closes_blocks_without_losing_parameters() -> None:
    model = load("gemma2-9b")
    made = picture.layout(model, depth=1)
    assert [n["name"] for n in made["nodes"] if n["kind"] == "box"] == ["embed", "layer", "layer", "final", "unembed"]
    assert sum(n.get("parameters", 0) for n in made["nodes"]) == model.parameter_count()
    with pytest.raises(BlockgraphError, match="at least 1"):
        picture.layout(model, depth=0)


HYBRID = (
    DIMS
    + """\
blocks:
  layer:
    args: {mixer: block}
    body:
      - residual: [{rms_norm: , name: before}, mixer]
      - residual: [{rms_norm: , name: after}, {mlp: {act: relu}}]
  thin: {args: {mixer: block}, body: [{residual: [rms_norm, mixer]}]}
  deep:
    body:
      - product: [[{linear: {to: mlp}, name: gate}, silu], [{linear: {to: mlp}, name: main}, {short_conv: 4}]]
      - {linear: {to: embed}, name: out}
"""
)
PARTS = {
    "global": "{layer: {mixer: {attention: {position: rope}}}}",
    "thin": "{thin: {mixer: {attention: {window: 5}}}}",
    "deep": "{layer: {mixer: deep}}",
    "flat": "{layer: {mixer: {linear: embed}}}",
}


@pytest.mark.parametrize(
    ("times", "parts"),
    [(9, "global deep flat"), (10, "global deep flat"), (7, "thin global deep"), (4, "deep thin"), (5, "thin deep"),
     (11, "global thin deep flat")],
)  # fmt: skip
def test_the_parts_of_a_cycle_stand_in_their_order(times: int, parts: str) -> None:
    """From left to right as they run, each with its link to the next; what follows is below them all."""
    cycle = ", ".join(PARTS[p] for p in parts.split())
    graph = f"graph: [embed, {{repeat: {{times: {times}, cycle: [{cycle}]}}}}, {{rms_norm: , name: final}}, unembed]\n"
    text = picture.source(loads(HYBRID + graph))
    done = subprocess.run([picture._binary(), "-Tplain"], input=text, capture_output=True, text=True, check=True)
    places = {w[1]: (float(w[2]), float(w[3])) for w in map(str.split, done.stdout.splitlines()) if w[0] == "node"}
    links = re.findall(r"^\t(top_\w+) -> (n\d+) \[(.*)\]", text, re.MULTILINE)
    assert len(links) == len(parts.split()) - 1 and not any("dir=" in style for _, _, style in links)
    assert all(places[top][0] < places[head][0] for top, head, _ in links)
    heads = [places[head][0] for _, head, _ in links]
    assert heads == sorted(heads)
    (final,) = re.findall(r"^\t(n\d+) \[label=<<b>final</b>", text, re.MULTILINE)
    following = {final, *(f"n{int(final[1:]) + i}" for i in (1, 2))}
    assert places[final][1] < min(y for name, (_, y) in places.items() if name not in following)


def test_a_cycle_with_more_inputs_has_its_parts_one_below_the_other() -> None:
    """Beside each other they would stand as Graphviz likes."""
    parts = "{cross: , from: {context: encoder}}", "{cross: , from: {context: encoder}, name: again}"
    model = loads(TWO_INPUTS.replace(f"times: 4, cycle: [{parts[0]}]", f"times: 8, cycle: [{', '.join(parts)}]"))
    assert [c["name"] for c in picture.layout(model)["clusters"]] == ["", "cross", "again"]
    assert "top_" not in picture.source(model)


def test_boxes_tell_partial_rotary_and_the_cap() -> None:
    made = picture.layout(load("recurrentgemma-2b"))
    assert "rotary 128 of 256" in named(made, "nodes", "local")[0]["options"]
    assert named(made, "nodes", "unembed")[0]["options"] == ["softcap 30"]
    assert "rotary" in named(picture.layout(load("gemma2-9b")), "nodes", "attention")[0]["options"]


def test_svg_and_png_are_drawn_without_the_systems_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    model = load("gemma2-2b")
    svg = picture.draw(model, tmp_path / "a.svg").read_text(encoding="utf-8")
    assert svg.rstrip().endswith("</svg>") and "window 4,096" in svg and "layers 0, 2, … 24" in svg
    assert 'fill="white"' in svg, "an opaque background, so that it reads on a dark page"
    assert picture.draw(model, tmp_path / "deep" / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(BlockgraphError, match=r"\.svg or \.png"):
        picture.draw(model, tmp_path / "a.pdf")


def test_nothing_to_draw_with_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture.shutil, "which", lambda *args, **kwargs: None)
    with pytest.raises(BlockgraphError, match="graphviz-pure"):
        picture.draw(load("gemma2-2b"), tmp_path / "a.svg")


@pytest.mark.parametrize("name", ["gemma2-9b", "recurrentgemma-2b"])
def test_same_spec_same_text_in_any_process_and_no_jax(name: str) -> None:
    script = (
        "import sys; from blockgraph import picture; from compiler.language.model import load; "
        f"print(picture.source(load({name!r}))); assert 'jax' not in sys.modules"
    )
    outputs = set()
    for seed in ("1", "2"):
        env = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=True)
        outputs.add(done.stdout)
    assert len(outputs) == 1


def drawn(text: str) -> Any:
    """A Graphviz text, laid out."""
    command = [picture._binary(), "-Tjson"]
    return json.loads(subprocess.run(command, input=text.encode(), capture_output=True, check=True).stdout)


def test_every_text_of_an_svg_says_how_wide_it_may_be(tmp_path: Path) -> None:
    text = picture.draw(load("gemma2-2b"), tmp_path / "x.svg").read_text()
    words = re.findall(r"<text ([^>]*)>([^<]*[^<\s][^<]*)</text>", text)
    assert len(words) > 40 and all('textLength="' in told and "Arial" in told for told, _ in words)


@pytest.mark.parametrize("name", ["recurrentgemma-2b", "deepseek-v3", "t5@small"])
def test_no_edge_passes_through_a_box_that_it_does_not_join(name: str) -> None:
    made = drawn(picture.source(load(name)))
    boxes = {}
    for item in made["objects"]:
        if "pos" in item and float(item["width"]) > 0.1:
            x, y = map(float, item["pos"].split(","))
            wide, high = 36 * float(item["width"]) - 1, 36 * float(item["height"]) - 1
            boxes[item["_gvid"]] = (x - wide, y - high, x + wide, y + high)
    for edge in made["edges"]:
        for curve in (op["points"] for op in edge["_draw_"] if op["op"] == "b"):
            for i in range(0, len(curve) - 3, 3):
                for t in np.linspace(0, 1, 21):
                    powers = np.array([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3])
                    x, y = powers @ np.array(curve[i : i + 4])
                    through = [n for n, (a, b, c, d) in boxes.items() if a < x < c and b < y < d]
                    assert not set(through) - {edge["tail"], edge["head"]}, (edge["tail"], edge["head"])


def test_boxes_say_what_matters_and_no_bookkeeping() -> None:
    moe = next(n for n in picture.layout(load("deepseek-v3"))["nodes"] if n.get("family") == "experts")
    assert "256 experts" in moe["inside"] and not any("groups" in t or "pairs" in t for t in moe["inside"])
    assert "of the best 4 of 8 groups" in moe["options"]
    model = loads(f"{DIMS}graph: [embed, {{attention: {{position: alibi, chunk: 8}}}}, unembed]\n")
    (attention,) = [n for n in picture.layout(model)["nodes"] if n.get("family") == "attention"]
    assert {"alibi", "chunk 8"} <= set(attention["options"])
