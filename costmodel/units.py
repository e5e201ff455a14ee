"""Quantities with their units: reading ``197 TFLOP/s``, ``16 GiB``, ``819 GB/s``; writing them for people.

Inside the cost model every number is SI and its unit stands in the name (``hbm_bytes_per_s``); units exist
only at the two edges, here. Decimal and binary prefixes are never mixed up: GB is 1e9 bytes, GiB is 2**30.
Bits are written ``bit``, because ``Gb/s`` and ``GB/s`` differ by one shift key and by a factor of eight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from compiler.errors import nearest

DIMENSIONS = {
    "FLOP/s": "operations per second",
    "B": "bytes",
    "B/s": "bytes per second",
    "W": "watts",
    "s": "seconds",
}
_DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
_NUMBER = re.compile(r"\s*([-+]?[0-9][0-9_,]*(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)\s*(.*?)\s*")


def _units() -> dict[str, tuple[str, float]]:
    """Every unit: its dimension and its size in that dimension's SI unit."""
    table: dict[str, tuple[str, float]] = {}
    for prefix, size in (_DECIMAL | _BINARY).items():
        table[f"{prefix}B"] = ("B", size)
        table[f"{prefix}B/s"] = ("B/s", size)
        table[f"{prefix}bit/s"] = ("B/s", size / 8)
    for prefix, size in _DECIMAL.items():
        table[f"{prefix}FLOP/s"] = table[f"{prefix}OP/s"] = ("FLOP/s", size)
        table[f"{prefix}W"] = ("W", size)
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("µs", 1e-6), ("ns", 1e-9)):
        table[unit] = ("s", size)
    return table


UNITS = _units()
_USUAL = {
    "FLOP/s": ("TFLOP/s", "TOP/s"),
    "B": ("GiB", "GB"),
    "B/s": ("GB/s", "GiB/s", "Gbit/s"),
    "W": ("W",),
    "s": ("s", "ms", "µs"),
}


class UnitProblem(ValueError):
    """A text that is no quantity of the dimension asked for."""

    def __init__(self, code: str, message: str, allowed: tuple[str, ...] = (), suggestion: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.allowed, self.suggestion = code, message, allowed, suggestion


def parse(text: object, dimension: str) -> float:
    """The quantity in SI (bytes, bytes/s, FLOP/s, W, s). Raises UnitProblem; zero and less are refused."""
    usual = _USUAL[dimension]
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        raise UnitProblem("no-unit", f"{text} has no unit", usual, f"{text} {usual[0]}")
    found = _NUMBER.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise UnitProblem("no-quantity", f"{text!r} is no number with a unit", usual, f"as in 16 {usual[0]}")
    number, unit = found[1].replace(",", "").replace("_", ""), found[2]
    if not unit:
        raise UnitProblem("no-unit", f"{number} has no unit", usual, f"{number} {usual[0]}")
    if unit not in UNITS:
        raise UnitProblem("unknown-unit", f"{unit!r} is no unit", usual, _meant(unit, dimension))
    kind, size = UNITS[unit]
    if kind != dimension:
        message = f"{text} says {DIMENSIONS[kind]}, and {DIMENSIONS[dimension]} are asked for"
        raise UnitProblem("wrong-unit", message, usual)
    value = float(number) * size
    if not 0 < value < math.inf:
        raise UnitProblem("out-of-range", f"{text} is not more than zero", usual)
    return value


def _meant(unit: str, dimension: str) -> str | None:
    """The unit that was probably meant. Gb and Gbps could be bits or bytes: both are named."""
    if bits := re.fullmatch(r"([kKMGTP]?)(b|bps|b/s)", unit):
        prefix = bits[1].replace("K", "k")
        return f"{prefix}bit/s or {prefix}B/s" if dimension == "B/s" else f"{prefix}B"
    plain = unit.replace("ps", "/s") if unit.endswith(("Bps", "OPps", "OPs", "Ops")) else unit
    plain = re.sub(r"FLOPS|FLOPs|flops", "FLOP/s", plain).replace("OPs", "OP/s").replace("TOPS", "TOP/s")
    same = [u for u in UNITS if u.lower() == plain.lower() and UNITS[u][0] == dimension]
    return same[0] if same else nearest(plain, [u for u, (kind, _) in UNITS.items() if kind == dimension])


# -- for people
def _scaled(value: float, steps: Sequence[tuple[float, str]], digits: int = 3) -> str:
    """``value`` in the largest step that leaves at least 1, with ``digits`` significant digits."""
    if not math.isfinite(value):
        return f"{value} {steps[-1][1]}"
    for size, unit in steps:
        if abs(value) >= size * 0.9995:
            return f"{_digits(value / size, digits)} {unit}"
    size, unit = steps[-1]
    return f"{_digits(value / size, digits)} {unit}"


def _digits(value: float, digits: int) -> str:
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(places, 12)}f}"


_GIB = (*((_BINARY[p], f"{p}B") for p in ("Ti", "Gi", "Mi", "Ki")), (1.0, "B"))
_GB = (*((_DECIMAL[p], f"{p}B") for p in ("P", "T", "G", "M", "k")), (1.0, "B"))
_PER_S = tuple((size, f"{unit}/s") for size, unit in _GB)
_FLOP = (*((_DECIMAL[p], f"{p}FLOP") for p in ("E", "P", "T", "G", "M", "k")), (1.0, "FLOP"))
_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_COUNT = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def memory_text(size_bytes: float) -> str:
    """Capacity, in binary units: ``15.75 GiB``."""
    return _scaled(size_bytes, _GIB, 4)


def traffic_text(size_bytes: float) -> str:
    """Bytes moved, in decimal units as bandwidths are: ``18.5 GB``."""
    return _scaled(size_bytes, _GB)


def bandwidth_text(bytes_per_s: float) -> str:
    """``819 GB/s``."""
    return _scaled(bytes_per_s, _PER_S)


def flop_text(flops: float) -> str:
    """A number of operations: ``18.5 TFLOP``."""
    return _scaled(flops, _FLOP)


def flop_rate_text(flops_per_s: float) -> str:
    """``197 TFLOP/s``."""
    return flop_text(flops_per_s) + "/s"


def time_text(seconds: float) -> str:
    """``24.1 ms``."""
    return _scaled(seconds, _SECONDS)


def count_text(number: float) -> str:
    """A large count: ``9.24 B`` (1e9), below a thousand as it is."""
    if abs(number) < 999.5:
        return _digits(number, 3) if number != int(number) else str(int(number))
    return _scaled(number, _COUNT)


def rate_text(per_s: float, what: str) -> str:
    """``1,234 tokens/s``."""
    return f"{_digits(per_s, 3)} {what}/s"


def counted(n: int, one: str, many: str | None = None) -> str:
    """``1 other``, ``2 others``; without ``many`` the word stays as it is."""
    return f"{n:,} {one if n == 1 or many is None else many}"
