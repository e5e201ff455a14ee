"""The top of a spec as pydantic models. What is inside a graph or a body is read by the elaborator, with positions."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Dtype = Literal["float32", "bfloat16", "float16"]


class Dtypes(BaseModel):
    """Dtypes of parameters and of matrix products. Norms, softmax, recurrent state and logits are float32."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    params: Dtype = "bfloat16"
    compute: Dtype = "bfloat16"
    master: Dtype = Field("float32", description="the optimiser's copy of the parameters")
    residual: Dtype | None = Field(None, description="the residual stream; default: as compute")


class InputSpec(BaseModel):
    """One input of the model: `tokens` (batch seq), `features` (batch and the axes given), `image`, `video`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["tokens", "features", "image", "video"]
    axes: list[str] | None = Field(None, description="features: axis names; a dim gives a fixed size, others vary")
    size: list[Any] | None = Field(None, description="image, video: height and width")
    channels: int = 3
    frames: Any = None
    optional: bool = False

    @model_validator(mode="after")
    def _whole(self) -> InputSpec:
        if self.kind == "features" and not self.axes:
            raise PydanticCustomError("missing-key", "features need axes, as [frames, width]")
        if self.kind in ("image", "video") and (self.size is None or len(self.size) != 2):
            raise PydanticCustomError("missing-key", "an image needs size: [height, width]")
        return self


class BlockSpec(BaseModel):
    """A block written in the spec: a body of nodes, or a program over ops with its own weights."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)
    args: Any = None
    dims: Any = None
    inputs: list[str] | None = None
    params: Any = None
    body: Any = None
    program: Any = None

    @model_validator(mode="after")
    def _one(self) -> BlockSpec:
        if (self.body is None) == (self.program is None):
            raise PydanticCustomError("missing-key", "a block has either a body or a program")
        if self.params is not None and self.program is None:
            raise PydanticCustomError("misplaced-key", "params belong to a program; a body's nodes own theirs")
        for name, value, kind in (("args", self.args, dict), ("dims", self.dims, dict), ("params", self.params, dict),
                                  ("body", self.body, list), ("program", self.program, dict)):  # fmt: skip
            if value is not None and not isinstance(value, kind):
                what = "a list of nodes" if kind is list else "a mapping"
                raise PydanticCustomError("wrong-type", "{name} must be {what}", {"name": name, "what": what})
        return self


class WeightsSpec(BaseModel):
    """How a published checkpoint stores this model's tensors."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    layout: str = Field("in out", description="of linear maps: 'out in' for torch Linear")
    tensors: dict[str, Any] = Field(default_factory=dict, description="our.path: their.name [= layout]")
    ignore: list[str] = Field(default_factory=list, description="their tensors that are not ours, `*` allowed")
    padded: list[str] = Field(default_factory=list, description="axes that a checkpoint may hold fewer rows of")
    variables: dict[str, Any] = Field(default_factory=dict)


class Spec(BaseModel):
    """A model. See docs/language.md."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    name: str
    paper: str | None = None
    extends: str | None = None
    dims: dict[str, Any] = Field(default_factory=dict)
    args: dict[str, Any] = Field(default_factory=dict)
    sources: dict[str, Any] = Field(default_factory=dict)
    assumed: dict[str, Any] = Field(default_factory=dict)
    dtypes: Dtypes = Dtypes()
    inputs: dict[str, InputSpec] = Field(default_factory=lambda: {"tokens": InputSpec(kind="tokens")})
    blocks: dict[str, BlockSpec] = Field(default_factory=dict)
    graph: Any
    outputs: dict[str, str] | None = None
    weights: dict[str, WeightsSpec] = Field(default_factory=dict)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a spec file, with the options of every block kind under ``$defs``."""
    from compiler.language.block import kinds
    from compiler.language.forms import FORMS

    schema = Spec.model_json_schema()
    defs = schema.setdefault("$defs", {})
    options = {}
    for name, cls in sorted(kinds().items()):
        own = cls.model_json_schema(ref_template="#/$defs/" + name + ".{model}")
        defs.update({f"{name}.{k}": v for k, v in own.pop("$defs", {}).items() if k != "Node"})
        defs[f"block.{name}"] = own
        options[name] = {
            "anyOf": [{"$ref": f"#/$defs/block.{name}"}, {"type": ["null", "number", "string", "boolean"]}]
        }
    beside = {"name": {"type": "string"}, "from": {}, "frozen": {"type": "boolean"}, "share": {"type": "string"},
              "dtype": {"type": "string"}, "init": {"type": "string"}}  # fmt: skip
    forms = {n: {} for n in FORMS}
    defs["Node"] = {
        "anyOf": [
            {"type": "string"},
            {"type": "array", "items": {"$ref": "#/$defs/Node"}},
            {"type": "object", "properties": {**options, **forms, **beside}},
        ]
    }
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schema
