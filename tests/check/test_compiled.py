"""Programs whose collectives and FLOPs are known, as the real compilers make them: kept texts, and compiled anew."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from compiler.check import Expected, collectives, compare, flops, unexpected
from compiler.errors import TargetError
from compiler.targets import Job, run
from tests.check.programs import BATCH, EMBED, HIDDEN, LAYERS, MESH, TRIPS
from tests.check.texts import FOLDER, GROUPS, VERSIONS, asked, fixture

TARGETS = {"cpu": "cpu:8", "tpu": "tpu:v5e:2x4", "gpu": "gpu:h100:1x8"}
COMPILED = [pytest.param("cpu"), *(pytest.param(t, marks=pytest.mark.slow) for t in ("tpu", "gpu"))]
MLP = LAYERS * 4 * BATCH * EMBED * HIDDEN
# The training step on one device: 64 rows, 256 wide, 128 of the hidden axis; its sums are bfloat16.
ONE_PRODUCT = 2 * 64 * 256 * 128
UP, DOWN, WEIGHT, ROWS = "up", "down", 256 * 128 * 2, 64 * 256 * 2


def compiled(target: str, entry: str, out: Path, **kwargs: object) -> str:
    """What the compiler of this machine makes of a program."""
    try:
        job = Job(TARGETS[target], f"tests.check.programs:{entry}", kwargs, str(out), artifacts=("optimised_hlo",))
        return Path(run(job).files["optimised_hlo"]).read_text(encoding="utf-8")
    except TargetError as error:
        if error.problems[0].code == "missing-extra":
            pytest.skip(str(error))
        raise


def expected(dtype: str) -> list[Expected]:
    return [
        Expected(kind, axes, dtype, size, count, scope, GROUPS[axes])
        for scope, (kind, axes, size, count, _) in asked(dtype).items()
    ]


def check_collectives(text: str, dtype: str, promoted: bool) -> None:
    found = collectives(text, MESH)
    assert [loop.trips for loop in found.loops] == [TRIPS] and not unexpected(found.loops, [TRIPS])
    wanted = asked(dtype)
    assert len(found.collectives) == len(wanted)
    width = 2 if promoted else 1
    for c in found.collectives:
        kind, axes, size, count, by = next(v for scope, v in wanted.items() if f"/{scope}/" in c.path)
        assert (c.kind, c.axes, c.group, c.by) == (kind, axes, GROUPS[axes], by)
        assert (c.bytes, c.count, c.exact) == (size * width, count, True)
        assert c.dtype == ("bf16" if dtype == "bfloat16" and not promoted else "f32")
    comparison = compare(expected(dtype), found.collectives)
    assert {(m.status, m.how) for m in comparison.matches} == {
        ("normalised", ("promoted",)) if promoted else ("equal", ())
    }
    assert comparison.as_asked and {t.ratio for t in comparison.totals} == {width}


def check_mlp(text: str, gradient: bool) -> None:
    found = flops(text)
    assert found.exact and found.total == MLP * (3 if gradient else 1)
    assert not unexpected(found.loops, [LAYERS]) and len(found.loops) == (2 if gradient else 1)


def training() -> list[Expected]:
    """Forward and backward gather both weights and sum once; the gradients of both are scattered."""
    data = [Expected("all-gather", ("data",), "bf16", 2 * 32768, 2 * LAYERS, node, 2) for node in (UP, DOWN)]
    data += [Expected("reduce-scatter", ("data",), "bf16", 2 * 32768, LAYERS, node, 2) for node in (UP, DOWN)]
    return [*data, Expected("all-reduce", ("model",), "bf16", ROWS, 2 * LAYERS, DOWN, 4)]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("target", TARGETS)
def test_collectives(target: str, dtype: str, version: str) -> None:
    check_collectives(fixture(f"{target}-collectives-{dtype}", version), dtype, (target, dtype) == ("cpu", "bfloat16"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("target", COMPILED)
def test_collectives_compiled_anew(target: str, dtype: str, tmp_path: Path) -> None:
    text = compiled(target, "collectives", tmp_path, dtype=dtype)
    check_collectives(text, dtype, (target, dtype) == ("cpu", "bfloat16"))


@pytest.mark.parametrize("version", VERSIONS)
def test_collectives_on_sparse_cores(version: str) -> None:
    text = fixture("tpu7x-collectives-bfloat16", version)
    check_collectives(text, "bfloat16", False)
    assert "call-start" in text and collectives(text, MESH).asynchronous > 1


@pytest.mark.parametrize("version", VERSIONS)
def test_collectives_between_slices(version: str) -> None:
    """Each slice holds one row of the mesh; a sum over both axes becomes a scatter, a sum between slices, a gather."""
    found = collectives(fixture("slices-collectives-bfloat16", version), MESH).collectives
    assert Counter((c.kind, c.axes) for c in found) == {
        ("all-reduce", ("model",)): 1, ("all-gather", ("model",)): 2, ("reduce-scatter", ("model",)): 2,
        ("all-to-all", ("model",)): 1, ("collective-permute", ("model",)): 1, ("all-gather", ("data",)): 1,
        ("reduce-scatter", ("data",)): 1, ("all-reduce", ("data",)): 1,
    }  # fmt: skip
    comparison = compare(expected("bfloat16"), found)
    assert comparison.runs["equal"] == 7 * TRIPS
    assert [m.expected[0].path for m in comparison.matches if m.status in ("changed", "missing")] == ["reduce_both"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("target", TARGETS)
def test_flops(target: str, gradient: bool, version: str) -> None:
    check_mlp(fixture(f"{target}-mlp{'-gradient' if gradient else ''}", version), gradient)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("target", COMPILED)
def test_flops_compiled_anew(target: str, gradient: bool, dtype: str, tmp_path: Path) -> None:
    check_mlp(compiled(target, "mlp", tmp_path, dtype=dtype, gradient=gradient), gradient)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("target", TARGETS)
def test_other_products(target: str, version: str) -> None:
    scores = 2 * 4 * (BATCH // 4) ** 2 * EMBED
    branch = 3 * 2 * BATCH * EMBED * HIDDEN
    assert flops(fixture(f"{target}-products", version)).total == scores + branch
    if target == "tpu":  # its kernel for ragged products; the others do the work of every group on every row
        assert flops(fixture("tpu-ragged", version)).total == scores + branch + 2 * BATCH * EMBED * HIDDEN


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("target", TARGETS)
def test_a_training_step(target: str, version: str) -> None:
    text = fixture(f"{target}-train", version)
    # Two products forward, one again (the last of a layer is not), four backward.
    assert flops(text).total == 7 * LAYERS * ONE_PRODUCT
    found = collectives(text, MESH)
    assert not unexpected(found.loops, [LAYERS, LAYERS - 1])  # GPU peels a trip off to pipeline its scatters
    assert bool(found.asynchronous) == (target != "cpu")
    comparison = compare(training(), found.collectives)
    statuses = {m.status for m in comparison.matches}
    if target == "tpu":  # which makes a sum of one scatter, moves twice the bytes, and is told so
        (changed,) = [m for m in comparison.matches if m.status == "changed"]
        assert (changed.expected[0].path, changed.note) == (DOWN, "all-reduce in place of reduce-scatter")
        assert statuses == {"equal", "changed"} and comparison.runs["changed"] == LAYERS
    else:
        assert statuses == ({"equal"} if target == "gpu" else {"normalised"})


@pytest.mark.parametrize("version", VERSIONS)
def test_a_padded_scatter(version: str) -> None:
    """On v6e one scatter of a large step is padded, and a permute puts its shards right."""
    found = collectives(fixture("v6e-large", version), MESH)
    weight, rows = 4096 * 8192 * 2, 64 * 4096 * 2
    wanted = [Expected("all-gather", ("data",), "bf16", weight, 4, node, 2) for node in (UP, DOWN)]
    wanted += [Expected("reduce-scatter", ("data",), "bf16", weight, 2, node, 2) for node in (UP, DOWN)]
    wanted += [Expected("all-reduce", ("model",), "bf16", rows, 4, DOWN, 4)]
    comparison = compare(wanted, found.collectives)
    assert comparison.as_asked, comparison.to_json()
    assert [len(m.found) for m in comparison.matches if m.how == ("padded",)] == [2]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("target", TARGETS)
def test_what_the_partitioner_writes(target: str, version: str) -> None:
    """Groups in the other notations. One gather in the lookup goes over a part of an axis: it has no axes."""
    text = fixture(f"{target}-automatic", version)
    assert "replica_groups=[4,2]<=[2,2,2]T(0,2,1)" in text and "replica_groups=mesh['" in text
    assert "], device_ids=([2,4]T(1,0)) {'axis_2'}" in text or not version.startswith("0.10")
    found = collectives(text, MESH).collectives
    sums = Counter(c.axes for c in found if c.kind == "all-reduce")
    assert sums == {("data",): 5, ("model",): 6}
    assert [c.bytes for c in found if c.axes is None] == [2048]


def test_fixtures_are_small_and_name_no_place() -> None:
    files = sorted(FOLDER.glob("*.gz"))
    assert len(files) > 40 and all(f.stat().st_size < 60_000 for f in files)
    for version in VERSIONS:
        assert "FileNames" not in fixture("tpu-train", version)
