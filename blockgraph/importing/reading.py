"""A config's fields, each classed by its type's file: used, of no effect, or refused with its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from blockgraph.importing import types
from blockgraph.importing.kinds import Kind, Misfit, shown
from blockgraph.importing.types import ModelType
from blockgraph.importing.values import Values
from compiler.errors import BlockgraphError, Position, Problem, Problems, nearest
from compiler.source.expr import ExprError
from compiler.source.yaml import YMap


@dataclass(frozen=True)
class Given:
    """A field as the config has it. ``name``: as it is spelled there, dotted where it is nested."""

    name: str
    value: Any
    place: Position | None


@dataclass
class Reading:
    """``values``: what the template can name; ``given``: the config's fields by the names of the type's file;
    ``ignored``: fields of no effect, with the reason; ``dropped``: what was left out because it was asked for."""

    type: ModelType
    values: Values = field(default_factory=Values)
    given: dict[str, Given] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, Any] = field(default_factory=dict)


def type_of(raw: YMap) -> ModelType:
    """The model type that a config names. Raises BlockgraphError with the nearest names."""
    name, place = raw.get("model_type"), raw.value_position.get("model_type", raw.position)
    known, refused = types.names(), types.refused()
    if isinstance(name, str) and name in known:
        return types.model_type(name)
    if isinstance(name, str) and name in refused:
        raise _one("unknown-model-type", f"the model type {name} is not covered: {refused[name]}", place)
    message = "the config names no model_type" if name is None else f"no model type {shown(name)} is covered"
    hint = nearest(name, known) if isinstance(name, str) else None
    raise _one("unknown-model-type", message, place, known, hint)


def read(raw: YMap, drop: Sequence[str] = ()) -> Reading:
    """Every field of a config. ``drop``: fields that are left out, whatever they say. Raises BlockgraphError with all
    that is not supported."""
    made = Reading(type_of(raw))
    problems = Problems()
    _sort(made, raw, drop, problems)
    for name, kind in made.type.fields.items():
        made.values[name] = _value(made, name, kind, problems)
    problems.raise_if_any(BlockgraphError)
    _meaningful(made, problems)
    _check(made, problems)
    problems.raise_if_any(BlockgraphError)
    for name, rule in made.type.values.items():
        try:
            made.values.compute(name, rule)
        except (ExprError, BlockgraphError) as error:
            culprit = rule.get("given", "") if isinstance(rule, dict) else ""
            raise _one("unsupported-value", f"{name}: {error}", place_of(made, culprit)) from None
    return made


def place_of(made: Reading, name: str) -> Position | None:
    return made.given[name].place if name in made.given else None


def _one(
    code: str, message: str, place: Position | None, allowed: Sequence[str] = (), hint: str | None = None
) -> BlockgraphError:
    return BlockgraphError(Problem(code, message, place, tuple(allowed), hint))


def _flat(raw: YMap, nested: Sequence[str], above: str = "") -> Iterator[Given]:
    """All fields, those of nested mappings by dotted names."""
    for key, value in raw.items():
        if isinstance(value, YMap) and (above or key in nested):
            yield from _flat(value, nested, f"{above}{key}.")
        elif above or key not in nested or value is not None:
            yield Given(above + key, value, raw.value_position[key])


def _sort(made: Reading, raw: YMap, drop: Sequence[str], problems: Problems) -> None:
    """Each field of the config to where it belongs."""
    kind, left = made.type, set(drop)
    for one in _flat(raw, kind.nested):
        name = kind.also.get(one.name, one.name)
        here = [d for d in drop if one.name == d or one.name.startswith(f"{d}.")]
        if here:
            made.dropped[one.name] = one.value
            left.difference_update(here)
        elif name in kind.fields:
            other = made.given.get(name)
            if other is not None and other.value != one.value and one.value is not None and other.value is not None:
                message = f"{one.name} is {shown(one.value)}, and {other.name} is {shown(other.value)}: which counts?"
                problems.add("conflicting-keys", message, one.place)
            if other is None or other.value is None:
                made.given[name] = one
        elif name in kind.ignored:
            made.ignored[one.name] = kind.ignored[name]
        elif one.name == "architectures":
            _architectures(kind, one, problems)
        elif one.name != "model_type":
            message = f"{kind.name} has no field {one.name} that is known here, so it may change the maths"
            hint = nearest(one.name, kind.known) or f"leave it out knowingly: --ignore {one.name}"
            problems.add("unknown-field", message, one.place, suggestion=hint)
    for name in sorted(left):
        problems.add("bad-option", f"--ignore {name}: the config has no such field", suggestion=nearest(name, raw))


def _architectures(kind: ModelType, one: Given, problems: Problems) -> None:
    names = one.value if isinstance(one.value, list) else []
    if one.value is not None and not any(n in kind.classes for n in names):
        message = f"architectures is {shown(one.value)}: another head, or another model"
        problems.add("unsupported-value", message, one.place, allowed=kind.classes)


def _value(made: Reading, name: str, kind: Kind, problems: Problems) -> Any:
    one = made.given.get(name)
    expression = isinstance(kind.default, str) and not kind.literal
    default_works = kind.default is None or kind.none or expression
    try:
        if one is not None and not (one.value is None and default_works):
            return kind.read(one.value)
        if kind.default is None or (one is not None and kind.none):
            return None
        if expression:
            return kind.read(made.values.number(kind.default))
        return kind.read(kind.default)
    except Misfit as fault:
        spelled, place = (one.name, one.place) if one else (name, None)
        problems.add(fault.code, f"{spelled} {fault.message}", place, allowed=fault.allowed, suggestion=fault.suggestion)
    except ExprError as fault:  # of the default
        problems.add("missing-field", f"{name} is not given, and {kind.default} has no value: {fault}")
    return None


def _meaningful(made: Reading, problems: Problems) -> None:
    """Refuses a field that is given where another makes it mean nothing."""
    for name, one in made.given.items():
        when = made.type.fields[name].when
        if when and one.value is not None and not made.values.holds(when):
            message = f"{one.name} is given, and counts only with {when}"
            problems.add("unsupported-value", message, one.place)


def _check(made: Reading, problems: Problems) -> None:
    for check in made.type.checks:
        if "if" in check and not made.values.holds(check["if"]):
            continue
        try:
            off = made.values.number(check["zero"])
        except ExprError as fault:
            off = str(fault)
        if off:
            one = made.given.get(check["at"])
            spelled = one.name if one else check["at"]
            message = f"{spelled} = {shown(made.values[check['at']])}: {check['say']}"
            problems.add("unsupported-value", message, one.place if one else None)
