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
from compiler.passes.phase import phase_graph  # noqa: E402

CHUNK = 256  # tokens of one prefill call


class Session:
    """Generation state of ``batch`` rows with room for ``capacity`` positions each.

    ``params`` maps parameter labels to arrays. Prefill is compiled for calls of ``chunk`` tokens, decode for one;
    prompts of unequal lengths are right-padded and each row equals its solo run."""

    def __init__(
        self, model: Model, params: Mapping[str, Any], *, batch: int, capacity: int, chunk: int = CHUNK,
        sizes: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        self.model, self.batch, self.capacity = model, batch, capacity
        self.chunk = max(1, min(chunk, capacity))
        self.params = {k: jax.device_put(v) for k, v in params.items()}
        common = {"batch": batch, "capacity": capacity, **(sizes or {})}
        self._prefill = program(model, "prefill", {**common, "seq": self.chunk})
        self._decode = program(model, "decode", {**common, "seq": 1})
        self._first = program(model, "prefill", {**common, "seq": self.chunk}, fresh=True)  # compiled on first use
        self._functions = {id(p): p.jitted() for p in (self._first, self._prefill, self._decode)}
        self.input = str(model.streaming_input)
        self.output = model.graph.outputs[-1][0]
        self.state = self._prefill.empty_state()
        self.awaited = {k for k, (s, _) in phase_graph(model, "decode").states().items() if s.kind == "context"}
        self.lengths = np.zeros(batch, np.int64)

    def encode(self, inputs: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
        """Computes what does not depend on the tokens (encoders, cross-attention keys) once for all rows."""
        made = program(self.model, "encode", {"batch": self.batch, "seq": 1, "capacity": self.capacity, **sizes})
        _, context = jax.jit(made.function())(self._own(made), {}, dict(inputs))
        self.state.update(context)
        self.awaited -= set(context)

    def _own(self, p: Program) -> dict[str, Any]:
        return {k: self.params[k] for k in p.parameters}

    def _call(self, p: Program, tokens: np.ndarray, valid: np.ndarray) -> jax.Array:
        if self.awaited:
            names = ", ".join(n for n, i in self.model.spec.inputs.items() if i.kind != "tokens")
            raise BlockgraphError(Problem("missing-input", f"call encode first: the model also reads {names}"))
        if int((self.lengths + valid).max()) > self.capacity:
            raise BlockgraphError(
                Problem("out-of-capacity", f"{int((self.lengths + valid).max())} positions in a session of {self.capacity}")
            )
        inputs = {self.input: tokens.astype(np.int32), "valid": valid.astype(np.int32)}
        own = {k: self.state[k] for k in p.states}
        results, state = self._functions[id(p)](self._own(p), own, inputs)
        self.state.update(state)
        self.lengths += valid
        return results[self.output]

    def prefill(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Extends each row by its prompt. Returns the logits after each row's last token [batch, vocab], float32."""
        counts = np.array([len(p) for p in prompts])
        if len(prompts) != self.batch or counts.min() < 1:
            raise BlockgraphError(Problem("empty-prompt", f"needs {self.batch} prompts of at least one token each"))
        last: np.ndarray | None = None
        for start in range(0, int(counts.max()), self.chunk):
            tokens = np.zeros((self.batch, self.chunk), np.int32)
            valid = np.clip(counts - start, 0, self.chunk)
            for row, prompt in enumerate(prompts):
                tokens[row, : valid[row]] = prompt[start : start + int(valid[row])]
            made = self._prefill if self.lengths.any() else self._first
            logits = np.asarray(self._call(made, tokens, valid))[:, 0]
            last = logits if last is None else np.where((valid > 0)[:, None], logits, last)
        assert last is not None
        return last

    def decode(self, tokens: Sequence[int] | np.ndarray, active: np.ndarray | None = None) -> np.ndarray:
        """Extends each active row by one token. Returns its logits [batch, vocab], float32."""
        valid = np.ones(self.batch, np.int64) if active is None else active.astype(np.int64)
        return np.asarray(self._call(self._decode, np.asarray(tokens).reshape(self.batch, 1), valid))[:, 0]
