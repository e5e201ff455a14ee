"""GGUF files written by the gguf package, and by hand where they must be wrong."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Type
from safetensors.numpy import load_file

from compiler.errors import WeightsError
from compiler.language.model import loads
from runtime.weights.load import load
from runtime.weights.source import open_source
from tests.runtime.weights.specs import LLAMA

HF = Path(__file__).parents[2] / "fixtures" / "hf"


def write(path, tensors, metadata=()):
    """tensors: name -> (array, type)."""
    writer = gguf.GGUFWriter(path, "llama")
    for add, *args in metadata:
        getattr(writer, add)(*args)
    for name, (x, kind) in tensors.items():
        writer.add_tensor(name, gguf.quants.quantize(x, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def drawn(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("f4")


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_1, Type.Q8_0])
def test_rows_are_what_the_package_dequantises(tmp_path, kind):
    x, y = drawn(6, 4, 64), drawn(64)
    with open_source(write(tmp_path / "x.gguf", {"a": (x, kind), "b": (y, kind)})) as source:
        assert source.tensors["a"].shape == (6, 4, 64) and source.tensors["a"].dtype == kind.name
        whole = gguf.quants.dequantize(gguf.quants.quantize(x, kind), kind)
        np.testing.assert_array_equal(source.read("a", 2, 5), whole[2:5])
        whole = gguf.quants.dequantize(gguf.quants.quantize(y, kind), kind)
        np.testing.assert_array_equal(source.read("b", 0, 64), whole)


def test_a_llama_with_interleaved_pairs(tmp_path):
    """Names and the permutation of llama.cpp's convert_hf_to_gguf; the format is found by the names."""
    theirs = load_file(HF / "llama/model.safetensors")
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }  # fmt: skip

    def renamed(text):
        for old, new in names.items():
            text = text.replace(old, new)
        return text

    def stored(name, x):
        heads = 4 if "q_proj" in name else 2 if "k_proj" in name else 0
        return x.reshape(heads, 2, 4, 32).swapaxes(1, 2).reshape(x.shape) if heads else x

    path = write(tmp_path / "x.gguf", {renamed(n): (stored(n, x), Type.F32) for n, x in theirs.items()})
    lines = renamed(LLAMA[LLAMA.index("  huggingface:") :]).replace("huggingface", "gguf")
    for name in ("attn_q", "attn_k"):
        lines = lines.replace(
            f"blk.<layer>.{name}.weight", f"{{tensor: blk.<layer>.{name}.weight, pairs: interleaved}}"
        )
    model = loads(LLAMA + lines)
    got, expected = load(model, path), load(model, HF / "llama")
    assert (got.format, expected.format) == ("gguf", "huggingface")
    for label, x in expected.arrays.items():
        np.testing.assert_array_equal(got.arrays[label], x)


def damaged(raw, how):
    return {
        "cut": raw[:-50], "in the header": raw[:60], "magic": b"GGML" + raw[4:], "empty": b"",
        "version": raw[:4] + b"\1" + raw[5:], "big-endian": raw[:4] + b"\0\0\0\3" + raw[8:],
        "huge count": raw[:8] + b"\xff" * 8 + raw[16:], "huge text": raw[:24] + b"\xff" * 7 + raw[31:],
    }[how]  # fmt: skip


@pytest.mark.parametrize(("how", "code"), [
    ("cut", "weights-truncated"), ("in the header", "weights-truncated"), ("magic", "bad-header"),
    ("empty", "bad-header"), ("version", "bad-header"), ("big-endian", "bad-header"),
    ("huge count", "weights-truncated"), ("huge text", "weights-truncated"),
])  # fmt: skip
def test_damaged_files_are_refused(tmp_path, how, code):
    raw = write(tmp_path / "x.gguf", {"a": (drawn(6, 64), Type.F32)}).read_bytes()
    (tmp_path / "y.gguf").write_bytes(damaged(raw, how))
    with pytest.raises(WeightsError) as e:
        open_source(tmp_path / "y.gguf")
    assert [p.code for p in e.value.problems] == [code]
