"""What ``benchmarks/collectives.py`` found, as plain data and as a page; nothing here compiles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from compiler.check.collectives import sent
from compiler.check.compare import NORMALISED, STATUSES, Comparison, Match, hlo_dtype
from compiler.check.hlo import bits

BYTES, SHARE, FLOPS = 0.02, 0.9, 1e-3  # wanted: bytes sent, share of bytes of sharded parameters, FLOPs
LOOSE = ("fsdp", "zero")  # strategies of which a share of the bytes is wanted, and all of every other
NAMES = {"tpu": "libtpu", "gpu": "jax-cuda12-plugin", "cpu": "jaxlib"}
Row = dict[str, Any]


# -- from a compile
def row(call: Row, made: Any) -> Row:
    """One call, with what differs."""
    result, checked = made.result, made.checked
    found: Row = {**call, "verdict": result.verdict, "message": result.message, "versions": result.versions,
                  "compile_seconds": result.seconds.get("compile")}  # fmt: skip
    if checked is None:
        return found
    compared = checked.comparison
    asked, emitted = (sum(getattr(t, side) for t in compared.totals) for side in ("expected", "found"))
    kept = sum(_sent(e.kind, e.bytes, e.group) * m.count for m in compared.matches for e in m.expected
               if m.status in ("equal", "normalised"))  # fmt: skip
    return found | {
        "runs": compared.runs,
        "normalised": _hows(compared),
        "sent": {"expected": asked, "found": emitted, "widened": _widened(compared), "as_asked": kept},
        "flops": {"expected": checked.ours, "found": checked.program.total, "opaque": dict(checked.program.opaque),
                  "exact": checked.program.exact},
        "instructions": checked.instructions, "asynchronous": checked.asynchronous,
        "unknown_loops": checked.unknown_loops,
        "exceptions": [_exception(m) for m in compared.matches if m.status not in ("equal", "normalised")],
        "flops_differ": [d.as_json() for d in checked.by_path],
    }  # fmt: skip


def _sent(kind: str, size: int, group: int) -> int:
    return int(sent(kind, size, group))


def _hows(compared: Comparison) -> dict[str, int]:
    found = dict.fromkeys(NORMALISED, 0)
    for m in compared.matches:
        for how in m.how:
            found[how] += m.count * len(m.expected)
    return {how: runs for how, runs in found.items() if runs}


def _widened(compared: Comparison) -> int:
    """Bytes sent only because a narrow float travels as float32."""
    total = 0.0
    for m in compared.matches:
        if "promoted" in m.how:
            share = 1 - bits(hlo_dtype(m.expected[0].dtype)) / 32
            total += share * sum(c.sent * n for c, n in zip(m.found, m.taken, strict=True))
    return round(total)


def _exception(m: Match) -> Row:
    first: Any = m.expected[0] if m.expected else m.found[0]
    asked = {"kind": m.expected[0].kind, "dtype": m.expected[0].dtype, "bytes": sum(e.bytes for e in m.expected),
             "shape": list(m.expected[0].shape)} if m.expected else None  # fmt: skip
    made = [{"kind": c.kind, "dtype": c.dtype, "bytes": c.bytes, "runs": n, "axes": list(c.axes or ())}
            for c, n in zip(m.found, m.taken, strict=True)]  # fmt: skip
    return {
        "status": m.status, "path": first.path, "axes": list(first.axes or ()), "runs": m.count, "asked": asked,
        "made": made, "note": m.note, "cause": m.cause,
        "sent": sum(_sent(e.kind, e.bytes, e.group) for e in m.expected) * m.count,
        "sent_found": sum(c.sent * n for c, n in zip(m.found, m.taken, strict=True)),
    }  # fmt: skip


# -- what is wanted
def strict(r: Row) -> bool:
    return not any(word in r["strategy"] for word in LOOSE)


def bytes_ratio(r: Row) -> float:
    """Bytes sent against those asked for, both in the graph's dtypes."""
    s = r["sent"]
    return (s["found"] - s["widened"]) / s["expected"] if s["expected"] else float(s["found"] == 0)


def share(r: Row) -> float:
    """Of the bytes asked for, those that are sent as asked."""
    return r["sent"]["as_asked"] / r["sent"]["expected"] if r["sent"]["expected"] else 1.0


def flops_ratio(r: Row) -> float:
    return r["flops"]["found"] / r["flops"]["expected"] if r["flops"]["expected"] else 1.0


def unexplained(r: Row) -> list[str]:
    """Exceptions whose cause is not known, a line each."""
    name = title(r)
    lines = [f"{name}: {e['status']} at {e['path'] or 'no path'}: {e['note']}" for e in r.get("exceptions", ())
             if not e["cause"]]  # fmt: skip
    differ = [d for d in r.get("flops_differ", ()) if not d["cause"]]
    if differ and abs(flops_ratio(r) - 1) > FLOPS:
        lines += [f"{name}: FLOPs of {d['path']}: {d['found']:.4g}, {d['expected']:.4g} asked for" for d in differ]
    return lines


def wrong(found: Row) -> list[str]:
    """What is not as wanted, a line each."""
    lines = []
    for r in found["rows"]:
        if r["verdict"] != "accepted":
            lines.append(f"{title(r)}: {r['verdict']}: {(r['message'] or '').splitlines()[0]}")
            continue
        lines += unexplained(r)
        if strict(r) and r["exceptions"]:
            lines.append(f"{title(r)}: {len(r['exceptions'])} collectives are not as asked")
        if strict(r) and abs(bytes_ratio(r) - 1) > BYTES:
            lines.append(f"{title(r)}: sends {bytes_ratio(r):.3f} of the bytes asked for")
        if not strict(r) and share(r) < SHARE:
            lines.append(f"{title(r)}: {share(r):.1%} of the bytes are sent as asked")
        if r["unknown_loops"]:
            lines.append(f"{title(r)}: {r['unknown_loops']} loops whose trips the text does not give")
    return lines


def title(r: Row) -> str:
    replicated = f", {'+'.join(r['replicate'])} replicated" if r["replicate"] else ""
    return f"{r['spec']} {r['phase']}, {r['strategy']} ({r['mesh']}{replicated}), {r['target']}"


# -- the page
def table(head: Sequence[str], left: int, rows: Iterable[Sequence[Any]]) -> list[str]:
    """A Markdown table whose first ``left`` columns are text."""
    bars = ["---"] * left + ["--:"] * (len(head) - left)
    return [f"| {' | '.join(map(str, cells))} |" for cells in (head, bars, *rows)]


def grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    found: dict[Any, list[Row]] = {}
    for r in rows:
        found.setdefault(key(r), []).append(r)
    return found


def span(values: Sequence[float], digits: int = 4) -> str:
    low, high = (f"{x:.{digits}f}" for x in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def markdown(found: Row, sizes: Iterable[str]) -> str:
    m, rows = found["machine"], [r for r in found["rows"] if r["verdict"] == "accepted"]
    versions = ", ".join(f"{k} {v}" for k, v in m["versions"].items())
    lines = [
        "# The graph against the compiled program", "",
        "Every collective node and every matrix product of the graph that Blockgraph partitions, found again in what "
        "the real compilers made of it (optimised HLO, read by `compiler/check`; one call: "
        "`blockgraph compile SPEC --mesh … --parallel … --check`). Made by `python benchmarks/collectives.py` with "
        f"{versions}; no accelerator took part. All of this page is in [collectives.json](collectives.json).", "",
        "Specs have few layers and a small vocabulary, their widths are their own: " + "; ".join(sizes) + ".", "",
        *_wanted(rows), "", *_summary(rows), "", *_normalised(rows), "", *_exceptions(rows), "", *_flops(rows), "",
        *_asynchronous(found, rows),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _wanted(rows: list[Row]) -> list[str]:
    """Targets and whether they are met."""
    tight, loose = [r for r in rows if strict(r)], [r for r in rows if not strict(r)]
    clean = len([r for r in tight if not r["exceptions"]])
    near = [r for r in rows if abs(flops_ratio(r) - 1) <= FLOPS]
    rest = [r for r in rows if abs(flops_ratio(r) - 1) > FLOPS]
    named = [r for r in rest if all(d["cause"] for d in r["flops_differ"])]
    without = [line for r in rows for line in unexplained(r)]
    cells = [
        ("data, tensor, sequence, context, expert, recurrences: every collective equal or normalised",
         f"{clean} of {len(tight)} calls"),
        ("the same: bytes sent within 2 %", span([bytes_ratio(r) for r in tight]) if tight else ""),
        ("with fsdp or zero: 90 % of the bytes sent as asked",
         f"{min(map(share, loose)):.2%} at least" if loose else ""),
        ("FLOPs of products within 0.1 %, or a cause",
         f"{len(near)} of {len(rows)} calls within; {len(named)} of the other {len(rest)} with a cause"),
        ("exceptions without a cause", len(without)),
    ]  # fmt: skip
    return table(("wanted", "found"), 2, cells)


def _summary(rows: list[Row]) -> list[str]:
    lines = [
        "## By strategy and machine", "",
        "Runs of collectives in one call of each kind, added up. Bytes are those that a device sends, found / asked "
        "for, in the graph's dtypes (XLA for CPU sends bfloat16 as float32). *as asked*: the share of the bytes that "
        "is equal or normalised.", "",
    ]  # fmt: skip
    head = ("strategy", "machine", "calls", *STATUSES, "bytes", "as asked", "FLOPs")
    cells = []
    for (strategy, target), some in grouped(rows, lambda r: (r["strategy"], r["target"])).items():
        runs = [sum(r["runs"][s] for r in some) for s in STATUSES]
        kept, asked = (sum(r["sent"][k] for r in some) for k in ("as_asked", "expected"))
        calls = ", ".join(f"{r['spec']} {r['phase']}" for r in some)
        cells.append((strategy, target, calls, *runs, span([bytes_ratio(r) for r in some]),
                      f"{kept / asked:.2%}" if asked else "", span([flops_ratio(r) for r in some])))  # fmt: skip
    order = list(dict.fromkeys(r["strategy"] for r in rows))
    cells.sort(key=lambda c: order.index(c[0]))
    return [*lines, *table(head, 3, cells)]


def _normalised(rows: list[Row]) -> list[str]:
    head = ("normalisation", "what it is", *(targets := list(dict.fromkeys(r["target"] for r in rows))))
    cells = [
        (how, text, *(sum(r["normalised"].get(how, 0) for r in rows if r["target"] == t) for t in targets))
        for how, text in NORMALISED.items()
    ]
    return ["## Normalised", "", "Runs that are told as equal under a name.", "", *table(head, 2, cells)]


def _exceptions(rows: list[Row]) -> list[str]:
    causes: dict[str, int] = {}
    cells = []
    for r in rows:
        for (status, kind, made, cause), some in grouped(r["exceptions"], _like).items():
            number = causes.setdefault(cause, len(causes) + 1) if cause else "?"
            paths = ", ".join(dict.fromkeys(e["path"] or "the graph" for e in some))
            cells.append((r["strategy"], f"{r['spec']} {r['phase']}", r["target"], f"{status}: {kind} → {made}", paths,
                          number, sum(e["runs"] for e in some), f"{sum(e['sent'] for e in some):,}",
                          f"{sum(e['sent_found'] for e in some):,}"))  # fmt: skip
    if not cells:
        return ["## Exceptions", "", "None."]
    head = ("strategy", "call", "machine", "exception", "nodes", "cause", "runs", "bytes asked for", "bytes sent")
    told = [f"{n}. {text}." for text, n in causes.items()]
    return [
        "## Exceptions", "", "Every collective that is neither equal nor normalised, and why. A sum in place of a "
        "scatter or a gather sends twice the bytes, and is told so.", "", *told, "", *table(head, 5, cells),
    ]  # fmt: skip


def _like(e: Row) -> tuple[str, str, str, str]:
    made = " + ".join(dict.fromkeys(c["kind"] for c in e["made"])) or "nothing"
    return e["status"], e["asked"]["kind"] if e["asked"] else "nothing", made, e["cause"]


def _flops(rows: list[Row]) -> list[str]:
    lines = ["## FLOPs", "", "Matrix products and convolutions of one device and call, counted from the text with the "
             "trips of its loops. Paths that differ by more than 0.1 %:", ""]  # fmt: skip
    causes: dict[str, int] = {}
    cells = []
    for r in rows:
        for d in r["flops_differ"]:
            number = causes.setdefault(d["cause"], len(causes) + 1) if d["cause"] else "?"
            numbers = f"{d['expected']:.5g}", f"{d['found']:.5g}", f"{d['found'] - d['expected']:+.4g}"
            cells.append((f"{r['spec']} {r['phase']}", r["strategy"], r["target"], d["path"], number, *numbers,
                          f"{flops_ratio(r):.4f}"))  # fmt: skip
    head = ("call", "strategy", "machine", "path", "cause", "asked for", "found", "more", "the call's ratio")
    told = [f"{n}. {text}." for text, n in causes.items()]
    return [*lines, *told, "", *(table(head, 5, cells) if cells else ["None."])]


def _asynchronous(found: Row, rows: list[Row]) -> list[str]:
    lines = ["## Beside other work", "", "Collective instructions that run asynchronously, of all in the text.", ""]
    tpu = [r for r in rows if not r["target"].startswith("cpu")]
    targets = list(dict.fromkeys(r["target"] for r in tpu))
    by = grouped(tpu, lambda r: (r["strategy"], f"{r['spec']} {r['phase']}"))
    cells = []
    for (strategy, call), some in by.items():
        of = {r["target"]: f"{r['asynchronous']} of {r['instructions']}" for r in some}
        cells.append((strategy, call, *(of.get(t, "") for t in targets)))
    lines += table(("strategy", "call", *targets), 2, cells)
    if found.get("automatic"):
        lines += ["", *_automatic(found["automatic"])]
    return lines


def _automatic(pairs: list[Row]) -> list[str]:
    lines = [
        "### Against the automatic style", "",
        "The same graph under `jit` with the same placement of every leaf and a sharding constraint on every "
        "activation: XLA's partitioner chooses the collectives. Bytes are those that a device sends in one call. Its "
        "asynchronous permutes are pieces of products that the partitioner cut up (collective matrix products).", "",
    ]  # fmt: skip
    head = ("call", "machine", "style", "instructions", "asynchronous", "of gathers", "bytes",
            "bytes that work waits for", "temporary GiB", "FLOPs")  # fmt: skip
    cells = []
    for pair in pairs:
        for style in ("ours", "automatic"):
            p = pair[style]
            name = f"{pair['spec']} {pair['phase']}, {pair['strategy']} ({pair['mesh']})"
            cells.append((name, pair["target"], style, p["instructions"], p["asynchronous"],
                          f"{p['gathers_asynchronous']} of {p['gathers']}", f"{p['sent']:,}", f"{p['waited']:,}",
                          f"{p['temp_bytes'] / 2**30:.2f}", f"{p['flops']:.5g}"))  # fmt: skip
    return [*lines, *table(head, 3, cells)]
