"""Compiling: our graph in this process where it is asked about, then the real compiler in a child."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from blockgraph import checks, meshes, placing, room
from blockgraph.meshes import parallel_of as parallel_of
from compiler.errors import BlockgraphError, Problem
from compiler.language.model import Model
from compiler.parallel.build import Built
from compiler.parallel.request import Request
from compiler.passes.call import TRAIN
from compiler.passes.phase import phase_graph
from compiler.targets import Job
from compiler.targets import run as run_job
from compiler.targets.environment import check_installed
from compiler.targets.job import FILES, LOG_NAME
from compiler.targets.result import Result
from compiler.targets.types import Target

if TYPE_CHECKING:
    from blockgraph.api import Compiled

Progress = Callable[[str], None]
ENTRY = "compiler.lower.entry:build"
SUMMARY = "summary.json"


def run(
    model: Model,
    request: Request,
    target: Target,
    out: str | Path | None,
    check: bool,
    time_limit: float,
    export: bool,
    progress: Progress | None,
    notes: tuple[str, ...] = (),
) -> Compiled:
    """Compiles a request for a target. What is wrong with strategy, mesh and sizes is told before a child starts."""
    from blockgraph.api import Compiled, write_json

    check_installed(target)
    built: Built | None = None
    if request.phase == TRAIN or request.parallel is not None or check:
        if progress is not None:
            progress("placing" if request.parallel is not None else "building")
        built = meshes.build(model, request, target)
    else:
        phase_graph(model, request.phase, request.logits)  # a phase that the model cannot run
    place = None if out is None else Path(out)
    job = job_of(model, request, target, time_limit, export and place is not None)
    if place is None:
        job = replace(job, artifacts=("optimised_hlo",) if check else ())
    with placing.staged(place, (*FILES, LOG_NAME, SUMMARY), kept=(LOG_NAME,)) as folder:
        try:
            result = run_job(replace(job, out=str(folder)), progress)
        except BlockgraphError as error:
            raise type(error)([_log_in(p, folder, place) for p in error.problems]) from None
        checked = _checked(built, result, target, progress) if check else None
        known = meshes.figures(model, request, target, built) if built is not None or not result.accepted else None
        found: tuple[room.Setting, ...] = ()
        if not result.accepted and known is not None:
            found = room.settings(model, known, result, progress)
        alone = [_one_of(target, request)] if request.parallel is None and target.devices > 1 else []
        files = {} if place is None else {k: str(place.resolve() / Path(f).name) for k, f in result.files.items()}
        result = replace(result, files=files, notes=(*notes, *result.notes, *alone))
        compiled = Compiled(
            model.name, request.phase, request.batch, request.length, request.chunk, result, place,
            1 if request.parallel is None else target.devices, known, checked, found, model.unit,
        )  # fmt: skip
        write_json(folder / SUMMARY, compiled.as_json())
    return compiled


def job_of(model: Model, request: Request, target: Target, time_limit: float, export: bool) -> Job:
    """The worker's job for a request."""
    from blockgraph.api import origin

    source, overrides = origin(model)
    wires = meshes.wires_of(target) if request.parallel is not None else None
    kwargs = {
        "spec": source, "overrides": overrides, "request": request.as_json(), "export": export,
        "wires": dataclasses.asdict(wires) if wires is not None else None,
    }  # fmt: skip
    return Job(target.text, ENTRY, kwargs, time_limit=time_limit)


def _checked(built: Built | None, result: Result, target: Target, progress: Progress | None) -> checks.Checked | None:
    if built is None or not result.accepted:
        return None
    if progress is not None:
        progress("checking")
    return checks.check(built, result, target.platform)


def _one_of(target: Target, request: Request) -> str:
    """How a call without a strategy would use the whole target."""
    strategy, axis = ("fsdp", "fsdp") if request.phase == TRAIN else ("tensor", "model")
    half = next((n for n in (2, 4, 8) if target.devices % n == 0 and target.devices > n), None)
    also = f", or --parallel {strategy}+data --mesh data={target.devices // half},{axis}={half}" if half else ""
    return f"compiled for one of its {target.devices:,} devices: --parallel {strategy} uses them all{also}"


def _log_in(problem: Problem, folder: Path, place: Path | None) -> Problem:
    """A problem whose log is not where it was written: it was put in place, or is gone with its folder."""
    log = str(folder.resolve() / LOG_NAME)
    there = "--out DIR keeps the whole log" if place is None else f"log: {place.resolve() / LOG_NAME}"
    return replace(problem, message=problem.message.replace(f"log: {log}", there))
