"""Progress on stderr: on a terminal stages with their seconds and bytes; elsewhere a plain line where it takes long."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

FIRST, NEXT = 5.0, 60.0  # seconds without a terminal until the first line, and between the others


class Progress:
    """A callable for the API's ``progress``: told a stage's name, or bytes done and bytes in all. ``title``: the first
    stage; ``about``: what all of it is, for plain lines.

    >>> with Progress("loading weights") as progress:
    ...     export(model, path, out, progress=progress)
    """

    def __init__(self, title: str = "", quiet: bool = False, about: str = "") -> None:
        self.title, self.about, self.quiet = title, about, quiet
        self.shown: RichProgress | None = None
        self.task: TaskID | None = None
        self.stage, self.note = title, ""
        self.ended = threading.Event()

    def __enter__(self) -> Progress:
        if self.quiet:
            return self
        if not sys.stderr.isatty():
            threading.Thread(target=self._lines, args=(sys.stderr,), daemon=True).start()
            return self
        from rich.progress import Progress as RichProgress
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

        from blockgraph.cli.screen import console

        self.shown = RichProgress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console(stderr=True),
            transient=True,
        )
        self.shown.start()
        if self.title:
            self.task = self.shown.add_task(self.title, total=None, note="")
        return self

    def __call__(self, *told: Any) -> None:
        """``(stage)``, ``(done, total)`` or ``(stage, done, total)``."""
        words = [t for t in told if isinstance(t, str)]
        numbers = [t for t in told if not isinstance(t, str)]
        if words and words[0] != self.stage:
            self.stage, self.note = words[0], ""
            if self.shown is not None:
                if self.task is not None:
                    self.shown.update(self.task, completed=1, total=1)
                self.task = self.shown.add_task(self.stage, total=None, note="")
        if len(numbers) == 2:
            done, total = numbers
            self.note = f"{done / 1e9:.2f} of {total / 1e9:.2f} GB" if total >= 1e7 else f"{done:,} of {total:,}"
            if self.shown is not None and self.task is not None:
                self.shown.update(self.task, completed=done, total=total or 1, note=self.note)

    def _lines(self, stream: Any) -> None:
        """Where nobody sees a spinner: a line after some seconds, then now and then."""
        started, wait = time.monotonic(), FIRST
        while not self.ended.wait(wait):
            words = ": ".join(t for t in (self.about, self.stage or "working") if t)
            note = f", {self.note}" if self.note else ""
            try:
                stream.write(f"{words}{note} ({time.monotonic() - started:.0f} s so far)\n")
                stream.flush()
            except (OSError, ValueError):  # nobody reads it
                return
            wait = NEXT

    def stop(self) -> None:
        """Clears what is shown; later calls do nothing."""
        self.ended.set()
        if self.shown is not None:
            self.shown.stop()
            self.shown = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
