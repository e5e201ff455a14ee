"""From a name or a path to a checked spec: finding, `extends`, overrides, pydantic."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from compiler.errors import Position, Problem, Problems, SpecError, nearest
from compiler.language import table
from compiler.language.scope import shown
from compiler.language.spec import BlockSpec, Dtypes, InputSpec, Spec, WeightsSpec
from compiler.source.yaml import YList, YMap, load_file, load_text

MERGED = ("dims", "args", "sources", "assumed", "dtypes", "weights")
REPLACED = ("name", "paper", "stand_in", "extends")
MAX_EXTENDS = 8
OVERRIDE = "--set "  # in front of the name of what replaces a dim or an arg: where its problems lie
DTYPES = {"dtype": ("params", "compute"), "weights": ("weights",)}  # words of --set


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
    if len(name) > 200:
        raise SpecError(Problem("unknown-spec", f"no spec is called {shown(name)}"))
    if path.suffix in (".yaml", ".yml") or "/" in name:
        return path if beside is None or path.is_absolute() else beside.parent / path
    if beside is not None and (beside.parent / f"{name}.yaml").is_file():
        return beside.parent / f"{name}.yaml"
    known = shipped()
    if name in known:
        return known[name]
    raise SpecError(Problem("unknown-spec", f"no spec is called {name}", None, tuple(known), nearest(name, known)))


def load(name: str | Path, overrides: Mapping[str, Any] | None = None) -> Document:
    """Reads, merges and checks the top of a spec; `spec@row` with the sizes of a row of its table. Raises SpecError
    with all problems found."""
    problems = Problems()
    files: list[Path] = []
    base, size = table.apart(str(name))
    path = find(base)
    row = table.row(path, size) if size is not None else {}
    raw = _read(path, files, problems)
    problems.raise_if_any()
    assert raw is not None
    if size is not None:
        raw.set("name", f"{raw['name']}-{size}", Position(str(path.with_suffix(".csv")), 0, 0))
    return check(raw, tuple(files), {**row, **(overrides or {})})


def loads(text: str, file: str = "<spec>", overrides: Mapping[str, Any] | None = None) -> Document:
    """The same from a text."""
    problems = Problems()
    raw = load_text(text, file, problems)
    problems.raise_if_any()
    assert raw is not None
    files: list[Path] = []
    if "extends" in raw:
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
    where, name = raw.value_position["extends"], raw["extends"]
    if not isinstance(name, str):
        problems.add("wrong-type", f"extends takes the name of one spec, found {shown(name)}", where)
        return None
    try:
        above = find(name, path)
    except SpecError as e:
        p = e.problems[0]
        problems.add(p.code, p.message, where, allowed=p.allowed, suggestion=p.suggestion)
        return None
    if above.resolve() in [f.resolve() for f in files] or len(files) > MAX_EXTENDS:
        loop = " -> ".join([*(f.stem for f in files), above.stem])
        problems.add("extends-cycle", f"specs extend each other without end: {loop}", where)
        return None
    if not above.exists():
        problems.add("file-missing", f"there is no file {above} to extend", where)
        return None
    base = _read(above, files, problems)
    if base is None:
        return None
    for key in raw:
        if key in (*MERGED, *REPLACED):
            _merge(key, raw, base, above.stem, problems)
            continue
        known, allowed = key in Spec.model_fields, (*REPLACED, *MERGED)
        message = f"no key {key} at the top of a spec"
        if known:
            message = f"a spec that extends another changes dims, args and metadata only, not {key}"
        problems.add("extends-changes-graph" if known else "unknown-key", message, raw.key_position[key],
                     allowed=allowed, suggestion=None if known else nearest(key, allowed))  # fmt: skip
    return base


def _merge(key: str, raw: YMap, base: YMap, above: str, problems: Problems) -> None:
    """One top key of a spec over the one it extends."""
    value, inner = raw[key], base.get(key)
    if key not in MERGED or not isinstance(value, YMap) or not isinstance(inner, YMap):
        if key != "extends":
            base.adopt(key, raw)
        return
    for name in value:
        if key in ("dims", "args") and name not in inner:
            problems.add("unknown-key", f"{above} has no {key[:-1]} {name}", value.key_position[name],
                         allowed=inner, suggestion=nearest(name, inner))  # fmt: skip
        inner.adopt(name, value)


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
    """Sets dims and args from the command line: `vocab`, `dims.vocab`, `args.layers`; `dtype` sets both dtypes,
    `weights` how matrices are held."""
    for name, value in overrides.items():
        place = Position(f"{OVERRIDE}{name}", 0, 0)
        if name in DTYPES:
            made = YMap(place)
            for key in DTYPES[name]:
                made.set(key, value, place)
            if isinstance(raw.get("dtypes"), YMap):
                for key in raw["dtypes"]:  # type: ignore[attr-defined]
                    if key not in made:
                        made.adopt(key, raw["dtypes"])  # type: ignore[arg-type]
            raw.set("dtypes", made, place)
            continue
        section, _, key = name.rpartition(".")
        tables = {s: t for s in ("dims", "args") if isinstance(t := raw.get(s), YMap)}
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
        at = table.key_position[key]
        table.set(key, value, place)
        table.key_position[key] = at


MODELS: dict[str, type[BaseModel]] = {
    "dtypes": Dtypes,
    "inputs": InputSpec,
    "blocks": BlockSpec,
    "weights": WeightsSpec,
}


_FORMS = {
    "dict_type": "a mapping", "model_type": "a mapping", "model_attributes_type": "a mapping", "list_type": "a list",
    "string_type": "text", "bool_type": "true or false", "bool_parsing": "true or false", "int_type": "a whole number",
    "int_parsing": "a whole number", "int_from_float": "a whole number", "greater_than_equal": "a number from 1 on",
}  # fmt: skip


def _report(error: Any, raw: YMap, problems: Problems) -> None:
    """Turns one pydantic error about the top of a spec into a problem with its place."""
    ctx = error.get("ctx") or {}
    loc = [*error["loc"], *([ctx["key"]] if "key" in ctx else [])]
    where, parent = raw.position, raw
    current: Any = raw
    for i, key in enumerate(loc):
        if isinstance(current, YMap) and key in current:
            last = i == len(loc) - 1 and ctx.get("at_key")
            where, parent = (current.key_position if last else current.value_position)[key], current
            current = current[key]
        elif isinstance(current, YList) and isinstance(key, int) and key < len(current):
            where, current = current.item_position[key], current[key]
        else:
            break
    path = ".".join(str(k) for k in loc)
    model = MODELS.get(str(loc[0]), Spec) if len(loc) > 1 else Spec
    allowed = list(model.model_fields)
    kind = error["type"]
    if kind == "extra_forbidden":
        inside = f"in {'.'.join(str(k) for k in loc[:-1])}" if len(loc) > 1 else "at the top of a spec"
        at = parent.key_position.get(str(loc[-1]), where)
        problems.add("unknown-key", f"no key {loc[-1]} {inside}", at, allowed=allowed,
                     suggestion=nearest(str(loc[-1]), allowed))  # fmt: skip
    elif kind == "missing":
        owner = current if isinstance(current, YMap) else {}
        if not any(k not in allowed and nearest(k, allowed) == loc[-1] for k in owner):  # told as an unknown key
            problems.add("missing-key", f"{path} is missing", where, allowed=allowed)
    elif kind == "literal_error":
        words = [w.strip(" '") for w in str(ctx["expected"]).replace(" or ", ",").split(",")]
        problems.add("unknown-word", f"{path}: {shown(current)} is not one of its words", where, allowed=words,
                     suggestion=nearest(str(current), words))  # fmt: skip
    elif kind in _FORMS:
        problems.add("wrong-type", f"{path}: expected {_FORMS[kind]}, found {shown(error['input'])}", where)
    else:
        problems.add(str(kind).replace("_", "-"), f"{path}: {error['msg'][:1].lower()}{error['msg'][1:]}", where,
                     allowed=[str(a) for a in ctx.get("allowed", ())])  # fmt: skip
