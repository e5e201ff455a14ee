"""The table of broken specs. A ``§`` in a text marks where a problem must point; the marks are taken out before the
spec is read, so no line or column is counted by hand. Codes come in the order of the marks."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.errors import Position

BASE = """\
name: small
dims: {vocab: 64, embed: 32, heads: 4, kv_heads: 2, head_dim: 8, mlp: 64}
args: {layers: 4, span: 8}
blocks:
  norm: {body: [{rms_norm: {eps: 1e-6}}]}
  layer:
    args: {window: null}
    body:
      - residual:
          - {norm: , name: pre_attention}
          - attention: {window: window, position: {rope: {theta: 10_000}}}
      - residual:
          - {norm: , name: pre_mlp}
          - mlp: {gate: gelu_tanh}
graph:
  - embed
  - repeat: {times: layers, cycle: [{layer: {window: span}}, layer]}
  - {norm: , name: final}
  - unembed: {tied: embed}
"""
DIMS = "name: t\ndims: {vocab: 8, embed: 4, heads: 2, kv_heads: 1, head_dim: 2, mlp: 8, experts: 4, active: 2}\n"


@dataclass(frozen=True)
class Case:
    name: str
    text: str
    codes: tuple[str, ...]
    suggestions: tuple[str | None, ...]
    says: str

    @property
    def spec(self) -> str:
        return self.text.replace("§", "")

    @property
    def places(self) -> list[Position]:
        found = []
        for number, line in enumerate(self.text.split("\n"), 1):
            column = 1
            for char in line:
                if char == "§":
                    found.append(Position("bad.yaml", number, column))
                column += char != "§"
        return found


CASES: list[Case] = []


def case(
    name: str, text: str, codes: str, suggestion: str | tuple[str | None, ...] | None = None, says: str = ""
) -> None:
    """``codes``: one for each mark, separated by spaces; ``says``: a part of the first message."""
    many = tuple(codes.split())
    hints = suggestion if isinstance(suggestion, tuple) else (suggestion, *[None] * (len(many) - 1))
    CASES.append(Case(name, text, many, hints, says))


def edit(*pairs: str, text: str = BASE) -> str:
    """The good spec with the first of each pair replaced, once, by the second."""
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        assert old in text, old
        text = text.replace(old, new, 1)
    return text


def graph(nodes: str) -> str:
    return f"{DIMS}graph: {nodes}\n"


def program(params: str, *lines: str) -> str:
    body = "".join(f"      {line}\n" for line in lines)
    return f"{DIMS}blocks:\n  mine:\n    params: {{{params}}}\n    program:\n{body}graph: [embed, mine, unembed]\n"


def block(definition: str, use: str) -> str:
    return f"{DIMS}blocks:\n  mine: {definition}\ngraph: [embed, {use}, unembed]\n"


LAST = "- unembed: {tied: embed}"
WEIGHTS = BASE + "weights: {huggingface: {tensors: {"

# -- keys and types
case("wrong top key", edit("graph:", "§grph:"), "unknown-key", "graph", "at the top of a spec")
case("unknown top key", edit("args:", "§argz: {}\nargs:"), "unknown-key", "args")
case("no graph", DIMS.replace("name", "§name", 1), "missing-key", says="graph is missing")
case("no name", edit("name: small\n", "").replace("dims", "§dims", 1), "missing-key", says="name is missing")
case("wrong option", edit("window: window", "§widow: window"), "unknown-key", "window", "attention has no option widow")
case("wrong nested option", edit("theta: 10", "§teta: 10"), "unknown-key", "theta", "attention.position.rope has no")
case("wrong key of a block", edit("{body: [{rms", "{§bdy: [{rms"), "unknown-key", "body")
case("wrong key of dtypes", edit("blocks:", "dtypes: {§computed: float32}\nblocks:"), "unknown-key", "compute")
case("wrong key beside a kind", edit("name: final", "§nmae: final"), "unknown-key", "name", "beside norm:")
case("dims as a list", edit("dims: {", "dims: §[1]\nassumed: {").replace("assumed", "§dimz"), "wrong-type unknown-key",
     (None, "dims"), "expected a mapping, found a list")  # fmt: skip
case("a name that is a number", edit("name: small", "name: §3"), "wrong-type", says="expected text, found 3")
case("a name that leaves its folder", edit("name: small", "name: §../small"), "bad-name")
case(
    "options as a list", edit("{rope: {theta: 10_000}}", "§[1]"), "wrong-type", says="mapping of options, found a list"
)
case(
    "a flag that is a number",
    graph("[embed, {linear: {to: embed, bias: §3}}, unembed]"),
    "wrong-type",
    says="true or false",
)
case("a flag misspelt", graph("[embed, {linear: {to: embed, bias: §flase}}, unembed]"), "wrong-type", "false")
case("an eps below zero", graph("[embed, {rms_norm: {eps: §-1}}, unembed]"), "out-of-range", says=">= 0, found -1")
case("a soft cap of zero", graph("[embed, {softcap: §0}, unembed]"), "out-of-range", says="must be > 0")
case("graph of wrong type", graph("§3"), "wrong-type", says="a list of nodes, or chains by name, found 3")
case("graph a word", graph("§embed"), "wrong-type", says="found 'embed'")
case("empty graph", graph("§[]"), "empty-chain", "write identity for the value unchanged")
case("empty chain", graph("{a: [embed], b: §[]}"), "empty-chain", "write identity for the value unchanged")
case("no chains", graph("§{}"), "wrong-type", says="an empty mapping")
case("wrong dtype", edit("blocks:", "dtypes: {compute: §bfloat61}\nblocks:"), "unknown-word", "bfloat16")
case("wrong dtype of a node", edit("name: final", "name: final, dtype: §float23"), "unknown-word", "float32")
case("wrong init", edit("name: final", "name: final, init: §zeroes"), "unknown-word", "zeros")
case("init without its numbers", edit("name: final", "name: final, init: §normal"), "wrong-call", says="takes 1 number")

# -- nodes
case("unknown block", edit("- embed\n", "- §embedd\n"), "unknown-block", "embed", "no block is called embedd")
case("unknown block in an unused one", edit("graph:", "  spare: {body: [§lnear]}\ngraph:"), "unknown-block", "linear")
case(
    "unknown word", edit("gelu_tanh", "§gelu_tahn"), "unknown-word", "gelu_tanh", "'gelu_tahn' is not one of its words"
)
case("unknown word by an argument", block("{args: {act: relu}, body: [{mlp: {act: act}}]}", "{mine: {act: §gelo}}"),
     "unknown-word", "gelu")  # fmt: skip
case("unknown position", edit("{rope: {theta: 10_000}}", "§rop"), "unknown-word", "rope")
case("block cycle", edit("{rms_norm: {eps: 1e-6}}", "§layer"), "block-cycle", says="layer -> norm -> layer")
case("block in itself", block("{body: [{residual: [§mine]}]}", "mine"), "block-cycle", says="mine -> mine")
DEEP = edit("- mlp: {gate: gelu_tanh}", "- mlp:\n              gate: gelu_tanh\n              §name: x")
case(
    "name indented too deep", DEEP, "misplaced-key", "write name in the same column as mlp", "name belongs beside mlp:"
)
case("name among a block's options", edit("{window: span}", "{window: span, §name: x}"), "misplaced-key",
     "write name in the same column as layer")  # fmt: skip
NO_DASH = edit("- {norm: , name: pre_mlp}\n          - mlp:", "- norm:\n            §mlp:")
DASH = "start each node with its own '-'; options go one level deeper"
case("missing dash", NO_DASH, "two-kinds", DASH, "a node has one kind, found 2: norm, mlp")
case("no kind", graph("[embed, §{name: x}, unembed]"), "no-kind", says="found only name")
case("a node that is a number", graph("[embed, §3, unembed]"), "wrong-type", says="found 3")
case("a bad node name", edit("name: final", "name: §fi-nal"), "bad-name")
case("a node name twice", edit(LAST, "- {norm: , name: §final}\n  " + LAST), "duplicate-name")
case("frozen by a number", edit("name: final", "name: final, frozen: §1"), "wrong-type", says="true or false, found 1")
case("options of an activation", graph("[embed, {gelu: §{approximate: true}}, unembed]"), "unexpected-options")
case("no embedding", graph("[§rms_norm, unembed]"), "dtype-mismatch", "embed the tokens first")
case("embedded twice", graph("[embed, §embed, unembed]"), "dtype-mismatch", says="ids must be integers")

# -- names and where values come from
case("unknown from", edit("name: final", "name: final, from: §token"), "unknown-node", "tokens")
case("from an unnamed node", edit("name: final", "name: final, from: §embed"), "unknown-node",
     "give the embed node a name: {embed: …, name: …}")  # fmt: skip
case("unknown port", graph("[embed, {attention: , from: {§contxt: tokens}}, unembed]"), "unknown-port", "context")
case(
    "a port of a block without",
    edit("name: final", "name: final, from: {§context: tokens}"),
    "unknown-port",
    "from: tokens",
)
case("a port not filled", block("{inputs: [context], body: [relu]}", "§mine"), "missing-port",
     "from: {context: a node's name}")  # fmt: skip
case("from a number", edit("name: final", "name: final, from: §3"), "wrong-type", says="{port: name}, found 3")
case("share with nothing", edit("name: final", "name: final, share: §fnal"), "unknown-name", says="no node before")
case("outputs naming nothing", BASE + "outputs: {logits: §finl}\n", "unknown-node", "final")
case("unembed tied to nothing", edit("{tied: embed}", "{tied: §embd}"), "unknown-name", "embed")
case("sources of nothing", BASE + "sources: {§dims.vocb: a table}\n", "unknown-path", "dims.vocab")
case("assumed of nothing", BASE + "assumed: {§blocks.layr: a guess}\n", "unknown-path", "blocks.layer")

# -- sizes and expressions
case("unknown name", edit("times: layers", "times: §layrs"), "unknown-name", "layers")
case("unknown name inside", edit("times: layers", "times: 2 * (3 + §layrs)"), "unknown-name", "layers")
case("unknown name in quotes", edit("times: layers", 'times: "2 * §layrs"'), "unknown-name", "layers")
case(
    "a word where a number is due",
    edit("{window: span}", "{window: §spam}"),
    "unknown-name",
    "span",
    "window is the word",
)
case("missing dim", edit("head_dim: 8, ", "").replace("attention: {", "attention: §{"), "missing-dim",
     says="give it here or as the dim head_dim")  # fmt: skip
case("zero", edit("embed: 32", "embed: §0"), "out-of-range", says="at least 1, found 0")
case("negative", edit("embed: 32", "embed: §-3"), "out-of-range", says="found -3")
case("absurd", edit("embed: 32", "embed: §10 ** 15"), "out-of-range", says="beyond any size")
case("fraction", edit("embed: 32", "embed: §65 / 2"), "not-whole", says="found 32.5 from '65 / 2'")
case("a dim that is true", edit("embed: 32", "embed: §true"), "not-a-number", says="found true")
case("itself", edit("embed: 32", "embed: §embed * 2"), "circular-name", says="dim embed refers to itself")
case("an arg by itself", edit("span: 8", "span: §span"), "circular-name", says="arg span refers to itself")
case("a later dim", edit("embed: 32", "embed: 4 * §mlp"), "later-name", says="mlp, which is declared further down")
case("indivisible heads", edit("kv_heads: 2", "kv_heads: 3").replace("- attention", "- §attention"), "indivisible",
     says="4 heads do not divide into 3 kv_heads")  # fmt: skip
case("a split that does not divide", graph("[embed, {rg_lru: {blocks: §3}}, unembed]"), "indivisible",
     says="embed = 4 does not divide into 3 blocks")  # fmt: skip
case("an odd rotation", graph("[embed, {§attention: {head_dim: 3, position: rope}}, unembed]"), "indivisible",
     "fraction 2 / 3, which is 2 channels", "fraction 1 of head_dim = 3 is 3 channels")  # fmt: skip
case("an odd part of the channels", edit("theta: 10_000", "fraction: 0.4").replace("- attention", "- §attention"),
     "indivisible", "fraction 0.5, which is 4 channels", "fraction 0.4 of head_dim = 8 is 3.2 channels")  # fmt: skip
case("import", edit("times: layers", "times: §__import__('os')"), "expression-syntax", says="two underscores")
case("lambda", edit("times: layers", "times: 'lambda x§: 1'"), "expression-syntax", says="'lambda' is not allowed")
case("attribute", edit("times: layers", "times: §layers.real"), "unknown-name", "layers")
case("tower", edit("times: layers", "times: 9§**9**9"), "too-large")
case("division by zero", edit("times: layers", "times: 1 §/ 0"), "zero-division")
case("string", edit("times: layers", "times: layers + §'a'"), "expression-syntax", says="a string is not allowed")
case("condition", edit("times: layers", "times: 1 §if layers else 2"), "expression-syntax", says="'if' is not allowed")
case("long expression", edit("times: layers", f"times: {'1 + ' * 499}1   §1"), "too-large")

# -- shapes
case("residual of another width", graph("[embed, {§residual: [{linear: mlp}]}, unembed]"), "axis-mismatch",
     says="[batch seq embed] and [batch seq mlp]")  # fmt: skip
case("sum of two axes", graph("[embed, {§sum: [identity, {linear: mlp}]}, unembed]"), "axis-mismatch",
     says="a sum joins [batch seq embed] and [batch seq mlp]")  # fmt: skip
case("a layer that changes shape", graph("[embed, {repeat: {times: 3, cycle: [§{linear: mlp}]}}]"),
     "axis-mismatch", says="[batch seq embed=4] goes in, [batch seq mlp=8] comes out")  # fmt: skip
case(
    "attention along nothing",
    graph("[embed, {attention: {over: §sequence}}, unembed]"),
    "missing-axis",
    says="found [batch",
)
case(
    "concat along nothing",
    graph("[embed, {concat: {axis: §embd, of: [identity, identity]}}, unembed]"),
    "missing-axis",
    "embed",
)

# -- repeat
case(
    "repeat without times",
    graph("[embed, {§repeat: {cycle: [relu]}}, unembed]"),
    "missing-key",
    says="repeat needs times",
)
case("repeat without cycle", graph("[embed, {§repeat: {times: 2}}, unembed]"), "missing-key", says="repeat needs cycle")
case("repeat misspelt", graph("[embed, {repeat: {§tims: 2, cycle: [relu]}}, unembed]"), "unknown-key", "times")
case(
    "times not whole", graph("[embed, {repeat: {times: §2.5, cycle: [relu]}}, unembed]"), "not-whole", says="found 2.5"
)
case("times too many", graph("[embed, {repeat: {times: §200000, cycle: [relu]}}, unembed]"), "out-of-range")
case(
    "empty cycle", graph("[embed, {repeat: {times: 2, cycle: §[]}}, unembed]"), "wrong-type", says="found an empty one"
)
case(
    "layer outside of a repeat",
    graph("[embed, {scale: 2 * §layer}, unembed]"),
    "unknown-name",
    says="inside a repeat only",
)

# -- several at once
case("five at once", edit("- embed\n", "- §embedd\n", "gelu_tanh", "§gelu_tahn", "theta: 10_000", "§teta: 10_000",
     "times: layers", "times: §layrs", "tied: embed", "tied: §embd"),
     "unknown-key unknown-word unknown-block unknown-name unknown-name",
     ("theta", "gelu_tanh", "embed", "layers", "embed"))  # fmt: skip
case("one fault of a dim, not its consequences", edit("heads: 4", "heads: §four"), "unknown-name")
