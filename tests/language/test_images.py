"""Images in the language: NFNet as the papers count it, sizes of a block's input, several images a row, patches."""

from __future__ import annotations

import pytest

from compiler.errors import SpecError
from compiler.language.model import Model, load, loads
from compiler.ops.leaves import Input
from costmodel.price import price

# arXiv:2102.06171, table 3 (parameters with the classifier; multiply-adds of one image at the test resolution)
TABLE = {
    "nfnet-f0": (71.5, 12.38), "nfnet-f1": (132.6, 35.54), "nfnet-f2": (193.8, 62.59), "nfnet-f3": (254.9, 114.76),
    "nfnet-f4": (316.1, 215.24), "nfnet-f5": (377.2, 289.76), "nfnet-f6": (438.4, 377.28),
}  # fmt: skip
HEAD = "name: t\ndims: {embed: 12, heads: 2, kv_heads: 2, head_dim: 6, mlp: 8}\n"


def multiply_adds(made: Model) -> int:
    """Of one image, as papers count: every entry of a result times every entry of the kernel, padding or not."""
    work = price(made.graph).at({"batch": 1})
    return int(work.matrix + work.padding) // 2


def axes(made: Model, name: str) -> dict[str, str]:
    return {a: str(s) for a, s in made.graph.output(name).type.pairs}


@pytest.mark.parametrize("name", TABLE)
def test_nfnet_has_the_paper_s_parameters_and_multiply_adds(name: str) -> None:
    made = load(name)
    millions, billions = TABLE[name]
    assert round(made.parameter_count() / 1e6, 1) == millions
    assert round(multiply_adds(made) / 1e9, 2) == billions


def test_the_encoder_of_flamingo() -> None:
    """arXiv:2204.14198, table 5: 435M, which is NFNet-F6 without its classifier, at 320 x 320."""
    made = load("nfnet-f6", {"resolution": 320})
    classifier = sum(int(t.elements.constant) for k, (_, t) in made.parameters.items() if k.startswith("classifier"))
    assert made.parameter_count() - classifier == 435_286_116
    assert multiply_adds(made) == 116_552_278_016
    assert axes(made, "features") == {"batch": "batch", "height": "10", "width": "10", "channel": "3072"}
    assert (made.unit, made.streaming_input, made.warnings) == ("image", None, ())


def test_what_falls_on_padding_is_told_apart() -> None:
    """A 3 x 3 window over 4 x 4: of 12 entries along an axis 2 are padding."""
    made = loads(f"{HEAD}inputs: {{x: {{kind: image, size: [4, 4]}}}}\ngraph: [{{conv: {{to: 5, kernel: 3}}}}]\n")
    work = price(made.graph).at({"batch": 7})
    assert work.matrix == 2 * 7 * 10 * 10 * 3 * 5 and work.matrix + work.padding == 2 * 7 * 12 * 12 * 3 * 5


def test_a_block_knows_the_sizes_of_its_input() -> None:
    """Of its own input, where no dim and no arg has the name; also in what its args are by default."""
    text = f"""{HEAD}inputs: {{x: {{kind: image, size: [4, 6]}}}}
blocks:
  half:
    args: {{wide: channel // 2, embed_too: embed}}
    body: [{{conv: {{to: wide, kernel: 1}}}}, {{linear: {{to: channel + height + width + embed_too}}}}, inner]
  inner: {{body: [{{linear: {{to: hidden // 5}}}}]}}
graph: [{{conv: {{to: 10, kernel: 1}}}}, half]
"""
    assert axes(loads(text), "logits") == {"batch": "batch", "height": "4", "width": "6", "hidden": "6"}


def test_a_block_that_nothing_uses_may_speak_of_its_input() -> None:
    """Of what it is not known; what is wrong in it all the same is told."""
    text = f"{HEAD}inputs: {{x: {{kind: image, size: [4, 6]}}}}\n"
    text += "blocks: {b: {body: [{linear: {to: 2 * channel}}]}}\n"
    assert loads(text + "graph: [relu]\n").warnings[0] == "nothing uses the block b"
    with pytest.raises(SpecError, match="unknown name chanel"):
        loads(text.replace("* channel", "* chanel") + "graph: [relu]\n")


def test_a_dim_stands_before_an_axis_of_the_input() -> None:
    text = f"{HEAD}inputs: {{x: {{kind: features, axes: [seq, wide]}}}}\nblocks: {{b: {{body: [{{linear: embed}}]}}}}\n"
    made = loads(text.replace("mlp: 8", "mlp: 8, wide: 5") + "graph: [{linear: {to: 7}}, b]\n")
    assert axes(made, "logits")["embed"] == "12"


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ("kind: image, size: [4, 6]", "batch height width channel"),
        ("kind: image, size: [4, 6], count: 3", "batch image height width channel"),
        ("kind: image, size: [4, 6], count: any", "batch image height width channel"),
        ("kind: video, size: [4, 6], frames: 2", "batch image frame height width channel"),
        ("kind: video, size: [4, 6], frames: 2, count: embed", "batch image frame height width channel"),
    ],
)
def test_images_of_a_row(given: str, want: str) -> None:
    made = loads(f"{HEAD}inputs: {{x: {{{given}}}}}\ngraph: [{{conv: {{to: 5, kernel: 3, stride: 2}}}}]\n")
    found = axes(made, "logits")
    assert " ".join(found) == want and (found["height"], found["width"], found["channel"]) == ("2", "3", "5")
    count = {"3": "3", "any": "image", "embed": "12"}.get(given.partition("count: ")[2], "image")
    assert found.get("image", count) == count
    inputs = {n.op.label for n in made.graph.leaves(Input)}  # type: ignore[attr-defined]
    assert inputs - {"x"} == ({"image_lengths"} if "image" in found and count == "image" else set())


def test_patches_of_an_image_are_attended_to() -> None:
    """A vision transformer's beginning (arXiv:2010.11929): patches are a convolution whose stride is its window."""
    text = f"""{HEAD}inputs: {{x: {{kind: image, size: [8, 12]}}}}
graph:
  - {{conv: {{to: embed, kernel: 4, stride: 4, padding: valid, bias: true}}, name: patch}}
  - merge: {{axes: [height, width], to: patches}}
  - residual: [layer_norm, {{attention: {{causal: false, over: patches}}}}]
"""
    made = loads(text)
    assert axes(made, "logits") == {"batch": "batch", "patches": "6", "embed": "12"}
    kernel = made.parameters["patch.kernel"][1]
    assert str(kernel) == "bfloat16[kernel_height=4 kernel_width=4 channel=3 embed=12]"
    work = price(made.graph).by(lambda item: item.op, {"batch": 1})
    assert work["conv"].matrix == 2 * 6 * 4 * 4 * 3 * 12 and work["conv"].padding == 0


def test_a_varying_axis_is_halved_by_a_stride() -> None:
    """Sound of any length, as Whisper's second convolution takes it (arXiv:2212.04356)."""
    text = f"{HEAD}inputs: {{x: {{kind: features, axes: [frames, embed]}}}}\ngraph: [{{conv: {{to: embed, kernel: 3, "
    for padding in ("same", "1"):
        made = loads(text + f"stride: 2, padding: {padding}, over: frames}}}}]\n")
        size = made.graph.output("logits").type.size("frames")
        assert [size.evaluate({"frames": n}) for n in (1, 2, 7, 8)] == [1, 1, 4, 4]
        work = price(made.graph)
        assert work.at({"batch": 1, "frames": 8}).matrix == 2 * 11 * 12 * 12
    with pytest.raises(SpecError, match="no longer those of the input"):  # 7 of 8 frames: how many of 4 are left?
        loads(f"{text}stride: 2, over: frames}}}}, {{attention: {{causal: false, over: frames}}}}]\n")
