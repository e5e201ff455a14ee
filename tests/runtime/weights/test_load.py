"""Loading, exporting and random weights, against the Hugging Face fixtures and written-out files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from compiler.errors import WeightsError
from compiler.language.model import loads
from runtime.weights.initial import random, rule
from runtime.weights.load import Weights, export, load
from runtime.weights.source import open_source
from tests.runtime.weights.specs import LLAMA, MIXTRAL, NEOX

HF = Path(__file__).parents[2] / "fixtures" / "hf"


def array(weights, path):
    return next(a for label, a in weights.arrays.items() if label.split("[")[0] == path)


def same(a, b):
    assert a.keys() == b.keys()
    for k in a:
        assert a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes(), k


def codes(error):
    return [p.code for p in error.value.problems]


@pytest.mark.parametrize("name", ["llama", "llama_sharded"])
def test_llama(name):
    w, theirs = load(loads(LLAMA), HF / name), load_file(HF / "llama/model.safetensors")
    for layer in range(3):
        prefix = f"model.layers.{layer}."
        q, o = theirs[prefix + "self_attn.q_proj.weight"], theirs[prefix + "self_attn.o_proj.weight"]
        np.testing.assert_array_equal(array(w, "layer.attention.query")[layer], q.T.reshape(32, 4, 8))
        np.testing.assert_array_equal(array(w, "layer.attention.out")[layer], o.T.reshape(4, 8, 32))
        np.testing.assert_array_equal(
            array(w, "layer.pre_mlp.scale")[layer], theirs[prefix + "post_attention_layernorm.weight"]
        )
    np.testing.assert_array_equal(w.arrays["unembed.out"], theirs["lm_head.weight"].T)
    assert w.format == "huggingface" and w.rows == {}


def test_fused_and_spread_tensors():
    w, theirs = load(loads(NEOX), HF / "gpt_neox"), load_file(HF / "gpt_neox/model.safetensors")
    fused = theirs["gpt_neox.layers.1.attention.query_key_value.weight"].reshape(4, 3, 8, 32)
    np.testing.assert_array_equal(array(w, "layer.attention.key")[1], fused[:, 1].transpose(2, 0, 1))
    fused = theirs["gpt_neox.layers.1.attention.query_key_value.bias"].reshape(4, 3, 8)
    np.testing.assert_array_equal(array(w, "layer.attention.value_bias")[1], fused[:, 2])
    w, theirs = load(loads(MIXTRAL), HF / "mixtral"), load_file(HF / "mixtral/model.safetensors")
    w2 = theirs["model.layers.2.block_sparse_moe.experts.3.w2.weight"]
    np.testing.assert_array_equal(array(w, "layer.moe.down")[2, 3], w2.T)


@pytest.mark.parametrize(("spec", "name"), [(LLAMA, "llama"), (NEOX, "gpt_neox"), (MIXTRAL, "mixtral")])
def test_export_gives_the_published_file_again(spec, name, tmp_path):
    model, seen = loads(spec), []
    w = load(model, HF / name, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (w.bytes, w.bytes) and [d for d, _ in seen] == sorted(d for d, _ in seen)
    export(model, w, tmp_path / "one.safetensors")
    same(load_file(tmp_path / "one.safetensors"), load_file(HF / name / "model.safetensors"))
    files = export(model, w, tmp_path / "many", shard_bytes=20_000)
    assert len(files) > 3 and sorted(p.name for p in files) == sorted(p.name for p in (tmp_path / "many").iterdir())
    same(load(model, tmp_path / "many").arrays, w.arrays)
    with pytest.raises(WeightsError, match="already holds"):
        export(model, w, tmp_path / "many")


def test_random_weights_make_the_round_trip_in_bfloat16(tmp_path):
    model = loads(MIXTRAL)
    w = random(model, 3, dtype="bfloat16")
    export(model, w, tmp_path / "x.safetensors")
    same(load(model, tmp_path / "x.safetensors", dtype="bfloat16").arrays, w.arrays)
    assert load(model, tmp_path / "x.safetensors", dtype="float32").arrays["embed.table"].dtype == np.float32


def test_padded_rows_are_zero_and_not_exported(tmp_path):
    model = loads(
        LLAMA.replace("vocab: 96", "vocab: 100").replace("layout: out in", "layout: out in\n    padded: [vocab]", 1)
    )
    w, theirs = load(model, HF / "llama"), load_file(HF / "llama/model.safetensors")
    assert w.rows == {"vocab": 96}
    np.testing.assert_array_equal(w.arrays["embed.table"][:96], theirs["model.embed_tokens.weight"])
    np.testing.assert_array_equal(w.arrays["unembed.out"][:, :96], theirs["lm_head.weight"].T)
    assert not w.arrays["embed.table"][96:].any() and not w.arrays["unembed.out"][:, 96:].any()
    export(model, w, tmp_path / "x.safetensors")
    same(load_file(tmp_path / "x.safetensors"), theirs)


def test_numbers_added_and_scaled(tmp_path):
    model = loads(LLAMA.replace("model.norm.weight", "{tensor: model.norm.weight, add: -1, scale: 2}"))
    w, theirs = load(model, HF / "llama"), load_file(HF / "llama/model.safetensors")
    np.testing.assert_array_equal(w.arrays["final.scale"], theirs["model.norm.weight"] * 2 - 1)
    export(model, w, tmp_path / "x.safetensors")
    np.testing.assert_allclose(
        load_file(tmp_path / "x.safetensors")["model.norm.weight"], theirs["model.norm.weight"], rtol=1e-6
    )


def test_every_misfit_is_named_at_once(tmp_path):
    theirs = load_file(HF / "llama/model.safetensors")
    theirs["model.layers.0.mlp.up_prj.weight"] = theirs.pop("model.layers.0.mlp.up_proj.weight")
    theirs["model.norm.weight"] = np.zeros(31, "f4")
    theirs["lm_head.weight"] = theirs["lm_head.weight"][:90]  # fewer rows, and vocab is not padded here
    save_file(theirs, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError) as e:
        load(loads(LLAMA, "tiny.yaml"), tmp_path / "x.safetensors")
    assert sorted(codes(e)) == ["extra-tensor", "misshaped-tensor", "misshaped-tensor", "missing-tensor"]
    assert e.value.problems[0].suggestion == "model.layers.0.mlp.up_prj.weight"
    assert "is [31], final.scale needs [32]" in str(e.value) and "tiny.yaml:" in str(e.value)
    save_file({"other.weight": np.zeros(3, "f4")}, tmp_path / "y.safetensors")
    with pytest.raises(WeightsError, match=r"holds other\.weight"):
        load(loads(LLAMA), tmp_path / "y.safetensors")


def test_float16_does_not_overflow_in_silence(tmp_path):
    theirs = load_file(HF / "llama/model.safetensors")
    theirs["model.norm.weight"][3] = 1e6
    save_file(theirs, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=r"model\.norm\.weight has values beyond float16"):
        load(loads(LLAMA), tmp_path / "x.safetensors", dtype="float16")


def damaged(tmp_path, how):
    raw = (HF / "llama/model.safetensors").read_bytes()
    n = int.from_bytes(raw[:8], "little")
    path = tmp_path / "x.safetensors"
    if how == "bytes swapped":
        raw = raw[:8] + raw[8:20] + b"\xff" + raw[21:]
    elif how == "overlap":
        header = json.loads(raw[8 : 8 + n])
        names = [k for k in header if k.endswith("layernorm.weight")]
        header[names[0]]["data_offsets"] = header[names[1]]["data_offsets"]
        text = json.dumps(header).encode()
        raw = len(text).to_bytes(8, "little") + text + raw[8 + n :]
    else:
        raw = {"cut": raw[:-10], "longer": raw + b"12", "header cut": raw[:50], "short": raw[:5], "empty": b"",
               "pickle": b"\x80\x02" + raw, "zip": b"PK\x03\x04" + raw}[how]  # fmt: skip
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(("how", "code"), [
    ("cut", "weights-truncated"), ("longer", "bad-header"), ("header cut", "bad-header"),
    ("short", "weights-truncated"), ("empty", "weights-truncated"),
    ("pickle", "pickle-refused"), ("zip", "pickle-refused"), ("overlap", "bad-header"), ("bytes swapped", "bad-header"),
])  # fmt: skip
def test_damaged_files_are_refused(tmp_path, how, code):
    with pytest.raises(WeightsError) as e:
        open_source(damaged(tmp_path, how))
    assert codes(e) == [code]


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "", ".."])
def test_shards_stay_in_their_directory(tmp_path, name):
    shutil.copy(HF / "llama/model.safetensors", tmp_path / "x.safetensors")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(WeightsError) as e:
        open_source(tmp_path / "in")
    assert codes(e) == ["bad-index"]


def test_pickles_and_empty_directories_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="holds no weights"):
        open_source(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(WeightsError, match="can run any code"):
            open_source(path)


# -- random weights


def test_random_weights_do_not_depend_on_how_layers_are_stacked():
    one = random(loads(LLAMA), 7)
    two = random(
        loads(LLAMA.replace("cycle: [layer]", "cycle: [{layer: }, layer]")), 7
    )  # [0:2:2] … and [2] written out
    stacked = array(one, "layer.mlp.up")
    apart = [a for label, a in two.arrays.items() if label.startswith("layer.mlp.up[")]
    np.testing.assert_array_equal(np.concatenate([a.reshape(-1, 32, 48) for a in apart]), stacked)
    assert not (array(one, "layer.mlp.gate") == stacked).any()
    assert not (array(random(loads(LLAMA), 8), "layer.mlp.up") == stacked).any()
    same(random(loads(LLAMA), 7).arrays, one.arrays)


def test_init_rules():
    def drawn(init, axes, inputs=None, n=20_000):
        return rule(init, axes, inputs)(np.random.default_rng(0), n)

    assert drawn("fan_in", [("heads", 4), ("head_dim", 16), ("embed", 9)], 2).std() == pytest.approx(1 / 8, rel=0.02)
    assert drawn("fan_in", [("experts", 4), ("embed", 16), ("mlp", 9)], 2).std() == pytest.approx(1 / 4, rel=0.02)
    assert drawn("fan_in", [("vocab", 4), ("embed", 25)]).std() == pytest.approx(1 / 5, rel=0.02)
    assert drawn("normal(0.02)", []).std() == pytest.approx(0.02, rel=0.02)
    assert not drawn("zeros", []).any() and drawn("ones", []).all()
    u = drawn("uniform(-1, 3)", [])
    assert -1 <= u.min() < -0.99 and 2.99 < u.max() <= 3
    step = np.log1p(np.exp(drawn("inverse_softplus_log_uniform(0.001, 0.1)", [])))
    assert np.median(step) == pytest.approx(0.01, rel=0.05) and step.min() >= 0.000999
    decay = np.exp(-np.log1p(np.exp(drawn("rg_lru", [])))) ** 2
    assert decay.min() == pytest.approx(0.81, abs=1e-3) and decay.max() == pytest.approx(0.998, abs=1e-3)
    assert decay.mean() == pytest.approx((0.81 + 0.998) / 2, abs=3e-3)
    for bad in ("normal", "normal(a)", "uniform(1)", "gaussian", "ones(1)"):
        with pytest.raises(KeyError):
            rule(bad, [], None)


# -- memory

CHILD = """
import sys
from compiler.language.model import loads
from runtime.weights.load import load
assert "jax" not in sys.modules
def kib(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))
model = loads(open(sys.argv[1]).read())
open("/proc/self/clear_refs", "w").write("5")
before = kib("VmRSS")
w = load(model, sys.argv[2])
print(before, kib("VmHWM"), w.bytes // 1024)
"""


def peak(tmp_path, spec, stored, dtype):
    """(resident before, peak, weights) in KiB of a child that loads random weights of a spec, stored as ``stored``."""
    (tmp_path / "spec.yaml").write_text(spec.replace("params: float32", f"params: {dtype}"))
    model = loads(spec)
    export(model, random(model, 0, dtype=stored), tmp_path / "w", shard_bytes=1e8)
    done = subprocess.run([sys.executable, "-c", CHILD, tmp_path / "spec.yaml", tmp_path / "w"], check=True,
                          capture_output=True, text=True, cwd=Path(__file__).parents[3])  # fmt: skip
    return [int(x) for x in done.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("stored", "dtype"), [("bfloat16", "bfloat16"), ("float32", "bfloat16")])
def test_memory_while_loading(tmp_path, stored, dtype):
    spec = LLAMA.replace("vocab: 96, embed: 32", "vocab: 40_000, embed: 512").replace("mlp: 48", "mlp: 2048")
    before, high, size = peak(tmp_path, spec, stored, dtype)
    assert size > 90_000 and high - before < 1.3 * size


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_while_loading_400_megabytes(tmp_path):
    spec = LLAMA.replace("vocab: 96, embed: 32", "vocab: 60_000, embed: 1024").replace("mlp: 48", "mlp: 8192")
    before, high, size = peak(tmp_path, spec, "bfloat16", "bfloat16")
    print(before, high, size)
    assert size > 380_000 and high < 1.3 * size


def test_arrays_that_do_not_fit_are_not_exported(tmp_path):
    w = random(loads(LLAMA), 0)
    arrays = {**w.arrays, "extra": np.zeros(1), "final.scale": np.zeros(5)}
    del arrays["embed.table"]
    with pytest.raises(WeightsError) as e:
        export(loads(LLAMA), Weights(arrays), tmp_path / "x.safetensors")
    assert sorted(codes(e)) == ["extra-tensor", "misshaped-tensor", "missing-tensor"]
    assert not any(tmp_path.iterdir())
