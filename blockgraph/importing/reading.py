"""A config's fields, each classed by its type's file: used, of no effect, or refused with its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from blockgraph.importing import types
from blockgraph.importing.kinds import REQUIRED, Kind, Misfit, shown
from blockgraph.importing.types import ModelType
from blockgraph.importing.values import Values
from compiler.errors import BlockgraphError, Position, Problem, Problems, nearest
from compiler.source.expr import ExprError
from compiler.source.yaml import YMap

BY_HAND = "write the spec by hand: docs/from-a-paper.md shows how, docs/import.md how to add a type"


@dataclass(frozen=True)
class Given:
    """A field as the config has it. ``name``: as it is spelled there, dotted where it is nested; ``ours``: as the
    type's file calls it."""

    name: str
    ours: str
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

    def place(self, name: str) -> Position | None:
        return self.given[name].place if name in self.given else None

    def spelled(self, name: str) -> str:
        """A field's name as the config has it, or as it could have it."""
        if name in self.given or name in self.type.also.values():
            return self.given[name].name if name in self.given else name
        inner = next((f"{n}.{i}" for n, of in self.type.nested.items() for i, ours in of.items() if ours == name), name)
        return name if name in self.type.fields and inner.endswith(f".{name}") else inner


def type_of(raw: YMap) -> ModelType:
    """The model type that a config names. Raises BlockgraphError with the nearest names."""
    name, place = raw.get("model_type"), raw.value_position.get("model_type", raw.position)
    known, refused = types.names(), types.refused()
    if isinstance(name, str) and name in known:
        return types.model_type(name)
    if isinstance(name, str) and name in refused:
        raise problem(
            "unknown-model-type", f"the model type {name} is not covered: {refused[name]}", place, hint=BY_HAND
        )
    message = "the config names no model_type" if name is None else f"no model type {shown(name)} is covered"
    hint = nearest(name, known) if isinstance(name, str) else None
    raise problem("unknown-model-type", message, place, known, hint or BY_HAND)


def read(raw: YMap, drop: Sequence[str] = (), stored_dtype: str | None = None) -> Reading:
    """Every field of a config. ``drop``: fields that are left out, whatever they say; ``stored_dtype``: of the
    checkpoint, if there is one. Raises BlockgraphError with all that is not supported."""
    made = Reading(type_of(raw), Values(stored_dtype=stored_dtype))
    problems = Problems()
    _sort(made, raw, drop, problems)
    later = [n for n, k in made.type.fields.items() if _computed(k)]
    for name in sorted(made.type.fields, key=lambda n: later.index(n) if n in later and n not in made.given else -1):
        made.values[name] = _value(made, name, made.type.fields[name], problems)
    problems.raise_if_any(BlockgraphError)
    _meaningful(made, problems)
    problems.raise_if_any(BlockgraphError)
    for name, rule in made.type.values.items():
        try:
            made.values.compute(name, rule)
        except (ExprError, Misfit) as fault:
            about = rule.get("given", "") if isinstance(rule, Mapping) else ""
            code, why = (fault.code, fault.message) if isinstance(fault, Misfit) else ("missing-field", str(fault))
            raise problem(code, f"{made.spelled(about or name)}: {why}", made.place(about)) from None
    _check(made, problems)
    problems.raise_if_any(BlockgraphError)
    return made


def problem(
    code: str, message: str, place: Position | None, allowed: Sequence[str] = (), hint: str | None = None
) -> BlockgraphError:
    return BlockgraphError(Problem(code, message, place, tuple(allowed), hint))


def _flat(raw: YMap, nested: Mapping[str, Mapping[str, str]], above: str = "") -> Iterator[Given]:
    """All fields, those of nested mappings by dotted names."""
    for key, value in raw.items():
        if isinstance(value, YMap) and (above or key in nested):
            yield from _flat(value, nested, f"{above}{key}.")
        elif above or key not in nested or value is not None:
            name = f"{above}{key}"
            outer, _, inner = name.partition(".")
            ours = nested.get(outer, {}).get(inner, name) if above else name
            yield Given(name, ours, value, raw.value_position[key])


def _sort(made: Reading, raw: YMap, drop: Sequence[str], problems: Problems) -> None:
    """Each field of the config to where it belongs."""
    kind, left = made.type, set(drop)
    for one in _flat(raw, kind.nested):
        name = kind.also.get(one.ours, one.ours)
        here = [d for d in drop if one.name == d or one.name.startswith(f"{d}.")]
        if here:
            made.dropped[one.name] = one.value
            left.difference_update(here)
        elif name in kind.fields and (one.name != name or not kind.fields[name].inner):
            _given(made, name, one, problems)
        elif name in kind.ignored:
            made.ignored[one.name] = kind.ignored[name]
        elif one.name == "architectures":
            _architectures(kind, one, problems)
        elif one.name != "model_type":
            message = f"{kind.name} has no field {one.name} that is known here, so it may change the numbers"
            near = nearest(one.name.rpartition(".")[2], _beside(kind, one.name))
            hint = f"{near}, or leave it out" if near else "leave it out"
            problems.add("unknown-field", message, one.place, suggestion=f"{hint} knowingly: --ignore {one.name}")
    for name in sorted(left):
        problems.add("bad-option", f"--ignore {name}: the config has no such field", suggestion=nearest(name, raw))


def _beside(kind: ModelType, name: str) -> list[str]:
    """The names that may stand where a field stands."""
    above, _, _ = name.rpartition(".")
    return [i.rpartition(".")[2] for i in kind.nested.get(above, {})] if above else kind.known


def _given(made: Reading, name: str, one: Given, problems: Problems) -> None:
    """Takes a field; one that two spellings give must be the same in both."""
    other = made.given.get(name)
    if other is None or other.value is None:
        made.given[name] = one
    elif one.value is not None and other.value != one.value:
        message = f"{one.name} is {shown(one.value)}, and {other.name} is {shown(other.value)}: which counts?"
        problems.add("conflicting-keys", message, one.place)


def _architectures(kind: ModelType, one: Given, problems: Problems) -> None:
    names = one.value if isinstance(one.value, list) else []
    if one.value is not None and not any(n in kind.classes for n in names):
        message = f"architectures is {shown(one.value)}: another head, or another model"
        problems.add("unsupported-value", message, one.place, allowed=kind.classes)


def _computed(kind: Kind) -> bool:
    """Whether the default is an expression."""
    return isinstance(kind.default, str) and not kind.literal and kind.default != REQUIRED


def _may_be_null(kind: Kind) -> bool:
    return kind.default is None or _computed(kind)


def _value(made: Reading, name: str, kind: Kind, problems: Problems) -> Any:
    one = made.given.get(name)
    absent = one is None or (isinstance(one.value, str) and one.value in kind.words)
    absent = absent or (one is not None and one.value is None and not kind.none and _may_be_null(kind))
    spelled, place = made.spelled(name), made.place(name)
    try:
        if one is not None and not absent:
            return None if one.value is None and kind.none else kind.read(one.value)
        if kind.default is None:
            return None
        if kind.default == REQUIRED:
            problems.add("missing-field", f"the config has no {spelled}", None, allowed=(kind.says,))
            return None
        return kind.read(made.values.number(kind.default) if _computed(kind) else kind.default)
    except Misfit as fault:
        problems.add(
            fault.code, f"{spelled} {fault.message}", place, allowed=fault.allowed, suggestion=fault.suggestion
        )
    except ExprError as fault:  # of the default, which another field's fault may have left without a value
        if not problems.items:
            problems.add("missing-field", f"{spelled} is not given, and {kind.default} has no value: {fault}", place)
    return None


def _meaningful(made: Reading, problems: Problems) -> None:
    """Refuses a field that is given where another makes it mean nothing."""
    for name, one in made.given.items():
        when = made.type.fields[name].when
        if when and one.value is not None and not made.values.holds(when):
            message = f"{one.name} is {shown(one.value)}, and would count only with {when}"
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
            name = check["at"]
            message = f"{made.spelled(name)} is {shown(made.values[name])}: {check['say']}"
            problems.add("unsupported-value", message, made.place(name))
