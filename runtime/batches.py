"""Batches for training: random ones, or windows of a text. A batch depends on the seed and its step alone, so
that every process draws the same and takes its own rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from compiler.errors import BlockgraphError, Problem
from compiler.language.model import Model
from compiler.ops.leaves import Input
from runtime.inputs import LENGTHS, complete

Batch = np.ndarray | Mapping[str, np.ndarray]  # tokens [batch, length], int32; or all inputs by name
Batches = Callable[[int], Batch]  # step, from 0 -> batch
BYTES = 256
VARIED = {"image": 0, "frame": 1}  # axes of which rows have different lengths, and the least


def synthetic(vocab: int, batch: int, length: int, seed: int) -> Batches:
    """Random tokens, uniform below ``vocab``."""
    return lambda step: _stream(seed, step).integers(0, vocab, (batch, length)).astype(np.int32)


def synthetic_inputs(model: Model, sizes: Mapping[str, int], seed: int) -> Batches:
    """All inputs of a model that reads more than tokens, at random: as many markers in a row as it has images, from
    none to all that there is room for. Raises BlockgraphError for a size that is missing."""
    lengths = {n.op.label: n.result.type for n in model.graph.leaves(Input)
               if isinstance(n.op, Input) and n.op.label.endswith(LENGTHS)}  # fmt: skip

    def draw(step: int) -> Mapping[str, np.ndarray]:
        stream, given = _stream(seed, step), {}
        for name, t in lengths.items():
            axis = name.removesuffix(LENGTHS)
            if t.elements.symbols | {axis} <= set(sizes) and axis in VARIED:
                shape = [int(s.evaluate(sizes)) for s in t.sizes]
                given[name] = stream.integers(VARIED[axis], sizes[axis] + 1, shape).astype(np.int32)
        return complete(model, given, sizes, int(stream.integers(2**31))).arrays

    draw(0)
    return draw


def windows(ids: Sequence[int] | np.ndarray, vocab: int, batch: int, length: int, seed: int) -> Batches:
    """Windows of a text of ids, begun at random. Raises BlockgraphError for a text that is shorter than one, or that
    has an id which the model lacks."""
    text = np.asarray(ids, np.int32)
    if len(text) < length:
        allowed = (f"--length of 1 to {len(text):,}",)
        raise BlockgraphError(Problem("short-text", f"the text has {len(text):,} tokens", None, allowed))
    if text.max() >= vocab:
        allowed = (f"0 to {vocab - 1:,}",)
        raise BlockgraphError(Problem("out-of-range", f"the text has the token {text.max():,}", None, allowed))
    beside = np.lib.stride_tricks.sliding_window_view(text, length)

    def draw(step: int) -> np.ndarray:
        return beside[_stream(seed, step).integers(0, len(beside), batch)]

    return draw


def read(path: Path, vocab: int, tokenizer: Path | None = None) -> np.ndarray:
    """The ids of a text file: by a tokenizer, else its bytes. Raises BlockgraphError for a model with fewer than 256
    tokens and no tokenizer."""
    if path.is_dir():
        raise BlockgraphError(Problem("not-a-file", f"--text: {path} is a folder, and one file of text is read"))
    if not path.is_file():
        raise BlockgraphError(Problem("file-missing", f"--text: there is no file {path}"))
    if tokenizer is not None:
        from runtime.text.tokenizer import tokenizer as read_tokenizer

        return np.asarray(read_tokenizer(tokenizer).encode(path.read_text("utf-8", "replace")), np.int32)
    if vocab < BYTES:
        message = f"a text is read as bytes without --tokenizer, and the model has {vocab} tokens"
        raise BlockgraphError(Problem("no-tokenizer", message, None, ("a vocabulary of 256 or more", "--tokenizer")))
    return np.frombuffer(path.read_bytes(), np.uint8).astype(np.int32)


def _stream(seed: int, step: int) -> np.random.Generator:
    return np.random.default_rng([seed, step])
