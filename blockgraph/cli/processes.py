"""The options of several processes, and a command's part in them: all run, one prints."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from runtime.distributed import Group

MANY = "Options of several processes"
Distributed = Annotated[
    bool,
    typer.Option("--distributed", help="Join the processes of a Cloud TPU, SLURM, Open MPI or Kubernetes job.",
                 rich_help_panel=MANY),
]  # fmt: skip
Coordinator = Annotated[
    str | None,
    typer.Option("--coordinator", metavar="HOST:PORT", help="Where process 0 joins them.", rich_help_panel=MANY),
]
Processes = Annotated[int | None, typer.Option("--processes", min=1, help="How many there are.", rich_help_panel=MANY)]
ProcessId = Annotated[
    int | None, typer.Option("--process-id", min=0, help="Which this is, from 0.", rich_help_panel=MANY)
]
Patience = Annotated[
    float,
    typer.Option("--patience", min=3, metavar="SECONDS", help="Without a sign of life of a process, all end.",
                 rich_help_panel=MANY),
]  # fmt: skip
PATIENCE = 20.0


@contextlib.contextmanager
def joined(
    asked: bool, coordinator: str | None, processes: int | None, process_id: int | None, patience: float = PATIENCE
) -> Iterator[Group]:
    """The group that the options, or the environment, ask for; of one process unless they do. Nothing is imported that
    needs JAX for one process."""
    from runtime import distributed

    flags = (coordinator, processes, process_id)
    if not asked and all(f is None for f in flags) and not distributed.asked_for():
        yield distributed.Group()
        return
    group = distributed.connect(coordinator, processes, process_id, patience=patience)
    with distributed.together(group):
        yield group
