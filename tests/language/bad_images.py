"""The last part of the table of broken specs: images, windows that slide, sizes of a block's input."""

from tests.language.bad_specs import case, graph

HEAD = "name: t\ndims: {embed: 8}\ninputs: {images: {kind: image, size: [6, 6]}}\n"


def images(*nodes: str) -> str:
    return f"{HEAD}graph: [{', '.join(nodes)}]\n"


def kernel(axes: str, line: str) -> str:
    params = f"    params: {{kernel: {axes}}}\n" if axes else ""
    sized = "    args: {kernel_height: 3, kernel_width: 3, to: 4, part: 2}\n"
    return f"{HEAD}blocks:\n  mine:\n{sized}{params}    program:\n      {line}\ngraph: [mine]\n"


case("a convolution of tokens", graph("[embed, {§conv: {to: 4, kernel: 3}}, unembed]"), "missing-axis",
     says="conv runs along height and width of [batch … channels], found [batch seq embed]")  # fmt: skip
case("an axis misspelt", images("{conv: {to: 4, kernel: 3, over: §heigth}}"), "missing-axis", "height")
case("no channels", images("{conv: §{kernel: 3}}"), "missing-key", says="conv.to is missing")
case("a stride of nothing", images("{conv: {to: 4, kernel: 3, stride: §0}}"), "out-of-range", says="at least 1")
case("a padding misspelt", images("{conv: {to: 4, kernel: 3, padding: §sam}}"), "unknown-word", "same")
case("groups that do not divide", images("{conv: {to: 4, kernel: 3, groups: §2}}"), "indivisible",
     says="channel = 3 does not divide into 2 groups")  # fmt: skip
case("three sizes of two", images("{§conv: {to: 4, kernel: [3, 3, 3]}}"), "axis-mismatch",
     says="window has 3 numbers for the axes height, width")  # fmt: skip
case("a window that does not fit", images("{§conv: {to: 4, kernel: 7, padding: valid}}"), "out-of-range",
     "padding: same", "a window of 7 does not fit into height = 6")  # fmt: skip
case("a stride and no window", images("{pool: {stride: §2}}"), "missing-key", says="pool has a stride and no window")
case("nothing but padding", images("{§pool: {window: 2, padding: 2}}"), "out-of-range", says="a whole window of 2")
case("a pool of another kind", images("{pool: {by: §maximum}}"), "unknown-word", "max")
case("merged axes misspelt", images("{merge: {axes: §[height, widht], to: patches}}"), "missing-axis", "width")
case("merged into another", images("{merge: {axes: [height, width], to: §channel}}"), "repeated-axis")
case("tokens counted", f"{HEAD}graph: [relu]\n".replace("kind: image", "kind: features, axes: [height], §count: 2"),
     "misplaced-key", says="count is of image and video, and this is features")  # fmt: skip
case(
    "a count misspelt",
    f"{HEAD}graph: [relu]\n".replace("6]", "6], count: embde").replace("{kind", "§{kind"),
    "unknown-name",
    "embed",
)

# -- sizes of the input
case("an axis of the input misspelt", f"{HEAD}blocks: {{mine: {{body: [{{linear: {{to: 2 * §chanel}}}}]}}}}\n"
     "graph: [mine]\n", "unknown-name", "channel")  # fmt: skip
case("an axis that the input has not", f"{HEAD}blocks: {{mine: {{body: [{{linear: {{to: §seq}}}}]}}}}\n"
     "graph: [mine]\n", "unknown-name", says="unknown name seq")  # fmt: skip

# -- programs
case("a kernel without windows", kernel("channel -> to", "output: §conv(input, kernel)"), "missing-axis",
     "kernel_width", "a kernel has kernel_<axis> for each axis it slides along")  # fmt: skip
case("groups of another size", kernel("kernel_height part -> to", "output: §conv(input, kernel, groups=2)"),
     "axis-mismatch", says="groups divide an axis that input and kernel share")  # fmt: skip
case("a word for a stride", kernel("kernel_height channel -> to", "output: conv(input, kernel, stride=§embd)"),
     "unknown-name", "embed")  # fmt: skip
case("split into nothing", kernel("", "output: §split(input, axis=channel)"), "wrong-call",
     says="split(x, axis=embed, heads=4, head_dim=16)")  # fmt: skip
case("split with a rest", kernel("", "output: §split(input, axis=height, high=4, low=2)"), "indivisible",
     says="height = 6 does not split into 4 x 2")  # fmt: skip

# -- markers, entries of a context, another spec as a node
case("a marker of numbers", f"{HEAD}graph: [relu]\n".replace("image, size: [6, 6]", "count, §marker: 2"),
     "misplaced-key", says="marker is of image and video, and this is count")  # fmt: skip
case("a marker of one image", HEAD.replace("{kind", "§{kind").replace("6]}", "6], marker: 2}") + "graph: [relu]\n",
     "missing-key", says="how many belong to one row")  # fmt: skip
case("an entry of nothing",
     graph("[embed, {rms_norm: , name: n}, {attention: {kv_heads: 2}, from: §{entry: n}}, unembed]"),
     "unknown-port", says="the port entry is of a context")  # fmt: skip


def inner(options: str) -> str:
    return images(f"{{model: {{{options}}}}}")


case("no spec", inner("spec: §nfnet-f77"), "unknown-spec", "nfnet-f6")
case("a spec that reads tokens", inner("spec: §gemma-2b"), "dtype-mismatch", says="gemma-2b reads tokens")
case("images of another size", inner("spec: §nfnet-f0"), "axis-mismatch", "set: the size of its input images")
case("a chain misspelt", inner("spec: nfnet-f0, set: {resolution: 6}, output: §feature"), "unknown-name", "features")
case("an arg misspelt", inner("spec: nfnet-f0, set: {§resolutoin: 6}"), "unknown-name", "resolution")
