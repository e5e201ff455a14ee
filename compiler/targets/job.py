"""A compile as a job: a child process with a time limit, so that a compiler may hang or crash there."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import compiler.errors
from compiler.errors import BlockgraphError, Position, Problem, TargetError
from compiler.targets import environment
from compiler.targets.result import Result
from compiler.targets.types import Target, parse_target

ARTIFACTS = ("stablehlo", "optimised_hlo", "export")
WORKER = "compiler.targets.worker"
LOG_NAME = "compiler.log"
FILES = ("stablehlo.txt", "optimised_hlo.txt", "artifact.jaxexport")  # what the worker writes, by artifact
LONGEST = 7 * 24 * 3600  # seconds
NOISE = ("All log messages before absl", "cudart_stub", "cuda drivers on your machine")


@dataclass(frozen=True)
class Job:
    """One program to compile for one target; JSON holds all of it.

    ``entry`` names a function "module:function" that the worker calls as
    ``entry(devices=…, target=…, **kwargs)``. It gives an object with ``jitted`` (a jitted function with
    shardings and donation), ``args`` (its arguments as ShapeDtypeStructs with shardings), ``export`` (whether
    to write a jax.export artifact) and, if it likes, ``compiler_options`` (a dict for XLA).
    """

    target: str
    entry: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    out: str = "."
    time_limit: float = 600.0  # seconds, the whole of the child
    artifacts: tuple[str, ...] = ARTIFACTS

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        data = json.loads(text)
        return cls(**{**data, "artifacts": tuple(data["artifacts"])})


def run(job: Job, progress: Callable[[str], None] | None = None) -> Result:
    """Compile, and say what the compiler says.

    ``progress`` hears each stage as it starts: importing, building, tracing, lowering, compiling (or "cached"
    in its place), exporting. A program that does not fit is a Result; all else that goes wrong raises
    TargetError, or the error of the project that the entry raised.
    """
    target = parse_target(job.target)
    environment.check_installed(target)
    job = _checked(job, target)
    out = Path(job.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="blockgraph-") as neutral, open(out / LOG_NAME, "wb") as log:
        child = subprocess.Popen(
            environment.python_command(WORKER),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=neutral,
            env=environment.child_environment(target),
            start_new_session=True,
        )
        try:
            answer, stage = _converse(child, job, progress)
            if answer is None:
                answer = _died(child, job, stage)
        finally:
            _kill_group(child)
    if "error" in answer:
        raise _error(answer["error"], out / LOG_NAME)
    return Result.from_json(answer["result"])


def _checked(job: Job, target: Target) -> Job:
    module, colon, function = job.entry.partition(":")
    if not (module and colon and function):
        found = f"the entry {job.entry!r} is not a name"
        raise TargetError(Problem("bad-job", found, None, ("module:function",)))
    unknown = [name for name in job.artifacts if name not in ARTIFACTS]
    if unknown:
        raise TargetError(Problem("bad-job", f"there is no artifact {unknown[0]!r}", None, ARTIFACTS))
    if not 0 < job.time_limit <= LONGEST:
        raise TargetError(f"the time limit is {job.time_limit} s, not above 0 and at most {LONGEST}", "bad-job")
    job = dataclasses.replace(job, target=target.text, out=str(Path(job.out).expanduser().resolve()))
    try:
        job.to_json()
    except (TypeError, ValueError) as error:
        raise TargetError(f"the job's kwargs are not JSON: {error}", "bad-job") from error
    return job


def _converse(
    child: subprocess.Popen[bytes], job: Job, progress: Callable[[str], None] | None
) -> tuple[dict[str, Any] | None, str]:
    """Send the job, follow the stages, and give the last word: a result, an error, or None for silence."""
    deadline = time.monotonic() + job.time_limit
    lines: queue.Queue[bytes | None] = queue.Queue()
    threading.Thread(target=_talk, args=(child, job.to_json().encode(), lines), daemon=True).start()
    stage = "starting"
    while True:
        try:
            line = lines.get(timeout=max(deadline - time.monotonic(), 0))
        except queue.Empty:
            raise TargetError(
                f"no verdict within {job.time_limit:g} s for {job.target} (it was {stage}); log: "
                f"{Path(job.out) / LOG_NAME}",
                "no-verdict",
            ) from None
        if line is None:
            return None, stage
        message = json.loads(line)
        if "stage" not in message:
            return message, stage
        stage = message["stage"]
        if progress is not None:
            progress(stage)


def _talk(child: subprocess.Popen[bytes], text: bytes, lines: queue.Queue[bytes | None]) -> None:
    assert child.stdin is not None and child.stdout is not None
    with contextlib.suppress(OSError):  # the child died; its silence is told below
        child.stdin.write(text)
        child.stdin.close()
    with contextlib.suppress(OSError, ValueError), child.stdout:
        for line in child.stdout:
            lines.put(line)
    lines.put(None)


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    """End the child and all it started; it is not waited for before, so its number is still its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _died(child: subprocess.Popen[bytes], job: Job, stage: str) -> dict[str, Any]:
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(timeout=10)
    code = child.returncode
    how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with status {code}"
    if code == -signal.SIGKILL:
        how += ", often a sign that this machine ran out of memory"
    found = f"the compiler process for {job.target} {how} while {stage}"
    problem = {"code": "compiler-died", "message": found}
    return {"error": {"kind": "TargetError", "problems": [problem], "log": True}}


def _error(data: Mapping[str, Any], log: Path) -> BlockgraphError:
    """The child's error as the same class here, with the log's last lines where they help."""
    kind = getattr(compiler.errors, data["kind"], TargetError)
    problems = []
    for item in data["problems"]:
        place = Position(item["file"], item["line"], item["column"]) if item.get("file") else None
        message = item["message"]
        if data.get("log"):
            tail = "".join(f"\n    | {line}" for line in useful_lines(log))
            message += f"; log: {log}{tail}"
        allowed = tuple(item.get("allowed", ()))
        problems.append(Problem(item["code"], message, place, allowed, item.get("suggestion")))
    error: BlockgraphError = kind(problems)
    return error


def useful_lines(log: Path, count: int = 5) -> list[str]:
    """The last lines of a compiler's log that say something."""
    try:
        text = log.read_bytes()[-65536:].decode(errors="replace")
    except OSError:
        return []
    lines = [line.strip() for line in text.splitlines()]
    return [line[:300] for line in lines if line and not any(noise in line for noise in NOISE)][-count:]
