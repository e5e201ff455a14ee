"""Training: the compiled step of a model, run on batches of tokens, on one device or on a mesh over many processes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime import device

device.prepare()

import jax  # noqa: E402
import numpy as np  # noqa: E402

from compiler.errors import BlockgraphError, Problem  # noqa: E402
from compiler.language.model import Model  # noqa: E402
from compiler.lower.entry import program_of  # noqa: E402
from compiler.lower.train import TrainingStep  # noqa: E402
from compiler.parallel.build import build  # noqa: E402
from compiler.parallel.request import Request, Wires  # noqa: E402
from compiler.passes.accumulate import WEIGHT  # noqa: E402
from compiler.passes.call import TRAIN  # noqa: E402
from compiler.passes.dropout import rates  # noqa: E402
from compiler.targets.types import Target  # noqa: E402
from runtime import markers, memory  # noqa: E402
from runtime.batches import Batch, Batches  # noqa: E402
from runtime.weights import parts  # noqa: E402
from runtime.weights.initial import random_onto  # noqa: E402
from runtime.weights.load import Weights, export  # noqa: E402
from runtime.weights.mapping import OWN  # noqa: E402
from runtime.weights.shards import load_onto  # noqa: E402

SMALLER = "fewer layers or a smaller width (--set), --optimiser sgd, or --parallel fsdp over more devices"
LESS = "a smaller --batch or --length, --accumulate N, or --remat full"


class Diverged(BlockgraphError):
    """The loss is no number any more."""

    exit_code = 1


@dataclass(frozen=True)
class Step:
    """What one step said. ``loss``: mean next-token cross-entropy in nats, before the update, plus the further terms
    that the model has; ``terms``: these and the cross-entropy by name, none where it is alone; ``gradient_norm``:
    before clipping; ``tokens_per_s``: of all devices together, of this step; ``seconds``: with the transfer of the
    batch, without compiling."""

    step: int  # from 1
    loss: float
    gradient_norm: float
    learning_rate: float
    seconds: float
    tokens_per_s: float
    terms: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))


class Trainer:
    """A model in training: parameters and optimiser state on the devices, and the compiled step.

    ``target``: the machine that the devices are, which decides what lies where; ``wires``: its links where it has some;
    ``weights``: a checkpoint to start from, else random ones from ``seed``. Each process makes or reads only what its
    own devices hold. Raises BlockgraphError with every problem of strategy, mesh, sizes and weights."""

    def __init__(
        self, model: Model, asked: Request, target: Target, *, wires: Wires | None = None, seed: int = 0,
        weights: Path | None = None, progress: Any = None,
    ) -> None:  # fmt: skip
        if asked.phase != TRAIN:
            raise BlockgraphError(Problem("bad-option", f"a trainer runs {TRAIN}, not {asked.phase}"))
        self.model, self.asked, self.seed = model, asked, seed
        self.rates = rates(model.graph)
        if progress:
            progress("building the step")
        made = program_of(build(model, asked, target, wires), TRAIN, jax.devices())
        assert isinstance(made, TrainingStep)
        self.program = made
        self.tokens = str(model.streaming_input)
        self.where: dict[str, Any] = dict(made.shardings())
        labels = [k for k in model.parameters if k in made.parameters]
        self._start = lambda labels, where: _arrays(model, labels, where, weights, seed)
        params, state, _ = made.arguments()
        memory.require(model.name, {"parameters": params, "the optimiser's state": state}, SMALLER)
        if progress:
            progress("loading weights" if weights else "drawing weights")
        self.params, self.rows = self._start(labels, self.where)
        self.state = self._laid(made.initial_state(self.params))
        self.count = 0
        self.compile_seconds: float | None = None  # of the compiler, once the first step is asked for
        self._step: Any = None
        self._progress = progress

    def _laid(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state as the step will give it back, or its second call would compile again."""
        return {k: jax.device_put(x, self.where.get(k) or parts.one_device()) for k, x in state.items()}

    def _compiled(self, given: dict[str, Any]) -> Any:
        """The compiled step. Raises OutOfMemory where it has no room to work."""
        if self._progress:
            self._progress("compiling")
        started = time.perf_counter()
        made = self._jitted().lower(self.params, self.state, given).compile()
        self.compile_seconds = time.perf_counter() - started
        if jax.default_backend() == "cpu":  # others know their memory and refuse the program themselves
            found = made.memory_analysis()
            parts = {"working memory of a step": float(found.temp_size_in_bytes) if found is not None else 0.0}
            memory.require_bytes(self.model.name, parts, memory.free_bytes(), LESS)
        return made

    def _jitted(self) -> Any:
        """The step with everything staying where it lies."""
        if self.program.mesh is None:
            return self.program.jitted()
        spread = [{k: self.where[k] for k in group} for group in (self.params, self.state)]
        whole = jax.sharding.NamedSharding(self.program.mesh, jax.sharding.PartitionSpec())
        return jax.jit(self.program.function(), donate_argnums=(0, 1), out_shardings=(whole, *spread))

    def save(self, folder: Path) -> list[Path]:
        """Writes the parameters as safetensors under our own labels. All processes call it, the first writes; the
        others get no path. Parameters that the loss does not depend on are as they began."""
        others, _ = self._start([k for k in self.model.parameters if k not in self.params], {})
        arrays = {label: {**self.params, **others}[label] for label in self.model.parameters}
        if device.first():
            return export(self.model, Weights(arrays, self.rows), folder, OWN, whole=parts.whole)
        for array in arrays.values():  # as the first process asks for them
            parts.whole(array)
        return []

    def step(self, batch: Batch, rate: float, lengths: np.ndarray | None = None) -> Step:
        """One update on tokens [batch, length], or on all inputs by name. ``lengths`` [batch]: real tokens of each row,
        all unless given. Raises BlockgraphError where an input is missing, or markers do not fit their images."""
        inputs: dict[str, Any] = dict(batch) if isinstance(batch, Mapping) else {self.tokens: batch}
        tokens = np.asarray(inputs[self.tokens])
        rows, length = tokens.shape
        inputs.setdefault("seq_lengths", np.full(rows, length))
        inputs |= {"learning_rate": np.float32(rate)} | ({} if lengths is None else {"seq_lengths": lengths})
        inputs |= self._kept(inputs)
        self._check(inputs, tokens)
        given = {k: inputs[k] for k in self.program.inputs}
        with memory.told(self.model.name):
            self._step = self._step or self._compiled(self._placed(given))
            started = time.perf_counter()
            placed = self._placed(given)
            out, self.params, self.state = self._step(self.params, self.state, placed)
        said = {name: float(np.asarray(value)) for name, value in out.items()}
        loss, norm = said.pop("loss"), said.pop("gradient_norm")
        del said[WEIGHT]
        self.count += 1
        seconds = time.perf_counter() - started
        return Step(self.count, loss, norm, rate, seconds, tokens.size / seconds, said)

    def run(self, batches: Batches, steps: int, rate: float, warmup: int = 0) -> Iterator[Step]:
        """So many steps. The learning rate rises in equal parts over ``warmup`` steps and then stays. Raises Diverged
        after the step whose loss, or whose gradient, is no number."""
        for _ in range(steps):
            share = min(1.0, (self.count + 1) / warmup) if warmup else 1.0
            said = self.step(batches(self.count), rate * share)
            yield said
            what, value = ("loss", said.loss) if not np.isfinite(said.loss) else ("gradient's norm", said.gradient_norm)
            if not np.isfinite(value):
                message = f"the {what} of step {said.step} is {value}"
                raise Diverged(Problem("diverged", message, None, (), "a lower --lr, or a longer --warmup"))

    def _kept(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Which positions count of those that a step leaves out at random, where the batch does not say."""
        made = {}
        for i, (label, rate) in enumerate(self.rates.items()):
            if label in self.program.inputs and label not in inputs:
                sizes = {**self.program.sizes, "batch": self.asked.batch}
                shape = [int(s.evaluate(sizes)) for s in self.program.inputs[label].sizes]
                draw = np.random.default_rng([self.seed, self.count, i])
                made[label] = (draw.random(shape) >= rate).astype(np.int32)
        return made

    def _check(self, inputs: Mapping[str, Any], tokens: np.ndarray) -> None:
        if missing := [k for k in self.program.inputs if k not in inputs]:
            message = f"{self.model.name} also reads {', '.join(missing)}"
            raise BlockgraphError(Problem("missing-input", message, None, (), "--synthetic draws all inputs"))
        images = markers.given(self.model, inputs, len(tokens))
        if wrong := markers.misfits(self.model, markers.counted(self.model, tokens), images):
            raise BlockgraphError(wrong)

    def _placed(self, given: dict[str, Any]) -> dict[str, Any]:
        typed = {k: np.asarray(x, self.program.inputs[k].dtype) for k, x in given.items()}
        if self.program.mesh is None:
            return typed
        return {k: parts.replicated(x, self.where[k]) for k, x in typed.items()}


def _arrays(
    model: Model, labels: list[str], where: dict[str, Any], weights: Path | None, seed: int
) -> tuple[dict[str, Any], dict[str, int]]:
    """Parameters to start from, and the rows of padded axes."""
    if weights is None or not labels:
        return random_onto(model, seed, where, labels), {}
    placed = load_onto(model, weights, where, labels=labels)
    return placed.arrays, placed.rows
