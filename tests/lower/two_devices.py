"""Run by test_sharded in a process with two CPU devices: each case on one device and on two, as JSON lines."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from compiler.graph.ir import Graph
from compiler.language.model import Model, load
from compiler.lower.graph import run
from compiler.lower.registry import Context
from compiler.lower.sharded import sharded
from compiler.ops.leaves import Input, State
from compiler.passes.partition import Partitioned, partition
from compiler.passes.pipeline import phase_pipeline, training_pipeline
from compiler.passes.verify import verify
from runtime.weights.initial import random
from tests.passes.specs import spec

KINDS = {"all_reduce": "all-reduce", "all_gather": "all-gather", "reduce_scatter": "reduce-scatter",
         "all_to_all": "all-to-all", "permute": "collective-permute"}  # fmt: skip


def planned(made: Partitioned) -> Counter[str]:
    """Collective nodes of the graph, a region's once."""
    return Counter(KINDS[n.op.name] for n, _ in made.graph.walk() if n.op.name in KINDS)


def emitted(text: str) -> Counter[str]:
    """Collectives of the compiled program: a combined one counts once for each of its operands."""
    found: Counter[str] = Counter()
    for types, kind in re.findall(rf"= (.*?) ({'|'.join(KINDS.values())})(?:-start)?\(", text):
        found[kind] += len(re.findall(r"\w+\[", types))
    return found


def leaves(model: Model, graph: Graph, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Random parameters, inputs and states; rows of unequal length."""
    draw = np.random.default_rng(0)
    made: dict[str, Any] = dict(random(model, 0).arrays)
    for node in (*graph.leaves(Input), *graph.leaves(State)):
        label, t = node.op.label, node.result.type  # type: ignore[attr-defined]
        shape = tuple(int(s.evaluate(sizes)) for s in t.sizes)
        if label in ("seq_lengths", "length"):
            made[label] = np.array([10, 7], np.int32)
        elif t.dtype == "int32":
            made[label] = (np.ones(shape) if label == "valid" else draw.integers(0, 30, shape)).astype(np.int32)
        else:
            made[label] = draw.normal(size=shape).astype(np.float32)
    return made


def compare(name: str, model: Model, axes: Mapping[str, str], phase: str) -> None:
    sizes = {"batch": 2, "seq": 1 if phase == "decode" else 10, "capacity": 16}
    pipeline = training_pipeline(model, sizes) if phase == "train" else phase_pipeline(model, phase, sizes)
    graph = pipeline.run(model.graph)
    made = partition(graph, axes, {"model": 2})
    verify(made.graph, after="partition")
    arrays = leaves(model, graph, sizes)
    alone = jax.jit(lambda x: run(graph, Context(sizes, x)))(arrays)
    program = sharded(made, sizes, Mesh(np.array(jax.devices()), ("model",)))
    placed = program.put(arrays)
    compiled = program.jitted().lower(placed).compile()
    together = compiled(placed)
    worst = max(float(np.abs(np.asarray(together[k]) - np.asarray(v)).max() / np.abs(np.asarray(v)).max())
                for k, v in alone.items())  # fmt: skip
    print(json.dumps({"case": name, "worst": worst, "planned": planned(made), "emitted": emitted(compiled.as_text())}))


def small(name: str, **sizes: Any) -> Model:
    common = {"dtype": "float32", "vocab": 96, "embed": 32, "heads": 4, "mlp": 48}
    return load(name, common | sizes)


def main() -> None:
    mlp, experts = spec("mlp"), spec("experts")
    gemma2 = small("gemma2-9b", kv_heads=2, head_dim=8, layers=4, window=4)
    gemma = small("gemma-2b", kv_heads=1, head_dim=8, layers=2)
    griffin = small("recurrentgemma-2b", kv_heads=1, rnn=40, layers=3, window=4)
    tensor = {"heads": "model", "kv_heads": "model", "mlp": "model", "vocab": "model"}
    one_kv = {a: m for a, m in tensor.items() if a != "kv_heads"}
    compare("mlp", mlp, {"mlp": "model"}, "forward")
    compare("mlp training", mlp, {"mlp": "model"}, "train")
    compare("mlp data-parallel training", mlp, {"batch": "model"}, "train")
    compare("mlp sharded width", mlp, {"embed": "model"}, "forward")
    compare("experts", experts, {"experts": "model"}, "forward")
    compare("experts training", experts, {"experts": "model"}, "train")
    compare("gemma2", gemma2, tensor, "forward")
    compare("gemma2 training", gemma2, tensor, "train")
    compare("gemma2 decode", gemma2, tensor, "decode")
    compare("gemma training, one key head", gemma, one_kv, "train")
    compare("griffin training", griffin, {"rnn": "model", "blocks": "model", "mlp": "model"}, "train")
    compare("griffin decode", griffin, {"rnn": "model", "blocks": "model"}, "decode")


if __name__ == "__main__":
    main()
