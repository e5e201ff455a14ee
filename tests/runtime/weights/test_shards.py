"""Parts of a checkpoint, and of random weights, are those of the whole; a process reads only its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.language.model import Model, loads
from runtime.weights import parts, shards
from runtime.weights.initial import random, random_boxes
from runtime.weights.load import export, load
from runtime.weights.parts import Box
from tests.runtime.weights.specs import LLAMA, MIXTRAL, NEOX

HF = Path(__file__).parents[2] / "fixtures" / "hf"
CASES = {"llama": LLAMA, "mixtral": MIXTRAL, "gpt_neox": NEOX}
QUERY = "model.layers.<layer>.self_attn.q_proj.weight"


class Half:
    """A sharding over two processes of one device each, along one axis where it divides."""

    def __init__(self, axis: int, mine: int) -> None:
        self.axis, self.mine = axis, mine

    def addressable_devices_indices_map(self, shape: tuple[int, ...]) -> dict[int, tuple[slice, ...]]:
        index = [slice(None)] * len(shape)
        if self.axis < len(shape) and shape[self.axis] % 2 == 0:
            n = shape[self.axis] // 2
            index[self.axis] = slice(self.mine * n, (self.mine + 1) * n)
        return {0: tuple(index)}


def read(
    model: Model, path: Path, axis: int, mine: int, monkeypatch: pytest.MonkeyPatch, labels: list[str] | None = None
) -> tuple[dict[str, dict[Box, np.ndarray]], int]:
    """What a process holds of each array, and how many bytes it read."""
    monkeypatch.setattr(parts, "placed", lambda shape, sharding, held: held)
    found = shards.load_onto(model, path, dict.fromkeys(model.parameters, Half(axis, mine)), labels=labels)
    return found.arrays, found.bytes_read


def cut(whole: np.ndarray, box: Box) -> np.ndarray:
    return whole[tuple(slice(a, b) for a, b in box)]


@pytest.mark.parametrize("least", [1, 4096])
@pytest.mark.parametrize("axis", [0, 1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_parts_are_those_of_the_whole(name: str, axis: int, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loads(CASES[name])
    whole = load(model, HF / name).arrays
    monkeypatch.setattr(shards, "LEAST", least)
    for mine in (0, 1):
        found, _ = read(model, HF / name, axis, mine, monkeypatch)
        assert found.keys() == whole.keys()
        for label, held in found.items():
            for box, array in held.items():
                np.testing.assert_array_equal(array, cut(whole[label], box), err_msg=label)


def test_padded_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    text = LLAMA.replace("vocab: 96", "vocab: 256").replace("layout: out in", "layout: out in\n    padded: [vocab]", 1)
    model = loads(text)
    whole = load(model, HF / "llama").arrays
    for axis, mine in ((0, 0), (0, 1), (1, 0), (1, 1)):
        for label, held in read(model, HF / "llama", axis, mine, monkeypatch)[0].items():
            for box, array in held.items():
                np.testing.assert_array_equal(array, cut(whole[label], box), err_msg=label)


def test_a_layout_that_splits_an_axis_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interleaved rotary pairs: the layers that a process has, each whole."""
    model = loads(LLAMA.replace(QUERY, f"{{tensor: {QUERY}, pairs: interleaved}}"))
    whole = load(model, HF / "llama").arrays
    label = next(k for k in whole if k.startswith("layer.attention.query"))
    for axis in (0, 1, 2, 3):
        held, count = read(model, HF / "llama", axis, 1, monkeypatch, [label])
        for box, array in held[label].items():
            np.testing.assert_array_equal(array, cut(whole[label], box))
        assert count == whole[label].nbytes


def test_a_process_reads_only_its_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, layers, experts, and columns that are long enough; short ones come with their rows."""
    model = loads(MIXTRAL.replace("embed: 32", "embed: 64"))
    whole = random(model, 0)
    export(model, whole, tmp_path / "x.safetensors")
    size = {k: a.nbytes for k, a in whole.arrays.items()}
    up = next(k for k in size if k.startswith("layer.moe.up"))  # [layers, experts, embed, mlp]; theirs is mlp embed

    def bytes_of(label: str, axis: int) -> int:
        return read(model, tmp_path / "x.safetensors", axis, 1, monkeypatch, [label])[1]

    assert bytes_of("embed.table", 0) == size["embed.table"] // 2
    assert bytes_of(up, 1) == bytes_of(up, 3) == size[up] // 2
    assert bytes_of("embed.table", 1) == size["embed.table"]  # half a row is 128 bytes
    monkeypatch.setattr(shards, "LEAST", 128)
    assert bytes_of("embed.table", 1) == size["embed.table"] // 2
    assert bytes_of(up, 2) == size[up] // 2


@pytest.mark.parametrize("name", CASES)
def test_boxes_of_random_weights(name: str) -> None:
    model = loads(CASES[name])
    whole = random(model, 5).arrays
    for label, array in whole.items():
        for axis in range(array.ndim):
            boxes = [parts.boxes(array.shape, Half(axis, mine))[0] for mine in (0, 1)]
            found: dict[Box, Any] = random_boxes(model, label, 5, boxes)
            for box, part in found.items():
                assert part.dtype == array.dtype
                np.testing.assert_array_equal(part, cut(array, box))


def test_arrays_on_this_machine_s_device() -> None:
    model = loads(LLAMA)
    whole, found = load(model, HF / "llama").arrays, shards.load_onto(model, HF / "llama", {})
    for label, array in whole.items():
        np.testing.assert_array_equal(np.asarray(found.arrays[label]), array)
    assert found.format == "huggingface" and found.bytes_read == sum(a.nbytes for a in whole.values())
