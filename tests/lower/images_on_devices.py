"""Run by test_images in a process with four CPU devices: convolutions whose batch, channels, groups or image are
divided, forward and back, and a small NFNet by rows, against one device, as JSON lines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from compiler.graph.builder import Builder
from compiler.graph.ir import Graph
from compiler.lower.graph import run
from compiler.lower.program import Program
from compiler.lower.registry import Context
from compiler.ops.leaves import Input, Parameter
from compiler.parallel import strategy as strategies
from compiler.parallel.plan import Plan
from compiler.parallel.resolve import resolve
from compiler.passes.differentiate import differentiate
from compiler.passes.partition import partition
from compiler.passes.verify import verify
from tests.lower import on_devices
from tests.lower.nfnet import tiny
from tests.ops.build import tensor

IMAGE = "batch=4 height=16 width=8 channel=4"
KERNELS = {"first": "kernel_height=3 kernel_width=3 channel=4 channel_out=8",
           "grouped": "kernel_height=3 kernel_width=3 channel=2 channel_out=8",
           "wide": "kernel_height=5 kernel_width=1 channel=8 channel_out=4",
           "patch": "kernel_height=2 kernel_width=2 channel=4 channel_out=4"}  # fmt: skip
DIVIDED: Mapping[str, Mapping[str, str]] = {
    "rows": {"batch": "data"},
    "height": {"height": "data"},  # neighbours exchange edges
    "width and channels": {"width": "data", "channel": "model"},
    "groups": {"conv_groups": "data"},
}


def network() -> Graph:
    """Windows of several sizes, strides and paddings; the mean square of what they make, differentiated."""
    b = Builder()
    x = b.append(Input("images"), (), (tensor(IMAGE),))[0]
    w = {name: b.append(Parameter(name, name), (), (tensor(axes),))[0] for name, axes in KERNELS.items()}
    y = b.rename(b.conv(x, w["first"]), channel_out="channel")
    y = b.tanh(b.rename(b.conv(y, w["grouped"], stride=2, groups=4), channel_out="channel"))
    y = b.add(y, b.pool(y, "max", over=["height", "width"], window=3, stride=1))
    y = b.rename(b.conv(y, w["wide"], padding=[2, 0]), channel_out="channel")
    y = b.pool(y, "mean", over=["height", "width"], window=2)
    y = b.rename(b.conv(y, w["patch"], stride=2, padding="valid"), channel_out="channel")
    loss = b.reduce(b.square(y), "mean", y.axes)
    return differentiate(b.finish([("loss", loss)]))


def compare(graph: Graph, axes: Mapping[str, str]) -> dict[str, Any]:
    plan = Plan.of(axes, {"data": 2, "model": 2})
    made = partition(graph, plan, {})
    verify(made.graph, after="partition")
    draw = np.random.default_rng(0)
    leaves = [n for n in graph.nodes if isinstance(n.op, (Input, Parameter))]
    shapes = {n.op.label: [int(s.constant) for s in n.result.type.sizes] for n in leaves}  # type: ignore[attr-defined]
    arrays = {k: draw.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    alone = jax.jit(lambda x: run(graph, Context({}, x)))(arrays)
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
    program = Program("loss", made.graph, {}, {}, {}, {}, placed=made, mesh=mesh)
    found = jax.jit(program.results)(program.put(arrays))
    errors = {k: float(np.abs(found[k] - alone[k]).max() / np.abs(alone[k]).max()) for k in alone}
    return {"worst": max(errors.values()), "planned": Counter(on_devices.planned(made))}


def nfnet() -> dict[str, Any]:
    model, sizes = tiny(), {"batch": 8}
    plan = resolve(strategies.load("data"), "data=4", model.graph, sizes)
    return on_devices.compare(model, "forward", sizes, plan)[1]


def main() -> None:
    graph = network()
    for name, axes in DIVIDED.items():
        print(json.dumps({"case": name, **compare(graph, axes)}), flush=True)
    print(json.dumps({"case": "nfnet", **nfnet()}), flush=True)


if __name__ == "__main__":
    main()
