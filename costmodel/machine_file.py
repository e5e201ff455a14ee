"""The form of a machine file, checked by pydantic; every fault is told with its place in the file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from compiler.errors import Position, Problems, nearest
from compiler.source.yaml import YList, YMap
from costmodel.units import UnitProblem, parse

Dtype = Literal["bfloat16", "float16", "float8", "int8", "float4", "float32", "tensorfloat32"]


def _quantity(dimension: str) -> Any:
    def read(value: object) -> float:
        try:
            return parse(value, dimension)
        except UnitProblem as e:
            context = {"told": e.message, "allowed": e.allowed, "suggestion": e.suggestion}
            raise PydanticCustomError(e.code, "{told}", context) from None

    return BeforeValidator(read)


FlopRate = Annotated[float, _quantity("FLOP/s")]
Bytes = Annotated[float, _quantity("B")]
ByteRate = Annotated[float, _quantity("B/s")]
Watts = Annotated[float, _quantity("W")]
Count = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Links(_Part):
    """Links of one chip to others of its pod or host; ``each`` is one way."""

    count: Count
    each: ByteRate


class TopologyFile(_Part):
    kind: Literal["torus", "switch", "full_mesh"]
    dimensions: Literal[2, 3] | None = None
    pod: list[Count] = Field(min_length=1, max_length=3)


class Alternative(_Part):
    """Figures of other sources, and why another was chosen."""

    found: dict[str, str]
    why: str


class MachineFile(_Part):
    """A machine. Every number is one chip's and has a source under the same key."""

    name: str
    aliases: list[str] = []
    kind: Literal["tpu", "gpu", "cpu"]
    description: str = ""
    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    flops: dict[Dtype, FlopRate] = Field(min_length=1)
    vector: dict[Dtype, FlopRate] = {}
    hbm: Bytes
    usable_hbm: Bytes | None = None
    hbm_bandwidth: ByteRate
    links: Links
    topology: TopologyFile
    devices_per_chip: Count = 1
    chips_per_host: Count
    dcn: ByteRate | None = Field(None, description="network between hosts, a chip's share, one way")
    power: dict[Literal["least", "mean", "most"], Watts] = {}
    sources: dict[str, str]
    alternatives: dict[str, Alternative] = {}


TEXTS = ("name", "aliases", "kind", "description", "date", "sources", "alternatives")


def check(raw: YMap, problems: Problems) -> MachineFile | None:
    """The file's machine; None when ``problems`` says why not."""
    found = None
    try:
        found = MachineFile.model_validate(raw)
    except ValidationError as e:
        for error in e.errors():
            _report(error, raw, problems)
    _sources(raw, problems)
    if found is not None:
        _agree(found, raw, problems)
    return None if problems.items else found


def numbers(raw: YMap) -> Iterator[tuple[str, Position]]:
    """Every entry that needs a source: its dotted key and its place."""
    for key, value in raw.items():
        if key in TEXTS:
            continue
        if isinstance(value, YMap):
            yield from ((f"{key}.{inner}", value.key_position[inner]) for inner in value)
        else:
            yield key, raw.key_position[key]


def _sources(raw: YMap, problems: Problems) -> None:
    """A source may stand for one number (``links.each``) or for all of a group (``links``)."""
    sources, known = raw.get("sources"), dict(numbers(raw))
    groups = {k.split(".")[0] for k in known}
    if isinstance(sources, YMap):
        for key, where in known.items():
            if key not in sources and key.split(".")[0] not in sources:
                problems.add("missing-source", f"{key} has no source", where, suggestion=f"sources: {{{key}: …}}")
    for section in ("sources", "alternatives"):
        table = raw.get(section)
        if not isinstance(table, YMap):
            continue
        for key in table:
            if key not in known and key not in groups:
                problems.add(
                    "unknown-path",
                    f"{section}: this file has no number {key}",
                    table.key_position[key],
                    allowed=known,
                    suggestion=nearest(key, (*known, *groups)),
                )


def _agree(found: MachineFile, raw: YMap, problems: Problems) -> None:
    """Numbers that contradict each other."""
    if found.usable_hbm is not None and found.usable_hbm > found.hbm:
        message = f"usable_hbm: {raw['usable_hbm']} is more than the {raw['hbm']} of hbm"
        problems.add("contradiction", message, raw.value_position["usable_hbm"])
    shape, where = found.topology, raw.value_position["topology"]
    if shape.kind == "torus" and shape.dimensions != len(shape.pod):
        problems.add(
            "contradiction",
            f"topology: a torus of {shape.dimensions} dimensions has the pod {shape.pod}",
            where,
        )
    if shape.kind == "torus" and shape.dimensions and found.links.count != 2 * shape.dimensions:
        message = f"links.count: a torus of {shape.dimensions} dimensions has {2 * shape.dimensions} links a chip"
        problems.add("contradiction", f"{message}, found {found.links.count}", raw.value_position["links"])


def _report(error: Any, raw: YMap, problems: Problems) -> None:
    """One pydantic error as a problem with a place."""
    loc = [k for k in error["loc"] if k != "[key]"]
    where = raw.position
    current: Any = raw
    parent: Any = raw
    for key in loc:
        if isinstance(current, YMap) and key in current:
            parent, where, current = current, current.value_position[key], current[key]
        elif isinstance(current, YList) and isinstance(key, int) and key < len(current):
            parent, where, current = current, current.item_position[key], current[key]
        else:
            break
    path = ".".join(str(k) for k in loc)
    context = error.get("ctx", {})
    if error["type"] == "extra_forbidden" or "[key]" in error["loc"]:
        where = parent.key_position.get(loc[-1], where) if isinstance(parent, YMap) else where
        allowed = get_args(Dtype) if loc[0] in ("flops", "vector") else _keys(loc[:-1])
        inside = f" in {'.'.join(str(k) for k in loc[:-1])}" if len(loc) > 1 else " in a machine file"
        problems.add(
            "unknown-key",
            f"no key {loc[-1]}{inside}",
            where,
            allowed=allowed,
            suggestion=nearest(str(loc[-1]), allowed),
        )
    elif error["type"] == "missing":
        problems.add("missing-key", f"{path} is missing", where, allowed=_keys(loc[:-1]))
    elif error["type"] == "literal_error":
        words = [w.strip(" '") for w in str(context["expected"]).replace(" or ", ",").split(",")]
        problems.add(
            "unknown-word",
            f"{path}: {current!r} is not one of its words",
            where,
            allowed=words,
            suggestion=nearest(str(current), words),
        )
    elif "told" in context:
        problems.add(
            error["type"],
            f"{path}: {context['told']}",
            where,
            allowed=context["allowed"],
            suggestion=context["suggestion"],
        )
    else:
        message = str(error["msg"])
        code = "out-of-range" if error["type"].startswith(("greater", "less", "too_")) else "wrong-type"
        problems.add(code, f"{path}: {message[:1].lower()}{message[1:]}, found {current!r}", where)


def _keys(loc: list[Any]) -> tuple[str, ...]:
    """Keys that may stand at a place of the file."""
    model: Any = MachineFile
    for key in loc:
        field = getattr(model, "model_fields", {}).get(key)
        model = field.annotation if field is not None else None
        if get_origin(model) in (Union, dict):
            keys = get_args(get_args(model)[0])
            return tuple(str(k) for k in keys)
    return tuple(getattr(model, "model_fields", ()))
