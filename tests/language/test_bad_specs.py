"""Every broken spec is told by its code, place and mend, quickly and never by a traceback."""

import re
import time
from pathlib import Path
from random import Random

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tests.language.bad_blocks
import tests.language.bad_images
import tests.language.bad_positions  # noqa: F401  (more of the table)
from compiler.errors import BlockgraphError, PhaseError, Problem, SpecError
from compiler.language import model
from compiler.language.load import shipped
from compiler.passes.phase import phase_graph
from runtime.weights import mapping
from tests.language.bad_specs import BASE, CASES, DIMS, WEIGHTS, Case, block, edit, graph
from tests.language.mutate import damaged

GOLDEN = Path(__file__).parent / "golden"
LIMIT = 2.0  # seconds of this process: other work on the machine does not count


def problems(text: str, **more: object) -> tuple[Problem, ...]:
    start = time.process_time()
    with pytest.raises(SpecError) as caught:
        model.loads(text, "bad.yaml", **more)  # type: ignore[arg-type]
    assert time.process_time() - start < LIMIT
    return caught.value.problems


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_told(case: Case) -> None:
    found = problems(case.spec)
    told = str(SpecError(found))
    assert [(p.code, p.position) for p in found] == list(zip(case.codes, case.places, strict=True)), told
    for problem, suggestion in zip(found, case.suggestions, strict=True):
        assert suggestion == "…" or problem.suggestion == suggestion, told
    assert case.says in found[0].message, told
    assert all(0 < len(p.message) < 400 and "Traceback" not in p.message for p in found)


def test_the_table_is_long_and_the_good_spec_good() -> None:
    assert len(CASES) >= 100
    assert len({c.name for c in CASES}) == len(CASES)
    assert model.loads(BASE).warnings == ()


GOLDENS = [
    "wrong top key", "wrong nested option", "unknown block", "unknown word", "block cycle", "missing dim",
    "indivisible heads", "missing dash", "unbalanced parenthesis", "unknown option of an op", "up and away",
    "five at once",
]  # fmt: skip


@pytest.mark.parametrize("name", GOLDENS)
def test_golden(name: str) -> None:
    """The whole text as people see it. To renew: delete the file, run, read what it wrote."""
    case = next(c for c in CASES if c.name == name)
    path = GOLDEN / f"{name.replace(' ', '-')}.txt"
    text = str(SpecError(problems(case.spec))) + "\n"
    text = re.sub(r"allowed: norm, layer, .* in all\)", "allowed: norm, layer, …", text)  # it grows with the kinds
    if not path.exists():
        path.write_text(text, "utf-8")
        pytest.fail(f"{path} is written: read it, then run again")
    assert text == path.read_text("utf-8")


def test_the_same_problem_in_several_places_is_printed_once() -> None:
    found = problems(graph("[embed, foo, foo, {residual: [foo]}, bar, unembed]"))
    assert [p.code for p in found] == ["unknown-block"] * 4
    text = str(SpecError(found))
    assert text.count("no block is called foo") == 1 and "\n    also at 3:21, 3:38\n    allowed: " in text
    many = str(SpecError(problems(graph("[embed, " + "foo, " * 60 + "unembed]"))))
    assert "… (59 in all)" in many and many.count("\n") == 2


# -- files that extend each other
def test_extends_cycle(tmp_path: Path) -> None:
    for name, other in ("ab", "bc", "ca"):
        (tmp_path / f"{name}.yaml").write_text(f"extends: {other}\nname: {name}\n")
    with pytest.raises(SpecError) as caught:
        model.load(tmp_path / "a.yaml")
    (problem,) = caught.value.problems
    assert problem.code == "extends-cycle" and "a -> b -> c -> a" in problem.message
    assert problem.position is not None
    assert (problem.position.file, problem.position.line, problem.position.column) == (str(tmp_path / "c.yaml"), 1, 10)


def test_a_fault_of_the_base_is_told_in_the_base(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(edit("embed: 32", "embed: 0"))
    (tmp_path / "small.yaml").write_text("extends: base\nname: tiny\ndims: {mlp: 2.5}\n")
    with pytest.raises(SpecError) as caught:
        model.load(tmp_path / "small.yaml")
    places = [str(p.position).removeprefix(f"{tmp_path}/") for p in caught.value.problems]
    assert places == ["base.yaml:2:26", "small.yaml:3:13"]


# -- too much
TENS = "".join(f"  b{i}: {{body: [{', '.join([f'b{i - 1}'] * 10)}]}}\n" for i in range(1, 20))
BOMB = f"{DIMS}blocks:\n  b0: {{body: [relu]}}\n{TENS}graph: [embed, b19]\n"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("name: x\ngraph: [" + "gelu, " * 1_000_000 + "gelu]\n", "too-large"),
        ("name: x\ngraph: [" + "a, " * 300_000 + "a]\n", "too-large"),
        ("# " + "x" * 10_000_000 + "\n" + BASE, "too-large"),
        ("name: x\ngraph: " + "[" * 500 + "]" * 500, "too-deep"),
        ("name: x\ngraph: " + "{residual: [" * 100 + "relu" + "]}" * 100, "too-deep"),
        (edit("times: layers", "times: " + "(" * 300 + "1" + ")" * 300), "too-deep"),
        (edit("times: layers", "times: " + "1 + " * 900 + "1"), "too-large"),
        (edit("embed: 32", "embed: 32, " + ", ".join(f"d{i}: {i}" for i in range(1, 9000))), "too-large"),
        (graph("[embed, " + "geluu, " * 12_000 + "gelu]"), "unknown-block"),
        (graph("[embed, " + "gelu, " * 12_000 + "gelu]"), "too-large"),
        (graph("[embed, {repeat: {times: 10000, cycle: [{repeat: {times: layer + 1, cycle: [relu]}}]}}]"), "too-large"),
        (BOMB, "too-large"),
        (graph("[embed, {attention: {heads: 10 ** 12, kv_heads: 7}}]"), "indivisible"),
        (edit("layers: 4", "layers: " + "9" * 100_000), "number-out-of-range"),
    ],
    ids=["million nodes", "many words", "10 MB", "deep", "deep residuals", "deep expression", "long expression",
         "many dims", "many typos", "many nodes", "nested repeats", "block bomb", "absurd heads", "digits"],
)  # fmt: skip
def test_too_much_is_refused_quickly(text: str, code: str) -> None:
    assert code in {p.code for p in problems(text)}


def test_a_file_of_10_mb_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    path.write_bytes(b"#" * 10_000_000)
    with pytest.raises(SpecError) as caught:
        model.load(path)
    assert [p.code for p in caught.value.problems] == ["too-large"]


# -- from the command line
@pytest.mark.parametrize(
    ("name", "value", "code", "suggestion"),
    [
        ("layrs", 3, "unknown-name", "layers"),
        ("dims.embd", 3, "unknown-name", "dims.embed"),
        ("embed", 0, "out-of-range", None),
        ("span", "2 * layrs", "unknown-name", "layers"),
        ("embed", float("nan"), "not-a-number", None),
        ("embed", object(), "not-a-number", None),
        ("dtype", "float31", "unknown-word", "float32"),
    ],
)
def test_overrides(name: str, value: object, code: str, suggestion: str | None) -> None:
    first = problems(BASE, overrides={name: value})[0]
    assert (first.code, first.suggestion) == (code, suggestion)
    assert str(first).startswith(f"--set {name}: ")


# -- phases
def test_a_block_that_looks_ahead_has_no_decode() -> None:
    made = model.loads(edit("{window: window,", "{causal: false,"), "bad.yaml")
    assert phase_graph(made, "forward").graph.outputs
    for phase in ("prefill", "decode", "verify"):
        with pytest.raises(PhaseError) as caught:
            phase_graph(made, phase)
        problem = caught.value.problems[0]
        assert problem.code == "looks-ahead" and "layer.attention" in problem.message
        assert problem.position is not None and (problem.position.line, problem.position.column) == (11, 13)


def test_unknown_phase() -> None:
    with pytest.raises(PhaseError) as caught:
        phase_graph(model.loads(BASE), "decod")
    (problem,) = caught.value.problems
    assert (problem.code, problem.suggestion) == ("unknown-phase", "decode") and "prefill" in problem.allowed


# -- the mapping to a checkpoint
TWICE = block("{body: [{linear: embed}, {linear: embed}]}", "mine")
LEAVE = "leave this line out; if their file holds a copy, put its name under ignore"
TWICE += "weights: {huggingface: {tensors: {mine.linear.weight: x}}}\n"


@pytest.mark.parametrize(
    ("text", "code", "suggestion"),
    [
        (WEIGHTS + "embed.tabel: x}}}\n", "unknown-path", "embed.table"),
        (WEIGHTS + "layer.attention.qery: x.<layer>}}}\n", "unknown-path", "layer.attention.query"),
        (WEIGHTS + "layer.attention.query: x.<laier>}}}\n", "unknown-placeholder", "layer"),
        (WEIGHTS + "layer.attention.query: x}}}\n", "duplicate-tensor", "write <layer> in its name"),
        (TWICE, "ambiguous-path", "give each of the nodes a name"),
        (WEIGHTS + "unembed.out: x}}}\n", "unknown-path", LEAVE),
    ],
    ids=["unknown", "unknown inside", "placeholder", "one tensor for all layers", "ambiguous", "tied"],
)  # fmt: skip
def test_mapping(text: str, code: str, suggestion: str) -> None:
    made = model.loads(text, "bad.yaml")
    found = [p for p in mapping.check(made) if p.code == code]
    assert [p.suggestion for p in found] == [suggestion]
    assert found[0].position is not None and found[0].position.line == len(text.splitlines())


def test_a_tied_or_shared_weight_is_said_to_be_anothers() -> None:
    two = "{repeat: {times: 2, cycle: [{mlp: {act: relu}, name: two, share: one}]}}"
    text = graph(f"[embed, {{mlp: {{act: relu}}, name: one}}, {two}, {{unembed: {{tied: embed}}, name: head}}]")
    text += "weights: {huggingface: {tensors: {head.out: x, two.up: y, two.ups: z}}}\n"
    told = [p.message for p in mapping.check(model.loads(text, "bad.yaml")) if p.code == "unknown-path"]
    assert "head.out is no parameter of its own: head uses embed.table" in told
    assert "two.up is no parameter of its own: two uses one.up" in told


def test_shipped_mappings_are_whole() -> None:
    for name in shipped():
        assert mapping.check(model.load(name)) == []


# -- damage at random
SPECS = [yaml.safe_load(path.read_text("utf-8")) for path in shipped().values()]


def survives(random: Random) -> None:
    text = damaged(random.choice(SPECS), random)
    start = time.process_time()
    try:
        model.loads(text, "damaged.yaml").parameter_count()
    except BlockgraphError as error:
        assert error.problems and all(p.position and p.message and p.code for p in error.problems)
    assert time.process_time() - start < LIMIT


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_damage_is_told(random: Random) -> None:
    survives(random)


@pytest.mark.slow
def test_much_damage_is_told() -> None:
    for seed in range(20_000):
        survives(Random(seed))
