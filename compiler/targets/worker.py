"""The child that compiles: ``python -m compiler.targets.worker`` with a job as JSON on its standard input.

Its standard output carries one JSON object a line: {"stage": …} and at last {"result": …} or {"error": …}.
Whatever the entry or the compiler print goes to standard error.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from compiler.errors import BlockgraphError, TargetError
from compiler.targets import cache, environment, program
from compiler.targets.job import FILES, Job
from compiler.targets.result import Result
from compiler.targets.types import Target, parse_target


def main() -> int:
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    job = Job.from_json(sys.stdin.read())
    # Should the parent be killed, nobody else ends this; the alarm's default action does, even inside XLA.
    signal.alarm(math.ceil(job.time_limit) + 5)
    try:
        result = Compile(job, channel).run()
        answer: dict[str, Any] = {"result": result.as_json()}
    except BlockgraphError as error:
        problems = [problem.as_json() for problem in error.problems]
        answer = {"error": {"kind": type(error).__name__, "problems": problems, "log": False}}
    except Exception as error:
        traceback.print_exc()
        said = f"{type(error).__name__}: {program.first_line(error)} (a fault of Blockgraph, not of what it was given)"
        problem = {"code": "entry-failed", "message": f"making the program for {job.target} failed: {said}"}
        answer = {"error": {"kind": "InternalError", "problems": [problem], "log": True}}
    sys.stderr.flush()
    channel.write(json.dumps(answer) + "\n")
    channel.flush()
    return 1 if "error" in answer else 0


class Compile:
    """One job from the entry to the files."""

    def __init__(self, job: Job, channel: TextIO) -> None:
        self.job = job
        self.channel = channel
        self.target: Target = parse_target(job.target)
        self.out = Path(job.out)
        self.seconds: dict[str, float] = {}
        self.files: dict[str, str] = {}
        self.notes: list[str] = []

    @contextlib.contextmanager
    def stage(self, word: str, key: str) -> Iterator[None]:
        self.channel.write(json.dumps({"stage": word}) + "\n")
        self.channel.flush()
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[key] = round(time.perf_counter() - start, 4)

    def run(self) -> Result:
        start = time.perf_counter()
        self._remove_old()
        with self.stage("importing", "import"):
            import jax  # noqa: F401

            from compiler.targets.topology import devices

            entry = _entry(self.job.entry)
        with self.stage("building", "build"):
            built = entry(devices=devices(self.target), target=self.target, **self.job.kwargs)
        with self.stage("tracing", "trace"):
            traced = built.jitted.trace(*built.args)
        with self.stage("lowering", "lower"):
            lowered = traced.lower()
            text = lowered.as_text()
        options = dict(getattr(built, "compiler_options", None) or {})
        program_hash = program.program_hash(text, self.target, lowered, built.args, options)
        if "stablehlo" in self.job.artifacts:
            text, note = program.readable(text, lowered)
            self._write("stablehlo", "stablehlo.txt", text.encode())
            self.notes += [note] if note else []
        del text
        verdict, hlo = self._verdict(lowered, program_hash, options)
        if hlo is not None and "optimised_hlo" in self.job.artifacts:
            self._write("optimised_hlo", "optimised_hlo.txt", hlo.encode())
        if verdict["verdict"] == "accepted" and built.export and "export" in self.job.artifacts:
            self._export(built)
        self.seconds["total"] = round(time.perf_counter() - start, 4)
        notes = [*verdict.pop("notes", ()), *self.notes]
        return Result(**{**verdict, "seconds": self.seconds, "files": self.files, "notes": tuple(dict.fromkeys(notes))})

    def _verdict(self, lowered: Any, program_hash: str, options: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
        """The stored verdict on this program, or the compiler's."""
        versions = environment.versions(self.target)
        entry = cache.key(program_hash, versions)
        stored = cache.load(entry)
        if stored is not None:
            verdict, hlo = stored
            with self.stage("cached", "compile"):
                pass
            self.seconds["compile"] = verdict.pop("compile_seconds", 0.0)
            return {**verdict, "cached": True}, hlo
        with self.stage("compiling", "compile"):
            outcome, hlo = program.compile_lowered(lowered, self.target, options)
        verdict = {"target": self.target.text, "program_hash": program_hash, "versions": versions, **outcome}
        note = cache.store(entry, {**verdict, "compile_seconds": self.seconds["compile"]}, hlo)
        self.notes += [note] if note else []
        return verdict, hlo

    def _export(self, built: Any) -> None:
        with self.stage("exporting", "export"):
            try:
                data = program.exported(built, self.target)
            except Exception as error:
                traceback.print_exc()
                self.notes.append(f"not exported: {type(error).__name__}: {program.first_line(error)}")
                return
            self._write("export", "artifact.jaxexport", data)

    def _write(self, kind: str, name: str, data: bytes) -> None:
        cache.write_whole(self.out / name, data)
        self.files[kind] = str(self.out / name)

    def _remove_old(self) -> None:
        """What an earlier run left must not be taken for this one's."""
        for name in FILES:
            (self.out / name).unlink(missing_ok=True)


def _entry(name: str) -> Any:
    module, _, function = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise TargetError(f"the entry {name!r} cannot be imported: {error}", "bad-job") from error
    for part in function.split("."):
        if not hasattr(found, part):
            raise TargetError(f"the module {module!r} has no {function!r}", "bad-job")
        found = getattr(found, part)
    return found


if __name__ == "__main__":
    sys.exit(main())
