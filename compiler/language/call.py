"""Calls of op functions from a program: arguments are held against the function's signature before it runs, so that
a wrong call is told in the words of the spec."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from compiler.errors import nearest
from compiler.graph.builder import Builder
from compiler.graph.ir import Value
from compiler.graph.sizes import Size
from compiler.language.scope import Fault, shown
from compiler.ops.contract import FUNCTIONS
from compiler.ops.elementwise import TABLE

HIDDEN = {
    "constant", "positions", "reduce", "expand", "arrange", "first", "lookup", "cast", "norm", "equal", "greater",
    "select", "last_valid", "distances", "sinusoid", "fill",
}  # fmt: skip
_EXAMPLE = {"take": "embed=0", "rename": "embed=other", "split": "axis=embed, heads=4, head_dim=16"}
PRODUCTS = frozenset({"conv", "compute"})  # like linear maps they take the compute dtype, whatever they are given


def callable_functions() -> list[str]:
    """Functions that a program may call."""
    return sorted(set(FUNCTIONS) - HIDDEN)


def call(b: Builder, name: str, values: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """Calls an op function. Raises Fault where the arguments do not fit it."""
    if name in TABLE:
        _check_mapped(name, values, options)
    else:
        _check(name, values, options)
    try:
        result = FUNCTIONS[name](b, *values, **options)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError) as e:
        raise Fault("wrong-call", f"{name} cannot be called with these: {e}") from e
    if isinstance(result, tuple):
        raise Fault("wrong-call", f"{name} gives several values, which a program cannot name: write a Python block")
    return result


def _check_mapped(name: str, values: Sequence[Any], options: Mapping[str, Any]) -> None:
    arity = TABLE[name].arity
    if options:
        raise Fault("wrong-call", f"{name} has no option {next(iter(options))}")
    if len(values) != arity:
        raise Fault("wrong-call", f"{name} takes {arity} value{'s' * (arity > 1)}, found {len(values)}")
    if not any(isinstance(v, Value) for v in values):
        raise Fault("wrong-type", f"{name} takes a tensor, found {', '.join(map(_found, values))}")
    for value in values:
        if not isinstance(value, Value) and not _number(value):
            raise Fault("wrong-type", f"{name} takes tensors and numbers, found {_found(value)}")


@cache
def _parameters(name: str) -> tuple[inspect.Parameter, ...]:
    return tuple(inspect.signature(FUNCTIONS[name]).parameters.values())[1:]  # without the builder


def _check(name: str, values: Sequence[Any], options: Mapping[str, Any]) -> None:
    parameters = {p.name: p for p in _parameters(name)}
    places = [p.name for p in parameters.values() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    free = next((p for p in parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD), None)
    rest = next((p for p in parameters.values() if p.kind is inspect.Parameter.VAR_POSITIONAL), None)
    named = [n for n, p in parameters.items() if p not in (free, rest)]
    for key in options:
        if key not in named and free is None:
            raise Fault("wrong-call", f"{name} has no option {key}", named, nearest(key, named))
        if key in places[: len(values)]:
            raise Fault("wrong-call", f"{name} is given {key} twice")
    if len(values) > len(places) and rest is None:
        raise Fault(
            "wrong-call", f"{name} takes at most {len(places)} values without a name, found {len(values)}", named
        )
    given = dict(zip(places, values, strict=False)) | dict(options)
    lacking = [n for n in named if n not in given and parameters[n].default is inspect.Parameter.empty]
    if lacking:
        raise Fault("wrong-call", f"{name} needs {' and '.join(lacking)}", named)
    if free is not None and len([k for k in options if k not in named]) < 1:
        raise Fault("wrong-call", f"{name} names an axis: {name}({named[0]}, {_EXAMPLE.get(name, 'axis=…')})")
    extra = [(rest, v) for v in values[len(places) :]] if rest is not None else []
    for parameter, value in [*((parameters.get(k, free), v) for k, v in given.items()), *extra]:
        assert parameter is not None
        _fits(f"{name}: {parameter.name}", str(parameter.annotation), value)


def wants_number(name: str, option: str) -> bool:
    """Whether an option of a function is a number, so that a bare dim there is its size and no axis name."""
    if name in TABLE:
        return False
    parameters = _parameters(name)
    free = next((p for p in parameters if p.kind is inspect.Parameter.VAR_KEYWORD), None)
    found = next((p for p in parameters if p.name == option and p is not free), free)
    sorts = set(str(found.annotation).split(" | ")) if found is not None else set()
    return bool(sorts & {"int", "float", "SizeLike"}) and not sorts & {"str", "bool", "Sequence[str]"}


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_SORTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "Value": (lambda v: isinstance(v, Value), "a tensor"),
    "float": (_number, "a number"),
    "int": (lambda v: _number(v) and v == int(v) and v >= 0, "a whole number from 0 on"),
    "SizeLike": (lambda v: isinstance(v, Size) or (_number(v) and v == int(v) and v >= 0), "a whole number from 0 on"),
    "str": (lambda v: isinstance(v, str), "a word or an axis name"),
    "bool": (lambda v: isinstance(v, bool), "true or false"),
    "Sequence[str]": (lambda v: isinstance(v, list) and all(isinstance(i, str) for i in v), "a list of axis names"),
    "Sequence[int]": (
        lambda v: isinstance(v, list) and all(_number(i) and i == int(i) and i >= 0 for i in v),
        "a list of them",
    ),
    "None": (lambda v: v is None, "null"),
}


def _fits(what: str, annotation: str, value: Any) -> None:
    sorts = [_SORTS[s] for s in annotation.split(" | ") if s in _SORTS]
    if sorts and not any(test(value) for test, _ in sorts):
        raise Fault("wrong-type", f"{what} must be {' or '.join(text for _, text in sorts)}, found {_found(value)}")


def _found(value: Any) -> str:
    return f"a tensor [{' '.join(value.axes)}]" if isinstance(value, Value) else shown(value)
