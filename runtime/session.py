"""A session: a model with weights and a state, extended by prefill and decode. Rows keep their own positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runtime import device

device.prepare()

import jax  # noqa: E402
import numpy as np  # noqa: E402

from compiler.errors import BlockgraphError, Problem  # noqa: E402
from compiler.language.model import Model  # noqa: E402
from compiler.lower.program import Program, program  # noqa: E402
from compiler.ops.latest import latest_of  # noqa: E402
from compiler.ops.leaves import Input  # noqa: E402
from compiler.ops.lookup import Lookup  # noqa: E402
from compiler.passes.phase import phase_graph  # noqa: E402
from compiler.passes.select import Choice  # noqa: E402
from runtime import markers, memory  # noqa: E402
from runtime.meshed import Meshed  # noqa: E402
from runtime.meshed import Place as Place  # noqa: E402
from runtime.meshed import meshed as meshed  # noqa: E402
from runtime.weights.packing import packed_arrays  # noqa: E402

CHUNK = 256  # tokens of one prefill call


class Session:
    """Generation state of ``batch`` rows with room for ``capacity`` positions each.

    ``params`` maps parameter labels to arrays. Prefill is compiled for calls of ``chunk`` tokens, decode for one;
    prompts of unequal lengths are right-padded and each row equals its solo run. A model that makes more of its last
    positions (`latest`) makes them anew at the end of each prompt, and in a row that has no room for one more. ``on``:
    the programs of a mesh, whose ``chunk``, batch and capacity are the same; then every process calls the same methods
    with the same arguments."""

    def __init__(
        self, model: Model, params: Mapping[str, Any], *, batch: int, capacity: int, chunk: int = CHUNK,
        sizes: Mapping[str, int] | None = None, on: Meshed | None = None,
    ) -> None:  # fmt: skip
        for name, value in (("batch", batch), ("capacity", capacity), ("chunk", chunk)):
            if value < 1:
                raise BlockgraphError(Problem("out-of-range", f"a session's {name} = {value}", None, ("1 or more",)))
        _check_parameters(model, params)
        self.model, self.batch, self.capacity = model, batch, capacity
        self.chunk = min(chunk, capacity)
        self.on = on
        held = packed_arrays(model, params, None if on is None else on.shardings())
        self.params = {k: jax.device_put(v) for k, v in held.items()} if on is None else on.params(held)
        platform = jax.default_backend()
        choice = Choice.of(platform if platform in ("cpu", "tpu") else "gpu")
        common = {"batch": batch, "capacity": capacity, **(sizes or {})}
        if on is None:
            self._prefill = program(model, "prefill", {**common, "seq": self.chunk}, choice=choice)
            self._decode = program(model, "decode", {**common, "seq": 1}, choice=choice)
            self._first = program(model, "prefill", {**common, "seq": self.chunk}, fresh=True, choice=choice)
        else:
            self._first, self._prefill, self._decode = on.prefill, on.prefill, on.decode
        self.latest = latest_of(model.graph)
        self._feed = self._prefill
        if self.latest is not None and on is None:
            self._feed = program(model, "prefill", {**common, "seq": self.chunk}, logits="none", choice=choice)
        made = (self._first, self._prefill, self._decode, self._feed)
        self._functions = {id(p): p.jitted() if on is None else on.jitted(p) for p in made}
        self.input = str(model.streaming_input)
        self.rows = rows_of(model)
        self.output = model.graph.outputs[-1][0]
        memory.require(model.name, {"caches": self._prefill.arguments()[1]}, memory.SHORTER)
        with memory.told(model.name):
            self.state = self._prefill.empty_state()
        self.context = {k for k, (s, _) in phase_graph(model, "decode").states().items() if s.kind == "context"}
        self.awaited = set(self.context)
        self.lengths = np.zeros(batch, np.int64)
        self.held = np.zeros(batch, np.int64)  # last positions that are made, where a model makes more of these
        self.marked = {n: np.zeros(batch, np.int64) for n in model.markers}  # markers of images in each row so far
        self.images = dict(self.marked)  # what was encoded of them
        self._encoders: dict[tuple[tuple[str, int], ...], tuple[Program, Any]] = {}
        if self.awaited and all(i.streams for i in model.spec.inputs.values()):
            self.encode({}, {})

    def encode(self, inputs: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
        """Computes what does not depend on the tokens (encoders, cross-attention keys) once for all rows. A model that
        reads nothing else does so when the session begins. Of images that markers in the text stand for, all of the
        rows' texts so far and of the next prefill."""
        self.images = markers.given(self.model, inputs, self.batch)
        made, fn = self._encoder(tuple(sorted(sizes.items())))
        _, context = fn(self._own(made), {}, dict(inputs))
        self.state.update(context)
        self.awaited -= set(context)

    def _encoder(self, sizes: tuple[tuple[str, int], ...]) -> tuple[Program, Any]:
        """The program of encode for these sizes, compiled once."""
        if sizes not in self._encoders:
            given = {"batch": self.batch, "seq": 1, "capacity": self.capacity, **dict(sizes)}
            made = program(self.model, "encode", given)
            where: Any = None if self.on is None else ({}, {k: self.on.shardings()[k] for k in self.context})
            self._encoders[sizes] = made, jax.jit(made.function(), out_shardings=where)
        return self._encoders[sizes]

    def _own(self, p: Program) -> dict[str, Any]:
        return {k: self.params[k] for k in p.parameters}

    def _check(self, tokens: np.ndarray, counts: np.ndarray) -> None:
        """Raises BlockgraphError, before anything is extended, for what the call cannot take."""
        if self.awaited:
            names = ", ".join(n for n, i in self.model.spec.inputs.items() if not i.streams)
            raise BlockgraphError(Problem("missing-input", f"call encode first: the model also reads {names}"))
        need = int((self.lengths + counts).max())
        if need > self.capacity:
            raise BlockgraphError(Problem("out-of-capacity", f"{need} positions in a session of {self.capacity}"))
        wrong = tokens[(tokens < 0) | (tokens >= self.rows)]
        if wrong.size:
            allowed = (f"0 to {self.rows - 1}",)
            raise BlockgraphError(Problem("out-of-range", f"{self.model.name} has no token {wrong[0]}", None, allowed))

    def _call(self, p: Program, tokens: np.ndarray, valid: np.ndarray) -> jax.Array | None:
        inputs = {self.input: tokens.astype(np.int32), "valid": valid.astype(np.int32)}
        inputs = inputs if self.on is None else self.on.put(p, inputs)
        own = {k: self.state[k] for k in p.states}
        with memory.told(self.model.name):
            results, state = self._functions[id(p)](self._own(p), own, inputs)
        self.state.update(state)
        self.lengths += valid
        fed = p is self._feed is not self._prefill
        if self.latest is not None and not fed:
            anew = np.minimum(self.lengths, int(self.latest.keep.constant))
            self.held = np.where(valid == 0, self.held, self.held + valid if p is self._decode else anew)
        return results.get(self.output)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Extends each row by its prompt. Returns the logits after each row's last token [batch, vocab], float32.
        Raises BlockgraphError, before anything is extended, for rows whose markers do not fit their images."""
        counts = np.array([len(p) for p in prompts])
        if len(prompts) != self.batch or counts.min() < 1:
            raise BlockgraphError(Problem("empty-prompt", f"needs {self.batch} prompts of at least one token each"))
        self._check(np.concatenate([np.asarray(p, np.int64) for p in prompts]), counts)
        marked = {n: self.marked[n] + more for n, more in markers.counted(self.model, prompts).items()}
        if wrong := markers.misfits(self.model, marked, self.images):
            raise BlockgraphError(wrong)
        self.marked = marked
        last: np.ndarray | None = None
        for start in range(0, int(counts.max()), self.chunk):
            tokens = np.zeros((self.batch, self.chunk), np.int32)
            valid = np.clip(counts - start, 0, self.chunk)
            for row, prompt in enumerate(prompts):
                tokens[row, : valid[row]] = prompt[start : start + int(valid[row])]
            made = self._prefill if self.lengths.any() else self._first
            ends = (valid > 0) & (start + valid == counts)
            if self.latest is not None and not ends.any():
                self._call(self._feed, tokens, valid)
                continue
            logits = np.asarray(self._call(made, tokens, valid))[:, 0]
            last = logits if last is None else np.where((valid > 0)[:, None], logits, last)
        assert last is not None
        return last

    def decode(self, tokens: Sequence[int] | np.ndarray, active: np.ndarray | None = None) -> np.ndarray:
        """Extends each active row by one token. Returns its logits [batch, vocab], float32."""
        ids = np.asarray(tokens, np.int64).reshape(-1)
        on = np.ones(self.batch, bool) if active is None else np.asarray(active, bool)
        if len(ids) != self.batch or len(on) != self.batch:
            message = f"{len(ids)} tokens for {self.batch} rows"
            raise BlockgraphError(Problem("out-of-range", message, None, ("one a row",)))
        self._check(ids[on], on.astype(np.int64))
        ids = np.where(on, ids, 0)
        full = on & self._full()
        if not full.any():
            return self._one(self._decode, ids, on)
        made = self._one(self._prefill, ids, full)  # all last positions anew, and the token
        return made if (on == full).all() else np.where(full[:, None], made, self._one(self._decode, ids, on & ~full))

    def _one(self, p: Program, ids: np.ndarray, on: np.ndarray) -> np.ndarray:
        """A call of one token for some rows; logits [batch, vocab]."""
        tokens = np.zeros((self.batch, 1 if p is self._decode else self.chunk), np.int32)
        tokens[:, 0] = ids
        return np.asarray(self._call(p, tokens, on.astype(np.int64)))[:, 0]

    def _full(self) -> np.ndarray:
        """Rows whose last positions have no room for one more."""
        if self.latest is None:
            return np.zeros(self.batch, bool)
        return self.held >= int(self.latest.count.constant)


def _check_parameters(model: Model, params: Mapping[str, Any]) -> None:
    """Raises BlockgraphError naming each parameter that is missing or has another shape."""
    problems = []
    for label, (_, t) in model.parameters.items():
        wanted = [int(s.constant) for s in t.sizes]
        if label not in params:
            problems.append(Problem("missing-tensor", f"the weights lack {label} {wanted}"))
        elif list(params[label].shape) != wanted:
            found = list(params[label].shape)
            problems.append(Problem("misshaped-tensor", f"{label} is {found}, {model.name} needs {wanted}"))
    if problems:
        raise BlockgraphError(problems)


def rows_of(model: Model) -> int:
    """How many ids the tables have that the tokens look up."""
    name = str(model.streaming_input)
    tokens = {n.result.id for n in model.graph.nodes if isinstance(n.op, Input) and n.op.label == name}
    tables = [n.operands[0].type.size(n.op.axis) for n in model.graph.nodes
              if isinstance(n.op, Lookup) and n.operands[1].id in tokens]  # fmt: skip
    return min((int(size.constant) for size in tables), default=2**31)
