"""Given a text with a unit, when it is read, then the SI value or a refusal that names the mend."""

import pytest

from costmodel import units
from costmodel.units import UnitProblem, parse

READ = [
    ("197 TFLOP/s", "FLOP/s", 197e12),
    ("393 TOP/s", "FLOP/s", 393e12),
    ("16 GiB", "B", 16 * 2**30),
    ("16 GB", "B", 16e9),
    ("84_942_979_072 B", "B", 84_942_979_072),
    ("1,000 B", "B", 1000),
    ("819 GB/s", "B/s", 819e9),
    ("800 GiB/s", "B/s", 800 * 2**30),
    ("100 Gbit/s", "B/s", 12.5e9),
    ("170 W", "W", 170),
    ("15 us", "s", 15e-6),
    ("2.5e2 GB/s", "B/s", 250e9),
]

REFUSED = [
    ("819 GB", "B/s", "wrong-unit", None),
    ("16 GiB/s", "B", "wrong-unit", None),
    (16, "B", "no-unit", "16 GiB"),
    ("16", "B", "no-unit", "16 GiB"),
    ("16 gib", "B", "unknown-unit", "GiB"),
    ("100 Gbps", "B/s", "unknown-unit", "Gbit/s or GB/s"),
    ("100 Gb/s", "B/s", "unknown-unit", "Gbit/s or GB/s"),
    ("100 GBps", "B/s", "unknown-unit", "GB/s"),
    ("197 TFLOPs", "FLOP/s", "unknown-unit", "TFLOP/s"),
    ("394 TOPS", "FLOP/s", "unknown-unit", "TOP/s"),
    ("0 GB", "B", "out-of-range", None),
    ("-3 GB", "B", "out-of-range", None),
    ("1e400 GB", "B", "out-of-range", None),
    ("fast", "B/s", "no-quantity", None),
    ("", "B", "no-quantity", None),
    (None, "B", "no-quantity", None),
    (True, "B", "no-quantity", None),
]


@pytest.mark.parametrize(("text", "dimension", "value"), READ)
def test_reads(text: str, dimension: str, value: float) -> None:
    assert parse(text, dimension) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(("text", "dimension", "code", "mend"), REFUSED)
def test_refuses(text: object, dimension: str, code: str, mend: str | None) -> None:
    with pytest.raises(UnitProblem) as caught:
        parse(text, dimension)
    assert caught.value.code == code
    if mend:
        assert caught.value.suggestion == mend


def test_writes_capacity_in_binary_and_traffic_in_decimal() -> None:
    assert units.memory_text(15.75 * 2**30) == "15.75 GiB"
    assert units.traffic_text(18_484_329_472) == "18.5 GB"
    assert units.bandwidth_text(819e9) == "819 GB/s"
    assert units.flop_rate_text(197e12) == "197 TFLOP/s"
    assert units.time_text(0.02516) == "25.2 ms"
    assert units.time_text(3.2e-6) == "3.20 µs"
    assert units.count_text(9_242_164_736) == "9.24 B"
    assert units.count_text(12) == "12"
    assert units.rate_text(39.742, "tokens") == "39.7 tokens/s"


@pytest.mark.parametrize("value", [0, 1, 999, 999.6, 1000, 1023, 1024, 1e15, 1e21])
def test_writing_never_fails(value: float) -> None:
    for write in (units.memory_text, units.traffic_text, units.flop_text, units.time_text, units.count_text):
        assert write(value)
