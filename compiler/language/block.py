"""The contract of a block kind: its options as a pydantic model, its meaning as one short program over ops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from compiler.graph.ir import Value
from compiler.language.fields import Args

if TYPE_CHECKING:
    from compiler.language.env import Env


class Block(Args):
    """A block kind. ``ports`` are inputs besides the chain's value, filled by `from: {port: name}`."""

    kind: ClassVar[str] = ""
    ports: ClassVar[tuple[str, ...]] = ()
    takes_ids: ClassVar[bool] = False  # integers, such as tokens
    source: ClassVar[bool] = False  # starts a new value: takes no input

    def build(self, env: Env, x: Value, **ports: Value) -> Value:
        """The program: ops on named axes through ``env.b``, weights through ``env.weight``."""
        raise NotImplementedError(self.kind)


KINDS: dict[str, type[Block]] = {}


def block(cls: type[Block]) -> type[Block]:
    """Registers a block kind under its ``kind``."""
    if not cls.kind or cls.kind in KINDS:
        raise ValueError(f"block kind {cls.__name__} needs a name of its own")
    KINDS[cls.kind] = cls
    return cls


def kinds() -> dict[str, type[Block]]:
    import compiler.blocks.kinds  # noqa: F401  (registers every kind)

    return KINDS


def describe(cls: type[Block]) -> dict[str, Any]:
    """The kind for the reference page: its words, options and ports."""
    return {
        "kind": cls.kind,
        "doc": cls.__doc__ or "",
        "ports": list(cls.ports),
        "schema": cls.model_json_schema(),
    }
