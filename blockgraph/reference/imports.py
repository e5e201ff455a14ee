"""The page of the model types that `blockgraph import` covers, from their files under specs/imports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from blockgraph.importing import types
from blockgraph.importing.kinds import REQUIRED, Kind, Only, shown
from blockgraph.importing.types import ModelType, shared_fields
from blockgraph.reference.text import HEAD, table

GROUPS = {"all": "Fields of all types", "decoder": "Fields of decoders", "rope": "Rotary positions"}
HOW = """# Model types that import covers

What `blockgraph import` reads of a config.json, by its `model_type`, and with which default. A field that is neither
here nor under *without effect* is refused. How it works and how a type is added: [import.md](../import.md).

"""


def imports_page() -> str:
    """docs/reference/imports.md."""
    found = [types.model_type(n) for n in types.names()]
    text = HEAD.replace("the docstrings", "the files under specs/imports") + HOW
    rows = [(f"[`{t.name}`](#{t.name})", t.title, t.paper, ", ".join(t.classes), t.note) for t in found]
    text += table(("model type", "is", "paper", "classes", "not"), rows)
    text += "Known and not covered: " + "; ".join(f"`{n}` ({why})" for n, why in types.refused().items()) + ".\n\n"
    for group, head in GROUPS.items():
        example = next(t for t in found if shared_fields(group).items() <= t.fields.items())
        text += f"## {head}\n\n" + _fields(example, shared_fields(group))
    return text + "".join(_section(t) for t in found) + _ignored(found)


def _section(kind: ModelType) -> str:
    shared = {g: shared_fields(g) for g in GROUPS}
    used = [f"[{GROUPS[g].lower()}](#{GROUPS[g].lower().replace(' ', '-')})" for g in GROUPS
            if set(shared[g]) & set(kind.fields)]  # fmt: skip
    own = {n: k for n, k in kind.fields.items() if not any(of.get(n) == k for of in shared.values())}
    return f"## {kind.name}\n\n{kind.title}. Besides {', '.join(used)}:\n\n" + _fields(kind, own)


def _fields(kind: ModelType, fields: Mapping[str, Kind]) -> str:
    rows = [(_names(kind, n), k.says, _default(k), _note(k)) for n, k in fields.items()]
    return table(("field", "allowed", "default", ""), rows)


def _names(kind: ModelType, name: str) -> str:
    """Every way to spell a field."""
    own = [] if kind.fields[name].inner else [name]
    own += [n for n, ours in kind.also.items() if ours == name]
    own += [f"{n}.{inner}" for n, of in kind.nested.items() for inner, ours in of.items() if ours == name]
    return ", ".join(f"`{n}`" for n in dict.fromkeys(own))


def _default(kind: Kind) -> str:
    if kind.default == REQUIRED:
        return "required"
    return (
        "" if isinstance(kind, Only) else f"`{kind.default}`" if isinstance(kind.default, str) else shown(kind.default)
    )


def _note(kind: Kind) -> str:
    why = getattr(kind, "why", "")
    return " ".join(
        x for x in (f"only with {kind.when}" if kind.when else "", why if isinstance(why, str) else "") if x
    )


def _ignored(found: list[ModelType]) -> str:
    """Fields without effect: of all types together, then what single ones have besides."""
    common = set.intersection(*(set(t.ignored.items()) for t in found))
    text = "## Without effect\n\n" + table(("reason", "fields"), _by_reason(common))
    rows = [(f"`{t.name}`", *row) for t in found for row in _by_reason(set(t.ignored.items()) - common)]
    return text + "Of single types:\n\n" + table(("model type", "reason", "fields"), rows)


def _by_reason(fields: set[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    reasons: dict[str, list[str]] = {}
    for name, reason in sorted(fields):
        reasons.setdefault(reason, []).append(f"`{name}`")
    yield from ((reason, ", ".join(names)) for reason, names in sorted(reasons.items()))
