"""Programs written by hand with shard_map, whose collectives and FLOPs are known before a compiler sees them.

Each is an entry of a compile job (``compiler.targets``), on a mesh of data 2 x model 4 where it has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TRIPS = 5
MESH = {"data": 2, "model": 4}
ROWS, COLUMNS = 64, 256  # what one device holds
LAYERS, BATCH, EMBED, HIDDEN = 3, 64, 128, 256  # of the MLP


@dataclass
class Built:
    jitted: Any
    args: tuple[Any, ...]
    export: bool = False


def _mesh(devices: list[Any]) -> Any:
    import numpy as np
    from jax.sharding import Mesh

    return Mesh(np.array(devices[:8]).reshape(tuple(MESH.values())), tuple(MESH))


def collectives(*, devices: list[Any], target: Any, dtype: str) -> Built:
    """Each kind of collective once in the body of a scan, in a scope of its own, none feeding only another: nothing
    can be merged, and nothing can leave the loop."""
    import jax
    import jax.numpy as jnp
    from jax import lax
    from jax.sharding import NamedSharding, PartitionSpec

    mesh = _mesh(devices)
    both = PartitionSpec(tuple(MESH))

    def body(x: Any, _: None) -> tuple[Any, None]:
        with jax.named_scope("reduce_model"):
            x = jnp.tanh(lax.psum(x, "model"))
        with jax.named_scope("gather_model"):
            wide = jnp.sin(lax.all_gather(x, "model", axis=0, tiled=True))
        with jax.named_scope("scatter_model"):
            x = jnp.tanh(lax.psum_scatter(wide, "model", scatter_dimension=0, tiled=True))
        with jax.named_scope("exchange_model"):
            x = jnp.sin(lax.all_to_all(x, "model", split_axis=0, concat_axis=0, tiled=True))
        with jax.named_scope("rotate_model"):
            x = jnp.tanh(lax.ppermute(x, "model", [(i, (i + 1) % 4) for i in range(4)])) * x
        with jax.named_scope("gather_data"):
            wide = jnp.sin(lax.all_gather(x, "data", axis=0, tiled=True))
        with jax.named_scope("scatter_data"):
            x = jnp.tanh(lax.psum_scatter(wide, "data", scatter_dimension=0, tiled=True))
        with jax.named_scope("reduce_both"):
            x = jnp.tanh(lax.psum(x, ("data", "model"))) + x
        return x, None

    def local(x: Any) -> Any:
        return lax.scan(body, x, None, length=TRIPS)[0]

    mapped = jax.shard_map(local, mesh=mesh, in_specs=both, out_specs=both, check_vma=False)
    whole = jax.ShapeDtypeStruct((8 * ROWS, COLUMNS), jnp.dtype(dtype), sharding=NamedSharding(mesh, both))
    return Built(jax.jit(mapped), (whole,))


def mlp(*, devices: list[Any], target: Any, dtype: str, gradient: bool) -> Built:
    """A two-layer MLP scanned over layers on one device of the mesh: 4 * BATCH * EMBED * HIDDEN FLOPs a layer, three
    times that with the gradient of all its arguments."""
    import jax
    import jax.numpy as jnp
    from jax import lax
    from jax.sharding import SingleDeviceSharding

    def layer(x: Any, weights: tuple[Any, Any]) -> tuple[Any, None]:
        first, second = weights
        return x + jnp.tanh(x @ first) @ second, None

    def loss(x: Any, first: Any, second: Any) -> Any:
        y = lax.scan(layer, x, (first, second))[0].astype(jnp.float32)
        return (y * y).sum() if gradient else y

    function = jax.grad(loss, argnums=(0, 1, 2)) if gradient else loss
    where = SingleDeviceSharding(devices[0])
    shapes = ((BATCH, EMBED), (LAYERS, EMBED, HIDDEN), (LAYERS, HIDDEN, EMBED))
    args = tuple(jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=where) for shape in shapes)
    return Built(jax.jit(function), args)


def train(*, devices: list[Any], target: Any, layers: int = LAYERS, embed: int = 256, hidden: int = 512) -> Built:
    """An update of a rematerialised MLP: weights gathered over data and their gradients scattered, the hidden axis over
    model with a sum after it."""
    import jax
    import jax.numpy as jnp
    from jax import lax
    from jax.sharding import NamedSharding, PartitionSpec

    mesh = _mesh(devices)
    specs = (PartitionSpec("data"), PartitionSpec(None, "data", "model"), PartitionSpec(None, "model", "data"))
    shapes = ((2 * BATCH, embed), (layers, embed, hidden), (layers, hidden, embed))

    @jax.checkpoint
    def layer(x: Any, weights: tuple[Any, Any]) -> tuple[Any, None]:
        first, second = weights
        with jax.named_scope("up"):
            first = lax.all_gather(first, "data", axis=0, tiled=True)
            hidden = jnp.tanh(x @ first)
        with jax.named_scope("down"):
            second = lax.all_gather(second, "data", axis=1, tiled=True)
            return x + lax.psum(hidden @ second, "model"), None

    def loss(weights: Any, x: Any) -> Any:
        y = lax.scan(layer, x, weights)[0].astype(jnp.float32)
        return (y * y).sum()

    def local(x: Any, first: Any, second: Any) -> Any:
        grads = jax.grad(loss)((first, second), x)
        return tuple(w - g * 1e-3 for w, g in zip((first, second), grads, strict=True))

    mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=specs[1:], check_vma=False)
    args = tuple(
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))
        for shape, spec in zip(shapes, specs, strict=True)
    )
    return Built(jax.jit(mapped, donate_argnums=(1, 2)), args)


def automatic(*, devices: list[Any], target: Any) -> Built:
    """The gradient of an embedding, a norm, an MLP and logits under automatic sharding: the partitioner writes groups
    in other notations than shard_map does."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    mesh = _mesh(devices)
    specs = {"table": ("model", "data"), "first": ("data", "model"), "second": ("model", "data")}
    shapes = {"table": (1024, 256), "first": (256, 512), "second": (512, 256)}

    def loss(weights: dict[str, Any], tokens: Any) -> Any:
        x = jnp.take(weights["table"], tokens, axis=0)
        f = x.astype(jnp.float32)
        x = (f * jax.lax.rsqrt((f * f).mean(-1, keepdims=True) + 1e-6)).astype(x.dtype)
        x = x + jnp.tanh(x @ weights["first"]) @ weights["second"]
        logits = jnp.einsum("bse,ve->bsv", x, weights["table"]).astype(jnp.float32)
        return jax.nn.logsumexp(logits, axis=-1).sum()

    shardings = {name: NamedSharding(mesh, PartitionSpec(*spec)) for name, spec in specs.items()}
    weights = {n: jax.ShapeDtypeStruct(shapes[n], jnp.bfloat16, sharding=shardings[n]) for n in specs}
    rows = NamedSharding(mesh, PartitionSpec("data"))
    tokens = jax.ShapeDtypeStruct((16, 32), jnp.int32, sharding=rows)
    return Built(jax.jit(jax.grad(loss), out_shardings=shardings), (weights, tokens))


def products(*, devices: list[Any], target: Any, ragged: bool = False) -> Built:
    """Products that are no plain dot: one with a batch, one of two branches of different cost and, if asked for, one
    with a matrix for each group of rows."""
    import jax
    import jax.numpy as jnp
    from jax import lax
    from jax.sharding import SingleDeviceSharding

    def function(x: Any, w: Any, experts: Any, sizes: Any) -> Any:
        heads = x.reshape(4, BATCH // 4, EMBED)
        scores = jnp.einsum("hqd,hkd->hqk", heads, heads)
        chosen = lax.cond(sizes[0] > 1, lambda: x @ w, lambda: jnp.tanh(x @ w) @ w.T @ w)
        return scores, chosen, lax.ragged_dot(x, experts, sizes) if ragged else sizes

    where = SingleDeviceSharding(devices[0])
    shapes = ((BATCH, EMBED), (EMBED, HIDDEN), (8, EMBED, HIDDEN))
    args = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=where) for shape in shapes]
    return Built(jax.jit(function), (*args, jax.ShapeDtypeStruct((8,), jnp.int32, sharding=where)))
