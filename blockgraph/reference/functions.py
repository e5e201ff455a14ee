"""The pages of functions, axis names and error codes."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from blockgraph.reference.text import HEAD, doc, table, value
from compiler.graph.axes import LEGEND
from compiler.language.call import callable_functions
from compiler.ops.contract import FUNCTIONS, OPS
from compiler.ops.elementwise import TABLE

FLOORS = ("compiler", "costmodel", "runtime", "blockgraph")
RAISERS = {
    "Problem", "Fault", "TypeProblem", "PydanticCustomError", "ExprError", "add", "problem",
}  # fmt: skip
OPERANDS = ("x", "y", "z")


def functions_page() -> str:
    """docs/reference/functions.md."""
    import compiler.ops.families  # noqa: F401  (registers every function)

    names = callable_functions()
    text = (
        HEAD + "# Functions\n\nWhat a block's program may call, besides its own weights. `+ - * /` are `add`, `sub`, "
    )
    text += "`mul` and `div`. Arguments are positional before the star and by name after it.\n\n"
    text += "## Over values\n\n"
    text += table(("function", "meaning"), [_row(n) for n in names if n not in TABLE])
    text += "## Element by element\n\nFLOPs and transcendental functions are counted an element.\n\n"
    text += table(("function", "meaning", "FLOPs", "transcendental"), [_mapped(n) for n in names if n in TABLE])
    rest = sorted(set(FUNCTIONS) - set(names))
    text += "## For block kinds written in Python\n\n"
    text += "These are methods of the builder too, as is all above: `b.name(…)`.\n\n"
    text += table(("function", "meaning"), [_row(n) for n in rest if n not in TABLE])
    text += table(("function", "meaning", "FLOPs", "transcendental"), [_mapped(n) for n in rest if n in TABLE])
    return text


def _row(name: str) -> tuple[str, str]:
    return f"`{name}{_signature(FUNCTIONS[name])}`", doc(FUNCTIONS[name]) or doc(OPS.get(name))


def _mapped(name: str) -> tuple[str, str, str, str]:
    rule = TABLE[name]
    operands = OPERANDS[: rule.arity] if name != "select" else ("condition", "x", "y")
    return f"`{name}({', '.join(operands)})`", rule.meaning, str(rule.flops), str(rule.transcendental)


def _signature(fn: Callable[..., Any]) -> str:
    parts = []
    starred = False
    for p in list(inspect.signature(fn).parameters.values())[1:]:
        if p.kind is p.VAR_POSITIONAL:
            parts.append(f"*{p.name}")
            starred = True
            continue
        if p.kind is p.VAR_KEYWORD:
            parts.append("name=…")
            continue
        if p.kind is p.KEYWORD_ONLY and not starred:
            parts.append("*")
            starred = True
        parts.append(p.name if p.default is p.empty else f"{p.name}={value(p.default) or '…'}")
    return f"({', '.join(parts)})"


def axes_page() -> str:
    """docs/reference/axes.md."""
    text = (
        HEAD + "# Axis names\n\nAn axis name is a role, not a size. A spec may use further names for its own dims.\n\n"
    )
    return text + table(("axis", "role"), [(f"`{name}`", meaning) for name, meaning in LEGEND.items()])


def errors_page(root: Path) -> str:
    """docs/reference/errors.md: every code that is a literal where a problem is made, read off the syntax trees."""
    found: dict[str, dict[str, None]] = {}
    for path in sorted(p for floor in FLOORS for p in (root / floor).rglob("*.py")):
        module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for code in _codes(ast.parse(path.read_text(encoding="utf-8"))):
            found.setdefault(code, {})[module] = None
    text = (
        HEAD
        + "# Error codes\n\nEvery problem has a code (`--json`: `code`) that stays the same when its words change. "
    )
    text += "Beside each, the modules that find it.\n\n"
    rows = [(f"`{code}`", ", ".join(f"`{m}`" for m in modules)) for code, modules in sorted(found.items())]
    return text + table(("code", "found by"), rows)


def _codes(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        fn = node.func
        name = fn.id if isinstance(fn, ast.Name) else fn.attr if isinstance(fn, ast.Attribute) else ""
        first = node.args[0]
        if name in RAISERS and len(node.args) > 1 and isinstance(first, ast.Constant) and isinstance(first.value, str):
            text = first.value
            if text and text[0].isalpha() and text == text.lower() and text.replace("-", "").isalpha():
                yield text
