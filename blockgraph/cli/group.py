"""How the command line as a whole ends: usage errors as JSON where that was asked for, readers that left in silence."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from blockgraph.cli import PIPE_CLOSED
from blockgraph.cli.guard import tell
from compiler.errors import Problem, nearest

# click's, or typer's own copy of it
ClickError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
CODES = {
    "NoSuchOption": "unknown-option", "MissingParameter": "missing-option", "BadParameter": "bad-option",
    "BadOptionUsage": "bad-option", "BadArgumentUsage": "bad-option", "NoSuchCommand": "unknown-command",
}  # fmt: skip
USAGE = 2


class Group(TyperGroup):
    """All commands."""

    def main(
        self, args: Sequence[str] | None = None, prog_name: str | None = None, complete_var: str | None = None,
        standalone_mode: bool = True, windows_expand_args: bool = True, **extra: Any,
    ) -> Any:  # fmt: skip
        given = list(sys.argv[1:] if args is None else args)
        own = given[: given.index("--")] if "--" in given else given
        if not standalone_mode or "--json" not in own:
            return super().main(args, prog_name, complete_var, standalone_mode, windows_expand_args, **extra)
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except ClickError as error:
            tell([usage_problem(error, self.commands)], as_json=True)
            sys.exit(USAGE)
        sys.exit(code if isinstance(code, int) else 0)

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _piped():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _piped():
            return super().invoke(ctx)


def usage_problem(error: Any, commands: Iterable[str] = ()) -> Problem:
    """A usage error of the parser as a problem."""
    message = str(error.format_message()).strip().rstrip(".")
    code = next((CODES[c.__name__] for c in type(error).__mro__ if c.__name__ in CODES), "bad-usage")
    near = list(getattr(error, "possibilities", None) or ())
    allowed: tuple[str, ...] = ()
    if message.startswith("No such command"):
        allowed = tuple(commands)
        name = message.split("'")[1] if "'" in message else ""
        code, near, message = "unknown-command", [nearest(name, allowed)], f"no command is called {name}"
    elif code == "unknown-option":
        message = f"no such option: {error.option_name}"
    return Problem(code, message, None, allowed, near[0] if near else None)


@contextlib.contextmanager
def _piped() -> Iterator[None]:
    """A reader of help that left: no message, and the code that a shell gives for it."""
    try:
        yield
    except (BrokenPipeError, SystemExit) as error:
        if not isinstance(error, BrokenPipeError) and not isinstance(error.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(PIPE_CLOSED) from None
