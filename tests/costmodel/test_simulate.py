"""Plans of shipped models against figures counted by hand from their papers' tables."""

import json
import subprocess
import sys
from typing import Any

import pytest

from compiler.errors import BlockgraphError
from compiler.language.model import loads
from costmodel.errors import PlanError
from costmodel.plan import Plan
from costmodel.render import machines_table, plan_text
from costmodel.simulate import simulate

EMBEDDING, OTHER = 917_962_752, 8_324_201_984  # arXiv:2408.00118, table 2, 9B


@pytest.fixture(scope="module")
def decode() -> Plan:
    return simulate("gemma2-9b", "v5e", "decode", batch=1, length=8192)


def test_parameters_are_the_published_ones(decode: Plan) -> None:
    assert (decode.parameters.embedding, decode.parameters.non_embedding) == (EMBEDDING, OTHER)
    assert decode.parameters.bytes_by_dtype == {"bfloat16": 2 * (EMBEDDING + OTHER)}


def test_decode_reads_every_parameter_once_and_the_whole_cache(decode: Plan) -> None:
    slots = 21 * (8192 + 4096)  # global and local layers
    cache = slots * 8 * 256 * 2 * 2  # kv heads, channels, keys and values, bytes
    assert decode.memory.state_by_kind["cache"] + decode.memory.state_by_kind["ring"] == cache
    assert decode.traffic.parameters == 2 * (EMBEDDING + OTHER)
    assert decode.traffic.state == pytest.approx(cache, rel=1e-5)
    assert decode.time.seconds == pytest.approx(decode.traffic.fused / 819e9, rel=1e-9)
    assert (decode.time.binds, decode.time.label) == ("memory", "roofline lower bound, uncalibrated")


def test_decode_flops_are_two_a_weight_plus_attention(decode: Plan) -> None:
    norms = (42 * 4 + 1) * 3584
    attention = 16 * (21 * 8193 + 21 * 4097) * (256 + 256) * 2
    assert decode.flops.matrix == 2 * (EMBEDDING + OTHER - norms) + attention


def test_a_model_that_does_not_fit_says_by_how_much(decode: Plan) -> None:
    memory = decode.memory
    assert not memory.fits
    assert memory.headroom == memory.available - memory.total < 0
    assert (memory.available, memory.most_batch, memory.fewest_chips) == (15.75 * 2**30, None, 2)


def test_the_largest_batch_is_the_edge() -> None:
    most = simulate("gemma2-2b", "v5e", "decode", batch=1, length=4096).memory.most_batch
    assert most is not None
    assert simulate("gemma2-2b", "v5e", "decode", batch=most, length=4096).memory.fits
    assert not simulate("gemma2-2b", "v5e", "decode", batch=most + 1, length=4096).memory.fits


def test_prefill_is_bound_by_compute() -> None:
    plan = simulate("gemma2-2b", "v5e", "prefill", batch=4, length=4096)
    assert plan.time.binds == "compute"
    assert plan.tokens == 4 * 4096
    assert plan.flops.matrix > 2 * 2_024_000_000 * plan.tokens


def test_several_chips_are_said_to_be_ideal() -> None:
    one = simulate("gemma2-9b", "v5e", "decode", 8, 1024)
    four = simulate("gemma2-9b", "v5e", "decode", 8, 1024, chips=4)
    assert four.time.seconds == pytest.approx(one.time.seconds / 4)
    assert four.memory.total == pytest.approx(one.memory.total / 4)
    assert any("ideal sharding, no collectives: a lower bound" in line for line in four.assumptions)
    assert not any("ideal sharding" in line for line in one.assumptions)
    many = simulate("gemma2-9b", "v5e", "decode", 8, 1024, chips=512)
    assert any("more than one network" in line for line in many.assumptions)


def test_stored_dtypes() -> None:
    plain = simulate("gemma2-9b", "v5e", "decode", 1, 8192)
    small = simulate("gemma2-9b", "v5e", "decode", 1, 8192, weights_dtype="int8", cache_dtype="int8")
    assert small.traffic.parameters == pytest.approx(plain.traffic.parameters / 2, rel=1e-3)
    assert small.traffic.state == pytest.approx(plain.traffic.state / 2, rel=1e-3)
    assert small.memory.fits
    assert sum("without scales" in line for line in small.assumptions) == 2


BAD = [
    ({"batch": 0}, "bad-size", "batch = 0"),
    ({"batch": -1}, "bad-size", "batch = -1"),
    ({"batch": 1.5}, "bad-size", "batch = 1.5"),
    ({"batch": True}, "bad-size", "batch = True"),
    ({"length": 0}, "bad-size", "length = 0"),
    ({"length": 10**12}, "bad-size", "length = 1,000,000,000,000"),
    ({"chips": 0}, "bad-size", "chips = 0"),
    ({"chips": 10**9}, "bad-size", "chips = 1,000,000,000"),
    ({"phase": "decod"}, "unknown-phase", "decod"),
    ({"phase": "train"}, "unknown-phase", "train"),
    ({"weights_dtype": "int7"}, "unknown-dtype", "weights_dtype"),
    ({"cache_dtype": "fp8"}, "unknown-dtype", "cache_dtype"),
    ({"sizes": {"frames": 3}}, "unknown-size", "frames"),
    ({"chunk": 512}, "conflicting-options", "this is decode"),
    ({"phase": "prefill", "chunk": 0}, "bad-size", "chunk = 0"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), BAD)
def test_refusals(arguments: dict[str, Any], code: str, message: str) -> None:
    with pytest.raises(BlockgraphError) as caught:
        simulate("gemma2-2b", "v5e", **arguments)
    assert caught.value.problems[0].code == code
    assert message in caught.value.problems[0].message


def test_all_bad_sizes_are_told_at_once() -> None:
    with pytest.raises(PlanError) as caught:
        simulate("gemma2-2b", "v5e", batch=0, length=0, chips=0)
    assert len(caught.value.problems) == 3


def test_as_json_is_plain(decode: Plan) -> None:
    back = json.loads(json.dumps(decode.as_json()))
    assert back["model"] == "gemma2-9b"
    assert back["parameters"]["count"] == EMBEDDING + OTHER
    assert back["assumptions"] == list(decode.assumptions)


def test_the_drawn_plan_says_everything(decode: Plan) -> None:
    text = " ".join(plan_text(decode, 200).split())
    for part in ("917,962,752", "15.75 GiB", "short by", "roofline lower bound, uncalibrated", "tokens/s", "memory",
                 *decode.assumptions, *decode.conventions):  # fmt: skip
        assert (part in text) == (part not in decode.aside), part
    assert "and 3 more about what this call has not: --json" in text and "1 others" not in text
    brief = plan_text(decode, 200, brief=True)
    assert "tokens/s" in brief and "where the time goes" in brief and "assumptions" not in brief


def test_only_what_has_to_do_with_the_call_is_printed() -> None:
    """A model of products alone has no attention, no state, no table: its plan does not speak of them."""
    model = loads(
        "name: m\ninputs: {x: {kind: features, axes: [rows, width]}}\ndims: {width: 8}\ngraph: [{linear: 4}]\n"
    )
    plan = simulate(model, "v5e", sizes={"rows": 16})
    assert plan.phase == "forward" and "has no decode" in plan.notes[0] and plan.notes[0] in plan_text(plan, 300)
    for word in ("attention", "state is", "embedding lookups"):
        assert word not in plan_text(plan, 300)
        assert any(word in line for line in (*plan.assumptions, *plan.conventions))
    assert len(plan.aside) == 8


def test_decode_is_meant_where_no_phase_is_asked_for() -> None:
    plan = simulate("gemma2-2b", "v5e")
    assert (plan.phase, plan.batch, plan.length, plan.notes) == ("decode", 1, 8192, ())


def test_a_prefill_in_chunks() -> None:
    whole = simulate("gemma2-2b", "v5e", "prefill", length=4096)
    one = simulate("gemma2-2b", "v5e", "prefill", length=4096, chunk=512)
    assert (one.chunk, one.length, one.tokens, whole.chunk) == (512, 4096, 512, None)
    assert one.memory.activations < whole.memory.activations and one.time.seconds < whole.time.seconds / 4
    assert any("4,096 tokens take 8 such calls" in line for line in one.assumptions)
    assert "length 4,096 · chunk 512 · v5e" in plan_text(one)
    assert simulate("gemma2-2b", "v5e", "prefill", length=64, chunk=64).chunk is None


def test_a_plan_is_one_line_or_the_table(decode: Plan) -> None:
    assert repr(decode).startswith("<Plan gemma2-9b · decode · batch 1 · context 8,192 · v5e: ")
    assert len(repr(decode)) < 120 and "does not fit" in repr(decode)
    assert str(decode) == plan_text(decode).rstrip() and "where the time goes" in str(decode)


@pytest.mark.parametrize(
    ("name", "near"),
    [("int3", "int4"), ("int7", "int8"), ("int6", "int8"), ("fp8", "float16"), ("bf16", "bfloat16"), ("f32", "float32"),
     ("nonsense", None)],
)  # fmt: skip
def test_the_nearest_dtype_is_of_its_kind(name: str, near: str | None) -> None:
    with pytest.raises(PlanError) as caught:
        simulate("gemma2-2b", "v5e", cache_dtype=name)
    assert caught.value.problems[0].suggestion == near


@pytest.mark.parametrize("width", [40, 80, 120])
def test_drawing_at_any_width(decode: Plan, width: int) -> None:
    assert max(len(line.rstrip()) for line in plan_text(decode, width).splitlines()) <= width


def test_machines_side_by_side() -> None:
    from rich.console import Console

    from costmodel.machines import machine, machines

    console = Console(width=140)
    with console.capture() as captured:
        console.print(machines_table(machine(n) for n in machines()))
    assert "v5p" in captured.get()


@pytest.mark.parametrize("name", ["recurrentgemma-2b", "griffin-1.3b", "smollm2-135m", "gemma-7b"])
@pytest.mark.parametrize("phase", ["forward", "prefill", "decode"])
def test_other_models_are_priced(name: str, phase: str) -> None:
    plan = simulate(name, "v4", phase, 2, 1024)
    assert plan.time.seconds > 0
    assert plan.traffic.fused <= plan.traffic.unfused


def test_no_jax_and_a_quick_start() -> None:
    code = (
        "import sys; from costmodel.simulate import simulate; from costmodel.render import plan_text; "
        "plan_text(simulate('gemma2-9b', 'v5e')); assert not [m for m in sys.modules if m.split('.')[0] == 'jax']"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_what_a_reader_would_take_amiss_is_a_note() -> None:
    """A chip of two devices; experts that all run."""
    (halves,) = simulate("gemma2-2b", "tpu7x", "decode", batch=1, length=1024).notes
    assert "2 devices of 94.75 GiB each" in halves
    (dense,) = simulate("mixtral-8x7b", "h100", "decode", batch=1, length=1024).notes
    assert "every expert runs on every token" in dense
    assert simulate("mixtral-8x7b", "h100", "prefill", batch=1, length=8192).notes == ()
