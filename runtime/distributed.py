"""Several processes as one machine: meeting, watching that all live, and ending together.

JAX's own service joins the processes. Beside it each process counts up a number of its own in the service's table every
second; who finds another's number standing still for ``patience`` seconds says which process is gone and ends. JAX
alone would abort with a dump of its stack, or wait in a collective.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from compiler.errors import BlockgraphError, Problem
from runtime import device

PATIENCE = 20.0  # seconds without a sign of life
MEETING = 300  # seconds that processes wait for each other at the start
BEAT = 1.0
FAREWELL = 3.0  # seconds that the service stays so that the others read who was lost
LOST = 1  # exit code
ALIVE, ENDED, FALLEN, LEFT = "blockgraph/alive/", "blockgraph/ended/", "blockgraph/fallen", "blockgraph/left/"
# what the libraries below print on both streams when processes meet or part
NOISE = (*device.NOISE, b"[Gloo]", b"coordination_service", b"preemption_sync", b"GRPC error information",
         b"grpc_message", b"terminate called", b"what():  ", b"recoverable task", b"distributed/client",
         b"client.h", b"    @ ", b"*** Check failure", b"tasks have crashed", b"RPC: /xla.")  # fmt: skip


class ProcessLost(BlockgraphError):
    """Another process of the group is gone."""

    exit_code = LOST


@dataclass
class Group:
    """The processes that run one program. ``size`` 1: this one alone."""

    index: int = 0
    size: int = 1
    coordinator: str | None = None
    patience: float = PATIENCE
    client: Any = None
    code: int | None = None  # of this process's end, once it is known
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def beat(self) -> float:
        """Seconds between two signs of life: rarer in large groups, as each process reads those of all."""
        return max(BEAT, self.size / 64)

    @property
    def first(self) -> bool:
        """Whether this process prints."""
        return self.index == 0


def asked_for(environment: dict[str, str] | None = None) -> bool:
    """Whether the environment says that this is one of several processes: JAX_COORDINATOR_ADDRESS, a SLURM step or an
    MPI run of more than one."""
    env = dict(os.environ) if environment is None else environment
    several = (env.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    return bool(env.get("JAX_COORDINATOR_ADDRESS")) or any(n.isdigit() and int(n) > 1 for n in several)


def connect(
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
    *,
    patience: float = PATIENCE,
    meeting: int = MEETING,
) -> Group:
    """Joins the processes of one program; call it before anything asks JAX for its devices. ``coordinator``:
    host:port of process 0. What is None is found by JAX: Cloud TPU, SLURM, Open MPI, Kubernetes. ``patience``: seconds
    without a sign of life after which a process counts as gone; ``meeting``: seconds to wait for all at the start.
    Raises BlockgraphError where the processes cannot be joined."""
    _check(coordinator, processes, process_id)
    device.choose()
    _divert()
    import jax
    from jax._src import distributed as joined

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # without it, one process's death makes JAX abort all others before they can say whose it was
    jax.config.update("jax_enable_recoverability", True)
    try:
        jax.distributed.initialize(
            coordinator, processes, process_id, initialization_timeout=meeting,
            heartbeat_timeout_seconds=int(patience + 10), shutdown_timeout_seconds=int(patience + 10),
        )  # fmt: skip
    except (ValueError, TypeError, RuntimeError) as error:
        raise _no_meeting(coordinator, error, meeting) from None
    state = joined.global_state
    group = Group(int(state.process_id or 0), int(state.num_processes or 1), state.coordinator_address, patience)
    group.client = state.client
    if group.size > 1:
        group.patience = max(patience, 5 * group.beat)
        _on_abort(group)
        threading.Thread(target=_watch, args=(group,), daemon=True).start()
    with device.without_noise():
        jax.devices()
    return group


@contextlib.contextmanager
def together(group: Group) -> Iterator[Group]:
    """A run of the group: its processes end together. An error of this process is told to the others, which end with
    code 1; a broken collective is answered with the process that broke it."""
    if group.size == 1:
        yield group
        return
    try:
        yield group
    except BlockgraphError as error:
        told = _fallen(group, f"process {group.index} of {group.size} ended: {error.problems[0].message}")
        group.code = error.exit_code
        if told.endswith(f" ended: {error.problems[0].message}") and not told.startswith(f"process {group.index} "):
            raise SystemExit(error.exit_code) from None  # another has said so
        raise
    except (RuntimeError, ValueError, OSError) as error:  # gloo raises ValueError
        time.sleep(group.patience + 3 * group.beat)  # the watch ends this process if another is gone
        line = str(error).strip().splitlines()[0][:300]
        message = f"process {group.index} of {group.size}: a collective failed though all processes live: {line}"
        group.code = LOST
        _fallen(group, message)
        raise ProcessLost(Problem("process-lost", message)) from None
    else:
        _leave(group)


def _check(coordinator: str | None, processes: int | None, process_id: int | None) -> None:
    given = {"--coordinator": coordinator, "--processes": processes, "--process-id": process_id}
    lacking = [name for name, value in given.items() if value is None]
    if lacking and len(lacking) < len(given) and not asked_for():
        message = f"{', '.join(lacking)} must be given too: the three say together which process this is"
        raise BlockgraphError(Problem("missing-option", message, None, tuple(given)))
    if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
        raise BlockgraphError(Problem("bad-option", f"--coordinator {coordinator!r} is not host:port"))
    if processes is not None and process_id is not None and not 0 <= process_id < processes:
        allowed = (f"0 to {processes - 1}",)
        raise BlockgraphError(Problem("out-of-range", f"--process-id {process_id}", None, allowed))


def _no_meeting(coordinator: str | None, error: Exception, meeting: int) -> BlockgraphError:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "should be defined" in text or "must be defined" in text:
        message = "no cluster was found: JAX knows Cloud TPU, SLURM, Open MPI and Kubernetes"
        mend = "--coordinator host:port --processes N --process-id I"
        return BlockgraphError(Problem("no-cluster", message, None, (), mend))
    place = coordinator or "the coordinator"
    return BlockgraphError(Problem("no-meeting", f"the processes did not meet at {place} in {meeting} s: {text[:200]}"))


# -- signs of life
def _watch(group: Group) -> None:
    """Counts up this process's number and looks at the others'."""
    client = group.client
    seen: dict[int, tuple[str, float]] = {}
    failing: float | None = None
    number = 0
    while not group.stop.wait(group.beat):
        now = time.monotonic()
        number += 1
        try:
            client.key_value_set(f"{ALIVE}{group.index}", f"{number} {socket.gethostname()}", allow_overwrite=True)
            table = dict(client.key_value_dir_get("blockgraph/"))
            failing = None
        except Exception:  # the service is gone, or slow
            failing = failing or now
            if now - failing > group.patience:
                _end(group, _without_first(group))
            continue
        if FALLEN in table:
            _end(group, table[FALLEN])
        for other in range(group.size):
            told = table.get(f"{ALIVE}{other}", "")
            if other == group.index or not told or f"{ENDED}{other}" in table:
                continue
            if seen.get(other, ("", 0.0))[0] != told:
                seen[other] = (told, now)
            elif now - seen[other][1] > group.patience:
                host = told.partition(" ")[2]
                message = f"process {other} of {group.size} on {host} gave no sign of life for {group.patience:g} s"
                _fallen(group, message)
                _end(group, message)


def _fallen(group: Group, message: str) -> str:
    """Tells the others why this run ends. The first message stays; it is given back."""
    group.stop.set()
    told = message
    with contextlib.suppress(Exception):
        try:
            group.client.key_value_set(FALLEN, message)
        except Exception:  # there is one already
            told = group.client.blocking_key_value_get(FALLEN, 1000)
    if group.first:  # the service lives in this process
        time.sleep(FAREWELL)
    return told


def _end(group: Group, message: str) -> NoReturn:
    """Ends the process, whatever its main thread waits for."""
    group.code = LOST
    who = f"process {group.index}: " if not message.startswith(f"process {group.index} ") else ""
    sys.stdout.flush()
    sys.stderr.write(f"{who}ending, as {message} [process-lost]\n")
    sys.stderr.flush()
    if group.first:
        time.sleep(FAREWELL)
    os._exit(LOST)


def _without_first(group: Group) -> str:
    return f"process 0 of {group.size}, which joins the others at {group.coordinator}, is gone"


def _leave(group: Group) -> None:
    """All ends: waits for the others, then the service goes last."""
    import jax

    client = group.client
    with contextlib.suppress(Exception):
        client.key_value_set(f"{ENDED}{group.index}", "1", allow_overwrite=True)
        client.wait_at_barrier("blockgraph/end", int(1000 * 4 * group.patience))
        group.code = 0
        group.stop.set()
        if group.first:
            for other in range(1, group.size):
                client.blocking_key_value_get(f"{LEFT}{other}", 5000)
        else:
            client.key_value_set(f"{LEFT}{group.index}", "1")
    group.code = 0
    group.stop.set()
    with contextlib.suppress(Exception):
        jax.distributed.shutdown()
    _handle(ctypes.c_void_p(0))  # SIG_DFL: nothing watches the service any more


_HANDLERS: list[Any] = []  # kept alive: C calls them


def _on_abort(group: Group) -> None:
    """JAX aborts a process from a thread of its own when the service is gone: instead, say so and end."""
    message = f"process {group.index}: ending, as {_without_first(group)} [process-lost]\n".encode()
    to = sys.stderr.fileno()

    def aborted(number: int) -> None:
        if group.code is None:
            os.write(to, message)
        os._exit(LOST if group.code is None else group.code)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
    _HANDLERS.append(handler)
    _handle(ctypes.cast(handler, ctypes.c_void_p))


def _handle(handler: ctypes.c_void_p) -> None:
    """Sets what C calls on SIGABRT. Python's own handlers run in the main thread, which may be waiting for ever."""
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
        libc.signal.restype = ctypes.c_void_p
        libc.signal(int(signal.SIGABRT), handler)


def _divert() -> None:
    """Gives Python's streams files of their own, and what C++ libraries print to the first two goes to stderr without
    their chatter: stdout is for this program's lines only."""
    if _HANDLERS:
        return
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        if not hasattr(stream, "buffer") or not _is_file(stream):
            return
    out, error = os.dup(1), os.dup(2)
    sys.stdout = os.fdopen(out, "w", encoding=sys.stdout.encoding, errors="replace", buffering=1)
    sys.stderr = os.fdopen(error, "w", encoding=sys.stderr.encoding, errors="replace", buffering=1)
    read, write = os.pipe()
    os.dup2(write, 1)
    os.dup2(write, 2)
    os.close(write)
    _HANDLERS.append(threading.Thread(target=_filter, args=(read, error), daemon=True))
    _HANDLERS[-1].start()


def _is_file(stream: Any) -> bool:
    try:
        return int(stream.fileno()) in (1, 2)
    except (OSError, ValueError):
        return False


def _filter(read: int, into: int) -> None:
    with os.fdopen(read, "rb") as lines:
        for line in lines:
            if not any(noise in line for noise in NOISE):
                os.write(into, line)
