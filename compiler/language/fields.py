"""Field types of a block kind's arguments: pydantic models whose values are evaluated in the scope of the spec.

A block kind declares its options once, as an ``Args`` model; checking, defaults from dims, the JSON Schema and
the reference page come from that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, get_args

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from compiler.errors import Position, nearest
from compiler.language.scope import AxisArg, Fault, Scope, Slot
from compiler.source.yaml import YList, YMap

META = ("name", "from", "frozen", "share", "dtype", "init")  # beside a kind, never among its arguments


class Dim:
    """Marks a field whose default is the dim of this name."""

    def __init__(self, name: str) -> None:
        self.name = name


class Args(BaseModel):
    """Arguments of a block kind or of one of its options."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)
    shorthand: ClassVar[str | None] = None  # the field that a bare value fills: `scale: 2`

    @model_validator(mode="before")
    @classmethod
    def _prepare(cls, raw: Any, info: ValidationInfo) -> Any:
        if isinstance(raw, cls) or not isinstance(info.context, dict):
            return raw
        scope: Scope = info.context["scope"]
        if raw is None:
            raw = {}
        if not isinstance(raw, dict):
            if cls.shorthand is None:
                raise PydanticCustomError(
                    "wrong-type",
                    "expected a mapping of options, found {found}",
                    {
                        "found": "a list" if isinstance(raw, list) else f"'{raw}'",
                        "allowed": list(cls.model_fields),
                    },
                )
            raw = {cls.shorthand: raw}
        fields = {f.alias or name: f for name, f in cls.model_fields.items()}
        kept = {}
        for key, value in raw.items():
            if key in fields:
                kept[key] = value
                continue
            where = raw.key_position.get(key) if isinstance(raw, YMap) else None
            if key in META:
                scope.problems.add(
                    "misplaced-key",
                    f"{key} belongs beside {info.context['kind']}:, not among its options",
                    where,
                )
            else:
                scope.problems.add(
                    "unknown-key",
                    f"{info.context['kind']} has no option {key}",
                    where,
                    allowed=fields,
                    suggestion=nearest(key, fields),
                )
        for key, f in fields.items():
            dim = next((m for m in f.metadata if isinstance(m, Dim)), None)
            if dim is not None and kept.get(key) is None and dim.name in scope.dims:
                kept[key] = dim.name
        return kept


def _field(check: Callable[[Scope, Any, str], Any], schema: dict[str, Any]) -> Any:
    def run(raw: Any, info: ValidationInfo) -> Any:
        if not isinstance(info.context, dict):
            return raw
        try:
            return check(info.context["scope"], raw, info.field_name or "value")
        except Fault as e:
            raise PydanticCustomError(
                e.code,
                "{text}",
                {  # type: ignore[arg-type]
                    "text": e.message,
                    "allowed": list(e.allowed),
                    "suggestion": e.suggestion,
                },
            ) from None

    return Annotated[Any, PlainValidator(run), WithJsonSchema(schema)]


def _per_layer(scope: Scope, raw: Any, what: str) -> Any:
    value = scope.number(raw)
    return tuple(float(v) for v in value) if isinstance(value, np.ndarray) else float(value)


def _flag(scope: Scope, raw: Any, what: str) -> bool:
    value = scope.value(raw)
    if not isinstance(value, bool):
        raise Fault("wrong-type", f"{what} must be true or false, found '{raw}'", ("true", "false"))
    return value


def _window(scope: Scope, raw: Any, what: str) -> int | None:
    value = scope.value(raw)
    return None if value is None else scope.count(raw, what)


def _optional_number(scope: Scope, raw: Any, what: str) -> float | None:
    value = scope.value(raw)
    return None if value is None else float(scope.static(raw, what))


def _axis(scope: Scope, raw: Any, what: str) -> AxisArg:
    return scope.axis(raw, what, "hidden")


_EXPRESSION = {"anyOf": [{"type": "number"}, {"type": "string", "description": "an expression over dims and args"}]}
Number = _field(lambda s, raw, what: float(s.static(raw, what)), _EXPRESSION)
OptionalNumber = _field(_optional_number, {"anyOf": [*_EXPRESSION["anyOf"], {"type": "null"}]})
PerLayer = _field(_per_layer, _EXPRESSION)  # a float, or a tuple of one float a layer of the repeat
Count = _field(lambda s, raw, what: s.count(raw, what), _EXPRESSION)
OptionalCount = _field(_window, {"anyOf": [*_EXPRESSION["anyOf"], {"type": "null"}]})
Flag = _field(_flag, {"anyOf": [{"type": "boolean"}, {"type": "string", "description": "an argument's name"}]})
Axis = _field(_axis, _EXPRESSION)


def _node(raw: Any, info: ValidationInfo) -> Any:
    if not isinstance(info.context, dict) or isinstance(raw, Slot):
        return raw
    scope: Scope = info.context["scope"]
    if isinstance(raw, str) and isinstance(scope.args.get(raw), Slot):
        return scope.args[raw]
    return Slot(raw, info.context.get("position"), scope.args)


Node = Annotated[Any, PlainValidator(_node), WithJsonSchema({"$ref": "#/$defs/Node"})]


def _word(raw: Any, info: ValidationInfo) -> Any:
    """An enum word, or the name of an arg that holds one."""
    if isinstance(info.context, dict) and isinstance(raw, str):
        given = info.context["scope"].args.get(raw)
        return given if isinstance(given, (str, bool)) or (raw in info.context["scope"].args and given is None) else raw
    return raw


Word = BeforeValidator(_word)


def validate(model: type[Args], raw: Any, scope: Scope, kind: str, position: Position | None) -> Args | None:
    """An ``Args`` value from YAML, or None with the problems told. Lets Unroll through."""
    before = len(scope.problems.items)
    try:
        made = model.model_validate(raw, context={"scope": scope, "kind": kind, "position": position})
    except ValidationError as e:
        for error in e.errors():
            report(error, raw, scope, kind, position, model)
        return None
    return made if len(scope.problems.items) == before else None


def report(error: Any, raw: Any, scope: Scope, kind: str, position: Position | None, model: type[BaseModel]) -> None:
    """Turns one pydantic error into a problem with its place in the YAML."""
    where, value = position, raw
    path: list[str] = []
    for key in error["loc"]:
        if isinstance(value, YMap) and key in value:
            where, value = value.value_position[key], value[key]
            path.append(str(key))
        elif isinstance(value, YList) and isinstance(key, int) and key < len(value):
            where, value = value.item_position[key], value[key]
            path.append(str(key))
        elif isinstance(key, str) and key in model.model_fields:
            path.append(key)
    ctx = error.get("ctx") or {}
    name = ".".join(path)
    label = f"{kind}.{name}" if name else kind
    if error["type"] == "missing":
        field = model.model_fields.get(str(error["loc"][-1]))
        dim = next((m.name for m in (field.metadata if field else []) if isinstance(m, Dim)), None)
        text = f"{label} is missing" + (f": give it here or as the dim {dim}" if dim else "")
        scope.problems.add("missing-dim" if dim else "missing-key", text, where)
    elif error["type"] == "literal_error":
        allowed = _literals(model, error["loc"]) or [
            w.strip(" '") for w in str(ctx.get("expected", "")).replace(" or ", ",").split(",")
        ]
        scope.problems.add(
            "unknown-word",
            f"{label}: '{value}' is not one of its words",
            where,
            allowed=allowed,
            suggestion=nearest(str(value), allowed),
        )
    else:
        code = str(error["type"]).replace("_", "-")
        scope.problems.add(
            code,
            f"{label}: {error['msg']}",
            where,
            allowed=[str(a) for a in ctx.get("allowed", [])],
            suggestion=ctx.get("suggestion"),
        )


def _literals(model: type[BaseModel], loc: Any) -> list[str]:
    field = model.model_fields.get(str(loc[0])) if loc else None
    found: list[str] = []

    def collect(annotation: Any) -> None:
        for arg in get_args(annotation):
            if isinstance(arg, str):
                found.append(arg)
            else:
                collect(arg)

    if field is not None and len(loc) <= 2:
        collect(field.annotation)
    return found
