"""The verbs in Python: every name that the package shows exists, and the light ones answer."""

from __future__ import annotations

from pathlib import Path

import blockgraph as bg


def test_every_verb_is_there() -> None:
    assert all(callable(getattr(bg, name)) for name in bg.VERBS)


def test_the_light_verbs(tmp_path: Path) -> None:
    assert bg.validate("gemma2-9b") == []
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: bad\ndims: {vocab: 8, embed: 4}\ngraph: [embed, rms_nrm, unembed]\n")
    (problem,) = bg.validate(bad)
    assert (problem.code, problem.suggestion) == ("unknown-block", "rms_norm")
    assert bg.show("gemma-2b")["parameters"]["embedding"] == 524_550_144
    assert bg.graph("gemma-2b", tmp_path / "g.svg").read_text().count("<svg") == 1
    assert bg.diff("gemma-2b", "gemma-7b")["dims"]["heads"] == [8, 16]
    assert bg.schema()["title"] == "Spec" and "v5e" in bg.machines()
    assert bg.simulate(bg.load("gemma2-9b"), machine="v5e", chips=16).chips == 16


def test_what_the_verbs_give_is_shown_in_one_line() -> None:
    model = bg.load("gemma2-9b")
    assert repr(model) == "<Model gemma2-9b: 9,242,164,736 parameters in bfloat16>"
    plan = bg.simulate(model, "v5e")
    assert "\n" not in repr(plan) and repr(plan).startswith("<Plan gemma2-9b · decode · ")
    assert "tokens/s" in str(plan)
