"""Collectives of small texts: what each form of one is counted as."""

from __future__ import annotations

import pytest

from compiler.check.collectives import Collective, Found, bytes_sent, collectives, sent
from compiler.check.hlo import HloError
from tests.check.texts import ADD, computation, loop, module

MESH = {"data": 2, "model": 4}
ROWS = "replica_groups={{0,1,2,3},{4,5,6,7}}"
COLUMNS = "replica_groups=[4,2]<=[2,4]T(1,0)"
X = "%x = bf16[64,32]{1,0} parameter(0)"
BYTES = 64 * 32 * 2


def found(*lines: str, before: str = ADD) -> Found:
    return collectives(module(*lines, before=before), MESH)


def one(*lines: str, before: str = ADD) -> Collective:
    (single,) = found(*lines, before=before).collectives
    return single


@pytest.mark.parametrize(
    ("line", "kind", "taken", "made", "moved"),
    [
        (f"bf16[64,32] all-reduce(%x), {ROWS}, to_apply=%add", "all-reduce", 1, 1, 2 * 3 / 4),
        (f"bf16[256,32] all-gather(%x), {ROWS}, dimensions={{0}}", "all-gather", 1, 4, 4 * 3 / 4),
        (f"bf16[16,32] reduce-scatter(%x), {ROWS}, dimensions={{0}}, to_apply=%add", "reduce-scatter", 1, 1 / 4, 3 / 4),
        (f"bf16[64,32] all-to-all(%x), {ROWS}, dimensions={{0}}", "all-to-all", 1, 1, 3 / 4),
        (f"bf16[64,32] collective-broadcast(%x), {ROWS}", "collective-broadcast", 1, 1, 1),
        ("bf16[64,32] collective-permute(%x), source_target_pairs={{0,1},{4,5}}", "collective-permute", 1, 1, 1),
        (
            f"bf16[64,32] ragged-all-to-all(%x, %x, %x, %x, %x, %x), {ROWS}, use_global_device_ids=true",
            "ragged-all-to-all", 1, 1, 3 / 4,
        ),
    ],
)  # fmt: skip
def test_kinds(line: str, kind: str, taken: float, made: float, moved: float) -> None:
    c = one(X, f"ROOT %c.1 = {line}")
    assert (c.kind, c.axes, c.group, c.dtype, c.name) == (kind, ("model",), 4, "bf16", "c.1")
    assert (c.operand_bytes, c.result_bytes, c.sent) == (BYTES * taken, BYTES * made, BYTES * moved)
    assert (c.count, c.asynchronous, c.combined, c.exact, c.branch) == (1, False, 1, True, False)


@pytest.mark.parametrize(
    ("start", "kind", "made"),
    [
        (f"bf16[64,32] all-reduce-start(%x), {ROWS}, to_apply=%add", "all-reduce", 1),
        (f"(bf16[64,32]{{1,0}}, bf16[256,32]{{1,0}}) all-gather-start(%x), {ROWS}, dimensions={{0}}", "all-gather", 4),
        (f"((bf16[64,32]), bf16[16,32]) reduce-scatter-start(%x), {ROWS}, to_apply=%add", "reduce-scatter", 1 / 4),
        (f"((bf16[64,32]), bf16[64,32]) all-to-all-start(%x), {ROWS}, dimensions={{0}}", "all-to-all", 1),
        (
            "(bf16[64,32], bf16[64,32], u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), "
            "source_target_pairs={{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}", "collective-permute", 1,
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("waits", [True, False])
def test_starts_and_ends_are_one(start: str, kind: str, made: float, waits: bool) -> None:
    """GPU says of each start whether its end follows at once."""
    config = f', backend_config={{"collective_backend_config":{{"is_sync":{str(waits).lower()}}}}}'
    last = f"ROOT %d = bf16[64,32] {kind}-done(%s)"
    result = found(X, f"%s = {start}{config}", last)
    (c,) = result.collectives
    assert (c.kind, c.operand_bytes, c.result_bytes, c.asynchronous) == (kind, BYTES, BYTES * made, not waits)
    assert (result.instructions, result.asynchronous) == (1, 0 if waits else 1)
    assert c.by == (1 if kind == "collective-permute" else None)


@pytest.mark.parametrize(("opcode", "key"), [("async", "calls"), ("call", "to_apply")])
def test_a_computation_that_runs_beside_others(opcode: str, key: str) -> None:
    """As TPU 7x hands collectives to its sparse cores."""
    inside = ADD + computation("beside", X, f"ROOT %g = bf16[256,32] all-gather(%x), {ROWS}, dimensions={{0}}")
    lines = [f"%s = ((bf16[64,32]), bf16[256,32]) {opcode}-start(%x), {key}=%beside"]
    lines += [f"%u = ((bf16[64,32]), bf16[256,32]) {opcode}-update(%s), {key}=%beside"]
    c = one(X, *lines, f"ROOT %d = bf16[256,32] {opcode}-done(%u), {key}=%beside", before=inside)
    assert (c.kind, c.asynchronous, c.result_bytes) == ("all-gather", True, 4 * BYTES)


def test_the_copies_of_an_asynchronous_fusion_are_one() -> None:
    """One chain in start, step and end; another chain of the same channel is another gather."""

    def part(name: str, chain: int) -> str:
        mark = f'frontend_attributes={{chain_id="{chain}"}}'
        gather = f"%g.{name} = bf16[256,32] all-gather(%x), channel_id=1, {ROWS}, dimensions={{0}}, {mark}"
        return computation(name, X, f"ROOT {gather}")

    before = "".join(part(f"{name}{chain}", chain) for chain in (0, 1) for name in ("start", "step", "done"))
    called = [f"{name}{chain}" for chain in (0, 1) for name in ("start", "step", "done")]
    lines = [f"%f.{name} = bf16[256,32] fusion(%x), kind=kCustom, calls=%{name}" for name in called]
    result = found(X, *lines, f"ROOT %p = bf16[256,32] all-gather(%x), {ROWS}, dimensions={{0}}", before=before)
    assert [(c.kind, c.asynchronous) for c in result.collectives] == [("all-gather", n < 2) for n in range(3)]
    assert (result.instructions, result.asynchronous) == (3, 2)


def test_a_step_in_a_loop_after_the_start_is_no_gather_of_its_own() -> None:
    mark = 'frontend_attributes={chain_id="3"}'
    gather = f"ROOT %g = bf16[256,32] all-gather(%x), channel_id=1, {ROWS}, dimensions={{0}}, {mark}"
    inside = computation("start", X, gather) + computation("step", X, gather)
    body = ["%p = (s32[], f32[8], s32[]) parameter(0)", "%x = bf16[64,32] constant(0)",
            "%f = bf16[256,32] fusion(%x), kind=kCustom, calls=%step",
            "ROOT %t = (s32[], f32[8], s32[]) parameter(1)"]  # fmt: skip
    begin = ["%start = (s32[], f32[8], s32[]) parameter(0)", "%x = bf16[64,32] constant(0)",
             "%s = bf16[256,32] fusion(%x), kind=kCustom, calls=%start"]  # fmt: skip
    config = ', backend_config={"known_trip_count":{"n":"136"}}'
    text = loop(["ROOT %c = pred[] constant(0)"], body, begin, config, inside=inside)
    assert [(c.kind, c.count) for c in collectives(text).collectives] == [("all-gather", 1)]


def test_a_sum_with_a_slice() -> None:
    """TPU's fusion of that name is a scatter; a sum and a slice after it move what a sum moves."""
    lines = [X, f"%r = bf16[64,32] all-reduce(%x), {ROWS}, to_apply=%add"]
    cut = "ROOT %cut = bf16[16,32] slice(%r), slice={[0:16], [0:32]}"
    fused = ADD + computation("all-reduce-scatter.clone.1", *lines, cut)
    c = one(X, "ROOT %f = bf16[16,32] fusion(%x), kind=kCustom, calls=%all-reduce-scatter.clone.1", before=fused)
    assert (c.kind, c.operand_bytes, c.result_bytes, c.sent) == ("reduce-scatter", BYTES, BYTES / 4, BYTES * 3 / 4)
    apart = one(*lines, cut)
    assert (apart.kind, apart.sent) == ("all-reduce", BYTES * 3 / 2)
    assert apart.path == "while/body/layer/reduce_scatter"  # it has no name of its own: its combiner's


def test_combined_ones_are_split() -> None:
    lines = [X, "%y = f32[8] parameter(1)"]
    shape = "((bf16[64,32], f32[8]), (bf16[256,32], f32[32]))"
    pair = found(*lines, f"ROOT %s = {shape} all-gather-start(%x, %y), {ROWS}, dimensions={{0}}")
    assert [(c.dtype, c.operand_bytes, c.result_bytes, c.combined) for c in pair.collectives] == [
        ("bf16", BYTES, 4 * BYTES, 2), ("f32", 32, 128, 2),
    ]  # fmt: skip
    assert pair.instructions == 1
    sums = found(*lines, f"ROOT %r = (bf16[64,32], /*index=1*/f32[8]) all-reduce(%x, %y), {COLUMNS}, to_apply=%add")
    assert [(c.kind, c.axes, c.bytes) for c in sums.collectives] == [
        ("all-reduce", ("data",), BYTES), ("all-reduce", ("data",), 32),
    ]  # fmt: skip


def test_an_exchange_of_parts_is_one() -> None:
    """CPU gives each part of an all-to-all as an operand."""
    c = one(X, f"ROOT %a = ({', '.join(['bf16[64,32]'] * 4)}) all-to-all(%x, %x, %x, %x), {ROWS}")
    assert (c.operand_bytes, c.result_bytes, c.sent, c.combined) == (4 * BYTES, 4 * BYTES, 3 * BYTES, 1)


def test_counts_of_loops() -> None:
    condition = ["%p = (s32[], f32[8], s32[]) parameter(0)", 'ROOT %c = pred[] custom-call(), custom_call_target="x"']
    body = [condition[0], "%x = f32[8] get-tuple-element(%p), index=1"]
    body += [f"%r = f32[8] all-reduce(%x), {COLUMNS}, to_apply=%add"]
    body += ["ROOT %t = (s32[], f32[8], s32[]) tuple(%p, %r, %p)"]
    start = ["%start = (s32[], f32[8], s32[]) parameter(0)"]
    known = collectives(loop(condition, body, start, ', backend_config={"known_trip_count":{"n":"46"}}'), MESH)
    assert [(c.count, c.trips, c.exact) for c in known.collectives] == [(46, (46,), True)]
    assert not known.unknown and bytes_sent(known.collectives) == {("all-reduce", ("data",)): 46 * 32}
    unknown = collectives(loop(condition, body, start), MESH)
    assert [(c.count, c.trips, c.exact) for c in unknown.collectives] == [(1, (1,), False)]
    assert [loop.name for loop in unknown.unknown] == ["w"]


def test_groups_that_are_no_axes_and_no_mesh() -> None:
    crossed = "replica_groups={{0,5},{1,4},{2,7},{3,6}}"
    text = module(X, f"ROOT %r = bf16[64,32] all-reduce(%x), {crossed}, to_apply=%add", before=ADD)
    (c,) = collectives(text, MESH).collectives
    assert (c.axes, c.group) == (None, 2)
    (c,) = collectives(text).collectives
    assert (c.axes, c.group) == (None, 2)
    assert c.to_json()["sent"] == BYTES and collectives(text, MESH).to_json()["instructions"] == 1


def test_slices_have_programs_of_their_own() -> None:
    """The groups count inside a slice, and what crosses is a send and a receive by the hosts."""

    def mark(kind: str) -> str:
        where = '_xla_host_transfer_rendezvous="a_0",_xla_megascale_target="{1,2}x{0:3}"'
        return f'is_host_transfer=true, frontend_attributes={{{where},_xla_megascale_transfer_type="{kind}"}}'

    lines = [
        X, "%t = token[] after-all()",
        f"%s = (bf16[64,32], u32[], token[]) send(%x, %t), channel_id=1, {mark('ALL_GATHER')}",
        f"%v = (bf16[128,32], u32[], token[]) recv(%t), channel_id=2, {mark('ALL_GATHER')}",
        "%d = token[] send-done(%s), channel_id=1, is_host_transfer=true",
        "ROOT %r = bf16[64,32] all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%add",
    ]  # fmt: skip
    text = module(*lines, before=ADD, devices=4)
    across, inside = collectives(text, MESH).collectives
    assert (inside.kind, inside.axes, inside.group) == ("all-reduce", ("model",), 4)
    assert (across.kind, across.axes, across.group, across.asynchronous) == ("all-gather", ("data",), 2, True)
    assert (across.operand_bytes, across.result_bytes, across.sent) == (BYTES, 2 * BYTES, BYTES)
    halves = collectives(text, {"data": 4, "model": 2}).collectives
    assert [c.axes for c in halves] == [None, None]


def test_the_ring_formula() -> None:
    assert [sent(kind, 80, 1) for kind in ("all-reduce", "all-gather", "collective-permute")] == [0, 0, 80]
    assert [sent(kind, 80, 4) for kind in ("all-reduce", "all-gather", "reduce-scatter")] == [120, 60, 60]


def test_a_collective_of_nothing_is_refused() -> None:
    with pytest.raises(HloError):
        found(f"ROOT %a = () all-to-all(), {ROWS}")
