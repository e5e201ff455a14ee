"""What a command's errors become: problems on stderr (or as JSON on stdout) and an exit code, never a traceback."""

from __future__ import annotations

import functools
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import typer

from blockgraph.cli import INTERRUPTED, PIPE_CLOSED
from compiler.errors import BlockgraphError, Problem, gathered


def guarded(function: Callable[..., None]) -> Callable[..., None]:
    """The command with its errors told to people, or as JSON where it was called with ``as_json``."""

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> None:
        given = inspect.signature(function).bind(*args, **kwargs).arguments
        as_json = bool(given.get("as_json", False))
        try:
            _check_numbers(given)
            function(*args, **kwargs)
        except BlockgraphError as error:
            tell(error.problems, as_json)
            raise typer.Exit(error.exit_code) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(PIPE_CLOSED) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except MemoryError:
            tell([Problem("out-of-memory", "this machine has not enough memory for it")], as_json)
            raise typer.Exit(2) from None
        except OSError as error:  # a disk that is full, a folder that is not ours
            name = f"{error.filename}: " if error.filename else ""
            tell([Problem("file-error", f"{name}{error.strerror or error}")], as_json)
            raise typer.Exit(2) from None
        except RuntimeError as error:  # of JAX, where a device's memory ended
            said = _exhausted(error)
            if said is None:
                raise
            tell([Problem("out-of-memory", said)], as_json)
            raise typer.Exit(2) from None

    return command


def _check_numbers(given: Mapping[str, Any]) -> None:
    """Raises for options that are infinite or no number, which the parser lets through."""
    wrong = {k: v for k, v in given.items() if isinstance(v, float) and not math.isfinite(v)}
    problems = [Problem("out-of-range", f"--{name.replace('_', '-')} {value}: takes a finite number")
                for name, value in wrong.items()]  # fmt: skip
    if problems:
        raise BlockgraphError(problems)


def _exhausted(error: RuntimeError) -> str | None:
    if "jax" not in sys.modules:
        return None
    from runtime.memory import exhausted

    return exhausted(error)


def tell(problems: Iterable[Problem], as_json: bool = False) -> None:
    """Prints problems: to stderr for people, to stdout for programs."""
    from blockgraph.cli import screen

    found = list(problems)
    if as_json:
        screen.print_json({"problems": [p.as_json() for p in found]})
        return
    console = screen.console(stderr=True)
    for problem, also in gathered(found):
        console.print(screen.problem_text(problem, also), soft_wrap=True)
    if len(found) > 1:
        console.print(f"{len(found)} problems", style="bold red")
