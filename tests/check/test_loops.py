"""Trip counts, written down or worked out, and how often what is inside runs."""

from __future__ import annotations

import operator

import pytest

from compiler.check.hlo import parse
from compiler.check.loops import Trips, unexpected, walk
from tests.check.texts import computation, loop, module

P = "%p = (s32[], f32[8], s32[]) parameter(0)"
I = "%i = s32[] get-tuple-element(%p), index=0"  # noqa: E741
X = "%x = f32[8] get-tuple-element(%p), index=1"
BOUND = "%bound = s32[] get-tuple-element(%p), index=2"
START = ["%zero = s32[] constant(0)", "%f = f32[8] iota(), iota_dimension=0", "%five = s32[]{:T(128)} constant(5)"]
TUPLE = "%start = (s32[], f32[8], s32[]) tuple(%zero, %f, %five)"
ONE = "%one = s32[] constant(1)"


def trips(condition: list[str], body: list[str], start: list[str], config: str = "", inside: str = "") -> int | None:
    loops: list[Trips] = []
    for _ in walk(parse(loop(condition, body, start, config, inside)), loops):
        pass
    (found,) = loops
    assert found.written == bool(config) and found.times == 1
    return found.trips


def counted(direction: str, limit: int, start: int, step: str, turned: bool = False) -> int | None:
    operands = "%limit, %i" if turned else "%i, %limit"
    condition = [P, I, f"%limit = s32[] constant({limit})"]
    condition.append(f"ROOT %c = pred[] compare({operands}), direction={direction}")
    body = [P, I, X, BOUND, "%step = s32[] constant(2)", f"%next = s32[] {step}(%i, %step)"]
    body.append("ROOT %t = (s32[], f32[8], s32[]) tuple(%next, %x, %bound)")
    return trips(condition, body, [f"%zero = s32[] constant({start})", *START[1:], TUPLE])


@pytest.mark.parametrize(
    ("direction", "limit", "start", "step", "turned", "expected"),
    [
        ("LT", 10, 0, "add", False, 5), ("LT", 9, 0, "add", False, 5), ("LE", 10, 0, "add", False, 6),
        ("LT", 0, 0, "add", False, 0), ("LT", 10, 0, "subtract", False, None), ("GT", 0, 10, "subtract", False, 5),
        ("GE", 0, 10, "subtract", False, 6), ("NE", 10, 0, "add", False, 5), ("NE", 9, 0, "add", False, None),
        ("NE", 0, 10, "subtract", False, 5), ("GT", 10, 0, "add", True, 5), ("GE", 10, 0, "add", True, 6),
        ("EQ", 0, 0, "add", False, 1), ("EQ", 3, 0, "add", False, 0), ("LT", 5, -3, "add", False, 4),
        ("LT", 10, 1, "multiply", False, None),
    ],
)  # fmt: skip
def test_worked_out(direction: str, limit: int, start: int, step: str, turned: bool, expected: int | None) -> None:
    found = counted(direction, limit, start, step, turned)
    assert found == expected
    if expected is not None:  # the same by running it
        holds = getattr(operator, direction.lower())
        i, n = start, 0
        while holds(*((limit, i) if turned else (i, limit))) and n < 100:
            i, n = (i + 2 if step == "add" else i - 2), n + 1
        assert n == expected


def test_the_bound_is_carried_and_the_comparison_fused() -> None:
    """As TPU and GPU have it: the bound and the step travel in the tuple, the comparison stands in a fusion."""
    fused = computation(
        "fused", "%a = s32[] parameter(0)", "%b = s32[] parameter(1)", "ROOT %lt = pred[] compare(%a, %b), direction=LT"
    ) + computation("plus", "%a = s32[] parameter(0)", ONE, "ROOT %sum = s32[] add(%a, %one)")
    condition = [P, I, BOUND, "ROOT %c = pred[] fusion(%i, %bound), kind=kLoop, calls=%fused"]
    body = [P, I, X, BOUND, "%copied = s32[]{:T(128)} copy(%bound)"]
    body += ["%next = s32[] fusion(%i), kind=kLoop, calls=%plus"]
    body += ["ROOT %t = (s32[], f32[8], s32[]) tuple(%next, %x, %copied)"]
    moved = ["%s = (s32[], s32[], u32[]) copy-start(%five)", "%d = s32[] copy-done(%s)"]
    tuple_of_copies = "%start = (s32[], f32[8], s32[]) tuple(%zero, %f, %d)"
    assert trips(condition, body, [*START, *moved, tuple_of_copies], inside=fused) == 5


def test_a_step_from_the_tuple() -> None:
    condition = [P, I, "%limit = s32[] constant(20)", "ROOT %c = pred[] compare(%i, %limit), direction=LT"]
    body = [P, I, X, BOUND, "%next = s32[] add(%bound, %i)"]
    body += ["ROOT %t = (s32[], f32[8], s32[]) tuple(%next, %x, %bound)"]
    assert trips(condition, body, [*START, TUPLE]) == 4


def test_what_is_written_down_is_taken() -> None:
    condition = [P, I, 'ROOT %c = pred[] custom-call(%i), custom_call_target="x"']
    body = [P, "ROOT %t = (s32[], f32[8], s32[]) copy(%p)"]
    config = ', backend_config={"known_trip_count":{"n":"7"},"known_init_step":{"init":"0","step":"1"}}'
    assert trips(condition, body, [*START, TUPLE], config) == 7
    assert trips(condition, body, [*START, TUPLE]) is None


def test_a_bound_that_the_program_computes_is_unknown() -> None:
    condition = [P, I, BOUND, "ROOT %c = pred[] compare(%i, %bound), direction=LT"]
    body = [P, I, X, BOUND, ONE, "%next = s32[] add(%i, %one)"]
    body += ["ROOT %t = (s32[], f32[8], s32[]) tuple(%next, %x, %bound)"]
    given = [START[0], START[1], "%five = s32[] parameter(0)", TUPLE]
    assert trips(condition, body, given) is None
    text = loop(condition, body, given)
    loops: list[Trips] = []
    inside = [v for v in walk(parse(text), loops) if v.instruction.name == "next"]
    assert [(v.times, v.exact, v.trips) for v in inside] == [(1, False, (1,))]
    assert unexpected(loops, [5]) == loops
    assert unexpected([Trips("w", "", 5, True, 1), Trips("w", "", 4, True, 1)], [5]) == [Trips("w", "", 4, True, 1)]


def test_loops_in_loops_multiply() -> None:
    inner = computation(
        "inner_body", P, I, X, BOUND, ONE, "%next = s32[] add(%i, %one)", "%deep = f32[8] tanh(%x)",
        "ROOT %t = (s32[], f32[8], s32[]) tuple(%next, %deep, %bound)",
    ) + computation("inner_condition", P, I, BOUND, "ROOT %c = pred[] compare(%i, %bound), direction=LT")  # fmt: skip
    body = [P, I, X, BOUND, ONE, "%nil = s32[] constant(0)"]
    body += ["%from = (s32[], f32[8], s32[]) tuple(%nil, %x, %bound)"]
    body += ["%v = (s32[], f32[8], s32[]) while(%from), condition=%inner_condition, body=%inner_body"]
    body += ["%y = f32[8] get-tuple-element(%v), index=1", "%next = s32[] add(%i, %one)"]
    body += ["ROOT %t = (s32[], f32[8], s32[]) tuple(%next, %y, %bound)"]
    condition = [P, I, "%limit = s32[] constant(3)", "ROOT %c = pred[] compare(%i, %limit), direction=LT"]
    loops: list[Trips] = []
    visits = list(walk(parse(loop(condition, body, [*START, TUPLE], inside=inner)), loops))
    (deep,) = [v for v in visits if v.instruction.name == "deep"]
    assert (deep.times, deep.trips, deep.place) == (15, (3, 5), "inner_body")
    assert [(x.trips, x.times) for x in loops] == [(3, 1), (5, 3)]
    conditions = [v.times for v in visits if v.instruction.opcode == "compare"]
    assert conditions == [4, 18]  # once more than the body each time


def test_branches_and_calls() -> None:
    before = "".join(computation(n, f"ROOT %{v} = f32[8] parameter(0)") for n, v in (("left", "a"), ("right", "b")))
    text = module(
        "%x = f32[8] parameter(0)",
        "%k = s32[] constant(0)",
        "%y = f32[8] conditional(%k, %x, %x), branch_computations={%left, %right}",
        "%s = ((f32[8]), f32[8], u32[]) async-start(%x), calls=%left",
        "%u = ((f32[8]), f32[8], u32[]) async-update(%s), calls=%left",
        "%e = f32[8] async-done(%u), calls=%left",
        "ROOT %z = f32[8] call(%y), to_apply=%right",
        before=before,
    )
    found = [(v.instruction.name, v.branches, v.asynchronous) for v in walk(parse(text)) if v.place != "main"]
    assert found == [("a", ((1, 0),), False), ("b", ((1, 1),), False), ("a", (), True), ("b", (), False)]
