"""Progress on stderr, and only on a terminal: stages with their seconds, bytes of weights."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


class Progress:
    """A callable for the API's ``progress``: told a stage's name, or bytes done and bytes in all.

    >>> with Progress("loading weights") as progress:
    ...     export(model, path, out, progress=progress)
    """

    def __init__(self, title: str = "", quiet: bool = False) -> None:
        self.title = title
        self.shown: RichProgress | None = None
        self.task: TaskID | None = None
        self.quiet = quiet or not sys.stderr.isatty()

    def __enter__(self) -> Progress:
        if not self.quiet:
            from rich.progress import Progress as RichProgress
            from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

            from blockgraph.cli.screen import console

            self.shown = RichProgress(
                SpinnerColumn(finished_text="[green]✓[/]"),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
                console=console(stderr=True),
                transient=True,
            )
            self.shown.start()
            if self.title:
                self._stage(self.title)
        return self

    def __call__(self, *told: Any) -> None:
        """``(stage)``, ``(done, total)`` or ``(stage, done, total)``."""
        if self.shown is None:
            return
        words = [t for t in told if isinstance(t, str)]
        numbers = [t for t in told if not isinstance(t, str)]
        if words and (self.task is None or self.shown.tasks[-1].description != words[0]):
            self._stage(words[0])
        if len(numbers) == 2 and self.task is not None:
            done, total = numbers
            note = f"{done / 1e9:.2f} of {total / 1e9:.2f} GB" if total >= 1e7 else f"{done:,} of {total:,}"
            self.shown.update(self.task, completed=done, total=total or 1, note=note)

    def _stage(self, name: str) -> None:
        assert self.shown is not None
        if self.task is not None:
            self.shown.update(self.task, completed=1, total=1)
        self.task = self.shown.add_task(name, total=None, note="")

    def stop(self) -> None:
        """Clears what is shown; later calls do nothing."""
        if self.shown is not None:
            self.shown.stop()
            self.shown = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
