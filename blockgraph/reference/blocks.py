"""The pages of block kinds and forms."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from blockgraph.picture.facts import STATES, shape_text, size_text
from blockgraph.picture.state import states
from blockgraph.reference import examples
from blockgraph.reference.text import HEAD, code, comments, doc, table, value
from compiler.language import fields
from compiler.language.block import Block, kinds
from compiler.language.fields import META, Args, Dim
from compiler.language.forms import FORMS
from compiler.language.model import Model

WORDS = {
    "Count": "whole number", "Flag": "true or false", "Axis": "a dim or a size", "Node": "a node",
    "PerLayer": "number, may differ by layer", "Epsilon": "small number", "Fraction": "number from 0 to 1",
    "Share": "number from 0 to 1",
    "Positive": "number above 0",
}  # fmt: skip


def blocks_page() -> str:
    """docs/reference/blocks.md."""
    text = HEAD + "# Block kinds\n\n"
    text += "Options are numbers, words, or expressions over the dims and args in scope. "
    text += "Every example was elaborated with these dims:\n\n" + code(examples.HEAD)
    beside = ", ".join(f"`{k}`" for k in META)
    text += f"Beside a kind, never among its options: {beside}.\n\n"
    for name, cls in sorted(kinds().items()):
        text += _block(name, cls)
    return text


def _block(name: str, cls: type[Block]) -> str:
    text = f"## {name}\n\n{doc(cls)}\n\n"
    ports = ", ".join(f"`{p}`" for p in cls.ports)
    if cls.source:
        text += "Takes no input: it starts a new value.\n\n"
    if ports:
        text += f"Inputs besides the chain's value: {ports}, as `from: {{{cls.ports[0]}: name}}`.\n\n"
    if cls.shorthand:
        text += f"A bare value, as in `{name}: …`, fills `{cls.shorthand}`.\n\n"
    rows = list(_options(cls))
    if rows:
        text += table(("option", "type", "default", ""), rows)
    text += code(examples.graph(name))
    text += _made(name, examples.build(examples.graph(name)))
    for port in cls.ports:
        example = examples.with_port(name, port)
        text += (
            f"With `{port}` from another input:\n\n{code(example)}{_made(name, examples.build(example), weights=False)}"
        )
    return text


def _options(cls: type[Args], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    notes = comments(cls)
    for name, field in cls.model_fields.items():
        inner = next(_models(field.annotation), None)
        shown = f"`{prefix}{field.alias or name}`"
        if inner is None:
            yield shown, _type(cls, name, field), _default(field), notes.get(name, "")
            continue
        default = "null" if field.default is None else "as below"
        yield shown, "options", default, " ".join(t for t in (doc(inner), notes.get(name, "")) if t)
        yield from _options(inner, f"{prefix}{name}.")


def _models(annotation: Any) -> Iterator[type[Args]]:
    if inspect.isclass(annotation) and issubclass(annotation, Args):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _default(field: FieldInfo) -> str:
    dim = next((m.name for m in field.metadata if isinstance(m, Dim)), None)
    if dim is not None:
        return f"the dim `{dim}`"
    return "required" if field.default is PydanticUndefined else f"`{value(field.default)}`"


def _type(cls: type[Args], name: str, field: FieldInfo) -> str:
    """In words: what the field's check is called, or the words that it allows."""
    words = list(_literals(typing.get_type_hints(cls, include_extras=True)[name]))
    null = " or null" if field.default is None else ""
    if words:
        return ", ".join(f"`{w}`" for w in words) + null
    checks = {
        id(getattr(t, "__metadata__", (None,))[0]): n for n, t in vars(fields).items() if hasattr(t, "__metadata__")
    }
    for mark in field.metadata:
        if id(mark) in checks and checks[id(mark)] != "Word":
            kind = checks[id(mark)]
            base = kind.removeprefix("Optional")
            return WORDS.get(base, base.lower()) + (" or null" if kind != base else "")
    return "a name" + null


def _literals(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from (str(a) for a in get_args(annotation))
        return
    for part in get_args(annotation):
        yield from _literals(part)


def _made(name: str, model: Model, weights: bool = True) -> str:
    """The weights that the example makes and what it keeps between calls, as elaborated."""
    own = [(label, op, t) for label, (op, t) in model.parameters.items() if op.path.split(".")[0] == name]
    text = ""
    if weights and own:
        rows = []
        for label, op, t in own:
            axes = [size_text(a, s) for a, s in t.pairs]
            shape = " × ".join(axes) or "one number"
            if op.inputs:
                shape = " × ".join(axes[: op.inputs]) + " → " + " × ".join(axes[op.inputs :])
            rows.append((f"`{label.removeprefix(name + '.')}`", shape, f"`{op.init}`"))
        text += table(("weight", "axes", "init"), rows)
    kept = list(dict.fromkeys((STATES.get(k, k), shape_text(t)) for found in states(model).values() for k, t in found))
    if kept:
        text += "Keeps between calls: " + "; ".join(f"{kind} ({shape})" for kind, shape in kept) + ".\n\n"
    return text


def forms_page() -> str:
    """docs/reference/forms.md."""
    text = (
        HEAD + "# Forms\n\nForms join nodes. Their branches and cycles hold nodes: a block kind, a block of the spec, "
    )
    text += "an activation, another form, or a list of these.\n\n"
    for name, fn in FORMS.items():
        example = examples.graph(name)
        model = examples.build(example)
        result = shape_text(model.graph.outputs[-1][1].type)
        text += f"## {name}\n\n{doc(fn)}\n\n{code(example)}Gives {result}.\n\n"
    return text
