"""The YAML loader: what scalars mean, where things stand, and one clear problem for every trap."""

import copy
import os
import time
from pathlib import Path

import pytest
import yaml as pyyaml
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.errors import Position, Problem, Problems
from compiler.source import yaml as loader
from compiler.source.yaml import MAX_BYTES, YList, YMap, load_file, load_text

LOADERS = [pyyaml.SafeLoader, *([pyyaml.CSafeLoader] if hasattr(pyyaml, "CSafeLoader") else [])]


@pytest.fixture(params=LOADERS, ids=lambda found: found.__name__)
def either_loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_LOADER", request.param)


def faults(text: str) -> list[Problem]:
    problems = Problems()
    found = load_text(text, "f.yaml", problems)
    assert (found is None) == bool(problems.items)
    return problems.items


def good(text: str) -> YMap:
    problems = Problems()
    found = load_text(text, "f.yaml", problems)
    assert found is not None, problems.items
    return found


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        *[(word, None) for word in ("", "~", "null", "Null", "NULL")],
        *[(word, True) for word in ("true", "True", "TRUE")],
        ("false", False),
        *[(word, word) for word in ("on", "off", "yes", "no", "y", "nULL", "tRUE")],
        *[("010", 10), ("-3", -3), ("+4", 4), ("0x1F", 31), ("0o17", 15), ("-0x1", "-0x1")],
        *[("1e4", 1e4), ("1e-5", 1e-5), ("5.76e23", 5.76e23), (".5", 0.5), ("5.", 5.0), ("-1.5", -1.5)],
        *[(text, text) for text in ("12:30", "65_536", "2020-01-01", "4 * embed", "1e", "--1", "0b1", "1 2")],
        *[("'1'", "1"), ('"true"', "true"), ("''", ""), ("|\n  1", "1"), (">\n  a\n  b", "a b")],
        *[("max(a, b)", "max(a, b)"), ("see (a", "see (a"), ("{a: f(x), b: '(,'}", {"a": "f(x)", "b": "(,"})],
    ],
)
def test_scalars_are_yaml_1_2(written: str, meant: object, either_loader: None) -> None:
    found = good(f"key: {written}")["key"]
    assert found == meant
    assert type(found) is type(meant) or isinstance(found, YMap)


def test_everything_has_a_position(either_loader: None) -> None:
    top = good("\ufeffé: 1\nmap: {a: , 'b': [x,\n  yy]}\nlist:\n  - {c: 2}\n  -\n")
    assert list(top) == ["é", "map", "list"]
    assert top.key_position["map"] == Position("f.yaml", 2, 1)
    assert top.value_position["map"] == Position("f.yaml", 2, 6)
    inner, items = top["map"], top["list"]
    assert isinstance(inner, YMap) and isinstance(items, YList)
    assert inner["a"] is None and inner.key_position["b"].column == 12
    pair = inner["b"]
    assert isinstance(pair, YList)
    assert list(pair) == ["x", "yy"] and pair.item_position == [
        Position("f.yaml", 2, 18),
        Position("f.yaml", 3, 3),
    ]
    assert items.position == Position("f.yaml", 5, 3) and items == [{"c": 2}, None]
    assert copy.deepcopy(top).key_position == top.key_position


@pytest.mark.parametrize(
    ("text", "code", "line", "column", "words", "mend"),
    [
        ("a: 1\nb: 2\na: 3", "duplicate-key", 3, 1, "lines 1 and 3", None),
        ("a: 1\n'a': 2", "duplicate-key", 2, 1, "lines 1 and 2", None),
        ("a: &x 1", "yaml-anchor", 1, 4, "anchors", "use a block"),
        ("a: &x {b: 1}", "yaml-anchor", 1, 4, "anchors", "use a block"),
        ("a: *x", "yaml-alias", 1, 4, "aliases", "use a block, or quote it"),
        ("a: *x / 2", "yaml-alias", 1, 4, "aliases", "use a block, or quote it"),
        ("*x : 1", "yaml-alias", 1, 1, "aliases", "use a block"),
        ("a: !t 1", "yaml-tag", 1, 4, "!t", "use a block"),
        ("a: !!str 1", "yaml-tag", 1, 4, "tags", "use a block"),
        ("a: ! [1]", "yaml-tag", 1, 4, "tags", "use a block"),
        ("<<: *x\nb: 1", "yaml-merge", 1, 1, "merge", "use a block"),
        ("a: {<<: {b: 1}}", "yaml-merge", 1, 5, "merge", "use a block"),
        ("a: 1\n---\nb: 2", "yaml-documents", 2, 1, "second document", None),
        ("%YAML 1.1\n---\na: 1", "yaml-directive", 1, 1, "directive", None),
        ("1: a", "key-not-text", 1, 1, "found '1'", 'quote it: "1"'),
        ("null: a", "key-not-text", 1, 1, "found 'null'", 'quote it: "null"'),
        ("? \n: b", "key-not-text", 1, 2, "found ''", None),
        ("? [a]\n: b", "key-not-text", 1, 3, "a list", None),
        ("a: .inf", "number-out-of-range", 1, 4, ".inf", None),
        ("a: [.nan]", "number-out-of-range", 1, 5, ".nan", None),
        ("a: 1e999", "number-out-of-range", 1, 4, "1e999", None),
        ("a: " + "9" * 5000, "number-out-of-range", 1, 4, "999", None),
        ("", "not-a-mapping", 1, 1, "nothing", None),
        ("# only a comment\n", "not-a-mapping", 1, 1, "nothing", None),
        ("- 1", "not-a-mapping", 1, 1, "a list", None),
        ("3", "not-a-mapping", 1, 1, "a single value", None),
        ("a:\n\tb: 1", "yaml-syntax", 2, 1, "a tab cannot indent", "use spaces"),
        ("a: 1\n\tb: 2", "yaml-syntax", 2, 1, "a tab cannot indent", "use spaces"),
        ("a: * 4", "yaml-syntax", 1, 5, "cannot begin with *", "quote the text"),
        ("a: @x", "yaml-syntax", 1, 4, "cannot begin with", "quote the text"),
        ("a: b: c", "yaml-syntax", 1, 5, "': '", "quote the text"),
        ("a: 1\nb\nc: 2", "yaml-syntax", 2, 1, "a key without ':'", "write 'key: value'"),
        ("a: 1\nb: 'x\nc: 2", "yaml-syntax", 2, 4, "never closed", "close the quote"),
        ("a:\n  b: 1\n c: 2", "yaml-syntax", 3, 2, "does not fit", "mend the indentation"),
        ("a: {b: 1\n", "yaml-syntax", 1, 4, "closing bracket", "close the bracket"),
        ("a: \x00", "yaml-syntax", 1, 4, "U+0000", None),
        ("b: 1\na: \ud800", "yaml-syntax", 2, 4, "U+D800", None),
        ("a: {b: max(c, d)}", "unbalanced-parenthesis", 1, 8, "max(c", 'quote it: b: "max(c, d)"'),
        ("a: {b: max(c, d) / 2, e: 1}", "unbalanced-parenthesis", 1, 8, "max(c", 'b: "max(c, d) / 2"'),
        ("a: {b: max(1, 2, 3), e: 1}", "unbalanced-parenthesis", 1, 8, "max(1", 'b: "max(1, 2, 3)"'),
        ("a: {b: f(c, [d, e])}", "unbalanced-parenthesis", 1, 8, "f(c", 'b: "f(c, [d, e])"'),
        ("a: [max(c, d)]", "unbalanced-parenthesis", 1, 5, "max(c", 'quote it: "max(c, d)"'),
        ("a: {b: (h {} d) e}", "unbalanced-parenthesis", 1, 8, "(h", 'b: "(h {} d) e"'),
        ("a: {b: f('x', y)}", "unbalanced-parenthesis", 1, 8, "f('x'", "b: \"f('x', y)\""),
        ("a: {b: f(c}", "unbalanced-parenthesis", 1, 8, "f(c", "close the parenthesis"),
        ("a: {b: c)}", "unbalanced-parenthesis", 1, 8, "c)", "close the parenthesis"),
        ("a: " + "[" * 70 + "]" * 70, "too-deep", 1, 67, "64 levels", None),
        ("a: " + "[" * 5000, "too-deep", 1, None, "64 levels", None),
    ],
)
def test_each_trap_is_one_problem(
    text: str, code: str, line: int, column: int | None, words: str, mend: str | None, either_loader: None
) -> None:
    (problem,) = faults(text)
    assert problem.position is not None
    assert (problem.code, problem.position.line) == (code, line)
    assert column is None or problem.position.column == column
    assert words in problem.message
    assert mend is None or (problem.suggestion and mend in problem.suggestion)


def test_all_faults_of_a_file_are_told_in_one_run() -> None:
    text = "a: 1\na: 2\nb: &x 1\nc: *x\nd: {e: max(f, g), h: max(i, g)}\n1: 2\nj:\n\tk: 1\n"
    assert [found.code for found in faults(text)] == [
        "duplicate-key",
        "yaml-anchor",
        "yaml-alias",
        "unbalanced-parenthesis",
        "unbalanced-parenthesis",
        "key-not-text",
        "yaml-syntax",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "x" * 10_000_000,
        "a: &a [" + "x, " * 9 + "]\n" + "".join(f"b{i}: [*a, *a, *a]\n" for i in range(40_000)),
        "a: [" + "[]," * 300_000,
        "a: {" + "(b, " * 200_000,
        "a: {b: " + "(" * 1_000_000 + "}",
        "a: {" + "b, " * 300_000,
        "- " * 500_000,
        "a: " + "9" * 1_000_000,
        "'" + "k" * 1_000_000 + "': 1\n" * 2,
    ],
    ids=lambda text: text[:8],
)
def test_hostile_text_is_refused_quickly(text: str) -> None:
    start = time.process_time()
    found = faults(text)
    assert found and len(found) <= 50 and sum(len(str(problem)) for problem in found) < 50_000
    assert time.process_time() - start < 2  # some 0.5 s in truth; the machine may be busy


def test_files(tmp_path: Path) -> None:
    def write(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    os.mkfifo(tmp_path / "pipe")
    cases = [
        (tmp_path / "none.yaml", "file-missing", 1, 1),
        (tmp_path, "not-a-file", 1, 1),
        (tmp_path / "pipe", "not-a-file", 1, 1),
        (tmp_path / "a\0b", "file-unreadable", 1, 1),
        (write("big", b"#" * (MAX_BYTES + 1)), "too-large", 1, 1),
        (write("latin", b"a: 1\nb: \xc3\xa9\xff"), "not-utf8", 2, 5),
    ]
    for path, code, line, column in cases:
        problems = Problems()
        assert load_file(path, problems, display="shown") is None
        assert [found.code for found in problems.items] == [code]
        assert problems.items[0].position == Position("shown", line, column)
    problems = Problems()
    loaded = load_file(write("good.yaml", "\ufeffa: é".encode()), problems)
    assert loaded == {"a": "é"} and loaded.position.file == str(tmp_path / "good.yaml")


SOUP = st.lists(st.sampled_from([*"ab:{}[],()-?&*!|>'\"%@#~1.\\\t\n ", ": ", "- ", "<<: ", "\n  ", "a: "]))


@settings(deadline=None)  # the machine may be busy
@given(st.text() | SOUP.map("".join), st.sampled_from(LOADERS))
def test_any_text_gives_a_mapping_or_problems(text: str, which: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "_LOADER", which)
        faults(text)
