"""How the compilers' words are read."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from compiler.targets.result import Result, cost_figures, is_refusal, memory_figures, refusal_sizes

GIB = 2**30
REFUSALS = [
    (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
        "(26.84G) exceeds available HBM (15.75G).",
        (round(26.84 * GIB), round(15.75 * GIB)),
    ),
    (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: XLA:TPU compile permanent error. Ran out of "
        "memory in memory space hbm. Used 20.17G of 15.75G hbm. Exceeded hbm capacity by 4.42G.",
        (round(20.17 * GIB), round(15.75 * GIB)),
    ),
    ("E1000 CompileTimeHbmOom: words that this version does not say", (None, None)),
]


@pytest.mark.parametrize(("message", "sizes"), REFUSALS)
def test_a_refusal_is_known_and_read(message: str, sizes: tuple[int | None, int | None]) -> None:
    assert is_refusal(message)
    assert refusal_sizes(message) == sizes


def test_a_failure_is_no_refusal() -> None:
    assert not is_refusal("INTERNAL: RET_CHECK failure hlo_instruction.cc")
    assert not is_refusal("RESOURCE_EXHAUSTED: too many open files")


def test_figures_the_compiler_does_not_give_are_none() -> None:
    assert cost_figures(None) == {"flops": None, "bytes_accessed": None}
    assert cost_figures({"flops": -1.0, "bytes accessed": 8.0}) == {"flops": None, "bytes_accessed": 8.0}
    figures = memory_figures(SimpleNamespace(argument_size_in_bytes=8, peak_memory_in_bytes=0))
    assert figures["argument_bytes"] == 8
    assert figures["peak_bytes"] is None and figures["temp_bytes"] is None


def test_the_peak_on_a_cpu_holds_its_working_memory() -> None:
    sizes = {"argument": 100, "output": 30, "temp": 50, "alias": 20}
    stats = SimpleNamespace(peak_memory_in_bytes=110, **{f"{k}_size_in_bytes": n for k, n in sizes.items()})
    assert memory_figures(stats, "cpu")["peak_bytes"] == 160
    assert memory_figures(stats, "tpu")["peak_bytes"] == 110


def test_a_result_survives_json() -> None:
    result = Result("accepted", "cpu", "ab", {"jax": "1"}, notes=("one",))
    assert Result.from_json(result.as_json()) == result
