"""A sparse mixture of experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from compiler.blocks.balance import load_balance, router_z
from compiler.blocks.mlp import Activation, one_activation
from compiler.graph.ir import Value
from compiler.graph.sizes import Size
from compiler.language.block import Block, block
from compiler.language.env import Env
from compiler.language.fields import Count, Dim, Flag, OptionalPositive, Positive, Word
from compiler.language.scope import Fault
from compiler.ops.experts import Collect, Dispatch, ExpertDot, OneHot
from compiler.ops.seats import ChooseTokens, FromSeats, Seats, ToSeats, seats

BY_TOKEN = {"normalise": True, "correction": False, "groups": 1, "balance": None}  # and what they are where unused


@block
class MoE(Block):
    """A router that sends each token to ``active`` of ``experts`` gated or plain feed-forward layers, dropless
    (arXiv:2401.04088, section 2). ``score``: of an expert, the softmax over all or a sigmoid of its own;
    ``normalise``: the chosen weights sum to 1; ``scale``: and are then multiplied by this. ``correction``: a learned
    number an expert that counts in the choice, not in the weight, and gets no gradient (arXiv:2408.15664).
    ``groups`` and ``active_groups``: experts lie in groups, of which only the best are chosen from, by their best
    score or the sum of their two best (arXiv:2412.19437, section 2.1.2). ``capacity``: an expert takes ceil(capacity *
    active * tokens / experts) of a row's tokens, first come first served, and passes over the rest (arXiv:2101.03961,
    section 2.2). ``choice: expert``: each expert chooses as many tokens of a row, by its scores (arXiv:2202.09368).
    Either looks at the whole row, so there is no decode. ``balance`` and ``z_loss``: weights of terms of the training
    loss: that experts are chosen alike, in the ``batch`` or in each ``row`` (arXiv:2412.19437, equations 17 to 20), and
    that the router's logits stay small (arXiv:2202.08906, equation 5)."""

    kind: ClassVar[str] = "moe"
    experts: Annotated[Count, Dim("experts")]
    active: Annotated[Count, Dim("active")]
    hidden: Annotated[Count, Dim("mlp")]
    gate: Activation | None = None
    act: Activation | None = None
    score: Annotated[Literal["softmax", "sigmoid"], Word] = "softmax"
    normalise: Flag = True
    scale: Positive = 1.0
    correction: Flag = False
    groups: Count = 1
    active_groups: Count = 1
    by: Annotated[Literal["max", "top2"], Word] = "max"
    choice: Annotated[Literal["token", "expert"], Word] = "token"
    capacity: OptionalPositive = None
    balance: OptionalPositive = None
    balance_over: Annotated[Literal["batch", "row"], Word] = "batch"
    z_loss: OptionalPositive = None

    @model_validator(mode="after")
    def _one(self) -> Any:
        if self.choice == "expert":
            for key, unused in BY_TOKEN.items():
                if key in self.model_fields_set and getattr(self, key) != unused:
                    text = f"{key} is of tokens that choose their experts, and here experts choose their tokens"
                    raise PydanticCustomError("conflicting-keys", "{text}", {"text": text, "key": key})
        return one_activation(self, self.gate, self.act)

    def build(self, env: Env, x: Value, **ports: Value) -> Value:
        b = env.b
        self._check()
        logits = env.linear(x, "router", [("experts", self.experts)], dtype="float32", exact=True)
        if self.z_loss is not None:
            env.lose("router_z", b.mul(router_z(env, logits), self.z_loss))
        if self.choice == "expert":
            return self._chosen_by_experts(env, x, logits)
        number = None
        if self.correction:
            axes = [("experts", self.experts)]
            number = env.weight("correction", axes, init="zeros", dtype="float32", trainable=False)
        weights, chosen = b.route(
            logits, self.active, self.normalise, score=self.score, correction=number, groups=self.groups,
            active_groups=self.active_groups, by=self.by, scale=self.scale,
        )  # fmt: skip
        if self.balance is not None:
            term = load_balance(env, logits, chosen, self.score, self.balance_over)
            env.lose("load_balance", b.mul(term, self.balance))
        if self.capacity is not None:
            return self._seated(env, x, weights, chosen)
        return self._dropless(env, x, weights, chosen)

    # -- who goes where
    def _dropless(self, env: Env, x: Value, weights: Value, chosen: Value) -> Value:
        b, count = env.b, Size.of(self.experts)
        rows, order, groups = b.apply(Dispatch(experts=count), env.compute(x), chosen)

        def product(h: Value, w: Value) -> Value:
            inner = next(a for a in h.axes if a in w.axes and a != "experts")
            return b.one(ExpertDot((inner,), experts=count), h, w, groups)

        return b.one(Collect(experts=count), self._layer(env, rows, x, product), weights, chosen, order)

    def _seated(self, env: Env, x: Value, weights: Value, chosen: Value) -> Value:
        """As many tokens of a row as an expert has seats; a token with no seat gets nothing of the expert."""
        b, axis = env.b, self._axis(x)
        places = seats(x.type.size(axis), self.active, self.experts, float(self.capacity or 1))
        at = b.one(Seats(axis, experts=Size.of(self.experts), seats=places), chosen)
        gates = b.one(OneHot(Size.of(self.experts)), weights, chosen)
        return self._at_seats(env, x, gates, at, axis)

    def _chosen_by_experts(self, env: Env, x: Value, logits: Value) -> Value:
        b, axis = env.b, self._axis(x)
        gates = b.softmax(logits, "experts") if self.score == "softmax" else b.sigmoid(logits)
        lengths = env.lengths(axis)
        places = seats(x.type.size(axis), self.active, self.experts, float(self.capacity or 1))
        at = b.one(ChooseTokens(axis, seats=places), gates, *([lengths] if lengths is not None else []))
        return self._at_seats(env, x, b.mul(gates, self.scale) if self.scale != 1 else gates, at, axis)

    def _at_seats(self, env: Env, x: Value, gates: Value, at: Value, axis: str) -> Value:
        b = env.b

        def product(h: Value, w: Value) -> Value:
            inner = next(a for a in h.axes if a in w.axes and a != "experts")
            return b.dot(h, w, (inner,), env.policy.compute)

        y = self._layer(env, b.one(ToSeats(axis), env.compute(x), at), x, product)
        weighted = b.mul(b.cast(y, "float32"), b.one(ToSeats(axis), gates, at))
        total = b.one(FromSeats(axis, size=x.type.size(axis)), b.arrange(b.cast(weighted, y.type.dtype), y.axes), at)
        return b.arrange(total, x.axes)

    def _axis(self, x: Value) -> str:
        """The axis of a row's tokens. Raises Fault where there is not one."""
        found = [a for a in x.axes[:-1] if a != "batch"]
        if len(found) != 1:
            text = f"experts with so many tokens each take [batch, tokens, width], found [{' '.join(x.axes)}]"
            raise Fault("axis-mismatch", text, (), "merge the axes of the tokens first")
        return found[0]

    # -- the experts
    def _layer(self, env: Env, h: Value, x: Value, product: Callable[[Value, Value], Value]) -> Value:
        """Each expert's feed-forward layer on what it got; ``product``: of such values and a weight an expert."""
        b, width = env.b, x.axes[-1]
        size = x.type.size(width)

        def through(h: Value, name: str, inner: tuple[str, Size | int], outer: tuple[str, Size | int]) -> Value:
            w = env.weight(name, [("experts", self.experts), inner], to=[outer], used=self.active / self.experts)
            return product(h, env.compute(w))

        up = through(h, "up", (width, size), ("mlp", self.hidden))
        if self.gate is not None:
            up = b.mul(getattr(b, self.gate)(through(h, "gate", (width, size), ("mlp", self.hidden))), up)
        else:
            up = getattr(b, str(self.act))(up)
        return through(up, "down", ("mlp", self.hidden), (width, size))

    def _check(self) -> None:
        """Raises Fault where there are not as many experts, or groups of them, as are chosen."""
        if self.experts % self.groups:
            text = f"{self.experts} experts do not divide into {self.groups} groups"
            fitting = [str(n) for n in range(1, self.experts + 1) if self.experts % n == 0]
            raise Fault("indivisible", text, fitting, key="groups")
        if self.active_groups > self.groups:
            text = f"moe chooses in {self.active_groups} of {self.groups} groups of experts"
            raise Fault("out-of-range", text, (f"1 to {self.groups}",), key="active_groups")
        room = self.experts // self.groups * self.active_groups
        if self.active > room:
            among = f" in {self.active_groups} of {self.groups} groups" if self.groups > 1 else ""
            text = f"moe chooses {self.active} of {room} experts{among}"
            raise Fault("out-of-range", text, (f"1 to {room}",), key="active")
