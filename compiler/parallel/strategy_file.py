"""The form of a strategy file, checked by pydantic; every fault is told with its place in the file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from compiler.errors import Position, Problems, nearest
from compiler.language.scope import shown
from compiler.parallel.plan import CLASSES
from compiler.source.yaml import YList, YMap

SECTIONS = ("all", *CLASSES)
NAME = r"^[A-Za-z][A-Za-z0-9_.-]*$"
MOST_RULES = 200  # of one section


def _listed(value: object) -> object:
    """One name or a list of names, as a list."""
    return [value] if isinstance(value, str) else value


def _few(value: object) -> object:
    if isinstance(value, dict) and len(value) > MOST_RULES:
        raise PydanticCustomError("too-large", "a section has at most {most} rules", {"most": MOST_RULES})
    return value


Identifier = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=60)]
Names = Annotated[list[Identifier], BeforeValidator(_listed), Field(min_length=1, max_length=8)]
Section = Annotated[dict[Identifier, Names], BeforeValidator(_few)]


class StrategyFile(BaseModel):
    """A way to divide work: which axes of which tensors go to which axis of the mesh of devices."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(pattern=NAME, max_length=60)
    about: str = Field(min_length=1, description="one sentence, with the source")
    mesh: Names = Field(description="the mesh axis (or axes) that the rules speak of")
    all: Section = Field({}, description="axis -> mesh axis (or axes), for tensors of every class")
    parameters: Section = Field({}, description="for parameters")
    optimiser: Section = Field({}, description="for the optimiser's state")
    gradients: Section = Field({}, description="for gradients")
    activations: Section = Field({}, description="for inputs and what is computed of them")
    state: Section = Field({}, description="for caches and recurrent state")


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a strategy file; names may stand alone instead of in a list of one."""
    schema = StrategyFile.model_json_schema()

    def either(part: dict[str, Any]) -> dict[str, Any]:
        return {"anyOf": [part["items"], {k: v for k, v in part.items() if k not in ("title", "description")}]}

    for key, part in schema["properties"].items():
        if key == "mesh":
            schema["properties"][key] = either(part) | {"description": part["description"]}
        elif key in SECTIONS:
            part["patternProperties"] = {k: either(v) for k, v in part["patternProperties"].items()}
            part["additionalProperties"] = False
    return schema


def check(raw: YMap, problems: Problems) -> StrategyFile | None:
    """The file's strategy; None when ``problems`` says why not."""
    before = len(problems.items)
    found = None
    try:
        found = StrategyFile.model_validate(raw)
    except ValidationError as e:
        for error in e.errors():
            _report(error, raw, problems)
    if found is not None:
        _agree(found, raw, problems)
    return found if len(problems.items) == before else None


def place(raw: YMap, section: str, axis: str) -> Position:
    """Where a rule is written."""
    table = raw[section]
    assert isinstance(table, YMap)
    return table.key_position[axis]


def _agree(found: StrategyFile, raw: YMap, problems: Problems) -> None:
    """Mesh axes that the file does not introduce, introduces twice, or introduces for nothing."""
    if len(set(found.mesh)) != len(found.mesh):
        problems.add("mesh-axis-twice", f"mesh: {' '.join(found.mesh)} names an axis twice", raw.value_position["mesh"])
    used = set()
    for section in SECTIONS:
        rules: dict[str, list[str]] = getattr(found, section)
        for axis, over in rules.items():
            used |= set(over)
            table = raw[section]
            assert isinstance(table, YMap)
            if len(set(over)) != len(over):
                where = table.value_position[axis]
                problems.add("mesh-axis-twice", f"{section}.{axis}: {' '.join(over)} names a mesh axis twice", where)
            for name in over:
                if name not in found.mesh:
                    problems.add("unknown-mesh-axis", f"{section}.{axis}: mesh does not name {name}",
                                 table.value_position[axis], allowed=found.mesh,
                                 suggestion=nearest(name, found.mesh))  # fmt: skip
    for name in found.mesh:
        if name not in used and used <= set(found.mesh):
            problems.add("unused-mesh-axis", f"mesh names {name}, and no rule does", raw.value_position["mesh"])


_FORMS = {
    "string_type": "text",
    "dict_type": "a mapping of axes to mesh axes",
    "list_type": "a name or a list of names",
}


def _report(error: Any, raw: YMap, problems: Problems) -> None:
    """One pydantic error as a problem with a place."""
    loc = [k for k in error["loc"] if k != "[key]"]
    where, parent = raw.position, raw
    current: Any = raw
    for key in loc:
        if isinstance(current, YMap) and key in current:
            parent, where, current = current, current.value_position[key], current[key]
        elif isinstance(current, YList) and isinstance(key, int) and key < len(current):
            where, current = current.item_position[key], current[key]
        else:
            break
    path, kind = ".".join(str(k) for k in loc), error["type"]
    keys = tuple(StrategyFile.model_fields)
    if kind == "extra_forbidden":
        at = parent.key_position.get(str(loc[-1]), where)
        problems.add("unknown-key", f"no key {loc[-1]} in a strategy file", at, allowed=keys,
                     suggestion=nearest(str(loc[-1]), keys))  # fmt: skip
    elif kind == "missing":
        problems.add("missing-key", f"{path} is missing", where, allowed=keys)
    elif kind == "string_pattern_mismatch":
        if "[key]" in error["loc"]:
            where = parent.key_position.get(str(loc[-1]), where)
        message = f"{path}: letters, digits and _, a letter first; found {shown(error['input'])}"
        problems.add("bad-name", message, where)
    elif kind in _FORMS:
        problems.add("wrong-type", f"{path}: expected {_FORMS[kind]}, found {shown(error['input'])}", where)
    else:
        problems.add("too-large" if kind in ("too-large", "too_long", "string_too_long") else "wrong-type",
                     f"{path}: {error['msg'][:1].lower()}{error['msg'][1:]}", where)  # fmt: skip
