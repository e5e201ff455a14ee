"""The parts of an array that this process holds: the boxes that a sharding gives its devices, each made once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

Box = tuple[tuple[int, int], ...]  # for each axis of the whole array: first entry, one past the last


def boxes(shape: tuple[int, ...], sharding: Any) -> list[Box]:
    """The different boxes of this process's own devices; devices that hold copies share one."""
    places = sharding.addressable_devices_indices_map(shape).values()
    return list(dict.fromkeys(_box(shape, index) for index in places))


def placed(shape: tuple[int, ...], sharding: Any, held: dict[Box, np.ndarray]) -> jax.Array:
    """The whole array over all processes, from the boxes that this one holds."""
    return jax.make_array_from_callback(shape, sharding, lambda index: held[_box(shape, index)])


def replicated(value: Any, sharding: Any) -> jax.Array:
    """An array that every process has in full, laid out: each takes its own part."""
    whole = np.asarray(value)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def whole(array: Any) -> np.ndarray:
    """An array that lies on the devices of all processes, in this one; all of them call it."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable and not array.is_fully_replicated:
        from jax.experimental.multihost_utils import process_allgather

        return np.asarray(process_allgather(array, tiled=True))
    return np.asarray(array)


def empty(found: Iterable[Box], dtype: Any) -> dict[Box, np.ndarray]:
    """Zeros for each box; pages come when they are written."""
    return {box: np.zeros(tuple(stop - start for start, stop in box), dtype) for box in found}


def one_device() -> Any:
    """The sharding of arrays that lie whole on the first device."""
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def made(shape: tuple[int, ...], dtype: Any, sharding: Any, fill: Callable[[dict[Box, np.ndarray]], None]) -> jax.Array:
    """An array whose own boxes ``fill`` writes."""
    held = empty(boxes(shape, sharding), dtype)
    fill(held)
    return placed(shape, sharding, held)


def _box(shape: tuple[int, ...], index: Any) -> Box:
    return tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))
