"""FLOPs of small texts, against hand counts."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.check.flops import _overlaps, flops
from compiler.check.hlo import HloError
from tests.check.texts import ADD, computation, loop, module

A, B = "%a = bf16[4,8,16]{2,1,0} parameter(0)", "%b = bf16[4,16,32]{2,1,0} parameter(1)"
LEFT, RIGHT = "lhs_batch_dims={0}, lhs_contracting_dims={2}", "rhs_batch_dims={0}, rhs_contracting_dims={1}"
DOT = f"f32[4,8,32] dot(%a, %b), {LEFT}, {RIGHT}"
COUNT = 2 * 4 * 8 * 16 * 32


def total(*lines: str, before: str = ADD) -> int:
    return flops(module(*lines, before=before)).total


def test_dots_alone_and_in_fusions() -> None:
    assert total(A, B, f"ROOT %d = {DOT}") == COUNT
    inside = computation("gemm", A, B, f"%d = {DOT}", "ROOT %n = f32[4,8,32] negate(%d)")
    lines = [A, B, "%f = f32[4,8,32] fusion(%a, %b), kind=kCustom, calls=%gemm", "ROOT %g = f32[4,8,32] copy(%f)"]
    assert total(*lines, before=inside) == COUNT
    found = flops(module(*lines, before=inside))
    assert [(p.name, p.dtype, p.flops, p.count, p.exact) for p in found.products] == [("d", "bf16", COUNT, 1, True)]
    assert found.exact and found.to_json()["exact"]


def test_products_with_one_row_are_sums_of_elementwise_ones() -> None:
    """The name of the dot stays on the sum; a norm's squares are no product."""
    named = 'metadata={op_name="jit(f)/layer/ab,bc->ac/dot_general"}'
    row, matrix = "%x = f32[64] parameter(0)", "%w = bf16[64,32] parameter(1)"
    made = [row, matrix, "%r = f32[64,32] broadcast(%x), dimensions={0}", "%c = f32[64,32] convert(%w)",
            "%m = f32[64,32] multiply(%r, %c)", "%z = f32[] constant(0)"]  # fmt: skip
    assert total(*made, f"ROOT %d = f32[32] reduce(%m, %z), dimensions={{0}}, to_apply=%add, {named}") == 2 * 64 * 32
    assert total(*made, "ROOT %d = f32[32] reduce(%m, %z), dimensions={0}, to_apply=%add") == 0
    assert total(row, f"ROOT %d = f32[64] multiply(%x, %x), {named}") == 2 * 64


def test_trips_multiply() -> None:
    condition = ['ROOT %c = pred[] custom-call(), custom_call_target="TopK"']
    body = [A, B, f"%d = {DOT}", "ROOT %t = (s32[], f32[8], s32[]) parameter(2)"]
    start = ["%start = (s32[], f32[8], s32[]) parameter(0)"]
    assert flops(loop(condition, body, start, ', backend_config={"known_trip_count":{"n":"46"}}')).total == 46 * COUNT
    unknown = flops(loop(condition, body, start))
    assert unknown.total == COUNT and not unknown.exact


@pytest.mark.parametrize(
    ("image", "kernel", "result", "attributes", "count"),
    [
        ("64,128", "128,256", "64,256", "dim_labels=bf_io->bf", 2 * 64 * 128 * 256),
        ("128,64", "128,256", "64,256", "dim_labels=fb_io->bf", 2 * 64 * 128 * 256),
        ("64,128", "256,128", "64,256", "dim_labels=bf_oi->bf", 2 * 64 * 128 * 256),
        # A batch as a dimension of space: dilated so far that each place of the result meets one of the image.
        ("4,128,256", "4,128,256", "4,128,128", "window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0oi->0bf",
         2 * 4 * 128 * 128 * 256),
        ("2,4,128,256", "2,4,128,256", "2,4,128,128",
         "window={size=2x4 stride=1x3 lhs_dilate=2x4}, dim_labels=01bf_01oi->01bf", 2 * 8 * 128 * 128 * 256),
        # A contraction as a dimension of space.
        ("8,64,16", "8,16,32", "64,32,1", "window={size=8}, dim_labels=0bf_0io->bf0", 2 * 64 * 8 * 16 * 32),
        # Features that are spread over space: an image of one place, which each place of the result meets once.
        ("64,128,1", "128,4,32", "64,4,32", "window={size=4 pad=3_3 rhs_reversal=1}, dim_labels=bf0_i0o->b0f",
         2 * 64 * 32 * 128 * 4),
        # Real convolutions: strided with padding, and one for each channel.
        ("4,64,32", "5,32,48", "4,32,48", "window={size=5 stride=2 pad=3_1}, dim_labels=b0f_0io->b0f",
         2 * 4 * 48 * 32 * 156),
        ("4,64,32", "5,1,32", "4,63,32", "window={size=5 pad=3_0}, dim_labels=b0f_0io->b0f, feature_group_count=32",
         2 * 4 * 32 * 309),
    ],
)  # fmt: skip
def test_convolutions(image: str, kernel: str, result: str, attributes: str, count: int) -> None:
    lines = [f"%a = bf16[{image}] parameter(0)", f"%b = bf16[{kernel}] parameter(1)"]
    assert total(*lines, f"ROOT %c = bf16[{result}] convolution(%a, %b), {attributes}") == count


@given(*[st.integers(1, 6)] * 3, st.integers(-3, 5), *[st.integers(1, 4)] * 3)
def test_overlaps_are_those_of_counting(
    image: int, kernel: int, result: int, pad: int, stride: int, dilated: int, kernel_dilated: int
) -> None:
    counted = 0
    for r, k in product(range(result), range(kernel)):
        place = r * stride + k * kernel_dilated - pad
        counted += 0 <= place <= (image - 1) * dilated and place % dilated == 0
    assert _overlaps(image, kernel, result, pad, stride, dilated, kernel_dilated) == counted


NUMBERS = (
    '"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["1"],'
    '"lhs_batch_dimensions":["0"],"rhs_batch_dimensions":["0"]},"epilogue":"BIAS"'
)


@pytest.mark.parametrize("target", ["__cublas$gemm", "__cublas$lt$matmul", "__cublas$lt$matmul$f8"])
@pytest.mark.parametrize("nested", [True, False])
def test_calls_of_cublas(target: str, nested: bool) -> None:
    config = f'{{"gemm_backend_config":{{{NUMBERS}}}}}' if nested else f"{{{NUMBERS}}}"
    call = f'custom-call(%a, %b), custom_call_target="{target}", backend_config={config}'
    assert total(A, B, f"ROOT %c = (bf16[4,8,32]{{2,1,0}}, s8[4194304]{{0}}) {call}") == COUNT


def test_calls_of_cudnn() -> None:
    lines = ["%x = bf16[4,64,32] parameter(0)", "%k = bf16[48,5,32] parameter(1)", "%y = bf16[4,60,48] parameter(2)"]
    window = "window={size=5}, dim_labels=b0f_o0i->b0f"
    for name, result, operands in (
        ("Forward", "bf16[4,60,48]", "%x, %k"),
        ("BackwardInput", "bf16[4,64,32]", "%y, %k"),
        ("BackwardFilter", "bf16[48,5,32]", "%x, %y"),
    ):
        call = f'custom-call({operands}), {window}, custom_call_target="__cudnn$conv{name}"'
        assert total(*lines, f"ROOT %c = ({result}, u8[0]) {call}") == 2 * 4 * 60 * 48 * 5 * 32, name


def test_ragged_products() -> None:
    """Each row meets one of the matrices, whatever their number."""
    lines = ["%x = bf16[64,128] parameter(0)", "%w = bf16[8,128,256] parameter(1)", "%s = s32[8] parameter(2)"]
    count = 2 * 64 * 128 * 256
    assert total(*lines, "ROOT %r = bf16[64,256] ragged-dot(%x, %w, %s), lhs_contracting_dims={1}") == count
    tiles = 'custom-call(%s), custom_call_target="tpu_custom_call"'
    kernel = 'custom-call(%s, %x, %w), custom_call_target="tpu_custom_call"'
    marked = f'ROOT %k = bf16[64,256] {kernel}, frontend_attributes={{ragged_dot_tiling="64,128,256"}}'
    found = flops(module(*lines, f"%ragged-dot-metadata = s32[9] {tiles}", marked))
    assert found.total == count and found.exact


def test_other_kernels_are_listed() -> None:
    known = '%n = f32[8] custom-call(), custom_call_target="AllocateBuffer"'
    found = flops(module(A, known, 'ROOT %k = f32[8] custom-call(%a), custom_call_target="tpu_custom_call"'))
    assert (found.total, found.opaque, found.exact) == (0, {"tpu_custom_call": 1}, False)


def test_the_costliest_branch_counts() -> None:
    one = computation("one", A, B, f"ROOT %d = {DOT}")
    two = computation("two", A, B, f"%e = {DOT}", f"ROOT %f = {DOT}")
    inner = computation(
        "nested", A, B, f"%g = {DOT}",
        "ROOT %h = f32[4,8,32] conditional(%a, %a, %b), true_computation=%one, false_computation=%two",
    )  # fmt: skip
    lines = [A, B, "ROOT %c = f32[4,8,32] conditional(%a, %a, %b), branch_computations={%one, %nested}"]
    assert total(*lines, before=one + two + inner) == 3 * COUNT


def test_a_convolution_without_labels_is_refused() -> None:
    with pytest.raises(HloError):
        total(A, B, "ROOT %c = f32[4,8,32] convolution(%a, %b), window={size=1}")
