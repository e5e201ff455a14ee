"""``generate``, ``trace``, ``export``: what needs weights, and imports jax when it runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blockgraph.cli import options, processes, screen
from blockgraph.cli.mesh import Mesh, Replicate, Strategy
from blockgraph.cli.options import Json, Sets, Sizes, Spec, Weights
from blockgraph.cli.progress import Progress

if TYPE_CHECKING:
    from blockgraph.api import Piece

DIFFERENT = 1
Tokenizer = Annotated[
    Path | None,
    typer.Option("--tokenizer", metavar="PATH", help="A tokenizer.json or .gguf (default: that of the weights)."),
]


def generate(
    spec: Spec,
    weights: Weights,
    prompts: Annotated[list[str], typer.Option("--prompt", metavar="TEXT", help="Several make a batch.")],
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="New tokens of each prompt.")] = 64,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", min=0, max=1, help="Draw from this share of the likeliest.")] = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="Draw from the k likeliest; 0 is all.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the draws.")] = 0,
    chat: Annotated[bool, typer.Option("--chat", help="Each prompt is a message to the assistant.")] = False,
    tokenizer: Tokenizer = None,
    mesh: Mesh = None,
    parallel: Strategy = None,
    replicate: Replicate = None,
    distributed: processes.Distributed = False,
    coordinator: processes.Coordinator = None,
    process_count: processes.Processes = None,
    process_id: processes.ProcessId = None,
    patience: processes.Patience = processes.PATIENCE,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Continue prompts with real weights: greedy, or drawn at a temperature.
    [dim]blockgraph generate smollm2-135m --weights w.gguf --prompt "Hello"[/]"""
    model = options.loaded(spec, sets)
    import blockgraph.api as api
    from runtime import device

    started = time.perf_counter()
    with processes.joined(distributed, coordinator, process_count, process_id, patience) as group:
        device.prepare()
        if group.first:
            options.warn(model, as_json)
        with Progress("loading weights", as_json or not group.first, model.name) as progress:
            pieces = api.generate(
                model,
                weights,
                list(prompts),
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                seed=seed,
                chat=chat,
                tokenizer=tokenizer,
                mesh=mesh,
                parallel=parallel,
                replicate=tuple(replicate or ()),
                progress=progress,
            )
            pieces = _first_ready(pieces, progress)
            loaded = time.perf_counter()
            if as_json or not group.first:
                rows = _collected(pieces, prompts)
                if group.first:
                    screen.print_json({"model": model.name, "weights": str(weights), "rows": rows})
                return
            count = _streamed(pieces) if len(prompts) == 1 else _by_row(pieces, prompts)
    if sys.stderr.isatty():
        seconds = time.perf_counter() - loaded
        rate = f", {count / seconds:,.1f} tokens/s" if seconds > 0 and count > 1 else ""
        text = f"{count:,} tokens after {loaded - started:.1f} s of loading and compiling{rate}"
        screen.console(stderr=True).print(text, style="dim")


def _first_ready(pieces: Iterator[Piece], progress: Progress) -> Iterator[Piece]:
    """The same pieces once the first is there: until then weights load and programs compile."""
    first = next(pieces, None)
    progress.stop()

    def all_of_them() -> Iterator[Piece]:
        if first is not None:
            yield first
            yield from pieces

    return all_of_them()


def _streamed(pieces: Iterator[Piece]) -> int:
    """Writes the only row's text as it comes."""
    count = 0
    for piece in pieces:
        count += piece.token >= 0
        sys.stdout.write(screen.clean(piece.text))
        sys.stdout.flush()
    sys.stdout.write("\n")
    return count


def _by_row(pieces: Iterator[Piece], prompts: Sequence[str]) -> int:
    """Writes rows one after another, in their order: the first unfinished one streams, later ones wait."""
    texts: list[list[str]] = [[] for _ in prompts]
    done = [False] * len(prompts)
    count, showing, headed = 0, 0, False
    console = screen.console()

    def write(row: int) -> None:
        nonlocal headed
        if not headed:
            console.print(screen.cell(f"{row + 1}  {prompts[row].strip()[:70]}"), style="bold", soft_wrap=True)
            headed = True
        sys.stdout.write(screen.clean("".join(texts[row])))
        sys.stdout.flush()
        texts[row].clear()

    for piece in pieces:
        count += piece.token >= 0
        texts[piece.row].append(piece.text)
        done[piece.row] = done[piece.row] or piece.done
        while showing < len(prompts) and (piece.row == showing or done[showing]):
            write(showing)
            if not done[showing]:
                break
            sys.stdout.write("\n")
            showing, headed = showing + 1, False
    return count


def _collected(pieces: Iterator[Piece], prompts: Sequence[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"prompt": p, "text": "", "tokens": []} for p in prompts]
    for piece in pieces:
        rows[piece.row]["text"] += piece.text
        if piece.token >= 0:
            rows[piece.row]["tokens"].append(piece.token)
    return rows


def trace(
    spec: Spec,
    weights: Annotated[str | None, typer.Option("--weights", metavar="PATH", help="Real weights …")] = None,
    random: Annotated[
        int | None, typer.Option("--random", metavar="SEED", min=0, help="… or random ones from a seed (default: 0).")
    ] = None,
    tokens: Annotated[
        list[str] | None, typer.Option("--tokens", metavar="IDS", help='Ids, as in "1 2 3"; several make a batch.')
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", metavar="TEXT", help="Text instead of ids.")] = None,
    inputs: Annotated[
        Path | None,
        typer.Option("--inputs", metavar="FILE", help="A .safetensors file with inputs by name; others are random."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of inputs that are not given.")] = 0,
    reference: Annotated[
        Path | None, typer.Option("--reference", metavar="FILE", help="An .npz of an earlier trace to compare with.")
    ] = None,
    tolerance: Annotated[float, typer.Option("--tolerance", min=0, help="Allowed, in parts of a node's rms.")] = 1e-3,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE", help="Save all values as an .npz.")] = None,
    only: Annotated[
        str | None, typer.Option("--only", metavar="PATH", help="Show this block, as in layer.mlp.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Show every node, not each block's last.")] = False,
    tokenizer: Tokenizer = None,
    sets: Sets = None,
    sizes: Sizes = None,
    as_json: Json = False,
) -> None:
    """Values at every node; the first that differs from a reference.
    [dim]blockgraph trace smollm2-135m --tokens "1 2 3" -o values.npz[/]

    Exit code 1: a node is not finite, or differs from the reference."""
    from compiler.errors import BlockgraphError, Problem

    if weights is not None and random is not None:
        raise BlockgraphError(Problem("bad-option", "--weights and --random exclude each other"))
    if tokens is not None and prompt is not None:
        raise BlockgraphError(Problem("bad-option", "--tokens and --prompt exclude each other"))
    if reference is not None and not reference.is_file():
        raise BlockgraphError(Problem("file-missing", f"--reference: there is no file {reference}"))
    if out is not None and out.suffix != ".npz":
        raise BlockgraphError(Problem("unknown-format", f"-o {out}: values are saved as .npz", None, (".npz",)))
    model = options.loaded(spec, sets)
    if tokens is None and prompt is None and inputs is None and model.streaming_input is not None:
        text = "give --tokens, --prompt or an --inputs file that holds the tokens"
        raise BlockgraphError(Problem("bad-option", text))
    given = options.sizes(sizes)
    ids = _ids(tokens, vocabulary(model)) if tokens is not None else None
    ids = [_words(prompt, weights, tokenizer)] if prompt is not None else ids
    import blockgraph.api as api
    from runtime import device

    call = api.trace_inputs(model, ids, inputs, given, seed)
    options.warn(model, as_json)
    device.prepare()
    with Progress("tracing", as_json, model.name):
        records, first = api.trace(model, weights, seed=random or 0, inputs=call.arrays, sizes=call.sizes,
                                   reference=reference, tolerance=tolerance, out=out)  # fmt: skip
    if call.drawn and not as_json:
        text = f"note: random from seed {seed}: {', '.join(call.drawn)} (--inputs FILE gives them)"
        screen.console(stderr=True).print(screen.cell(text), style="dim", soft_wrap=True)
    if as_json:
        rows = [r.as_json() for r in records]
        stream = model.streaming_input
        screen.print_json({"model": model.name, "tokens": None if stream is None else call.arrays[stream].tolist(),
                           "random_inputs": list(call.drawn), "nodes": rows, "first": first and first.as_json(),
                           "file": out and str(out)})  # fmt: skip
    else:
        from blockgraph.cli.traced import show_trace

        show_trace(records, first, reference, only, every)
        if out is not None:
            screen.console().print(screen.cell(f"{out}  {len(records):,} values"), soft_wrap=True)
    if first is not None:
        raise typer.Exit(DIFFERENT)


def vocabulary(model: Any) -> int | None:
    """Rows of the table that the streaming tokens look up, as the graph tells."""
    rows = [
        node.operands[0].type.size(node.op.axis)
        for node, _ in model.graph.walk()
        if node.op.name == "lookup" and "seq" in node.operands[1].axes
    ]
    return int(rows[0].constant) if rows and rows[0].is_constant else None


def _ids(texts: Sequence[str], vocab: int | None) -> list[list[int]]:
    from compiler.errors import BlockgraphError, Problem

    rows = []
    for text in texts:
        words = text.replace(",", " ").split()
        wrong = [w for w in words if not (w.isascii() and w.isdigit() and len(w) <= 10)]
        wrong = wrong or [w for w in words if vocab is not None and int(w) >= vocab]
        if wrong or not words:
            allowed = (f"ids from 0 to {vocab - 1:,}",) if vocab else ("ids of 0 or more",)
            what = f"--tokens: {wrong[0]!r} is no token id" if wrong else "--tokens has no id"
            raise BlockgraphError(Problem("bad-tokens", what, None, allowed))
        rows.append([int(w) for w in words])
    if len({len(r) for r in rows}) > 1:
        lengths = ", ".join(str(len(r)) for r in rows)
        raise BlockgraphError(Problem("bad-tokens", f"--tokens: rows of one length each, found {lengths}"))
    return rows


def _words(prompt: str, weights: str | None, tokenizer: Path | None) -> list[int]:
    """The prompt's ids by the tokenizer of the weights, or the one given."""
    from compiler.errors import BlockgraphError, Problem

    if weights is None and tokenizer is None:
        raise BlockgraphError(Problem("no-tokenizer", "--prompt needs --weights with a tokenizer, or --tokenizer"))
    from blockgraph.api import tokenizer_file
    from runtime.text.tokenizer import tokenizer as read

    ids = list(read(tokenizer_file(Path(weights or "."), tokenizer)).encode(prompt))
    if not ids:
        raise BlockgraphError(Problem("bad-tokens", "--prompt has no token"))
    return ids


def export(
    spec: Spec,
    weights: Weights,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new or empty folder.")],
    format_: Annotated[
        str, typer.Option("--format", metavar="NAME", help="Of the spec's weights, or blockgraph.")
    ] = "huggingface",
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Write weights as safetensors under their published names.
    [dim]blockgraph export smollm2-135m --weights w.gguf --out smollm2-hf[/]"""
    from blockgraph.cli.files import new_folder, within
    from runtime.weights.mapping import OWN

    model = options.loaded(spec, sets)
    place = new_folder(out)
    known = (*model.spec.weights, OWN)
    if format_ not in known:
        from compiler.errors import BlockgraphError, Problem, nearest

        raise BlockgraphError(
            Problem("unknown-format", f"{model.name} maps no {format_} weights", None, known, nearest(format_, known))
        )
    import blockgraph.api as api

    with Progress("converting", as_json, model.name) as progress:
        files = within(api.export(model, weights, place, format=format_, progress=progress), place)
    sizes = {str(f): f.stat().st_size for f in files}
    if as_json:
        screen.print_json({"model": model.name, "format": format_, "files": sizes})
        return
    from costmodel.units import memory_text

    for name, size in sizes.items():
        screen.console().print(screen.cell(f"{name}  {memory_text(size)}"), soft_wrap=True)
