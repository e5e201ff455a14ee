"""The files under specs/imports: one for each model type, and one of what types share (specs/imports/README.md)."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from blockgraph.importing.kinds import Kind, kind_of
from compiler.errors import Problems
from compiler.source.yaml import load_file

KEYED = ("fields", "also", "nested", "values", "parts")  # merged key by key, the type's own last
KEYS = {
    *KEYED,
    "title",
    "paper",
    "classes",
    "uses",
    "ignored",
    "checks",
    "spec",
    "prefix",
    "note",
    "extends",
    "without",
}


@dataclass(frozen=True)
class ModelType:
    """``fields``: what changes the maths, by name; ``also``: other spellings of a field; ``nested``: fields that are
    mappings, with what their own fields are called here; ``ignored``: fields that change nothing, with the reason;
    ``values``: what is computed of the fields; ``checks``: expressions that must be 0; ``text``: the spec's template;
    ``parts``: texts that it uses; ``prefix``: of the tensors' names, which a file saved without the head lacks."""

    name: str
    title: str
    paper: str
    classes: tuple[str, ...]
    fields: Mapping[str, Kind]
    also: Mapping[str, str]
    nested: Mapping[str, Mapping[str, str]]
    ignored: Mapping[str, str]
    values: Mapping[str, Any]
    checks: tuple[Mapping[str, Any], ...]
    text: str
    parts: Mapping[str, str]
    prefix: str = ""
    note: str = ""  # what is not covered, for the page of types

    @property
    def known(self) -> list[str]:
        """What may stand in a config's top level."""
        return [*(n for n, k in self.fields.items() if not k.inner), *self.also, *self.nested, *self.ignored]


def folder() -> Path:
    return Path(str(importlib.resources.files("specs"))) / "imports"


@cache
def names() -> tuple[str, ...]:
    """The model types that are covered."""
    return tuple(sorted(p.stem for p in (folder() / "types").glob("*.yaml")))


@cache
def common() -> Mapping[str, Any]:
    """What types share: `groups`, `tables`, `refused`, by name."""
    return _read(folder() / "common.yaml")


def refused() -> dict[str, str]:
    """Model types that are known and not covered, with the reason."""
    return {name: str(why) for name, why in common()["refused"].items()}


@cache
def model_type(name: str) -> ModelType:
    """The data of a type that ``names`` lists."""
    data = _merged(_read(folder() / "types" / f"{name}.yaml"))

    ignored = {n: reason for reason, listed in data["ignored"].items() for n in listed}
    fields = {n: kind_of(line, _table) for n, line in data["fields"].items() if n not in data.get("without", ())}
    return ModelType(
        name, data["title"], data["paper"], tuple(data["classes"]), fields, data["also"],
        {n: _table(of) for n, of in data["nested"].items()}, {n: r for n, r in ignored.items() if n not in fields},
        data["values"], tuple(data["checks"]), data["spec"], data["parts"], data.get("prefix", ""),
        data.get("note", ""),
    )  # fmt: skip


def shared_fields(group: str) -> dict[str, Kind]:
    """The fields of a group, as types that use it have them unless they say otherwise."""
    return {n: kind_of(line, _table) for n, line in common()["groups"][group]["fields"].items()}


def _table(of: Any) -> Mapping[str, Any]:
    """A table of words: one of common.yaml by its name, or given as a mapping."""
    found: Mapping[str, Any] = common()["tables"][of] if isinstance(of, str) else of
    return found


def _read(path: Path) -> Mapping[str, Any]:
    problems = Problems()
    found = load_file(path, problems)
    problems.raise_if_any()
    assert found is not None
    return found


def _merged(data: Mapping[str, Any]) -> dict[str, Any]:
    """A type's file with the groups that it uses, or the type that it extends, below its own lines."""
    assert not (unknown := set(data) - KEYS), unknown
    below = [common()["groups"][name] for name in ("all", *data.get("uses", ()))]
    if "extends" in data:
        below = [_merged(_read(folder() / "types" / f"{data['extends']}.yaml")), *below[1:]]
    found: dict[str, Any] = {k: {} for k in (*KEYED, "ignored")} | {"checks": []}
    for one in (*below, data):
        for key, value in one.items():
            if key in KEYED:
                found[key] = {**found[key], **value}
            elif key == "ignored":
                found[key] = {r: [*found[key].get(r, ()), *value.get(r, ())] for r in {**found[key], **value}}
            elif key == "checks":
                found[key] = [*found[key], *value]
            else:
                found[key] = value
    return found
