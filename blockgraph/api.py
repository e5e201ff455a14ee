"""The verbs of Blockgraph in Python; the command line calls these. JAX is imported by the verbs that run a program."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.errors import BlockgraphError, Problem
from compiler.language.load import shipped
from compiler.language.model import Model, load
from compiler.language.model import loads as loads
from compiler.parallel.request import Training as Training
from compiler.passes.call import check_chunk
from costmodel.calls import BATCH, LENGTH, phase_of

if TYPE_CHECKING:
    from blockgraph.checks import Checked
    from blockgraph.importing.config import Imported
    from blockgraph.meshes import Figures
    from blockgraph.room import Setting
    from compiler.targets import Result
    from runtime.inputs import Inputs
    from runtime.trace import Record

Progress = Callable[[str], None]
LARGEST = 10**9  # batch, lengths


def specs() -> dict[str, Path]:
    """The shipped specs by name."""
    return shipped()


@dataclass(frozen=True, repr=False)
class Compiled:
    """What the compiler said of one phase on one target, and where the artifacts are (``out`` None: nowhere).
    ``figures``: ours of one device, of a mesh and of a training step; ``checked``: what was asked of the compiler
    against what it made; ``settings``: of a program that does not fit, changes that would."""

    model: str
    phase: str
    batch: int
    length: int
    chunk: int | None
    result: Result
    out: Path | None
    devices_used: int = 1
    figures: Figures | None = None
    checked: Checked | None = None
    settings: tuple[Setting, ...] = ()
    unit: str = "token"  # what a call takes many of: see compiler.language.model.Model.unit

    def __repr__(self) -> str:
        return f"<Compiled {self.call} · {self.result.target}: {self.result.verdict}>"

    @property
    def call(self) -> str:
        """What was compiled, in one line."""
        chunk = [f"chunk {self.chunk:,}"] if self.chunk else []
        length = [f"length {self.length:,}"] if self.unit == "token" else []
        return " · ".join([self.model, self.phase, f"batch {self.batch:,}", *length, *chunk])

    def as_json(self) -> dict[str, Any]:
        head: dict[str, Any] = {"devices_used": self.devices_used}
        head |= {
            "model": self.model,
            "phase": self.phase,
            "batch": self.batch,
            "length": self.length,
            "chunk": self.chunk,
        }
        tail = {
            "figures": self.figures.as_json() if self.figures is not None else None,
            "check": self.checked.as_json() if self.checked is not None else None,
            "settings_that_fit": [s.as_json() for s in self.settings],
        }
        return {**head, **self.result.as_json(), **tail}


def check_size(name: str, value: int, least: int = 1) -> int:
    """A size given by the user. Raises BlockgraphError naming it."""
    if isinstance(value, bool) or not isinstance(value, int):
        message = f"{name} = {value!r}: takes a whole number"
        raise BlockgraphError(Problem("bad-size", message, None, (f"{least} to {LARGEST:,}",)))
    if not least <= value <= LARGEST:
        raise BlockgraphError(Problem("out-of-range", f"{name} = {value}", None, (f"{least} to {LARGEST:,}",)))
    return value


def compile(
    model: Model | str,
    target: str,
    *,
    phase: str | None = None,
    batch: int = BATCH,
    length: int = LENGTH,
    chunk: int | None = None,
    mesh: str | None = None,
    parallel: str | None = None,
    shard: Sequence[str] = (),
    replicate: Sequence[str] = (),
    slices: int | None = None,
    schedule: str | None = None,
    microbatches: int | None = None,
    rounds: int | None = None,
    training: Training | None = None,
    check: bool = False,
    out: str | Path | None = None,
    sizes: Mapping[str, int] | None = None,
    logits: str | None = None,
    time_limit: float = 600.0,
    export: bool = True,
    progress: Progress | None = None,
) -> Compiled:
    """Compiles a phase with the target's real compiler, in a child process. ``phase``: decode unless another is asked
    for; forward for a model that has no decode, and a note says so; "train" is a whole training step, made as
    ``training`` says (compiler.parallel.request.Training). ``length``: positions of the call for forward, prefill
    (there at most ``chunk`` a call) and train, room of the cache for all streaming phases.
    ``parallel`` and ``mesh`` ("data=4,model=2") use all devices of the target, divided as docs/parallelism.md says;
    without them one is used. ``slices``: those of the target unless given. ``check`` reads the compiled program and
    holds its collectives and FLOPs against those of the graph.
    Writes stablehlo.txt, optimised_hlo.txt, artifact.jaxexport and summary.json into ``out``; without one no file
    stays (the verdict is kept in the cache either way).
    A process with jax alone loads the artifact: ``e = jax.export.deserialize(bytearray(data))``, then ``jax.jit(e.call,
    donate_argnums=1)(params, state, inputs)`` gives (outputs, state); of a training step (outputs, params, state), and
    both of the first are donated. All are dicts by label, and ``jax.tree.unflatten(e.in_tree, e.in_avals)`` gives
    their shapes; the state begins as zeros.
    Raises TargetError where there is no verdict; a program that does not fit is a verdict."""
    from blockgraph import compiling
    from compiler.parallel.request import Request
    from compiler.targets.types import parse_target

    found = parse_target(target)
    model = load(model) if isinstance(model, str) else model
    check_size("batch", batch), check_size("length", length), check_size("chunk", chunk or 1)
    asked = compiling.parallel_of(parallel, mesh, shard, replicate, slices, found, schedule, microbatches, rounds)
    phase, note = phase_of(model, phase)
    check_chunk(phase, length, chunk)
    request = Request(phase, batch, length, chunk, dict(sizes or {}), logits, training or Training(), asked)
    notes = (*model.notes, *((note,) if note is not None else ()))
    return compiling.run(model, request, found, out, check, time_limit, export, progress, notes)


def explain(
    model: Model | str,
    *,
    parallel: str,
    mesh: str | None = None,
    target: str | None = None,
    chips: int | None = None,
    phase: str | None = None,
    batch: int = BATCH,
    length: int = LENGTH,
    chunk: int | None = None,
    shard: Sequence[str] = (),
    replicate: Sequence[str] = (),
    slices: int | None = None,
    schedule: str | None = None,
    microbatches: int | None = None,
    rounds: int | None = None,
    training: Training | None = None,
    sizes: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Where everything lies on a mesh, what moves over it, how often and why; no compiler runs. ``target``: a machine,
    whose links are then told; else ``chips`` devices, or as many as the mesh has."""
    from blockgraph import meshes
    from compiler.parallel.request import Request

    model = load(model) if isinstance(model, str) else model
    check_size("batch", batch), check_size("length", length), check_size("chunk", chunk or 1)
    found = meshes.place(target, chips, mesh, slices)
    asked = meshes.parallel_of(parallel, mesh, shard, replicate, slices, found, schedule, microbatches, rounds)
    phase, _ = phase_of(model, phase)
    check_chunk(phase, length, chunk)
    request = Request(phase, batch, length, chunk, dict(sizes or {}), None, training or Training(), asked)
    return meshes.explain(model, request, found)


def origin(model: Model) -> tuple[str, str]:
    """Where a child process finds the same model: a path and the overrides as JSON. Raises for a spec from a text."""
    if not model.document.files:
        raise BlockgraphError(
            Problem("no-file", f"{model.name} was made from a text: write it to a file to compile it")
        )
    return str(model.document.files[0].resolve()), json.dumps(dict(model.document.overrides))


def write_json(path: Path, value: Any) -> None:
    """Writes under a temporary name, then renames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    temporary.replace(path)


def simulate(model: Model | str, machine: str, **options: Any) -> Any:
    """A plan: FLOPs, bytes, memory and roofline time of a phase on a machine. See costmodel.simulate."""
    from costmodel.simulate import simulate as run

    return run(load(model) if isinstance(model, str) else model, machine, **options)


@dataclass(frozen=True)
class Piece:
    """A new token and the text that it completes (empty while a character is not whole)."""

    row: int
    token: int
    text: str
    done: bool


def generate(
    model: Model | str,
    weights: str | Path,
    prompts: Sequence[str],
    *,
    max_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    chat: bool = False,
    tokenizer: str | Path | None = None,
    mesh: str | None = None,
    parallel: str | None = None,
    replicate: Sequence[str] = (),
    progress: Callable[..., None] | None = None,
) -> Iterator[Piece]:
    """Continues prompts, a piece a token. ``weights``: a .gguf or .safetensors file or a folder of shards; the
    tokenizer comes from it, or from the tokenizer.json beside it, unless given. Greedy at temperature 0.
    ``parallel`` and ``mesh`` divide the work over this machine's devices; each process then reads only the weights
    that its own devices hold. ``progress``: told bytes read and in all, and the name of what follows, until the
    first piece."""
    from runtime.generate import generate as run
    from runtime.memory import require_session
    from runtime.sample import Sampling
    from runtime.text.tokenizer import tokenizer as read_tokenizer
    from runtime.weights.load import load as read_weights
    from runtime.weights.source import check_there

    model = load(model) if isinstance(model, str) else model
    check_size("max_tokens", max_tokens)
    sampling = Sampling(temperature, top_p, top_k, seed)
    check_there(Path(weights))
    words = read_tokenizer(tokenizer_file(Path(weights), tokenizer))
    ids = [words.chat([{"role": "user", "content": p}]) if chat else words.encode(p) for p in prompts]
    for row, prompt in enumerate(prompts):
        if not ids[row]:
            which = f"prompt {row + 1} of {len(prompts)}" if len(prompts) > 1 else "the prompt"
            message = f"{which}, {prompt!r}, is no token, and there is nothing to continue"
            raise BlockgraphError(Problem("empty-prompt", message))
    stop = set(words.stops)
    decoders = [words.stream() for _ in prompts]
    from blockgraph import training

    place = training.place_here(parallel, mesh, replicate)
    arrays: Any
    if place is None:
        require_session(model, len(ids), max(map(len, ids), default=0) + max_tokens)
        loaded = read_weights(model, Path(weights), progress=progress)
        arrays, rows = loaded.arrays, loaded.rows
    else:
        from runtime.weights.shards import Onto

        arrays = Onto(model, Path(weights), progress)
        rows = arrays.rows
    for t in run(
        model, arrays, ids, max_tokens=max_tokens, sampling=sampling, stop=stop, vocab=rows.get("vocab"), place=place,
        progress=progress,
    ):  # fmt: skip
        text = "" if t.id < 0 else decoders[t.row].push(t.id)
        yield Piece(t.row, t.id, text + (decoders[t.row].flush() if t.done else ""), t.done)


def tokenizer_file(weights: Path, given: str | Path | None = None) -> Path:
    """Where the tokenizer of these weights is: as given, the GGUF itself, or the tokenizer.json beside them."""
    if given is not None:
        return Path(given)
    if weights.suffix == ".gguf":
        return weights
    folder = weights if weights.is_dir() else weights.parent
    found = folder / "tokenizer.json"
    if not found.is_file():
        raise BlockgraphError(Problem("no-tokenizer", f"no tokenizer.json beside {weights}: give --tokenizer"))
    return found


def parameters(model: Model, weights: str | Path | None, seed: int = 0, progress: Any = None) -> dict[str, Any]:
    """Arrays by parameter label: from a file, or random by the spec's initialisers."""
    from runtime.weights.initial import random
    from runtime.weights.load import load as read_weights

    if weights is None:
        return dict(random(model, seed).arrays)
    return dict(read_weights(model, Path(weights), progress=progress).arrays)


def trace_inputs(
    model: Model,
    tokens: Sequence[Sequence[int]] | None = None,
    inputs: Mapping[str, Any] | str | Path | None = None,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
) -> Inputs:
    """All inputs of a call of the model: ``tokens`` [batch][length], ``inputs`` by name (or a .safetensors file of
    them), and random ones from a seed for what neither gives (``drawn`` names them)."""
    from runtime.inputs import complete, read

    given: dict[str, Any] = {}
    if inputs is not None:
        given |= inputs if isinstance(inputs, Mapping) else read(Path(inputs))
    name = model.streaming_input
    if name is None and tokens is not None:
        known = tuple(model.spec.inputs)
        raise BlockgraphError(Problem("unknown-input", f"{model.name} takes no tokens", None, known))
    if name is not None and tokens is not None:
        given[name] = tokens
    if name is not None and name not in given:
        raise BlockgraphError(Problem("missing-input", f"{model.name} needs its input {name}: give the tokens"))
    return complete(model, given, sizes, seed)


def trace(
    model: Model | str,
    weights: str | Path | None = None,
    *,
    tokens: Sequence[Sequence[int]] | None = None,
    seed: int = 0,
    inputs: Mapping[str, Any] | str | Path | None = None,
    input_seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    reference: str | Path | None = None,
    tolerance: float = 1e-3,
    out: str | Path | None = None,
) -> tuple[list[Record], Record | None]:
    """Values at every node in one forward pass over the inputs (see ``trace_inputs``), and the first node that is not
    finite or differs from ``reference`` (an .npz of an earlier trace) by more than tolerance x its rms."""
    from runtime import trace as tracing

    model = load(model) if isinstance(model, str) else model
    other = tracing.read_reference(Path(reference)) if reference is not None else None
    call = trace_inputs(model, tokens, inputs, sizes, input_seed)
    values = tracing.trace(model, parameters(model, weights, seed), call.arrays, sizes=call.sizes)
    if out is not None:
        tracing.save(values, Path(out))
    made = tracing.records(values, other)
    return made, tracing.first_difference(made, tolerance)


def export(
    model: Model | str,
    weights: str | Path,
    out: str | Path,
    *,
    format: str = "huggingface",
    progress: Any = None,
) -> list[Path]:
    """Writes weights as safetensors under the published names of ``format``; those of a model whose spec holds them in
    few bits as they are held, under our own."""
    from runtime.weights.load import export as write
    from runtime.weights.load import load as read_weights

    model = load(model) if isinstance(model, str) else model
    loaded = read_weights(model, Path(weights), progress=progress)
    if model.policy.weights is not None:
        from runtime.weights.packing import save

        return [save(model, loaded.arrays, Path(out), loaded.rows)]
    return list(write(model, loaded, Path(out), format=format, progress=progress))


def validate(spec: str | Path, overrides: Mapping[str, Any] | None = None) -> list[Problem]:
    """The problems of a spec, its weights mappings included; none for a good one."""
    from runtime.weights.mapping import check

    try:
        return list(check(load(spec, overrides)))
    except BlockgraphError as error:
        return list(error.problems)


def show(model: Model | str, context: int = 8192, sizes: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Parameters by block, dims, args, inputs, outputs, phases, state at a context length, sources and guesses."""
    from blockgraph.inspect import summary

    return summary(load(model) if isinstance(model, str) else model, context, sizes)


def graph(model: Model | str, out: str | Path, depth: int | None = None) -> Path:
    """Draws the model into an .svg or .png file."""
    from blockgraph.picture import draw

    return draw(load(model) if isinstance(model, str) else model, out, depth)


def diff(a: Model | str, b: Model | str) -> dict[str, Any]:
    """How two models differ: dims, args, parameters, ops, state."""
    from blockgraph.difference import difference

    first, second = (load(m) if isinstance(m, str) else m for m in (a, b))
    return dict(difference(first, second))


def import_config(
    path: str | Path,
    drop: Sequence[str] = (),
    name: str | None = None,
    weights: str | Path | None = None,
) -> Imported:
    """The spec of a Hugging Face config.json, or of the folder that has one. ``drop``: fields that are left out;
    ``weights``: safetensors that it is held against, by default those in the folder."""
    from blockgraph.importing.config import import_config as read

    return read(path, drop, name, weights)


def schema() -> dict[str, Any]:
    """The JSON Schema of spec files."""
    from compiler.language.spec import json_schema

    return json_schema()


def machines() -> list[str]:
    """Names of the machines that a plan can be made for."""
    from costmodel.machines import machines as known

    return list(known())
