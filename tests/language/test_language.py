"""What the language means: names, layers, arguments, inputs and outputs, blocks in YAML, extends, the schema."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from compiler.errors import SpecError
from compiler.graph.ir import Graph
from compiler.language import model
from compiler.language.load import shipped
from compiler.language.model import Model
from compiler.language.nodes import INITS
from compiler.language.spec import json_schema
from compiler.ops.leaves import Constant
from compiler.passes.phase import phase_graph
from runtime.weights.initial import RULES, WITH_AXES
from tests.language.bad_specs import BASE, CASES, block, edit, graph


def sizes(made: Model) -> dict[str, list[int]]:
    return {label: [int(s.constant) for s in t.sizes] for label, (_, t) in made.parameters.items()}


def ops(made: Graph, name: str) -> list[Any]:
    return [node.op for node in made.nodes if node.op.name == name]


# -- published counts
@pytest.mark.parametrize(
    ("name", "embedding", "rest"),
    [
        ("gemma-2b", 524_550_144, 1_981_884_416),
        ("gemma-7b", 786_825_216, 7_751_248_896),
        ("gemma2-2b", 590_118_912, 2_024_517_888),
        ("gemma2-9b", 917_962_752, 8_324_201_984),
        ("gemma2-27b", 1_180_237_824, 26_047_480_320),
        ("recurrentgemma-2b", 655_360_000, 2_027_502_080),
        ("recurrentgemma-9b", 1_048_576_000, 7_531_401_216),
    ],
)
def test_parameters_as_the_papers_count_them(name: str, embedding: int, rest: int) -> None:
    made = model.load(name)
    counts = {label: int(t.elements.constant) for label, (_, t) in made.parameters.items()}
    assert counts.pop("embed.table") == embedding
    assert sum(counts.values()) == rest


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("smollm2-135m", 134_515_008),
        ("mixtral-8x7b", 46_702_792_704),
        ("deepseek-v3", 671_026_419_200),
    ],
)
def test_parameters_of_checkpoints(name: str, total: int) -> None:
    assert model.load(name).parameter_count() == total


def test_every_shipped_spec_elaborates() -> None:
    for name in shipped():
        made = model.load(name)
        assert made.name == name and made.warnings == () and made.graph.outputs[0][0] == "logits"


# -- layers
def test_layer_numbers_run_on_through_consecutive_repeats() -> None:
    made = model.loads(graph("[embed, {repeat: {times: 2, cycle: [linear_]}}, {repeat: {times: 3, cycle: [linear_]}}]")
                       .replace("graph", "blocks: {linear_: {body: [{linear: embed}]}}\ngraph"))  # fmt: skip
    assert sizes(made) == {
        "embed.table": [8, 4],
        "linear_.weight[0:2:1]": [2, 4, 4],
        "linear_.weight[2:5:1]": [3, 4, 4],
    }


def test_a_cycle_is_cut_short() -> None:
    made = model.load("recurrentgemma-2b")  # 26 layers in a cycle of 3: 8 whole ones, then two recurrent layers
    stacks = {str(s) for op, _ in made.parameters.values() for s in op.stack}
    assert stacks == {"0:22:3", "1:23:3", "2:24:3", "24:25:1", "25:26:1"}
    assert "layer.local.query[2:24:3]" in made.parameters and "layer.recurrent.lru.decay[25]" in made.parameters


def test_a_cycle_longer_than_its_layers_and_no_layers_at_all() -> None:
    text = "[embed, {repeat: {times: N, cycle: [{linear: embed}, {residual: [{mlp: {act: relu}}]}]}}]"
    assert list(sizes(model.loads(graph(text.replace("N", "1"))))) == ["embed.table", "linear.weight[0]"]
    assert list(sizes(model.loads(graph(text.replace("N", "0"))))) == ["embed.table"]


def test_a_number_by_layer_stays_a_scan_with_a_constant_stack() -> None:
    made = model.loads(graph("[embed, {repeat: {times: 4, cycle: [{scale: 0.1 * layer}]}}]"))
    assert made.warnings == ()
    assert [op.trips for op in ops(made.graph, "repeat")] == [4]
    (stack,) = (n for n in made.graph.nodes if isinstance(n.op, Constant))
    assert stack.op.values == pytest.approx((0.0, 0.1, 0.2, 0.3)) and stack.result.axes == ("layers",)


def test_a_size_by_layer_is_written_out_with_a_warning() -> None:
    cycle = "[{residual: [{linear: 4 * layer + 4, name: a}, {linear: embed, name: b}]}]"
    made = model.loads(graph(f"[embed, {{repeat: {{times: 3, cycle: {cycle}}}}}]"))
    assert ops(made.graph, "repeat") == []
    assert [sizes(made)[f"a.weight[{i}]"] for i in range(3)] == [[4, 4], [4, 8], [4, 12]]
    assert len(made.warnings) == 1 and "3 layers are written out" in made.warnings[0]


def test_a_size_that_only_looks_like_it_depends_on_the_layer_stays_a_scan() -> None:
    made = model.loads(
        graph("[embed, {repeat: {times: 3, cycle: [{residual: [{mlp: {act: relu, hidden: 8 + 0 * layer}}]}]}}]")
    )
    assert len(ops(made.graph, "repeat")) == 1 and made.warnings == ()


# -- names of weights
def test_a_block_of_one_unnamed_node_adds_no_name() -> None:
    assert {"layer.pre_attention.scale[0:3:2]", "final.scale"} <= set(model.loads(BASE).parameters)
    named = model.loads(edit("[{rms_norm: {eps: 1e-6}}]", "[{rms_norm: {eps: 1e-6}, name: inner}]"))
    assert "final.inner.scale" in named.parameters


def test_unnamed_nodes_of_one_kind_are_numbered_and_known_to_be_ambiguous() -> None:
    made = model.loads(block("{body: [{linear: embed}, {linear: embed}]}", "mine"))
    assert list(sizes(made)) == ["embed.table", "mine.linear.weight", "mine.linear_2.weight", "unembed.out"]
    assert made.ambiguous == {"mine.linear", "mine.linear_2"}


# -- arguments, slots, dims
def test_a_slot_is_read_with_the_arguments_of_its_caller() -> None:
    nodes = "{base: , name: a}, {linear: {to: wide}, name: b}, {linear: embed, name: c}"
    text = block(f"{{args: {{base: block, wide: 8}}, body: [{nodes}]}}", "outer")
    outer = "  outer: {args: {wide: 2}, body: [{mine: {base: {linear: {to: wide}}}}]}\n"
    made = model.loads(text.replace("graph", f"{outer}graph"))
    # the caller's wide is 2 inside the slot, the block's own wide is 8 beside it
    assert {k: v for k, v in sizes(made).items() if "mine" in k or "outer" in k} == {
        "outer.linear.weight": [4, 2], "outer.b.weight": [2, 8], "outer.c.weight": [8, 4]}  # fmt: skip


def test_arguments_are_lexical_and_dims_are_inherited() -> None:
    text = """\
name: t
dims: {vocab: 8, embed: 4}
args: {outside: 3}
blocks:
  outer: {args: {own: 5}, dims: {wide: 6}, body: [inner, {linear: {to: own}, name: b}, {linear: embed, name: c}]}
  inner: {body: [{linear: wide, name: a}, {linear: {to: outside}, name: d}, {linear: embed, name: e}]}
graph: [embed, outer]
"""
    made = model.loads(text)
    assert [sizes(made)[f"outer.{n}.weight"] for n in ("inner.a", "inner.d", "b")] == [[4, 6], [6, 3], [4, 5]]
    with pytest.raises(SpecError, match="own"):  # an argument of the caller is not seen in a block it calls
        model.loads(text.replace("{linear: {to: outside}", "{linear: {to: own}"))
    assert made.dims == {"vocab": 8, "embed": 4}


def test_dims_are_rebound_below_a_block_alone() -> None:
    made = model.loads(block("{dims: {embed: 2 * embed, mlp: 3 * embed}, body: [{linear: embed}, {mlp: {act: relu}}]}",
                             "mine, {linear: {to: 4}}, {mlp: {act: relu}}"))  # fmt: skip
    assert sizes(made)["mine.mlp.up"] == [8, 24] and sizes(made)["mlp.up"] == [4, 8]


def test_an_argument_can_be_a_word_a_flag_or_nothing() -> None:
    nodes = "{residual: [{attention: {window: window, bias: bias}}]}, {mlp: {act: act}}"
    definition = f"{{args: {{act: relu, bias: false, window: null}}, body: [{nodes}]}}"
    made = model.loads(block(definition, "{mine: {act: silu, bias: true, window: 2 * mlp}}"))
    (attend,) = ops(made.graph, "attend")
    assert attend.window == 16 and "mine.attention.query_bias" in made.parameters
    assert [op.fn for op in ops(made.graph, "map") if op.fn in ("relu", "silu")] == ["silu"]


# -- what stands beside a kind
def test_share_uses_the_weights_of_another_node() -> None:
    made = model.loads(graph("[embed, {linear: embed, name: a}, relu, {linear: embed, name: b, share: a}]"))
    assert list(sizes(made)) == ["embed.table", "a.weight"]


def test_frozen_init_and_dtype_reach_down() -> None:
    made = model.loads(edit("name: final", "name: final, frozen: true, init: 'normal(0.02)', dtype: float32")
                       .replace("{layer: {window: span}}", "{layer: {window: span}, frozen: true}"))  # fmt: skip
    op, type_ = made.parameters["final.scale"]
    assert (op.trainable, op.init, type_.dtype) == (False, "normal(0.02)", "float32")
    frozen = {label for label, (op, _) in made.parameters.items() if not op.trainable}
    assert frozen == {"final.scale", *(label for label in made.parameters if "[0:3:2]" in label)}


def test_inits_are_those_that_can_be_drawn() -> None:
    assert {**dict.fromkeys(WITH_AXES, 0), **{name: count for name, (count, _) in RULES.items()}} == INITS


def test_dtypes_and_overrides() -> None:
    made = model.loads(BASE, overrides={"dtype": "float32", "layers": 2, "dims.mlp": "2 * embed"})
    assert {t.dtype for _, t in made.parameters.values()} == {"float32"}
    assert sizes(made)["layer.mlp.up[0]"] == [32, 64] and made.args["layers"] == 2
    mixed = model.loads(edit("blocks:", "dtypes: {params: float32, compute: bfloat16, residual: float32}\nblocks:"))
    assert (mixed.policy.params, mixed.policy.compute, mixed.policy.residual) == ("float32", "bfloat16", "float32")


# -- chains, inputs, outputs
CROSS = """\
name: cross
dims: {vocab: 8, embed: 4, heads: 2, kv_heads: 1, head_dim: 2, mlp: 8, width: 6}
inputs: {tokens: {kind: tokens}, sound: {kind: features, axes: [frames, width]}}
graph:
  heard: [{linear: embed, from: sound}, {mlp: {act: relu}, name: listen}]
  said:
    - embed
    - {residual: [{attention: , from: {context: heard}}], name: joined}
    - {rms_norm: , name: last}
    - {unembed: {tied: embed}}
outputs: {logits: said, memory: heard, before: last}
"""


def test_several_chains_inputs_and_outputs() -> None:
    made = model.loads(CROSS)
    assert [name for name, _ in made.graph.outputs] == ["logits", "memory", "before"]
    assert made.graph.output("memory").axes == ("batch", "frames", "embed")
    assert made.graph.output("logits").axes == ("batch", "seq", "vocab")
    assert {"heard", "said", "listen", "joined", "last"} <= set(made.graph.names)
    assert {n.op.label for n in made.graph.nodes if n.op.name == "input"} == {  # type: ignore[attr-defined]
        "tokens", "seq_lengths", "sound", "frames_lengths"}  # fmt: skip
    assert made.streaming_input == "tokens"


def test_a_port_can_replace_the_input() -> None:
    text = CROSS.replace("- embed\n", "- {embed: , name: first}\n    - {linear: width}\n")
    text = text.replace("tied: embed", "tied: first")
    made = model.loads(text.replace("{residual: [{attention: , from: {context: heard}}], name: joined}",
                                    "{attention: , from: {input: first, context: heard}, name: joined}"))  # fmt: skip
    assert sizes(made)["joined.query"] == [4, 2, 2]


def test_a_chain_alone_is_called_logits() -> None:
    assert [n for n, _ in model.loads(BASE).graph.outputs] == ["logits"]


# -- blocks written in YAML (the proposal's six)
def test_a_plain_program() -> None:
    made = model.loads(block("{params: {up: embed -> mlp, down: mlp -> embed}, "
                             "program: {output: 'down(square(relu(up(input))))'}}", "{residual: [mine]}"))  # fmt: skip
    assert sizes(made)["mine.up"] == [4, 8] and sizes(made)["mine.down"] == [8, 4]


def test_an_adapter_around_any_block() -> None:
    text = """\
name: t
dims: {vocab: 8, embed: 4}
blocks:
  lora:
    args: {base: block, rank: size, alpha: 16}
    body:
      - sum:
          - {base: , frozen: true, name: base}
          - [{linear: rank, name: a}, {linear: embed, name: b, init: zeros}, {scale: alpha / rank}]
graph: [embed, {lora: {base: {linear: embed}, rank: 2}}, unembed]
"""
    made = model.loads(text)
    assert sizes(made)["lora.a.weight"] == [4, 2] and sizes(made)["lora.b.weight"] == [2, 4]
    assert made.parameters["lora.b.weight"][0].init == "zeros"
    assert {k for k, (op, _) in made.parameters.items() if not op.trainable} == {"lora.linear.weight"}
    assert (8.0,) in [op.values for op in ops(made.graph, "constant")]


def test_a_causal_convolution_module() -> None:
    text = """\
name: t
dims: {vocab: 8, embed: 4}
blocks:
  depthwise_module:
    dims: {inner: 2 * embed, window: 31}
    params: {value: embed -> inner, gate: embed -> inner, kernel: inner window, out: inner -> embed, norm: inner}
    program:
      h: value(input) * sigmoid(gate(input))
      c: short_conv(h, kernel)
      output: out(silu(rms_norm(c, axis=inner) * norm))
graph: [embed, {residual: [depthwise_module]}, unembed]
"""
    made = model.loads(text)
    assert sizes(made)["depthwise_module.kernel"] == [8, 31]
    assert "depthwise_module.c" in made.graph.names


DELTA = """\
name: t
dims: {vocab: 8, embed: 4, heads: 2, head_dim: 2, key: 2}
blocks:
  gated_delta:
    params:
      to_key: embed -> heads key
      to_value: embed -> heads head_dim
      beta: embed -> heads
      out: heads head_dim -> embed
    program:
      key: l2_norm(to_key(input))
      h: recur(to_value(input), %s)
      output: out(h)
graph: [embed, gated_delta]
"""


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "recur needs log_decay, or key and query"),
        ("delta=sigmoid(beta(input)), key=key", "recur with key and delta needs query"),
        ("key=key, query=key, erase=key, delta=sigmoid(beta(input))", "give one of delta and erase"),
        ("key=key, query=key, remove=key * sigmoid(beta(input))", "remove without erase has no meaning"),
        ("key=key, query=key, bonus=beta(input)", "the bonus needs an axis key, found [batch seq heads]"),
        ("key=key, query=key, delt=beta(input)", "recur has no option delt"),
        ("key=key, query=key, over=head_dim, delta=beta(input)", "the key needs an axis head_dim"),
    ],
)
def test_what_a_matrix_state_lacks_is_named(given: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        model.loads(DELTA % given if given else DELTA.replace(", %s", ""))
    assert words in caught.value.problems[0].message


def test_a_matrix_state_is_a_state() -> None:
    made = model.loads(DELTA % "log_decay=-1, key=key, query=key, delta=sigmoid(beta(input))")
    found = {s.kind: " ".join(t.axes) for s, t in phase_graph(made, "decode").states().values()}
    assert found["recurrent"] == "batch heads key head_dim"


def test_a_number_by_layer_in_a_program() -> None:
    definition = "{args: {at: 0.8 - 0.1 * layer}, params: {w: embed}, program: {output: input * w * (1 - at)}}"
    made = model.loads(block(definition, "{repeat: {times: 3, cycle: [mine]}}"))
    assert len(ops(made.graph, "repeat")) == 1
    assert [op.values for op in ops(made.graph, "constant")] == [pytest.approx((0.2, 0.3, 0.4))]


def test_an_unused_block_is_a_warning() -> None:
    spare = "  spare: {args: {to: size}, body: [{linear: to}, {linear: embed, from: elsewhere}]}\n"
    assert model.loads(edit("graph:", f"{spare}graph:")).warnings == ("nothing uses the block spare",)


# -- extends
def test_extends_changes_sizes_and_metadata_alone(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(edit("blocks:", "sources: {dims.vocab: a table}\nblocks:"))
    (tmp_path / "mid.yaml").write_text("extends: base\nname: mid\ndims: {embed: 64, mlp: 3 * embed}\n")
    (tmp_path / "top.yaml").write_text("extends: ./mid.yaml\nname: top\nargs: {layers: 2}\nsources: {dims.mlp: mine}\n")
    made = model.load(tmp_path / "top.yaml")
    assert (made.name, made.dims["embed"], made.dims["mlp"], made.args["layers"]) == ("top", 64, 192, 2)
    assert made.spec.sources == {"dims.vocab": "a table", "dims.mlp": "mine"}
    assert [p.name for p in made.document.files] == ["top.yaml", "mid.yaml", "base.yaml"]


# -- the schema
def test_the_schema_takes_the_shipped_specs_and_refuses_what_nothing_has() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in shipped().values():
        assert list(validator.iter_errors(yaml.safe_load(path.read_text("utf-8")))) == [], path.name
    assert list(validator.iter_errors(yaml.safe_load(BASE))) == []
    refused = (
        "wrong top key",
        "wrong option",
        "wrong nested option",
        "unknown word",
        "wrong key of a block",
        "no name",
        "inputs of unknown kind",
        "wrong dtype",
        "repeat without times",
        "repeat misspelt",
        "body and program",
        "graph of wrong type",
        "empty graph",
        "a flag that is a number",
    )
    for case in CASES:
        if case.name in refused:
            assert not validator.is_valid(yaml.safe_load(case.spec)), case.name


SHARING = """
name: shared
dims: {vocab: 50, embed: 24, heads: 3, kv_heads: 1, head_dim: 8, mlp: 32}
blocks:
  layer:
    body:
      - residual: [{rms_norm: , name: n1}, {attention: {position: rope}}]
      - residual: [{rms_norm: , name: n2}, {mlp: {gate: silu}}]
graph:
  - embed
  - {layer: , name: first}
  - {layer: , name: second, share: first}
  - repeat: {times: 3, cycle: [{layer: , name: inner, share: first}]}
  - rms_norm
  - unembed: {tied: embed}
"""


def test_a_shared_block_has_one_set_of_weights_in_and_out_of_a_repeat() -> None:
    made = model.loads(SHARING)
    assert {label.split(".")[0] for label in made.parameters} == {"embed", "first", "rms_norm"}
    layer = 2 * 24 + 24 * 24 + 2 * 24 * 8 + 24 * 24 + 3 * 24 * 32
    assert made.parameter_count() == 50 * 24 + 24 + layer
    states = phase_graph(made, "decode").states()
    assert sum(s.kind == "cache" for s, _ in states.values()) == 6  # weights are shared, caches are not
    assert not set(states) & set(made.parameters)


def test_a_dim_that_nothing_uses_is_a_warning_with_the_nearest_name() -> None:
    spec = SHARING.replace("dims: {", "dims: {mpl: 8, mine: 3, ", 1)
    warnings = model.loads(spec).warnings
    assert warnings == ("nothing uses the dim mpl: did you mean mlp?", "nothing uses the dim mine")
    assert model.loads(SHARING).warnings == ()
    with pytest.raises(SpecError) as caught:
        model.loads(SHARING.replace("head_dim: ", "headdim: ", 1))
    assert "rename the dim headdim to head_dim" in str(caught.value)
