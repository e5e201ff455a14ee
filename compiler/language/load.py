"""From a name or a path to a checked spec: finding, `extends`, overrides, pydantic."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from compiler.errors import Position, Problem, Problems, SpecError, nearest
from compiler.language.spec import BlockSpec, Dtypes, InputSpec, Spec, WeightsSpec
from compiler.source.yaml import YList, YMap, load_file, load_text

MERGED = ("dims", "args", "sources", "assumed", "dtypes", "weights")
REPLACED = ("name", "paper", "extends")
MAX_EXTENDS = 8


@dataclass(frozen=True)
class Document:
    """A spec with the YAML it came from (positions included) and the files it was read from."""

    spec: Spec
    raw: YMap
    files: tuple[Path, ...]
    overrides: Mapping[str, Any] = field(default_factory=dict)


def models_folder() -> Path:
    """The folder of shipped specs."""
    return Path(str(importlib.resources.files("specs"))) / "models"


def shipped() -> dict[str, Path]:
    """Shipped specs by name."""
    return {p.stem: p for p in sorted(models_folder().glob("**/*.yaml"))}


def find(name: str, beside: Path | None = None) -> Path:
    """The file of a spec: a path, a sibling of ``beside``, or a shipped name. Raises SpecError."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or "/" in name:
        return path if beside is None or path.is_absolute() else beside.parent / path
    if beside is not None and (beside.parent / f"{name}.yaml").is_file():
        return beside.parent / f"{name}.yaml"
    known = shipped()
    if name in known:
        return known[name]
    raise SpecError(Problem("unknown-spec", f"no spec is called {name}", None, tuple(known), nearest(name, known)))


def load(name: str | Path, overrides: Mapping[str, Any] | None = None) -> Document:
    """Reads, merges and checks the top of a spec. Raises SpecError with all problems found."""
    problems = Problems()
    files: list[Path] = []
    raw = _read(find(str(name)), files, problems)
    problems.raise_if_any()
    assert raw is not None
    return check(raw, tuple(files), overrides)


def loads(text: str, file: str = "<spec>", overrides: Mapping[str, Any] | None = None) -> Document:
    """The same from a text."""
    problems = Problems()
    raw = load_text(text, file, problems)
    problems.raise_if_any()
    assert raw is not None
    files: list[Path] = []
    if isinstance(raw.get("extends"), str):
        raw = _extend(raw, None, files, problems)
        problems.raise_if_any()
    assert raw is not None
    return check(raw, tuple(files), overrides)


def _read(path: Path, files: list[Path], problems: Problems) -> YMap | None:
    raw = load_file(path, problems)
    files.append(path)
    if raw is None or "extends" not in raw:
        return raw
    return _extend(raw, path, files, problems)


def _extend(raw: YMap, path: Path | None, files: list[Path], problems: Problems) -> YMap | None:
    where = raw.value_position["extends"]
    if not isinstance(raw["extends"], str):
        problems.add("wrong-type", "extends takes the name of one spec", where)
        return None
    if len(files) > MAX_EXTENDS:
        problems.add(
            "extends-cycle",
            "specs extend each other without end: " + " -> ".join(f.stem for f in files),
            where,
        )
        return None
    try:
        above = find(raw["extends"], path)
    except SpecError as e:
        p = e.problems[0]
        problems.add(p.code, p.message, where, allowed=p.allowed, suggestion=p.suggestion)
        return None
    if above in files:
        problems.add(
            "extends-cycle",
            "specs extend each other: " + " -> ".join([*(f.stem for f in files), above.stem]),
            where,
        )
        return None
    base = _read(above, files, problems)
    if base is None:
        return None
    for key in raw:
        if key not in (*MERGED, *REPLACED):
            known = key in Spec.model_fields
            problems.add(
                "extends-changes-graph" if known else "unknown-key",
                f"a spec that extends another changes dims, args and metadata only, not {key}"
                if known
                else f"no key {key} at the top of a spec",
                raw.key_position[key],
                allowed=(*REPLACED, *MERGED),
                suggestion=nearest(key, (*REPLACED, *MERGED)),
            )
            continue
        value = raw[key]
        if key in MERGED and isinstance(value, YMap) and isinstance(base.get(key), YMap):
            inner = base[key]
            assert isinstance(inner, YMap)
            for name, v in value.items():
                if key in ("dims", "args") and name not in inner:
                    problems.add(
                        "unknown-key",
                        f"{above.stem} has no {key[:-1]} {name}",
                        value.key_position[name],
                        allowed=inner,
                        suggestion=nearest(name, inner),
                    )
                inner[name] = v
                inner.key_position[name], inner.value_position[name] = (
                    value.key_position[name],
                    value.value_position[name],
                )
        elif key != "extends":
            base[key] = value
            base.key_position[key], base.value_position[key] = raw.key_position[key], raw.value_position[key]
    return base


def check(raw: YMap, files: tuple[Path, ...] = (), overrides: Mapping[str, Any] | None = None) -> Document:
    """Checks the top of a spec against the pydantic models; places every problem."""
    problems = Problems()
    _override(raw, overrides or {}, problems)
    spec = None
    try:
        spec = Spec.model_validate(raw)
    except ValidationError as e:
        for error in e.errors():
            _report(error, raw, problems)
    problems.raise_if_any()
    assert spec is not None
    return Document(spec, raw, files, dict(overrides or {}))


def _override(raw: YMap, overrides: Mapping[str, Any], problems: Problems) -> None:
    """Sets dims and args from the command line: `vocab`, `dims.vocab`, `args.layers`; `dtype` sets both dtypes."""
    place = Position("--set", 1, 1)
    for name, value in overrides.items():
        if name == "dtype":
            made = YMap(place)
            for key in ("params", "compute"):
                made[key], made.key_position[key], made.value_position[key] = value, place, place
            raw["dtypes"] = made
            raw.key_position["dtypes"] = raw.value_position["dtypes"] = place
            continue
        section, _, key = name.rpartition(".")
        tables = {s: raw[s] for s in ("dims", "args") if isinstance(raw.get(s), YMap)}
        hits = [s for s, t in tables.items() if key in t and section in ("", s)]
        if not hits:
            known = [f"{s}.{k}" for s, t in tables.items() for k in t]
            problems.add(
                "unknown-name",
                f"no dim or arg is called {name}",
                place,
                allowed=known,
                suggestion=nearest(name, [*known, *(k.split(".")[1] for k in known)]),
            )
            continue
        table = tables[hits[0]]
        table[key] = value
        table.value_position[key] = place


MODELS: dict[str, type[BaseModel]] = {
    "dtypes": Dtypes,
    "inputs": InputSpec,
    "blocks": BlockSpec,
    "weights": WeightsSpec,
}


def _report(error: Any, raw: YMap, problems: Problems) -> None:
    loc, where, value = list(error["loc"]), raw.position, raw
    current: Any = raw
    for key in loc:
        if isinstance(current, YMap) and key in current:
            where, current = current.value_position[key], current[key]
        elif isinstance(current, YList) and isinstance(key, int) and key < len(current):
            where, current = current.item_position[key], current[key]
        else:
            break
    path = ".".join(str(k) for k in loc)
    model = MODELS.get(str(loc[0]), Spec) if len(loc) > 1 else Spec
    allowed = list(model.model_fields)
    if error["type"] == "extra_forbidden":
        parent: Any = raw
        for key in loc[:-1]:
            parent = parent[key]
        at = parent.key_position.get(loc[-1], where) if isinstance(parent, YMap) else where
        inside = f" in {'.'.join(str(k) for k in loc[:-1])}" if len(loc) > 1 else " at the top of a spec"
        problems.add(
            "unknown-key",
            f"no key {loc[-1]}{inside}",
            at,
            allowed=allowed,
            suggestion=nearest(str(loc[-1]), allowed),
        )
    elif error["type"] == "missing":
        problems.add("missing-key", f"{path} is missing", where, allowed=allowed)
    elif error["type"] == "literal_error":
        words = [w.strip(" '") for w in str(error["ctx"]["expected"]).replace(" or ", ",").split(",")]
        problems.add(
            "unknown-word",
            f"{path}: {current!r} is not one of its words",
            where,
            allowed=words,
            suggestion=nearest(str(current), words),
        )
    else:
        code = str(error["type"]).replace("_", "-") if "-" in str(error["type"]) else "wrong-type"
        text = f"{path}: {error['msg'][:1].lower()}{error['msg'][1:]}"
        problems.add(code, text if value is not None else text, where)
