"""The second half of the table of broken specs: blocks and programs, inputs, YAML, weights, extends."""

from tests.language.bad_specs import BASE, WEIGHTS, block, case, edit, graph, program

# -- blocks of the spec
case(
    "a slot missing",
    block("{args: {base: block}, body: [base]}", "§mine"),
    "missing-key",
    says="mine needs base: a node",
)
case("a slot given options", block("{args: {base: block}, body: [{base: §{to: 4}}]}", "{mine: {base: relu}}"),
     "unexpected-options", "give the options where the node is passed")  # fmt: skip
case(
    "a slot of nothing",
    block("{args: {base: block}, body: [base]}", "{mine: {base: §lnear}}"),
    "unknown-block",
    "linear",
)
case(
    "a size missing",
    block("{args: {to: size}, body: [{linear: to}]}", "§mine"),
    "missing-key",
    says="mine needs to: a size",
)
case("an unknown option of a block", block("{args: {wide: size}, body: [{linear: wide}]}", "{mine: {§wid: 4}}"),
     "unknown-key", "wide")  # fmt: skip
case("an arg that shadows a block", edit("span: 8", "span: 8, §attention: 3"), "shadowed-name", says="a block kind")
case("a dim that shadows an axis", edit("mlp: 64", "mlp: 64, §groups: 2"), "shadowed-name", says="an axis by which")
case("a dim that shadows a word", edit("mlp: 64", "mlp: 64, §gelu: 3"), "shadowed-name", says="an activation")
case(
    "a block that shadows a kind",
    edit("graph:", "  §linear: {body: [relu]}\ngraph:"),
    "shadowed-name",
    says="a block kind",
)
case("body and program", block("{body: [relu], §program: {output: input}}", "mine"), "conflicting-keys")
case("neither body nor program", block("§{args: {a: 1}}", "mine"), "missing-key", says="a list of nodes) or a program")
case("body a word", block("{body: §relu}", "mine"), "wrong-type", says="expected a list of nodes, found 'relu'")
case("mlp with gate and act", edit("gelu_tanh}", "gelu_tanh, act: §relu}"), "conflicting-keys", says="not both")
case(
    "mlp with neither", edit("- mlp: {gate: gelu_tanh}", "- §mlp"), "missing-key", says="act: (plain) or gate: (gated)"
)
case(
    "more experts than there are",
    graph("[embed, {moe: {gate: silu, active: §9}}, unembed]"),
    "out-of-range",
    says="9 of 4",
)
case(
    "groups of experts that do not divide",
    graph("[embed, {moe: {gate: silu, groups: §3}}, unembed]"),
    "indivisible",
    says="4 experts do not divide into 3 groups",
)
case(
    "more experts than the groups have",
    graph("[embed, {moe: {gate: silu, active: §3, groups: 2}}, unembed]"),
    "out-of-range",
    says="3 of 2 experts in 1 of 2 groups",
)
case("a score that is none", graph("[embed, {moe: {gate: silu, score: §sigmod}}, unembed]"), "unknown-word", "sigmoid")

# -- programs
case("no output", program("up: embed -> embed", "§h: up(input)"), "missing-key", "output: h", "a program needs output")
case("unknown function", program("up: embed -> embed", "output: §rellu(up(input))"), "unknown-function", "relu")
case("unknown weight", program("up: embed -> embed", "output: relu(§upp(input))"), "unknown-function", "up")
case("unknown value", program("up: embed -> embed", "output: up(input) * §inptu"), "unknown-name", "input")
case(
    "a plain tensor called",
    program("up: embed", "output: §up(input)"),
    "wrong-call",
    "up * x, or declare it as a map 'a -> b'",
)
case(
    "too many values",
    program("up: embed -> embed", "output: §up(input, input)"),
    "wrong-call",
    says="of one value, found 2",
)
case(
    "too few values",
    program("up: embed -> embed", "output: up(input) * §relu()"),
    "wrong-call",
    says="takes 1 value, found 0",
)
case("unknown option of an op", program("up: embed", "output: up * §rms_norm(input, axs=embed)"), "wrong-call", "axis")
case("an axis not there", program("up: embed", "output: §rms_norm(input * up, axis=mpl)"), "missing-axis")
case("a string in a program", program("up: embed", "output: rms_norm(input, axis=§'embed')"), "expression-syntax")
case("a line too late", program("up: embed -> embed", "output: relu(§h)", "h: up(input)"), "unknown-name",
     says="h is computed further down")  # fmt: skip
case(
    "an output that is a number",
    program("up: embed", "h: up * input", "output: §3"),
    "wrong-type",
    says="must be a tensor",
)
case("a weight along nothing", program("up: embed -> §mpl", "output: up(input)"), "unknown-name", "mlp")
case("a weight with two arrows", program("up: §embed -> mlp -> embed", "output: up(input)"), "wrong-type")
case("a weight that nothing uses", program("up: embed -> embed, §down: embed", "output: up(input)"), "unused-weight")
case(
    "a weight of wrong dtype",
    program("up: {axes: embed, dtype: §float31}", "output: up * input"),
    "unknown-word",
    "float32",
)
case("a power of a tensor", program("up: embed", "output: up * input §** 3"), "wrong-type",
     "square(x), sqrt(x), rsqrt(x) or exp(p * log(x))")  # fmt: skip

# -- inputs
case("inputs of unknown kind", edit("blocks:", "inputs: {tokens: {kind: §token}}\nblocks:"), "unknown-word", "tokens")
case("features without axes", edit("blocks:", "inputs: {tokens: {kind: tokens}, sound: §{kind: features}}\nblocks:"),
     "missing-key", says="features need axes")  # fmt: skip
case("features with an axis twice", edit("blocks:", "inputs: {sound: {kind: features, axes: §[a, a]}}\nblocks:"),
     "bad-name")  # fmt: skip
case(
    "an image without size",
    edit("blocks:", "inputs: {tokens: {kind: tokens}, picture: §{kind: image}}\nblocks:"),
    "missing-key",
)
case("no inputs", edit("blocks:", "inputs: §{}\nblocks:"), "missing-key", says="at least one input")

# -- towers whose weights would have the same paths
TOWERS = """\
name: towers
dims: {vocab: 64, embed: 32, heads: 4, kv_heads: 4, head_dim: 8, mel: 20}
inputs: {tokens: {kind: tokens}, sound: {kind: features, axes: [frames, mel]}}
blocks:
  layer: {args: {over: seq}, body: [{residual: [rms_norm, {attention: {causal: false, over: over}}]}]}
graph:
  memory: [{linear: embed, name: project, from: sound}, {repeat: {times: 2, cycle: [{layer: {over: frames}}]}}]
  logits: [{embed: , from: tokens}, {repeat: {times: 3, cycle: [§layer]}}, unembed]
"""
NAMED = "name one of the two, as in {layer: …, name: …}, or put one into a block of its own"
case("two towers", TOWERS, "duplicate-name", NAMED, "called layer.rms_norm.scale: of layer here, and of layer at bad.")
case("two towers of one depth", TOWERS.replace("times: 3", "times: 2"), "duplicate-name", NAMED, "at bad.yaml:7:86")
case("two towers, one written out", TOWERS.replace("times: 2", "times: 1"), "duplicate-name", NAMED)
case("two towers in two parts", TOWERS.replace("[§layer]", "[relu, §layer]"), "duplicate-name", NAMED)

# -- YAML
case("duplicate keys", edit("gate: gelu_tanh}", "gate: gelu_tanh}\n          - {norm: , §norm: }"), "duplicate-key")
case(
    "duplicate keys in two lines",
    edit("graph:", "§args: {layers: 5}\ngraph:"),
    "duplicate-key",
    says="lines 3 and 15 both write",
)
case("anchor", edit("name: small", "name: §&a small"), "yaml-anchor", "use a block")
case("alias", edit("name: small", "name: §*a"), "yaml-alias", 'use a block, or quote it if text is meant: "*a"')
case("merge", edit("{gate: gelu_tanh}", "{§<<: {gate: silu}}"), "yaml-merge", "use a block")
case("tag", edit("name: small", "name: §!!python/object:os.system small"), "yaml-tag", "use a block")
case("alias bomb", "a: §&a [x, x, x, x, x, x, x, x, x]\n" + "".join(
     f"{b}: §&{b} [{', '.join([f'§*{a}'] * 9)}]\n" for a, b in ("ab", "bc")), " ".join(
     ["yaml-anchor", *(["yaml-anchor"] + ["yaml-alias"] * 9) * 2]), ("use a block", *["…"] * 20))  # fmt: skip
case("unbalanced parenthesis", edit("times: layers", "times: §max(layers, 2)"), "unbalanced-parenthesis",
     'quote it: times: "max(layers, 2)"')  # fmt: skip
case("a tab", edit("  - embed", "§\t- embed"), "yaml-syntax", "use spaces", "a tab cannot indent")
case("a list at the top", "§- name: x\n", "not-a-mapping")
case("nothing", "§", "not-a-mapping", says="found nothing")

# -- weights
case("wrong key of weights", BASE + "weights: {huggingface: {§layot: out in}}\n", "unknown-key", "layout")
case(
    "tensors as a list",
    BASE + "weights: {huggingface: {tensors: §[1]}}\n",
    "wrong-type",
    says="expected a mapping, found a list",
)
case("up and away", WEIGHTS + "embed.table: §../../etc/passwd}}}\n", "unsafe-name", says="no '..'")
case("an absolute name", WEIGHTS + "embed.table: {tensor: §/etc/passwd}}}}\n", "unsafe-name")
case("a path of ours that leaves", WEIGHTS + "§../x.table: y}}}\n", "unsafe-name")
case("ignore up and away", BASE + "weights: {huggingface: {ignore: [§../*]}}\n", "unsafe-name")

# -- extends
case("unknown extends", "extends: §gemma2-9\nname: x\n", "unknown-spec", "gemma2-9b")
case("extends a missing file", "extends: §./nowhere.yaml\nname: x\n", "file-missing")
case("extends nothing", "extends:§\nname: x\n", "wrong-type", says="found nothing")
case("extends and changes the graph", "extends: gemma2-9b\nname: x\n§graph: [embed]\n", "extends-changes-graph")
case(
    "extends and adds a dim",
    "extends: gemma2-9b\nname: x\ndims: {§embd: 3}\n",
    "unknown-key",
    "embed",
    "has no dim embd",
)
case("extends and breaks", "extends: gemma2-9b\nname: x\ndims: {embed: §0}\n", "out-of-range")
