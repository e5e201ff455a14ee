"""Target names: what is read, and what is said about wrong ones."""

from __future__ import annotations

import subprocess
import sys

import pytest

from compiler.errors import TargetError
from compiler.targets.types import parse_target

GOOD = [
    # text, canonical text, chip, chips, devices
    ("cpu", "cpu", "cpu", 1, 1),
    ("cpu:1", "cpu", "cpu", 1, 1),
    ("cpu:8", "cpu:8", "cpu", 1, 8),
    ("tpu:v5e", "tpu:v5e:1x1", "v5e", 1, 1),
    ("tpu:v5e:2x4", "tpu:v5e:2x4", "v5e", 8, 8),
    ("TPU:V5E:16x16", "tpu:v5e:16x16", "v5e", 256, 256),
    ("tpu:v6e:4x2", "tpu:v6e:4x2", "v6e", 8, 8),
    ("tpu:v5e:2x4:slices=2", "tpu:v5e:2x4:slices=2", "v5e", 16, 16),
    ("tpu:v5e:2x4:slices=1", "tpu:v5e:2x4", "v5e", 8, 8),
    ("tpu:v5e:slices=2", "tpu:v5e:1x1:slices=2", "v5e", 2, 2),
    ("tpu:v4:2x2x4", "tpu:v4:2x2x4", "v4", 16, 16),
    ("tpu:v5p", "tpu:v5p:1x1x1", "v5p", 1, 1),
    ("tpu:v5p:1x2x1", "tpu:v5p:1x2x1", "v5p", 2, 2),
    ("tpu:v5p:2x2x1", "tpu:v5p:2x2x1", "v5p", 4, 4),
    ("tpu:v5p:16x16x24", "tpu:v5p:16x16x24", "v5p", 6144, 6144),
    ("tpu:7x:4x4x4", "tpu:7x:4x4x4", "7x", 64, 128),
    ("tpu:tpu7x", "tpu:7x:1x1x1", "7x", 1, 2),
    ("gpu:h100", "gpu:H100:1x1", "H100", 1, 1),
    ("gpu:H100:1x8", "gpu:H100:1x8", "H100", 8, 8),
    ("gpu:b200:4x8", "gpu:B200:4x8", "B200", 32, 32),
    (" gpu:a100:2x4 ", "gpu:A100:2x4", "A100", 8, 8),
]

BAD = [
    # text, code, part of the message, suggestion
    ("", "unknown-target", "no target is given", None),
    ("tup:v5e", "unknown-target", "'tup:v5e' is not a target", "tpu:v5e"),
    ("v5e:2x4", "unknown-target", "is not a target", "tpu:v5e:2x4"),
    ("h100", "unknown-target", "is not a target", "gpu:h100"),
    ("rocm", "unknown-target", "is not a target", None),
    ("cpu:0", "bad-topology", "'0' simulated devices", None),
    ("cpu:two", "bad-topology", "'two' simulated devices", None),
    ("cpu:4096", "bad-topology", "'4096' simulated devices", None),
    ("cpu:8:8", "unknown-target", "a part too many", "cpu:8"),
    ("tpu", "unknown-chip", "names no TPU type", None),
    ("tpu:v5", "unknown-chip", "TPU type 'v5'", "v5p"),
    ("tpu:v7x", "unknown-chip", "TPU type 'v7x'", "7x"),
    ("tpu:v5e:2x4x4", "bad-topology", "v5e has no topology '2x4x4'; it takes 2 sizes", None),
    ("tpu:v5p:2x2", "bad-topology", "it takes 3 sizes", "2x2x1"),
    ("tpu:v5e:3x4", "bad-topology", "v5e has no topology '3x4'", "4x4"),
    ("tpu:v5e:16x32", "bad-topology", "v5e has no topology '16x32'", None),
    ("tpu:v5e:1x8", "bad-topology", "v5e has no topology '1x8'", "2x8"),
    ("tpu:v5e:0x4", "bad-topology", "v5e has no topology '0x4'", None),
    ("tpu:v5e:2x", "bad-topology", "v5e has no topology '2x'", None),
    ("tpu:v5p:3x4x4", "bad-topology", "v5p has no topology '3x4x4'", "4x4x4"),
    ("tpu:v5p:2x4x8", "bad-topology", "v5p has no topology '2x4x8'", "4x4x8"),
    ("tpu:v5p:2x2x3", "bad-topology", "v5p has no topology '2x2x3'", "2x2x4"),
    ("tpu:v4:16x16x24", "bad-topology", "v4 has no topology '16x16x24'", None),
    ("tpu:v5e:2x4:slices=0", "bad-topology", "'slices=0'", None),
    ("tpu:v5e:2x4:slices", "bad-topology", "'slices'", None),
    ("tpu:v5e:2x4:twisted", "unknown-target", "unknown part 'twisted'", None),
    ("gpu", "unknown-chip", "names no GPU type", None),
    ("gpu:h10", "unknown-chip", "GPU type 'H10'", "H100"),
    ("gpu:h100:8", "bad-topology", "no topology <hosts>x<gpus>", "gpu:h100:1x8"),
    ("gpu:h100:1x16", "bad-topology", "no topology <hosts>x<gpus>", "gpu:h100:2x8"),
    ("gpu:h100:x8", "bad-topology", "no topology <hosts>x<gpus>", None),
    ("gpu:h100:1x8:slices=2", "unknown-target", "unknown part 'slices=2'", None),
]


@pytest.mark.parametrize(("text", "canonical", "chip", "chips", "devices"), GOOD)
def test_a_good_name_is_read(text: str, canonical: str, chip: str, chips: int, devices: int) -> None:
    target = parse_target(text)
    assert (target.text, target.chip, target.chips, target.devices) == (canonical, chip, chips, devices)
    assert parse_target(target.text) == target
    assert target.precision


@pytest.mark.parametrize(("text", "code", "message", "suggestion"), BAD)
def test_a_wrong_name_is_told(text: str, code: str, message: str, suggestion: str | None) -> None:
    with pytest.raises(TargetError) as caught:
        parse_target(text)
    (problem,) = caught.value.problems
    assert problem.code == code
    assert message in problem.message
    assert problem.suggestion == suggestion
    assert problem.allowed


def test_the_package_does_not_import_jax() -> None:
    code = "import sys, compiler.targets; sys.exit('jax' in sys.modules or 'jaxlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
