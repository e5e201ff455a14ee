"""Cases of linear attention: which inputs there are, with which axes, says which layer of the literature it is."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Mapping
from typing import Any

import numpy as np

from compiler.ops.linear_attend import WRITING, LinearAttend
from tests.ops.build import Case, tensor

AT = "batch=2 seq={seq} heads=2"
KEY, VALUE = f"{AT} key_dim=3", f"{AT} head_dim=2"
SHARED = "batch=2 seq={seq} key_dim=3"  # by all heads or channels
PAIR = f"{AT} pair=2"
LAYERS: dict[str, dict[str, str]] = {
    "plain": {"value": VALUE, "key": KEY, "query": KEY},  # arXiv:2006.16236
    "retention": {"value": VALUE, "key": KEY, "query": KEY, "log_decay": "seq={seq} heads=2"},  # arXiv:2307.08621
    "ssd": {"value": VALUE, "key": SHARED, "query": SHARED, "log_decay": AT},  # arXiv:2405.21060
    "selective": {  # arXiv:2312.00752: a channel has a state of its own
        "value": "batch=2 seq={seq} rnn=4", "key": SHARED, "query": SHARED,
        "log_decay": "batch=2 seq={seq} rnn=4 key_dim=3",
    },
    "gla": {"value": VALUE, "key": KEY, "query": KEY, "log_decay": KEY},  # arXiv:2312.06635
    "one_key": {"value": "batch=2 seq={seq} head_dim=2", "key": SHARED, "query": KEY, "log_decay": "batch=2 seq={seq}"},
    "rwkv5": {"value": VALUE, "key": KEY, "query": KEY, "log_decay": AT, "bonus": "heads=2 key_dim=3"},
    # arXiv:2404.05892
    "rwkv6": {"value": VALUE, "key": KEY, "query": KEY, "log_decay": KEY, "bonus": "heads=2 key_dim=3"},
    "delta": {"value": VALUE, "key": KEY, "query": KEY, "erase": KEY},  # arXiv:2406.06484
    "gated_delta": {  # arXiv:2412.06464, as in Qwen3-Next two value heads to a key head
        "value": f"{PAIR} head_dim=2", "key": f"{PAIR} key_dim=3", "query": KEY, "log_decay": PAIR, "erase": KEY,
    },
    "channel_delta": {"value": VALUE, "key": KEY, "query": KEY, "log_decay": KEY, "erase": KEY},
    # arXiv:2503.14456
    "rwkv7": {"value": VALUE, "key": KEY, "query": KEY, "log_decay": KEY, "erase": KEY, "remove": KEY},
}  # fmt: skip


def inputs(layer: str, seq: int, state: bool = False, valid: bool = False) -> dict[str, str]:
    made = {n: axes.format(seq=seq) for n, axes in LAYERS[layer].items()}
    if state:
        t = LinearAttend(tuple(made)).state({n: tensor(axes) for n, axes in made.items()})
        made["state"] = " ".join(f"{a}={s}" for a, s in t.pairs)
    return made | ({"valid": "batch=2:int32"} if valid else {})


def values(given: Mapping[str, str], speed: float = 1.0) -> dict[str, Any]:
    """Decays below 1, and what the delta rule writes and takes back small enough that states stay small."""
    draw = np.random.default_rng(len(given))

    def random(name: str) -> Any:
        return draw.normal(size=[int(s.constant) for s in tensor(given[name]).sizes])

    made = {n: 0.4 * random(n) for n in ("key", "erase", "remove") if n in given and "erase" in given}
    if "log_decay" in given:
        made["log_decay"] = -speed * np.abs(random("log_decay"))
    return made


def case(
    layer: str, form: str, seq: int, chunk: int, state: bool = False, valid: bool = False, ends: bool = False,
    speed: float = 1.0,
) -> Case:  # fmt: skip
    given = inputs(layer, seq, state, valid)
    op = LinearAttend(tuple(given), ends=ends, implementation=form, chunk=chunk)
    marks = "".join(f"_{n}" for n, there in (("state", state), ("valid", valid), ("ends", ends)) if there)
    made = values(given, speed) | ({"valid": [seq - 2, 0]} if valid else {})
    id, expect = f"linear_attend_{layer}_{form}_{seq}{marks}", reference(op, given)
    return Case(id, given, lambda b, *xs: b.apply(op, *xs), expect, made, compiled=True)


def reference(op: LinearAttend, given: Mapping[str, str]) -> Any:
    """Position by position, as the op's docstring has it, in float64."""
    types = {n: tensor(axes.partition(":")[0]) for n, axes in given.items()}
    sizes = {a: int(s.constant) for t in types.values() for a, s in t.pairs}
    whole = op.state(types).axes
    entries = tuple(a for a in whole if a != op.over)
    out = op.read(types).axes if op.has("query") else ()
    letters = dict(zip(dict.fromkeys((*whole, *out)), string.ascii_letters, strict=False))

    def times(axes: tuple[str, ...], *factors: tuple[Any, tuple[str, ...]]) -> Any:
        """The product by axis names, broadcast to the result's, summed over what it lacks."""
        sides = [*factors, (np.ones([sizes[a] for a in axes]), axes)]
        text = ",".join("".join(letters[a] for a in names) for _, names in sides)
        return np.einsum(f"{text}->{''.join(letters[a] for a in axes)}", *(x for x, _ in sides))

    def f(*arrays: Any) -> tuple[Any, ...]:
        x = {n: (a.astype(np.float64), types[n].axes) for n, a in zip(op.given, arrays, strict=True)}
        if op.has("valid"):  # further positions write nothing, and nothing decays
            seen = (np.arange(sizes[op.axis]) < x["valid"][0][:, None], ("batch", op.axis))
            rows = {n: tuple(dict.fromkeys(("batch", *x[n][1]))) for n in op.only(*WRITING)}
            x |= {n: (times(axes, x[n], seen), axes) for n, axes in rows.items()}
        state = times(whole, x["state"]) if op.has("state") else np.zeros([sizes[a] for a in whole])
        read = []
        for t in range(sizes[op.axis]):
            now = {n: (a.take(t, axes.index(op.axis)), tuple(i for i in axes if i != op.axis)) if op.axis in axes
                   else (a, axes) for n, (a, axes) in x.items()}  # fmt: skip
            key, value = now["key"], now["value"]
            faded = state
            if "log_decay" in now:
                faded = times(whole, (state, whole), (np.exp(now["log_decay"][0]), now["log_decay"][1]))
            after = faded + times(whole, key, value)
            if "erase" in now:
                found = times(entries, now["erase"], (faded, whole))
                after = after - times(whole, now.get("remove", key), (found, entries))
            if "query" in now:
                rest = tuple(a for a in out if a != op.axis)
                if "bonus" in now:
                    own = times(rest, now["query"], now["bonus"], key, value)
                    read.append(times(rest, now["query"], (state, whole)) + own)
                else:
                    read.append(times(rest, now["query"], (after, whole)))
            state = after
        results = [np.stack(read, out.index(op.axis))] if read else []
        return (*results, *([state] if op.ends else []))

    return f


def cases() -> list[Case]:
    """Chunks of 4: one that is not full, two, three. A few have everything; those of single layers are slow."""
    made = [
        case("gated_delta", "chunked", 7, 4, state=True, ends=True), case("rwkv7", "chunked", 10, 4),
        case("rwkv7", "step", 3, 1, ends=True),
        case("rwkv6", "chunked", 10, 4, state=True, valid=True, ends=True),
        case("selective", "scan", 7, 4, state=True, valid=True, ends=True),
        case("retention", "chunked", 10, 4, state=True, valid=True, ends=True),
    ]  # fmt: skip
    more = [case(layer, "chunked", 10, 4) for layer in LAYERS if layer != "rwkv7"]
    more += [case(layer, "scan", 10, 4) for layer in ("selective", "ssd", "rwkv6")]
    more += [case(layer, "step", 3, 1, ends=True) for layer in ("rwkv6", "gated_delta")]
    more += [
        case("rwkv7", "chunked", 10, 4, state=True, ends=True), case("gla", "chunked", 3, 4, state=True, ends=True),
        case("delta", "chunked", 4, 4),
    ]  # fmt: skip
    return made + [dataclasses.replace(c, slow=True) for c in more]
