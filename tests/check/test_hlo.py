"""The parser on small texts of every notation."""

from __future__ import annotations

import time

import pytest

from compiler.check.hlo import HloError, bits, parse, parse_shape
from compiler.check.paths import alternatives, under
from tests.check.texts import module


def test_a_module() -> None:
    text = """HloModule jit_f, is_scheduled=true, num_partitions=8, replica_count=2

FileNames
1 "a/b{.py"

FileLocations
1 {file_name_id=1 function_name_id=1 line=44 end_line=44 column=25 end_column=25}

%add.1 (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %add.2 = f32[] add(%x, %y), metadata={op_name="w[\\'a\\']/\\"b\\""}, backend_config={"a":{"b":["1","}"]}}
}, execution_thread="sparsecore"

ENTRY %main.3_spmd (p: (f32[8,4], s32[])) -> f32[8] {
  %p = (f32[8,4]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/s32[]{:S(2)}) parameter(0)
  %g = f32[8,4]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%p), index=0
  %c = f32[] constant(-inf)
  %rows = s32[2,3]{1,0} constant({ { 1, 2, 3 },
    { 4, 5, 6 } }), metadata={op_name="rows"}
  ROOT %reduce.1 = f32[8]{0} reduce(%g, /*index=1*/%c), dimensions={1}, to_apply=%add.1
}
"""
    parsed = parse(text)
    assert (parsed.name, parsed.devices, parsed.entry.name) == ("jit_f", 16, "main.3_spmd")
    add = parsed["add.1"].root
    assert add is not None and add.operands == ("x", "y") and add.op_name == "w['a']/\"b\""
    assert add.backend_config == {"a": {"b": ["1", "}"]}}
    root = parsed.entry.root
    assert root is not None and root.operands == ("g", "c") and root.called("to_apply") == ("add.1",)
    assert root.ints("dimensions") == (1,) and root.shape.dims == (8,)
    assert parsed.entry["p"].shape.bytes == 8 * 4 * 4 + 4
    assert parsed.entry["rows"].op_name == "rows" and parsed.entry["rows"].shape.elements == 6
    assert list(parsed["add.1"].parameters) == [0, 1]


def test_older_notations() -> None:
    parsed = parse(
        module(
            "a = f32[8,4]{1,0:T(8,128)} parameter(0)",
            "b = (f32[8,4]{1,0}, u32[]) custom-call(f32[8,4]{1,0:T(8,128)} a, /*index=1*/f32[8,4] a), "
            'custom_call_target="x", backend_config="{\\"n\\":{\\"k\\":\\"5\\"}}"',
            "ROOT c = f32[8,4] get-tuple-element((f32[8,4]{1,0}, u32[]) %b), index=0",
        )
    )
    assert parsed.entry["b"].operands == ("a", "a") and parsed.entry["c"].operands == ("b",)
    assert parsed.entry["b"].backend_config == {"n": {"k": "5"}}


def test_attributes_keep_their_brackets() -> None:
    parsed = parse(
        module(
            "%a = f32[8] parameter(0)",
            "ROOT %r = f32[8] all-reduce(%a), channel_id=1, replica_groups=mesh['axis_0'=1,'axis_1'=4,'axis_2'=2], "
            "device_ids=([2,4]T(1,0)) {'axis_1'}, use_global_device_ids=true, to_apply=%add",
        )
    )
    attributes = parsed.entry["r"].attributes
    assert attributes["replica_groups"] == "mesh['axis_0'=1,'axis_1'=4,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_1'}"
    assert attributes["use_global_device_ids"] == "true" and attributes["to_apply"] == "%add"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("bf16[3,5]{1,0:T(8,128)(2,1)S(1)}", 30), ("pred[7]", 7), ("s4[3]", 2), ("f8e4m3fn[4,4]{1,0}", 16),
        ("c64[2]", 16), ("token[]", 0), ("f32[]", 4), ("f32[0,4]", 0), ("s32[<=8,2]", 64),
        ("((f32[2], bf16[2]), (u32[], (token[])))", 16), ("()", 0),
    ],
)  # fmt: skip
def test_bytes_of_shapes(text: str, size: int) -> None:
    assert parse_shape(text).bytes == size


def test_bits() -> None:
    assert [bits(t) for t in ("bf16", "f8e5m2", "u1", "f4e2m1fn", "opaque")] == [16, 8, 1, 4, 0]


@pytest.mark.parametrize(
    "text",
    [
        "", "HloModule m\n", "HloModule m\n\nENTRY %e () -> f32[] {\n  what is this\n}\n",
        "HloModule m\n\nENTRY %e () -> f32[] {\n  %a = f32[] constant((1\n",
    ],
)  # fmt: skip
def test_what_is_not_hlo_is_said(text: str) -> None:
    with pytest.raises(HloError):
        parse(text)
    with pytest.raises(HloError):
        parse_shape("f32[2], f32[2]")


def test_scopes() -> None:
    assert under("jit(f)/transpose(jvp(layer))/while/body/closed_call/checkpoint/attn/all_gather", "layer/attn")
    assert under("jit(f)/layer/while/body/attn/dot", "layer/body/attn")
    assert not under("jit(f)/layer/attention/dot", "layer/attn")
    assert not under("jit(f)/layer/attn/dot", "")
    merged = "jit(f)/while/layer/(up/all_gather:jvp(down)/all_gather)"
    assert alternatives(merged) == ("jit(f)/while/layer/up/all_gather", "jit(f)/while/layer/jvp(down)/all_gather")
    assert under(merged, "layer/up") and under(merged, "layer/down") and not under(merged, "up/down")
    assert alternatives("jit(f)/jvp(a)/b") == ("jit(f)/jvp(a)/b",)


def test_megabytes_are_fast() -> None:
    config = '{"flag_configs":[],"window_config":{"bounds":["8","2"],"cycles":"2027"},"lists":[{"indices":["0"]}]}'
    lines = ["%p = bf16[64,256]{1,0:T(8,128)(2,1)} parameter(0)"]
    for n in range(20_000):
        shape = f"(bf16[64,{n % 97 + 1}]{{1,0:T(8,128)(2,1)S(1)}}, /*index=1*/u32[]{{:S(2)}})"
        lines.append(
            f'%t.{n} = {shape} fusion(%p, /*index=1*/%p), kind=kLoop, calls=%f, metadata={{op_name="a/b" '
            f"stack_frame_id=1}}, backend_config={config}"
        )
    text = module(*lines, "ROOT %r = f32[] constant(0)")
    start = time.perf_counter()
    parsed = parse(text)
    took = time.perf_counter() - start
    assert len(text) > 5_000_000 and len(parsed.entry.instructions) == 20_002
    assert took < 3, took
