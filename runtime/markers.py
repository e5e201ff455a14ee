"""Tokens that stand in a text for images or videos: one for each, in order. A text whose markers are not as many as its
images is refused, as it would read the wrong ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compiler.errors import Problem
from compiler.language.model import Model

IMAGES, LENGTHS = "image", "image_lengths"


def counted(model: Model, rows: Sequence[Sequence[int]] | np.ndarray) -> dict[str, np.ndarray]:
    """How many markers each row of tokens has [batch], by the input that they stand for."""
    return {n: np.array([int(np.sum(np.asarray(r) == t)) for r in rows]) for n, t in model.markers.items()}


def given(model: Model, inputs: Mapping[str, Any], batch: int) -> dict[str, np.ndarray]:
    """How many images each row has [batch], by input: as many as ``image_lengths`` says, else as there are places."""
    found = {}
    for name in model.markers:
        places = np.shape(inputs[name])[1] if name in inputs else 0
        varies = model.spec.inputs[name].count in (None, "any") and LENGTHS in inputs
        found[name] = np.asarray(inputs[LENGTHS]) if varies else np.full(batch, places)
    return found


def misfits(model: Model, markers: Mapping[str, np.ndarray], images: Mapping[str, np.ndarray]) -> list[Problem]:
    """A problem for each row whose markers are not as many as its images."""
    found = []
    for name, token in model.markers.items():
        for row, (m, n) in enumerate(zip(markers[name], images[name], strict=True)):
            if m != n:
                text = f"row {row + 1} has {m} of the token {token}, which stands for one of {name}, and {n} of {name}"
                found.append(Problem("marker-mismatch", text, None, ("as many of one as of the other",)))
    return found


def placed(tokens: np.ndarray, marker: int, counts: np.ndarray, vocab: int, draw: np.random.Generator) -> np.ndarray:
    """Random tokens [batch, length] with exactly ``counts`` markers in each row, at random places."""
    other = (marker + 1 + draw.integers(0, max(1, vocab - 1), tokens.shape)) % vocab
    made = np.where(tokens == marker, other, tokens)
    for row, count in zip(made, counts, strict=True):
        row[draw.permutation(len(row))[:count]] = marker
    return made
