"""The expression language: precedence, refusals in words, bounds, and a text form that parses back."""

import math
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.source.expr import (
    MAX_DEPTH,
    Binary,
    Brackets,
    Call,
    Expr,
    ExprError,
    Name,
    Number,
    Unary,
    evaluate,
    names,
    parse,
    to_text,
)

SIZES = {"embed": 3584, "heads": 16, "head_dim": 256, "layer": 3, "half": 0.5, "first.kv": 7}


def value(text: str) -> object:
    return evaluate(parse(text), SIZES.__getitem__)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("65_536", 65536),
        ("010", 10),
        ("1e7", 1e7),
        (".5", 0.5),
        ("5.", 5.0),
        ("4 * embed", 14336),
        ("head_dim ** -0.5", 0.0625),
        ("(embed / heads) ** -0.5", 224**-0.5),
        ("sqrt(embed)", math.sqrt(3584)),
        ("0.8 - 0.6 * exp(-0.3 * layer)", 0.8 - 0.6 * math.exp(-0.9)),
        ("1.7015 * (1 + 0.04 * (layer + 1)) ** -0.5", 1.7015 * 1.16**-0.5),
        ("-2 ** 2", -4),
        ("2 ** -1 ** 2", 0.5),
        ("2 ** 3 ** 2", 512),
        ("(2 ** 3) ** 2", 64),
        ("2 - 3 - 4", -5),
        ("--2 * -3", -6),
        ("7 // 2 % 2", 1),
        ("-7 // 2", -4),
        ("8 / 2", 4.0),
        ("max(1, min(embed, 2), 0)", 2),
        ("max(3) + abs(-1) + ceil(1.2) + floor(1.8) + log(1)", 7.0),
        ("first.kv", 7),
        ("  1 +\n\t2 ", 3),
    ],
)
def test_value_and_kind_of_number(text: str, expected: int | float) -> None:
    found = value(text)
    assert type(found) is type(expected)
    assert found == pytest.approx(expected, rel=1e-15)


def test_program_expression_keeps_its_shape_and_its_columns() -> None:
    tree = parse("attend(q, value(input), causal=true, axes=[a, b], scale=-head_dim ** -0.5)")
    power = Binary("**", Name("head_dim"), Unary("-", Number(0.5)))
    assert tree == Call(
        "attend",
        (Name("q"), Call("value", (Name("input"),))),
        (("causal", Name("true")), ("axes", Brackets((Name("a"), Name("b")))), ("scale", Unary("-", power))),
    )
    assert names(tree) == {"q", "input", "true", "a", "b", "head_dim"}
    assert isinstance(tree, Call) and [arg.column for arg in tree.args] == [7, 10]
    assert Number(2) != Number(2.0)


@pytest.mark.parametrize(
    ("text", "offset", "words"),
    [
        ("", 0, "missing at the end"),
        ("1 +", 3, "missing at the end"),
        ("(1", 2, "')' is missing"),
        ("f(a,)", 4, "missing before ')'"),
        ("a b", 2, "an operator"),
        ("a ^ 2", 2, "not allowed"),
        ("'x'", 0, "string"),
        ("__import__('os')", 0, "write a Python block"),
        ("a.__class__", 0, "two underscores"),
        ("lambda x: x", 8, "no conditions, no strings: write a Python block"),
        ("lambda x", 7, "'lambda' is not allowed"),
        ("a if b else c", 2, "'if' is not allowed: no conditions"),
        ("not x", 4, "'not'"),
        ("a == b", 2, "comparison"),
        ("a < b", 2, "comparison"),
        ("a -> b", 2, "params"),
        ("x = 1", 2, "assignment"),
        ("x[0]", 1, "indexing"),
        ("[a]", 0, "argument"),
        ("a.b(c)", 0, "cannot be called"),
        ("f(x)(y)", 4, "only a name"),
        ("f(a=1, a=2)", 7, "twice"),
        ("f(a=1, b)", 7, "without a name"),
        ("$x", 0, "bare word"),
        ("0x10", 0, "not a number"),
        ("1__0", 0, "not a number"),
        ("1.2.3", 0, "not a number"),
        ("1e30", 0, "below 1e+30"),
        ("1e999999999", 0, "below 1e+30"),
        ("1e-999", 0, "too small"),
        ("x" * 2001, 2000, "2,000 characters"),
        ("(" * 150, 102, "nested"),
        ("+".join("x" * 60), 17, "nested"),
    ],
)
def test_refusals_say_where_and_why(text: str, offset: int, words: str) -> None:
    with pytest.raises(ExprError, match=re.escape(words)) as caught:
        parse(text)
    assert caught.value.offset == offset


@pytest.mark.parametrize(("text", "mend"), [("a ^ 2", "**"), ("a − 2", "-"), ("a × b", "*")])
def test_look_alikes_are_mended(text: str, mend: str) -> None:
    with pytest.raises(ExprError) as caught:
        parse(text)
    assert caught.value.suggestion == mend


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("1 / 0", "zero-division"),
        ("1 % 0", "zero-division"),
        ("0 ** -1", "zero-division"),
        ("9 ** 9 ** 9", "too-large"),
        ("9.5 ** 9 ** 9", "too-large"),
        ("1e29 * 1e29", "too-large"),
        ("exp(1e9)", "too-large"),
        ("sqrt(-1)", "not-a-number"),
        ("(-8) ** 0.5", "not-a-number"),
        ("log(0)", "not-a-number"),
        ("nothing + 1", "unknown-name"),
        ("sqr(2)", "unknown-function"),
        ("sqrt(1, 2)", "not-arithmetic"),
        ("max()", "not-arithmetic"),
        ("max(a=1)", "not-arithmetic"),
        ("max([1, 2])", "not-arithmetic"),
    ],
)
def test_arithmetic_that_has_no_answer(text: str, code: str) -> None:
    start = time.monotonic()
    with pytest.raises(ExprError) as caught:
        value(text)
    assert caught.value.code == code
    assert time.monotonic() - start < 0.5


def test_unknown_names_and_functions_are_named() -> None:
    with pytest.raises(ExprError) as name:
        value("2 * embeds")
    assert (name.value.name, name.value.offset) == ("embeds", 4)
    with pytest.raises(ExprError) as function:
        value("2 * sqr(embed)")
    assert (function.value.name, function.value.suggestion, function.value.offset) == ("sqr", "sqrt", 4)


@pytest.mark.parametrize("bad", [True, None, "3", [1], math.nan, math.inf, 10**40, np.array([True]), 1j])
def test_a_name_must_stand_for_a_sensible_number(bad: object) -> None:
    with pytest.raises(ExprError):
        evaluate(parse("x * 1"), {"x": bad}.__getitem__)


def test_arrays_broadcast_and_do_not_wrap_around() -> None:
    sizes = {"n": np.array([2, 2**40]), "m": np.array([[1], [4]]), "one": np.int32(3)}
    assert evaluate(parse("max(n, m, 3) + n ** -1"), sizes.__getitem__).shape == (2, 2)
    assert evaluate(parse("n * n"), sizes.__getitem__).tolist() == [4.0, 2.0**80]
    assert type(evaluate(parse("one + 1"), sizes.__getitem__)) is int
    for text in ("m / (m - 1)", "m % 0", "sqrt(-m)", "n ** 9"):
        with pytest.raises(ExprError):
            evaluate(parse(text), sizes.__getitem__)


NAMES = st.sampled_from(["a", "embed", "first.kv", "true", "_x1", "in"])
WORDS = st.sampled_from(["f", "max", "rms_norm"])
NUMBERS = st.integers(0, 10**29) | st.floats(1e-300, 9e29) | st.just(0.0)
LEAVES = st.builds(Number, NUMBERS) | st.builds(Name, NAMES)


def _grow(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    argument = inner | st.builds(Brackets, st.lists(inner, max_size=3).map(tuple))
    keywords = st.dictionaries(WORDS, argument, max_size=2).map(lambda found: tuple(found.items()))
    return (
        st.builds(Unary, st.sampled_from("+-"), inner)
        | st.builds(Binary, st.sampled_from(["+", "-", "*", "/", "//", "%", "**"]), inner, inner)
        | st.builds(Call, WORDS, st.lists(argument, max_size=3).map(tuple), keywords)
    )


@settings(deadline=None)  # the machine may be busy
@given(st.recursive(LEAVES, _grow, max_leaves=12))
def test_text_parses_back_to_the_same_tree(tree: Expr) -> None:
    assert parse(to_text(tree)) == tree
    assert to_text(parse(to_text(tree))) == to_text(tree)


@pytest.mark.parametrize("op", ["+", "**"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_deepest_tree_allowed_parses_back(op: str, side: str) -> None:
    tree: Expr = Name("x")
    for _ in range(MAX_DEPTH - 1):
        tree = Binary(op, tree, Name("y")) if side == "left" else Binary(op, Name("y"), tree)
    assert parse(to_text(tree)) == tree
    with pytest.raises(ExprError, match="nested"):
        parse(to_text(Unary("-", tree)))


SOUP = st.lists(st.sampled_from([*"()[],=+-*/%^.'\"<x1_ ", "**", "//", "1e9", "9**9", "max(", "if "])).map("".join)


@settings(deadline=None)  # the machine may be busy
@given(st.text() | SOUP)
def test_any_text_gives_a_tree_or_an_error_inside_it(text: str) -> None:
    try:
        tree = parse(text)
        assert parse(to_text(tree)) == tree
        evaluate(tree, SIZES.__getitem__)
    except ExprError as error:
        assert 0 <= error.offset <= len(text)
        assert error.message and error.code
