"""Strategy files: what they mean, how they combine, what they are refused for."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest

from compiler.errors import Problem, Problems, SpecError
from compiler.graph.axes import LEGEND
from compiler.parallel.plan import CLASSES
from compiler.parallel.strategy import Strategy, json_schema, load, loads, strategies, strategies_folder
from compiler.source.yaml import load_file, load_text
from tests.docs.pages import Example, examples

NAMES = "context", "data", "decode-length", "expert", "fsdp", "pipeline", "sequence", "tensor", "zero1", "zero2"


def problems(make: object, *args: object, **options: object) -> list[Problem]:
    with pytest.raises(SpecError) as caught:
        make(*args, **options)  # type: ignore[operator]
    return list(caught.value.problems)


def axes(strategy: Strategy, kind: str, mesh_axis: str) -> str:
    return " ".join(strategy.table([mesh_axis])[kind].get(mesh_axis, ()))


def test_the_shipped_ones() -> None:
    assert strategies() == NAMES
    known = {*LEGEND, "block_out"}
    for name in NAMES:
        found = load(name)
        assert found.name == name and found.rules and {r.axis for r in found.rules} <= known
        (found_mesh,) = found.mesh
        assert {m for r in found.rules for m in r.over} == {found_mesh}
        assert all(r.position.file == f"specs/parallelism/{name}.yaml" and r.position.line > 1 for r in found.rules)


@pytest.mark.parametrize("name", NAMES)
def test_the_schema_takes_the_shipped_ones(name: str) -> None:
    raw = load_file(strategies_folder() / f"{name}.yaml", Problems())
    jsonschema.validate(raw, json_schema())


def test_the_schema_refuses() -> None:
    good = {"name": "a", "about": "b", "mesh": "m", "all": {"heads": ["m"]}}
    jsonschema.validate(good, json_schema())
    for bad in ({"foo": 1}, {"mesh": 3}, {"all": {"heads": 3}}, {"all": {"3x": "m"}}, {"state": []}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(good | bad, json_schema())


def test_combining_appends_in_order() -> None:
    made = load("fsdp+tensor+sequence")
    assert made.name == "fsdp+tensor+sequence" and made.mesh == ("fsdp", "model") and len(made.about) == 3
    assert axes(made, "activations", "model") == "heads kv_heads mlp rnn blocks vocab seq"
    assert axes(made, "activations", "fsdp") == "batch"
    assert axes(made, "parameters", "fsdp").startswith("embed rnn mlp vocab")
    assert axes(load("sequence+tensor"), "activations", "model").startswith("seq heads")


def test_zero_stages_differ_by_class() -> None:
    divided = {n: [k for k in CLASSES if "embed" in axes(load(n), k, m)] for n, m in
               (("data", "data"), ("zero1", "data"), ("zero2", "data"), ("fsdp", "fsdp"))}  # fmt: skip
    assert divided == {
        "data": [],
        "zero1": ["optimiser"],
        "zero2": ["optimiser", "gradients"],
        "fsdp": ["parameters", "optimiser", "gradients"],
    }


def test_all_comes_before_the_class() -> None:
    made = loads("name: a\nabout: b\nmesh: m\nstate: {slots: m}\nall: {heads: m}\n")
    assert axes(made, "state", "m") == "heads slots" and axes(made, "parameters", "m") == "heads"


def test_a_path_and_a_name(tmp_path: Path) -> None:
    path = tmp_path / "mine+own.yaml"
    path.write_text("name: mine\nabout: b\nmesh: [p, q]\nall: {embed: [p, q]}\n")
    assert axes(load(str(path)), "state", "q") == "embed"
    path.rename(tmp_path / "mine.yaml")
    assert load(f"tensor+{tmp_path}/mine.yaml").mesh == ("model", "p", "q")


@pytest.mark.parametrize(
    ("text", "code", "line", "column", "suggestion"),
    [
        ("name: a\nabout: b\nmesh: model\nall: {heads: modle}\n", "unknown-mesh-axis", 4, 14, "model"),
        ("name: a\nabout: b\nmesh: m\nparameter: {}\nall: {heads: m}\n", "unknown-key", 4, 1, "parameters"),
        ("name: a\nmesh: m\nall: {heads: m}\n", "missing-key", 1, 1, None),
        ("name: a b\nabout: b\nmesh: m\nall: {heads: m}\n", "bad-name", 1, 7, None),
        ("name: a\nabout: b\nmesh: m\nall: {3x: m}\n", "bad-name", 4, 7, None),
        ("name: a\nabout: b\nmesh: m\nall: [heads]\n", "wrong-type", 4, 6, None),
        ("name: a\nabout: b\nmesh: m\nall: {heads: {a: m}}\n", "wrong-type", 4, 14, None),
        ("name: a\nabout: b\nmesh: [m, m]\nall: {heads: m}\n", "mesh-axis-twice", 3, 7, None),
        ("name: a\nabout: b\nmesh: m\nall: {heads: [m, m]}\n", "mesh-axis-twice", 4, 14, None),
        ("name: a\nabout: b\nmesh: [m, n]\nall: {heads: m}\n", "unused-mesh-axis", 3, 7, None),
        ("name: a\nabout: b\nmesh: m\nall: {h: m, h: m}\n", "duplicate-key", 4, 13, None),
    ],
)
def test_refused(text: str, code: str, line: int, column: int, suggestion: str | None) -> None:
    (found,) = problems(loads, text)
    assert found.position is not None
    assert (found.code, found.position.line, found.position.column) == (code, line, column)
    assert found.suggestion == suggestion


def test_all_faults_of_all_files_in_one_run() -> None:
    found = problems(load, "fsdq+tensor+tensor+./none.yaml")
    assert [p.code for p in found] == ["unknown-strategy", "duplicate-strategy", "file-missing"]
    assert found[0].suggestion == "fsdp" and found[0].allowed == NAMES


# -- changes from the command line
def test_shard_comes_first_and_forgets() -> None:
    made = load("fsdp+tensor", shard=["mlp=fsdp", "activations.seq=model", "state.batch=none"])
    assert axes(made, "parameters", "fsdp") == "mlp embed rnn vocab block_out"
    assert "mlp" not in axes(made, "parameters", "model")
    assert axes(made, "activations", "model").startswith("seq heads")
    assert axes(made, "state", "fsdp") == "mlp" and axes(made, "activations", "fsdp") == "mlp batch"


def test_shard_to_two_mesh_axes_and_to_a_new_one() -> None:
    made = load("data", shard=["batch=data+extra"])
    assert made.mesh == ("data", "extra") and axes(made, "state", "extra") == "batch"


def test_the_last_word_counts() -> None:
    assert axes(load("tensor", shard=["mlp=a", "mlp=b"]), "state", "a") == ""


@pytest.mark.parametrize(
    ("shard", "replicate", "code"),
    [
        (["heads"], [], "bad-option"),
        (["heads="], [], "bad-option"),
        ([".heads=m"], [], "bad-option"),
        (["weights.heads=model"], [], "unknown-class"),
        (["heads=model+model"], [], "mesh-axis-twice"),
        ([], ["x-y"], "bad-option"),
        (["heads=model"], ["heads"], "conflicting-options"),
    ],
)
def test_refused_options(shard: list[str], replicate: list[str], code: str) -> None:
    (found,) = problems(load, "tensor", shard, replicate)
    assert found.code == code and str(found.position).startswith("--")


# -- the page
@pytest.mark.parametrize("e", examples("yml"), ids=str)
def test_examples_of_the_page(e: Example) -> None:
    if e.kind == "refused":
        assert [p.code for p in problems(loads, e.text)] == [e.word]
    else:
        assert e.kind == "strategy"
        jsonschema.validate(load_text(e.text, str(e), Problems()), json_schema())
        assert loads(e.text).rules


def test_the_page_names_every_strategy() -> None:
    page = (strategies_folder().parents[1] / "docs" / "parallelism.md").read_text("utf-8")
    assert all(f"\n| `{name}` |" in page for name in NAMES)
