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
from compiler.language.scope import FAILED, AxisArg, Fault, Scope, Slot, Told, shown
from compiler.language.scope import Word as GivenWord
from compiler.source.yaml import YList, YMap

META = ("name", "from", "frozen", "share", "dtype", "init")  # beside a kind, never among its arguments


class Dim:
    """Marks a field whose default is the dim of this name."""

    known: ClassVar[set[str]] = set()  # all names that some block kind reads without being told

    def __init__(self, name: str) -> None:
        self.name = name
        self.known.add(name)


class Args(BaseModel):
    """Arguments of a block kind or of one of its options."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)
    shorthand: ClassVar[str | None] = None  # the field that a bare value fills: `scale: 2`
    bare: ClassVar[tuple[str, ...]] = ()  # JSON types of what may stand for the whole mapping

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> Any:
        """Of options inside a kind's: those of a kind itself are in ``json_schema``."""
        made = handler(core)
        kinds = cls.bare or (("number", "string") if cls.shorthand and not hasattr(cls, "kind") else ())
        if kinds:
            handler.resolve_ref_schema(made)["type"] = ["object", *kinds]
        return made

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
                    {"found": shown(raw), "allowed": [f.alias or n for n, f in cls.model_fields.items()]},
                )
            raw = {cls.shorthand: raw}
        fields = {f.alias or name: f for name, f in cls.model_fields.items()}
        kept = {}
        kind = info.context["kind"]
        for key, value in raw.items():
            if key in fields:
                kept[key] = value
                continue
            where = raw.key_position.get(key) if isinstance(raw, YMap) else None
            hint = nearest(key, fields)
            head = key.split(":")[0]
            if ":" in key and head in fields:  # `act:relu` is one word to YAML
                info.context["meant"].add(head)
                text = f"{kind}: '{key}' is one word, as no space follows the colon"
                scope.problems.add("unknown-key", text, where, suggestion=key.replace(":", ": ", 1))
                continue
            if key in META and hint != key:
                scope.problems.add("misplaced-key", f"{key} belongs beside {kind}:, not among its options", where,
                                   suggestion=f"write {key} in the same column as {kind}")  # fmt: skip
            else:
                path = _path(info.context.get("raw"), raw, kind)
                scope.problems.add("unknown-key", f"{path} has no option {key}", where, allowed=fields, suggestion=hint)
            if hint:
                info.context["meant"].add(hint)  # so it is not told to be missing as well
        for key, f in fields.items():
            dim = next((m for m in f.metadata if isinstance(m, Dim)), None)
            if dim is not None and kept.get(key) is None and dim.name in scope.dims:
                kept[key] = dim.name
        return kept


def _path(root: Any, inner: Any, path: str) -> str:
    """The dotted name of a mapping inside a kind's options: attention.position.rope."""
    if isinstance(root, dict) and root is not inner:
        for key, value in root.items():
            if isinstance(value, dict) and (found := _path(value, inner, f"{path}.{key}")):
                return found
        return ""
    return path


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
                {
                    "text": e.message.replace(f"{info.field_name} must", "must", 1),
                    "allowed": list(e.allowed),
                    "suggestion": e.suggestion,
                    "offset": e.offset,
                    "position": e.position,
                },
            ) from None

    return Annotated[Any, PlainValidator(run), WithJsonSchema(schema)]


def _per_layer(scope: Scope, raw: Any, what: str) -> Any:
    value = scope.number(raw)
    return tuple(float(v) for v in value) if isinstance(value, np.ndarray) else float(value)


def _flag(scope: Scope, raw: Any, what: str) -> bool:
    value = scope.value(raw)
    if not isinstance(value, bool):
        words = {"yes": "true", "on": "true", "no": "false", "off": "false"}
        hint = words.get(str(value).lower()) or nearest(str(raw).lower(), ("true", "false"))
        raise Fault("wrong-type", f"must be true or false, found {shown(raw)}", ("true", "false"), hint)
    return value


def _within(scope: Scope, raw: Any, what: str, low: float | None, high: float | None) -> float:
    """A number above 0 (``low`` None: from 0 on), and at most ``high``."""
    value = float(scope.static(raw, what))
    if value < 0 or (value == 0 and low is not None):
        bound = "> 0" if low is not None else ">= 0"
        raise Fault("out-of-range", f"must be {bound}, found {value:g}", (bound,))
    if high is not None and value > high:
        raise Fault("out-of-range", f"must be at most {high:g}, found {value:g}", (f"<= {high:g}",))
    return value


def _optional(check: Callable[[Scope, Any, str], Any]) -> Callable[[Scope, Any, str], Any]:
    return lambda scope, raw, what: None if scope.value(raw) is None else check(scope, raw, what)


def _positive(scope: Scope, raw: Any, what: str) -> float:
    return _within(scope, raw, what, 0, None)


def _axis(scope: Scope, raw: Any, what: str) -> AxisArg:
    return scope.axis(raw, what, "hidden")


def _channels(scope: Scope, raw: Any, what: str) -> AxisArg:
    return scope.axis(raw, what, "")


def _counts(least: int) -> Callable[[Scope, Any, str], tuple[int, ...]]:
    def check(scope: Scope, raw: Any, what: str) -> tuple[int, ...]:
        if isinstance(raw, (list, tuple)) and not raw:
            raise Fault("wrong-type", "takes a number, or a list with one for each axis, found an empty one")
        return tuple(scope.count(n, what, least) for n in (raw if isinstance(raw, (list, tuple)) else [raw]))

    return check


def _padding(scope: Scope, raw: Any, what: str) -> str | tuple[int, ...]:
    value = raw if isinstance(raw, (list, tuple)) else scope.value(raw)
    if isinstance(value, str):
        words = ("same", "valid")
        if value not in words:
            raise Fault("unknown-word", f"{shown(value)} is not one of its words", words, nearest(value, words))
        return value
    return _counts(0)(scope, raw, what)


def _axes(scope: Scope, raw: Any, what: str) -> tuple[str, ...]:
    names = list(raw) if isinstance(raw, (list, tuple)) else [raw]
    for name in names:
        if not isinstance(name, str) or not name.isidentifier():
            raise Fault("wrong-type", f"takes an axis name or a list of them, found {shown(name)}")
    if not names or len(set(names)) < len(names):
        raise Fault("wrong-type", f"takes distinct axis names, found [{', '.join(names)}]")
    return tuple(names)


_EXPRESSION = {"anyOf": [{"type": "number"}, {"type": "string", "description": "an expression over dims and args"}]}
_OR_NULL = {"anyOf": [*_EXPRESSION["anyOf"], {"type": "null"}]}
Number = _field(lambda s, raw, what: float(s.static(raw, what)), _EXPRESSION)
OptionalNumber = _field(_optional(lambda s, raw, what: float(s.static(raw, what))), _OR_NULL)
Positive = _field(_positive, _EXPRESSION)
OptionalPositive = _field(_optional(_positive), _OR_NULL)
Epsilon = _field(lambda s, raw, what: _within(s, raw, what, None, 1), _EXPRESSION)
Fraction = _field(lambda s, raw, what: _within(s, raw, what, 0, 1), _EXPRESSION)
Share = _field(lambda s, raw, what: _within(s, raw, what, None, 1), _EXPRESSION)  # from 0 to 1
PerLayer = _field(_per_layer, _EXPRESSION)  # a float, or a tuple of one float a layer of the repeat
Count = _field(lambda s, raw, what: s.count(raw, what), _EXPRESSION)
Index = _field(lambda s, raw, what: s.count(raw, what, least=0), _EXPRESSION)  # a whole number from 0 on
OptionalCount = _field(_optional(lambda s, raw, what: s.count(raw, what)), _OR_NULL)
Flag = _field(_flag, {"anyOf": [{"type": "boolean"}, {"type": "string", "description": "an argument's name"}]})
Axis = _field(_axis, _EXPRESSION)
Channels = _field(_channels, _EXPRESSION)  # an Axis whose name is "" unless a dim names it
_LISTED = {"anyOf": [*_EXPRESSION["anyOf"], {"type": "array", "items": _EXPRESSION, "minItems": 1}]}
Counts = _field(_counts(1), _LISTED)  # a tuple: one number for all axes, or one for each
OptionalCounts = _field(_optional(_counts(1)), {"anyOf": [*_LISTED["anyOf"], {"type": "null"}]})
Padding = _field(_padding, _LISTED)  # "same", "valid", or numbers as Counts, from 0 on
_NAME = {"type": "string"}
Axes = _field(_axes, {"anyOf": [_NAME, {"type": "array", "items": _NAME, "minItems": 1}]})


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
        args = info.context["scope"].args
        if raw in args:
            if args[raw] is FAILED:
                raise Told
            return args[raw] if args[raw] is None or isinstance(args[raw], (str, bool)) else raw
    return raw


Word = BeforeValidator(_word)


def validate(
    model: type[Args], raw: Any, scope: Scope, kind: str, position: Position | None, text: Position | None = None
) -> Args | None:
    """An ``Args`` value from YAML, or None with the problems told; an option that does not exist is told and left
    out. ``text`` is where a bare value's characters begin. Lets Unroll and Told through."""
    meant: set[str] = set()
    context = {"scope": scope, "kind": kind, "position": position, "raw": raw, "meant": meant}
    try:
        return model.model_validate(raw, context=context)
    except ValidationError as e:
        for error in e.errors():
            if not (error["type"] == "missing" and error["loc"][-1] in meant):
                report(error, raw, scope, kind, position, model, text)
        return None


def report(
    error: Any,
    raw: Any,
    scope: Scope,
    kind: str,
    position: Position | None,
    model: type[BaseModel],
    text: Position | None = None,
) -> None:
    """Turns one pydantic error into a problem with its place in the YAML."""
    ctx = error.get("ctx") or {}
    where, value, offset = position, raw, int(ctx.get("offset") or 0)
    if isinstance(raw, str) and text is not None:
        where = Position(text.file, text.line, text.column + offset)
    path: list[str] = []
    for key in [*error["loc"], *([ctx["key"]] if ctx.get("key") else [])]:
        if isinstance(value, YMap) and key in value:
            inner = value[key]
            where, value = value.within(key, offset) if isinstance(inner, str) else value.value_position[key], inner
            path.append(str(key))
        elif isinstance(value, YList) and isinstance(key, int) and key < len(value):
            where, value = value.item_position[key], value[key]
            path.append(str(key))
        elif isinstance(key, str) and key in model.model_fields and not ctx.get("key"):
            path.append(key)
    where = ctx.get("position") or where
    name = ".".join(path)
    label = f"{kind}.{name}" if name and not ctx.get("key") else kind
    if error["type"] == "missing":
        field = model.model_fields.get(str(error["loc"][-1]))
        dim = next((m.name for m in (field.metadata if field else []) if isinstance(m, Dim)), None)
        message = f"{label} is missing" + (f": give it here or as the dim {dim}" if dim else "")
        near = nearest(dim, [d for d in scope.dims if d not in scope.read]) if dim else None
        mend = f"rename the dim {near} to {dim}" if near else None
        scope.problems.add("missing-dim" if dim else "missing-key", message, where, suggestion=mend)
    elif error["type"] == "literal_error":
        found = error["input"]
        if isinstance(found, GivenWord):
            where = found.position or where
        allowed = _literals(model, error["loc"]) or [
            w.strip(" '") for w in str(ctx.get("expected", "")).replace(" or ", ",").split(",")
        ]
        message = f"{label}: {shown(found)} is not one of its words"
        scope.problems.add("unknown-word", message, where, allowed=allowed, suggestion=nearest(str(found), allowed))
    elif error["type"] == "string_type":
        scope.problems.add("wrong-type", f"{label}: expected a word, found {shown(error['input'])}", where)
    else:
        code = str(error["type"]).replace("_", "-")
        allowed = [str(a) for a in ctx.get("allowed", [])]
        scope.problems.add(code, f"{label}: {error['msg']}", where, allowed=allowed, suggestion=ctx.get("suggestion"))


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
