"""Families in a table: the 50 models of Chinchilla's table A9, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.errors import SpecError
from compiler.language import table
from compiler.language.load import models_folder
from compiler.language.model import load

A9 = models_folder() / "chinchilla-a9.yaml"
SPEC = """
name: family
dims: {vocab: 8, embed: 4}
args: {layers: 2}
graph: [embed, {repeat: {times: layers, cycle: [gelu]}}]
"""


def test_the_models_of_table_a9_have_the_printed_parameters() -> None:
    """Within 0.8 %, and within 0.15 % from 425 million on: the table is rounded, and counts no norms or biases."""
    rows = table.rows(A9)
    assert len(rows) == 50
    for name in rows:
        printed = int(name) * 1e6
        found = load(f"chinchilla-a9@{name}").parameter_count()
        assert found == pytest.approx(printed, rel=0.0015 if printed >= 425e6 else 0.008), name
    made = load("chinchilla-a9@3530")  # where heads * head_dim is not the width
    assert made.name == "chinchilla-a9-3530" and made.dims["heads"] * made.dims["head_dim"] == 2816
    assert made.dims["embed"] == 2688 and made.spec.args["layers"] == "36"


@pytest.mark.parametrize(
    ("name", "billions"), [("chinchilla-70b", 70.055), ("gopher-280b", 279.70), ("chinchilla-draft-4b", 4.122)]
)
def test_embedding_and_matrices_of_the_published_models(name: str, billions: float) -> None:
    """What the papers count; norms and the two vectors of relative positions are 0.004 % more."""
    made = load(name)
    matrices = [
        int(t.elements.constant)
        for label, (op, t) in made.parameters.items()
        if op.inputs is not None or label == "embed.table"
    ]
    assert sum(matrices) / 1e9 == pytest.approx(billions, abs=0.0005 if billions < 100 else 0.005)
    assert made.parameter_count() == pytest.approx(sum(matrices), rel=1e-4)


PUBLISHED = {
    # millions. T5: the published checkpoints; GPT-3: table D.1; PaLM: table 1; LaMDA: table 27, without the embedding
    "t5": {"small": 60.506624, "base": 222.903552, "large": 737.668096, "3b": 2851.598336, "11b": 11307.321344},
    "gpt3": {"125m": 125, "350m": 356, "760m": 760, "1.3b": 1320, "2.7b": 2650, "6.7b": 6660, "13b": 12_850,
             "175b": 174_600},
    "palm": {"8b": 8630, "62b": 62_500, "540b": 540_350},
    "lamda": {"2b": 2100, "8b": 8600, "137b": 137_000},
    # the published checkpoints; RWKV-4 also as table 2, RWKV-7 as the table of its World models
    "mamba": {"130m": 129.135360, "370m": 371.516416, "790m": 793.204224, "1.4b": 1372.178432, "2.8b": 2768.345600},
    "mamba2": {"130m": 128.989632, "370m": 368.346624, "780m": 780.161280, "1.3b": 1343.757312, "2.7b": 2702.599680},
    "rwkv4": {"169m": 169.342464, "430m": 430.397440, "1.5b": 1515.106304, "3b": 2984.627200, "7b": 7392.649216,
              "14b": 14148.597760},
    "rwkv7": {"0.1b": 191.034624, "0.4b": 450.767872, "1.5b": 1527.404544, "2.9b": 2947.735040},
    # in two digits as the papers name them; RetNet without the embedding
    "gla": {"340m": 340, "1.3b": 1300}, "retnet": {"1.3b": 1300, "2.7b": 2700, "6.7b": 6700},
}  # fmt: skip
EXACT = {"t5", "mamba", "mamba2", "rwkv4", "rwkv7"}
ROUNDED = {"gla": 0.006, "retnet": 0.021}  # the next number of two digits would be further away


@pytest.mark.parametrize("family", PUBLISHED)
def test_other_families_have_their_published_parameters(family: str) -> None:
    assert set(table.rows(models_folder() / f"{family}.yaml")) == set(PUBLISHED[family])
    for size, millions in PUBLISHED[family].items():
        made = load(f"{family}@{size}")
        counts = {label: int(t.elements.constant) for label, (_, t) in made.parameters.items()}
        found = sum(counts.values()) - (counts["embed.table"] if family in ("lamda", "retnet") else 0)
        rel = 0 if family in EXACT else ROUNDED.get(family, 0.004)
        assert found == pytest.approx(millions * 1e6, rel=rel, abs=0.5), size
    assert load(family).parameter_count() in {load(f"{family}@{size}").parameter_count() for size in PUBLISHED[family]}


def test_qwen3_next_has_its_published_parameters() -> None:
    """The model card: 80B in total, 79B without the embedding, 3B of them used by a token."""
    counts = {label: int(t.elements.constant) for label, (_, t) in load("qwen3-next-80b-a3b").parameters.items()}
    assert sum(counts.values()) == 79_674_391_296  # of the checkpoint, without the heads that predict further tokens
    experts = sum(n for label, n in counts.items() if ".moe." in label and "router" not in label)
    used = sum(counts.values()) - 2 * counts["embed.table"] - experts * 502 // 512
    assert used == pytest.approx(3.25e9, rel=0.01)


def refused(name: str) -> tuple[str, str]:
    with pytest.raises(SpecError) as caught:
        load(name)
    (problem,) = caught.value.problems
    return problem.code, problem.message


def test_rows_that_do_not_exist_and_tables_that_are_none(tmp_path: Path) -> None:
    assert refused("chinchilla-a9@45") == ("unknown-spec", "chinchilla-a9 has no size called 45")
    code, message = refused("chinchilla-70b@2")
    assert code == "file-missing" and "no chinchilla-70b.csv beside it" in message
    spec = tmp_path / "family.yaml"
    spec.write_text(SPEC)
    sizes = tmp_path / "family.csv"
    sizes.write_text("# where they are from\nsize,embed,layers\nsmall,4,1\n\nlarge, 16, 3\n")
    assert load(f"{spec}@large").dims["embed"] == 16
    assert load(f"{spec}@large", {"embed": 6}).dims["embed"] == 6
    sizes.write_text("size,embed\nsmall,4\nsmall,5\n")
    code, message = refused(f"{spec}@small")
    assert (code, message.split(",")[0]) == ("bad-table", "family.csv: two rows are called small")
    sizes.write_text("size,embed\nsmall,4,5\n")
    assert refused(f"{spec}@small")[0] == "bad-table"
    sizes.write_text("size,width\nsmall,4\n")
    assert refused(f"{spec}@small") == ("unknown-name", "no dim or arg is called width")
