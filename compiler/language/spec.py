"""The top of a spec as pydantic models. What is inside a graph or a body is read by the elaborator, with positions."""

from __future__ import annotations

from typing import Any, Literal, Never

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from compiler.language.scope import shown

Dtype = Literal["float32", "bfloat16", "float16"]


class Dtypes(BaseModel):
    """Dtypes of parameters and of matrix products. Norms, softmax, recurrent state and logits are float32."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    params: Dtype = "bfloat16"
    compute: Dtype = "bfloat16"
    master: Dtype = Field(default="float32", description="the optimiser's copy of the parameters")
    weights: Literal["int8", "int4"] | None = Field(
        default=None,
        description="of matrices and tables when the model runs: whole numbers with a scale for each group",
    )
    group: int = Field(default=32, ge=1, strict=True, description="of how many weights, along what is summed over")
    residual: Dtype | None = Field(default=None, description="the residual stream; default: as compute")


MAX_AXES = 16  # of one tensor


class InputSpec(BaseModel):
    """One input of the model: `tokens` (batch seq, or another axis), `features` (batch and the axes given), `image`,
    `video`, or `count`: a whole number for each row."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["tokens", "features", "image", "video", "count"]
    axes: list[str] | None = Field(
        default=None,
        description="features: axis names; a dim gives a fixed size, others vary. tokens: [axis] if they do not stream",
    )
    size: list[Any] | None = Field(default=None, description="image, video: height and width")
    channels: int = Field(default=3, ge=1, strict=True)
    count: Any = Field(
        default=None, description="image, video: how many belong to one row; `any`: it varies (the default of video)"
    )
    frames: Any = Field(default=None, description="video: frames of one; `any`: it varies")
    marker: Any = Field(
        default=None, description="image, video: the token that stands in the text for each of them, in order"
    )
    optional: bool = False

    @property
    def streams(self) -> bool:
        """Whether it comes in piece by piece, along ``seq``."""
        return self.kind == "tokens" and not self.axes

    @model_validator(mode="after")
    def _whole(self) -> InputSpec:
        def needs(key: str, text: str) -> Never:
            raise PydanticCustomError("missing-key", "{text}", {"text": text, "allowed": [key]})

        if self.kind == "features" and not self.axes:
            needs("axes", "features need axes, such as [frames, width]")
        if self.kind in ("image", "video") and (self.size is None or len(self.size) != 2):
            needs("size", f"{'an image' if self.kind == 'image' else 'a video'} needs size: [height, width]")
        if self.kind == "tokens" and self.axes and (len(self.axes) != 1 or self.axes[0] == "seq"):
            text = "tokens lie along seq, or with axes: [name] along one axis of another name"
            raise PydanticCustomError("bad-name", "{text}", {"text": text, "key": "axes"})
        for key, kinds in (("count", ("image", "video")), ("frames", ("video",)), ("size", ("image", "video")),
                           ("marker", ("image", "video"))):  # fmt: skip
            if getattr(self, key) is not None and self.kind not in kinds:
                text = f"{key} is of {' and '.join(kinds)}, and this is {self.kind}"
                raise PydanticCustomError("misplaced-key", "{text}", {"text": text, "key": key, "at_key": True})
        if self.marker is not None and self.kind == "image" and self.count is None:
            text = "a marker stands for each of several: how many belong to one row"
            raise PydanticCustomError("missing-key", "{text}", {"text": text, "allowed": ["count"]})
        if len(self.axes or []) > MAX_AXES:
            raise PydanticCustomError("too-large", f"at most {MAX_AXES} axes", {"key": "axes"})
        for axis in self.axes or []:
            if not axis.isidentifier() or axis == "batch" or (self.axes or []).count(axis) > 1:
                text = f"axes are distinct names, without the batch; found '{axis}'"
                raise PydanticCustomError("bad-name", "{text}", {"text": text, "key": "axes"})
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
        given = self.model_fields_set
        if "body" in given and "program" in given:
            raise PydanticCustomError("conflicting-keys", "a block has a body or a program, not both", {
                "key": "program", "at_key": True})  # fmt: skip
        if not given & {"body", "program"}:
            raise PydanticCustomError("missing-key", "a block needs a body (a list of nodes) or a program", {
                "allowed": ["body", "program"]})  # fmt: skip
        if "params" in given and "program" not in given:
            raise PydanticCustomError("misplaced-key", "params belong to a program; a body's nodes own theirs", {
                "key": "params", "at_key": True})  # fmt: skip
        for name in ("args", "dims", "params", "body", "program"):
            value = getattr(self, name)
            kind, what = (list, "a list of nodes") if name == "body" else (dict, "a mapping")
            if (name in given and not isinstance(value, kind)) or (name in ("body", "program") and value in ([], {})):
                found = "an empty one" if isinstance(value, kind) else shown(value)
                raise PydanticCustomError("wrong-type", "expected {what}, found {found}", {
                    "what": what, "found": found, "key": name})  # fmt: skip
        return self


class WeightsSpec(BaseModel):
    """How a published checkpoint stores this model's tensors."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    layout: str = Field(default="in out", description="of linear maps: 'out in' for torch Linear")
    tensors: dict[str, Any] = Field(default_factory=dict, description="our.path: their.name [= layout]")
    ignore: list[str] = Field(default_factory=list, description="their tensors that are not ours, `*` allowed")
    padded: list[str] = Field(default_factory=list, description="axes that a checkpoint may hold fewer rows of")
    variables: dict[str, Any] = Field(default_factory=dict)


class Spec(BaseModel):
    """A model. See docs/language.md."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    name: str
    paper: str | None = None
    stand_in: str | None = Field(
        default=None, description="for a model whose sizes are not published: what is, said in every report"
    )
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
    """The JSON Schema of a spec file, with the options of every block kind under ``$defs``. It cannot know the
    blocks of the spec itself, so a node of an unknown kind passes it."""
    from compiler.language.block import kinds
    from compiler.language.fields import Dim
    from compiler.language.forms import FORMS
    from compiler.language.nodes import DTYPES

    schema = Spec.model_json_schema()
    defs = schema.setdefault("$defs", {})
    node, nodes = {"$ref": "#/$defs/Node"}, {"type": "array", "items": {"$ref": "#/$defs/Node"}, "minItems": 1}
    options: dict[str, Any] = {}
    for name, cls in sorted(kinds().items()):
        own = cls.model_json_schema(ref_template="#/$defs/" + name + ".{model}")
        defs.update({f"{name}.{k}": v for k, v in own.pop("$defs", {}).items() if k != "Node"})
        by_dim = [n for n, f in cls.model_fields.items() if any(isinstance(m, Dim) for m in f.metadata)]
        own["required"] = [n for n in own.pop("required", []) if n not in by_dim and n != cls.shorthand]
        bare: dict[str, Any] = {"type": "null"} if cls.shorthand is None else {"type": ["null", "number", "string"]}
        defs[f"block.{name}"] = own
        options[name] = {"anyOf": [{"$ref": f"#/$defs/block.{name}"}, bare]}
    form_options = {
        "identity": {"type": "null"},
        "repeat": _closed({"times": {"type": ["integer", "string"]}, "cycle": nodes}),
        "concat": _closed({"axis": {"type": "string"}, "of": nodes}),
        "model": _closed({"spec": {"type": "string"}}, {"output": {"type": "string"}, "set": {"type": "object"}}),
    }
    named = {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"}
    source = {"anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": {"type": "string"}}]}
    beside = {"name": named, "from": source, "frozen": {"type": "boolean"}, "share": {"type": "string"},
              "dtype": {"enum": list(DTYPES)}, "init": {"type": "string"}}  # fmt: skip
    properties = {**options, **{n: form_options.get(n, nodes) for n in FORMS}, **beside}
    defs["Node"] = {
        "anyOf": [{"type": "string"}, nodes, {"type": "object", "properties": properties, "minProperties": 1}]
    }
    chains = {"type": "object", "additionalProperties": {"anyOf": [node, nodes]}, "minProperties": 1}
    schema["properties"]["graph"] = {"anyOf": [nodes, chains]}
    mapping = {"type": "object"}
    defs["BlockSpec"]["properties"] |= {"args": mapping, "dims": mapping, "params": mapping, "program": mapping,
                                        "body": nodes}  # fmt: skip
    defs["BlockSpec"]["oneOf"] = [{"required": ["body"]}, {"required": ["program"]}]
    schema["required"], schema["anyOf"] = ["name"], [{"required": ["graph"]}, {"required": ["extends"]}]
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schema


def _closed(needed: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    properties = {**needed, **(optional or {})}
    return {"type": "object", "properties": properties, "required": list(needed), "additionalProperties": False}
