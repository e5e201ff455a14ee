"""Run by test_sharded in a process with two CPU devices: each case on one device and on two, as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from compiler.language.model import Model, load
from compiler.parallel.plan import Plan
from tests.lower import on_devices
from tests.passes.specs import spec


def compare(name: str, model: Model, axes: Mapping[str, str], phase: str) -> None:
    sizes = {"batch": 2, "seq": 1 if phase == "decode" else 10, "capacity": 16}
    _, found = on_devices.compare(model, phase, sizes, Plan.of(axes, {"model": 2}))
    print(json.dumps({"case": name, **found}))


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
