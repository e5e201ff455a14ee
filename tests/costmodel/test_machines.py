"""Machine files: all that are shipped are whole, and a broken one is told by code and place."""

from pathlib import Path

import pytest

from compiler.errors import Problems
from compiler.source.yaml import load_file
from costmodel.errors import MachineError
from costmodel.machine_file import numbers
from costmodel.machines import hardware_folder, machine, machines, read

NAMES = ["a100-80gb", "b200", "h100", "h200", "mi300x", "tpu7x", "v2", "v3", "v4", "v5e", "v5p", "v6e"]

WHOLE = """\
name: mine
kind: gpu
date: 2026-11-24
flops: {bfloat16: 100 TFLOP/s}
hbm: 16 GiB
hbm_bandwidth: 800 GB/s
links: {count: 4, each: 50 GB/s}
topology: {kind: switch, pod: [8]}
chips_per_host: 8
sources: {flops: a, hbm: a, hbm_bandwidth: a, links: a, topology: a, chips_per_host: a}
"""

BROKEN = [  # replaced, by what, code, line, column, in the message
    ("hbm: 16 GiB", "hbm: 16", "no-unit", 5, 6, "hbm: 16 has no unit"),
    ("hbm: 16 GiB", "hbm: 16 GB/s", "wrong-unit", 5, 6, "bytes per second"),
    ("hbm: 16 GiB", "hbm: 0 GiB", "out-of-range", 5, 6, "hbm: 0 GiB"),
    ("hbm: 16 GiB\n", "", "missing-key", 1, 1, "hbm is missing"),
    ("each: 50 GB/s", "each: 50 Gb/s", "unknown-unit", 7, 25, "links.each: 'Gb/s'"),
    ("{bfloat16: 100", "{bf16: 100", "unknown-key", 4, 9, "no key bf16 in flops"),
    ("count: 4", "count: 0", "out-of-range", 7, 16, "links.count"),
    ("count: 4", "count: 4.5", "wrong-type", 7, 16, "links.count"),
    ("kind: gpu", "kind: gpus", "unknown-word", 2, 7, "kind: 'gpus'"),
    ("date: 2026-11-24", "date: yesterday", "wrong-type", 3, 7, "date"),
    ("hbm: a, ", "", "missing-source", 5, 1, "hbm has no source"),
    ("hbm: a,", "hmb: a, hbm: a,", "unknown-path", 10, 21, "no number hmb"),
    ("chips_per_host: 8\n", "chips_per_host: 8\nhbm_size: 3 GB\n", "unknown-key", 10, 1, "no key hbm_size"),
    ("hbm: 16 GiB\n", "hbm: 16 GiB\nusable_hbm: 17 GiB\n", "contradiction", 6, 13, "usable_hbm"),
    ("kind: switch", "kind: torus", "contradiction", 8, 11, "torus"),
]


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_file_is_whole(name: str) -> None:
    found = machine(name)
    assert found.name == name
    assert found.flops_per_s["bfloat16"] > 1e13
    assert found.hbm_bytes_per_s > 1e11
    assert found.as_json()["name"] == name


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_a_source(name: str) -> None:
    raw = load_file(hardware_folder() / f"{name}.yaml", Problems())
    assert raw is not None
    found = machine(name)
    for key, _ in numbers(raw):
        assert (found.sources.get(key) or found.sources[key.split(".")[0]]).strip()


def test_the_list_is_the_folder() -> None:
    assert list(machines()) == NAMES


def test_published_numbers() -> None:
    v5e, v5p = machine("v5e"), machine("v5p")
    assert v5e.flops_per_s == {"bfloat16": 197e12, "int8": 393e12}
    assert (v5e.hbm_bytes, v5e.usable_hbm_bytes) == (16 * 2**30, 15.75 * 2**30)
    assert (v5e.hbm_bytes_per_s, v5e.links, v5e.pod_chips) == (819e9, 4, 256)
    assert (v5p.links, v5p.pod_chips, v5p.link_bytes_per_s) == (6, 8960, 90e9)
    assert machine("7x").devices_per_chip == 2


@pytest.mark.parametrize(
    ("alias", "name"), [("7x", "tpu7x"), ("A100", "a100-80gb"), ("H100", "h100"), ("trillium", "v6e")]
)
def test_aliases(alias: str, name: str) -> None:
    assert machine(alias).name == name


def test_aliases_are_unique() -> None:
    words = [w for name in NAMES for w in (name, *machine(name).aliases)]
    assert len(words) == len(set(words))


def test_an_unknown_machine_names_the_nearest() -> None:
    with pytest.raises(MachineError) as caught:
        machine("h100x")
    problem = caught.value.problems[0]
    assert (problem.code, problem.suggestion) == ("unknown-machine", "h100")


def test_the_cpu_has_no_numbers_until_it_is_measured() -> None:
    with pytest.raises(MachineError, match="write its file") as caught:
        machine("cpu")
    assert caught.value.problems[0].code == "not-calibrated"


def test_rates_that_stand_in_say_so() -> None:
    assert machine("v5e").matrix_rate("bfloat16").note is None
    tpu, gpu = machine("v5e").matrix_rate("float32"), machine("h100").matrix_rate("int4")
    assert tpu.flops_per_s == 197e12
    assert "bfloat16 operands" in str(tpu.note)
    assert gpu.flops_per_s == 1978e12
    with pytest.raises(MachineError, match="float64"):
        machine("v5e").matrix_rate("float64")


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(WHOLE)
    found = machine(path)
    assert (found.usable_hbm_bytes, found.memory_bytes, found.dcn_bytes_per_s) == (None, 16 * 2**30, None)


@pytest.mark.parametrize(("old", "new", "code", "line", "column", "message"), BROKEN)
def test_broken_files(tmp_path: Path, old: str, new: str, code: str, line: int, column: int, message: str) -> None:
    path = tmp_path / "broken.yaml"
    assert old in WHOLE
    path.write_text(WHOLE.replace(old, new, 1))
    with pytest.raises(MachineError) as caught:
        read(path)
    matching = [p for p in caught.value.problems if p.code == code]
    assert matching, caught.value
    place = matching[0].position
    assert place is not None
    assert (place.line, place.column) == (line, column)
    assert message in matching[0].message


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(WHOLE.replace("16 GiB", "16").replace("800 GB/s", "800 GB").replace("count: 4", "count: 0"))
    with pytest.raises(MachineError) as caught:
        read(path)
    assert [p.code for p in caught.value.problems] == ["no-unit", "wrong-unit", "out-of-range"]


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MachineError) as caught:
        machine(tmp_path / "none.yaml")
    assert caught.value.problems[0].code == "file-missing"
