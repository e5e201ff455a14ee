"""The last positions of a sequence, for which alone a model goes on."""

from __future__ import annotations

from typing import Annotated, ClassVar

from compiler.graph.axes import RECENT, STREAM
from compiler.graph.ir import Value
from compiler.language.block import Block, block
from compiler.language.env import Env
from compiler.language.fields import Count, Dim, OptionalCount
from compiler.language.scope import Fault


@block
class Latest(Block):
    """The last ``count`` positions of the sequence [batch seq …], along an axis `recent`: what follows is computed for
    them alone, and attention over them says `over: recent` (Perceiver AR, arXiv:2202.07765). Where tokens come one by
    one, each is one position more of those held; when there are ``count``, the last ``keep`` are made anew from the
    sequence and go on from there (its appendix E.3). A sequence shorter than ``count`` is refused."""

    kind: ClassVar[str] = "latest"
    shorthand: ClassVar[str | None] = "count"
    count: Annotated[Count, Dim("latents")]
    keep: OptionalCount = None  # default: seven eighths of count

    def build(self, env: Env, x: Value, **ports: Value) -> Value:
        if "batch" not in x.axes or STREAM not in x.axes[:-1]:
            text = f"latest takes the last positions of [batch {STREAM} …], found [{' '.join(x.axes)}]"
            raise Fault("missing-axis", text, x.axes, f"a value along {STREAM}" if RECENT not in x.axes else None)
        keep = max(1, self.count - self.count // 8) if self.keep is None else self.keep
        if keep > self.count:
            text = f"keep = {keep} of the last {self.count} positions"
            raise Fault("out-of-range", text, (f"1 to {self.count}",), key="keep")
        return env.b.latest(x, self.count, keep)
