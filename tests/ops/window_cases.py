"""Cases of the ops whose windows slide: convolutions and pooling."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.ops import reference as ref
from tests.ops.build import Case

IMAGE = "batch=2 height=5 width=6 channel=4"


def _conv(id: str, kernel: str, **options: Any) -> Case:
    """The reference's kernel is square, of [taps, taps, channels of a group, new channels]."""
    inputs = {"x": IMAGE, "kernel": kernel}
    return Case(id, inputs, lambda b, x, k: b.conv(x, k, **options), lambda x, k: ref.conv(x, k, **options))


def _pool(kind: str, size: int, stride: int, padding: Any = "same") -> Case:
    def build(b: Any, x: Any) -> Any:
        return b.pool(x, kind, over=["height", "width"], window=size, stride=stride, padding=padding)

    return Case(
        f"pool_{kind}_{size}_{stride}_{padding}",
        {"x": IMAGE},
        build,
        lambda x: ref.pool(x, kind, size, stride, padding),
    )


def _depthwise(x: Any, kernel: Any) -> Any:
    """x [b h w c], kernel [c k k]."""
    return ref.conv(x, kernel.transpose(1, 2, 0)[:, :, None], groups=kernel.shape[0])


def _mixed(x: Any, kernel: Any) -> Any:
    """x [h c b w d], kernel [o d kh c]: a window along the height alone, sums over c and d, b and w carried along."""
    h = x.shape[0]
    wide = np.pad(x.astype(np.float64), [(1, 1), *[(0, 0)] * 4])
    y = sum(np.einsum("hcbwd,odc->hbwo", wide[k : k + h], kernel[:, :, k].astype(np.float64)) for k in range(3))
    return np.asarray(y)[::2]


def cases() -> list[Case]:
    square = "kernel_height=3 kernel_width=3 channel=4 out=6"
    grouped = "kernel_height=3 kernel_width=3 channel=2 out=6"
    return [
        _conv("conv", square),
        _conv("conv_stride", square, stride=2),
        _conv("conv_valid", square, padding="valid"),
        _conv("conv_padding", square, stride=2, padding=1),
        _conv("conv_dilation", square, dilation=2),
        _conv("conv_one", "kernel_height=1 kernel_width=1 channel=4 out=3"),
        _conv("conv_groups", grouped, groups=2),
        _conv("conv_groups_stride", grouped, groups=2, stride=2),
        _conv("conv_patches", "kernel_height=2 kernel_width=2 channel=4 out=3", stride=2, padding="valid"),
        Case("conv_per", {"x": IMAGE, "k": "channel=4 kernel_height=3 kernel_width=3"},
             lambda b, x, k: b.arrange(b.conv(x, k, per=["channel"]), x.axes), _depthwise),
        # one axis of windows, axes in any order, two that are summed and two that are carried along
        Case("conv_mixed", {"x": "height=6 channel=2 batch=2 width=3 depth=2",
                            "k": "out=5 depth=2 kernel_height=3 channel=2"},
             lambda b, x, k: b.conv(x, k, stride=2, padding=1), _mixed),
        _pool("mean", 2, 2),
        _pool("mean", 3, 1),
        _pool("max", 3, 2),
        _pool("max", 2, 2, "valid"),
        _pool("max", 3, 2, 1),
    ]  # fmt: skip
