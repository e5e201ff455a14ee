"""Every YAML example of the docs is a spec that elaborates, maps its weights and lowers, or is refused as said."""

from __future__ import annotations

import re

import pytest

from blockgraph.inspect import phases, variable_axes
from compiler.errors import SpecError
from compiler.language.model import Model, loads
from compiler.ops.latest import latest_of
from runtime.weights import mapping
from tests.docs.pages import FOLDER, Example, examples

ALL = examples("yaml")
SPECS = [e for e in ALL if e.kind in ("spec", "piece")]
SIZES = {"batch": 2, "seq": 5, "capacity": 8}


def model(e: Example) -> Model:
    return loads(e.spec, str(e))


def test_every_example_says_what_it_is() -> None:
    known = {"spec", "piece", "part", "refused", "machine", "import"}
    assert [str(e) for e in ALL if e.kind not in known] == []
    assert len(SPECS) >= 10


@pytest.mark.parametrize("e", SPECS, ids=str)
def test_elaborates(e: Example) -> None:
    made = model(e)
    assert made.parameter_count() > 0
    assert mapping.check(made) == []


@pytest.mark.parametrize("e", [e for e in ALL if e.kind == "refused"], ids=str)
def test_is_refused(e: Example) -> None:
    with pytest.raises(SpecError) as caught:
        model(e)
    assert [p.code for p in caught.value.problems] == [e.word]


@pytest.mark.parametrize("e", [e for e in SPECS if e.kind == "spec"], ids=str)
def test_lowers(e: Example) -> None:
    import jax

    from compiler.lower.program import program

    made = model(e)
    if made.parameter_count() > 5_000_000:
        small = {"layers": 2, "vocab": 128, "embed": 64, "heads": 4, "kv_heads": 4}
        held = {*made.dims, *made.args}
        made = loads(e.spec, str(e), {k: v for k, v in small.items() if k in held})
    if latest_of(made.graph) is not None:  # no more of the last positions than there are
        made = loads(e.spec, str(e), {"latents": 4})
    sizes = SIZES | dict.fromkeys(variable_axes(made), 4)
    possible = phases(made)
    for phase in ("forward", "prefill", "decode"):
        if possible[phase]:
            ready = program(made, phase, sizes | {"seq": 1 if phase == "decode" else 5})
            outputs, _ = jax.eval_shape(ready.function(), *ready.arguments())
            assert set(outputs) == {name for name, _ in made.graph.outputs}


def test_links_lead_somewhere() -> None:
    """Links between the pages, with their anchors as GitHub makes them."""

    def anchors(text: str) -> set[str]:
        titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}

    broken = []
    for page in FOLDER.glob("*.md"):
        text = page.read_text("utf-8")
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if link.startswith("http"):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path) if path else page
            if not target.exists() or (anchor and anchor not in anchors(target.read_text("utf-8"))):
                broken.append(f"{page.name}: {link}")
    assert broken == []
