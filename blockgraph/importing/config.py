"""A Hugging Face config.json becomes a spec: read, filled into its type's template, checked like any other spec."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockgraph.importing.json_file import load_json
from blockgraph.importing.kinds import shown
from blockgraph.importing.reading import Reading, read
from blockgraph.importing.template import Missing, fill
from compiler.errors import BlockgraphError, Problem, SpecError, WeightsError
from compiler.language.model import Model, loads
from compiler.source.expr import ExprError

if TYPE_CHECKING:
    from runtime.weights.source import Source

CONFIG = "config.json"
LONGEST = 60
SAMPLED = 16  # rows of two matrices that are compared
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # as safetensors calls them


@dataclass(frozen=True)
class Imported:
    """``text``: the spec; ``fields``: what was read of the config, by its own names; ``ignored``: what has no effect on
    the numbers, with the reason; ``dropped``: what was left out because it was asked for; ``weights``: the checkpoint
    whose names and shapes were held against the spec, if there is one."""

    text: str
    model: Model
    source: Path
    fields: dict[str, Any]
    ignored: dict[str, str]
    dropped: dict[str, Any]
    weights: Path | None

    @property
    def model_type(self) -> str:
        return str(self.fields["model_type"])

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.model.name,
            "model_type": self.model_type,
            "source": str(self.source),
            "parameters": self.model.parameter_count(),
            "dims": dict(self.model.dims),
            "read": self.fields,
            "without_effect": self.ignored,
            "left_out": self.dropped,
            "weights": str(self.weights) if self.weights else None,
            "spec": self.text,
        }


def import_config(
    path: str | Path,
    drop: Sequence[str] = (),
    name: str | None = None,
    weights: str | Path | None = None,
) -> Imported:
    """The spec of a config.json, or of the folder that has one. ``drop``: fields of the config that are left out;
    ``name``: the spec's; ``weights``: safetensors whose names and shapes are held against it, by default those in the
    folder. Raises BlockgraphError with every field that is not known and every value that cannot be said."""
    given = Path(path).expanduser()
    source = given / CONFIG if given.is_dir() else given
    raw = load_json(source)
    checkpoint = Path(weights).expanduser() if weights is not None else _beside(given)
    stored = _stored(checkpoint) if checkpoint is not None else None
    made = read(raw, drop, _dtype(stored or {}))
    values = made.values
    values["title"], values["paper"], values["model_type"] = made.type.title, made.type.paper, made.type.name
    values["name"] = spec_name(name or source.resolve().parent.name)
    values["source"] = f"{spec_name(source.name)} of {values['name']}"
    values["prefix"] = made.type.prefix if stored is None or _prefixed(stored, made.type.prefix) else ""
    text = _filled(made)
    model = _checked(text, source)
    if checkpoint is not None:
        _fits(model, checkpoint)
    fields = {"model_type": made.type.name, **{one.name: _plain(one.value) for one in made.given.values()}}
    dropped = {n: _plain(v) for n, v in made.dropped.items()}
    return Imported(text, model, source, fields, made.ignored, dropped, checkpoint)


def spec_name(text: str) -> str:
    """A name that a spec may have, from a folder's or a user's: nothing but letters, digits and `. _ + -`."""
    name = re.sub(r"[^A-Za-z0-9._+]+", "-", text).strip("-.+_")[:LONGEST]
    return name if name[:1].isalpha() else f"model-{name}".strip("-")


def _filled(made: Reading) -> str:
    try:
        return fill(made.type.text, made.values, made.type.parts)
    except Missing as lack:
        name = str(lack)
        message = f"the config has no {made.spelled(name)}, which its other fields ask for"
        raise BlockgraphError(Problem("missing-field", message, made.place(name))) from None
    except ExprError as fault:
        raise BlockgraphError(Problem("unsupported-value", f"no number: {fault}")) from None


def _checked(text: str, source: Path) -> Model:
    """The model of a written spec. Raises where the config's values make no legal one."""
    from runtime.weights import mapping

    try:
        model = loads(text, f"spec of {source.name}")
        if faults := mapping.check(model):
            raise SpecError(faults)
    except SpecError as error:
        lines = text.splitlines()
        found = [
            Problem("unsupported-value", f"these values make no legal spec: {p.message}{_quoted(p, lines)}", None,
                    p.allowed, p.suggestion)
            for p in error.problems
        ]  # fmt: skip
        raise BlockgraphError(found) from None
    return model


def _quoted(problem: Problem, lines: Sequence[str]) -> str:
    place = problem.position
    return f", in the line {lines[place.line - 1].strip()!r}" if place and 0 < place.line <= len(lines) else ""


def _beside(given: Path) -> Path | None:
    """The folder, if it has safetensors."""
    return given if given.is_dir() and any(given.glob("*.safetensors")) else None


def _stored(checkpoint: Path) -> dict[str, str]:
    """The tensors of a checkpoint and their dtypes."""
    from runtime.weights.source import open_source

    with open_source(checkpoint) as source:
        return {name: tensor.dtype for name, tensor in source.tensors.items()}


def _dtype(stored: Mapping[str, str]) -> str | None:
    """What most tensors are held in, where it is one that a spec can have."""
    return DTYPES.get(max(counts, key=counts.__getitem__)) if (counts := Counter(stored.values())) else None


def _prefixed(stored: Mapping[str, str], prefix: str) -> bool:
    return any(n.startswith(prefix) for n in stored)


def _fits(model: Model, checkpoint: Path) -> None:
    """Raises WeightsError with every tensor that is missing, left over or of another shape, and where an output matrix
    that is said to be the embedding's is another (transformers 5 then takes both)."""
    from runtime.weights import mapping
    from runtime.weights.load import fit
    from runtime.weights.source import open_source

    with open_source(checkpoint) as source:
        table = mapping.compile(model, "huggingface")
        fit(table, source)
        known = [t.name for t in table.tensors.values() if t.line.key.endswith(".table")]
        for name, stored in source.tensors.items():
            twins = [t for t in known if source.tensors[t].shape == stored.shape]
            if name in table.tensors or not twins or any(_alike(source, name, t) for t in twins):
                continue
            message = f"{checkpoint} holds {name}, another one than {twins[0]}, and the config says that they are tied"
            mend = "set tie_word_embeddings to false in the config"
            raise WeightsError(Problem("unsupported-value", message, None, (), mend))


def _alike(source: Source, one: str, other: str) -> bool:
    """Whether some rows of two tensors of one shape are the same."""
    count = source.tensors[one].shape[0]
    rows = {count * i // SAMPLED for i in range(SAMPLED)}
    return all((source.read(one, r, r + 1) == source.read(other, r, r + 1)).all() for r in rows)


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else shown(value)
