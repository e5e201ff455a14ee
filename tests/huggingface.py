"""The Hugging Face fixtures as models: each case's spec, with the sizes of its config.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from compiler.language.model import Model, load

HERE = Path(__file__).parent
FIXTURES = HERE / "fixtures" / "hf"
SPECS = {
    "gemma": "gemma-2b", "gemma2": "gemma2-9b", "recurrent_gemma": "recurrentgemma-2b", "mixtral": "mixtral-8x7b",
    "llama_tied": "smollm2-135m", "llama": "llama", "llama_sharded": "llama", "mistral": "mistral", "qwen2": "qwen2",
    "qwen3": "qwen3", "gpt_neox": "gpt_neox", "llama3": "llama3", "qwen2_yarn": "qwen2_yarn",
    "gpt2": "gpt2", "bloom": "bloom", "qwen3_moe": "qwen3_moe", "deepseek_v3": "deepseek-v3",
    "mamba": "mamba", "mamba2": "mamba2", "rwkv": "rwkv4", "qwen3_next": "qwen3-next-80b-a3b",
}  # fmt: skip
# Specs whose dims and args have names of their own: {ours: config.json's}.
RECURRENT: dict[str, dict[str, str]] = {
    "mamba": {"state": "state_size", "rank": "time_step_rank", "window": "conv_kernel", "eps": "layer_norm_epsilon"},
    "mamba2": {"state": "state_size", "head_dim": "head_dim", "key_heads": "n_groups", "window": "conv_kernel",
               "eps": "layer_norm_epsilon"},
    "rwkv": {"rnn": "attention_hidden_size", "mlp": "intermediate_size", "eps": "layer_norm_epsilon"},
    "qwen3_next": {
        "heads": "num_attention_heads", "kv_heads": "num_key_value_heads", "head_dim": "head_dim",
        "key_heads": "linear_num_key_heads", "key_dim": "linear_key_head_dim", "value_dim": "linear_value_head_dim",
        "window": "linear_conv_kernel_dim", "mlp": "moe_intermediate_size", "experts": "num_experts",
        "active": "num_experts_per_tok", "eps": "rms_norm_eps",
    },
}  # fmt: skip
CASES = tuple(c for c in SPECS if c != "llama_sharded")


@dataclass(frozen=True)
class Case:
    """tokens [rows, length] and each row's solo logits [rows, length, vocab]; 0 past a row's length."""

    model: Model
    params: dict[str, np.ndarray]
    tokens: np.ndarray
    lengths: np.ndarray
    logits: np.ndarray
    greedy: np.ndarray

    @property
    def valid(self) -> np.ndarray:
        return np.arange(self.tokens.shape[1]) < self.lengths[:, None]

    def error(self, logits: Any) -> float:
        """Largest absolute difference over valid positions."""
        return float(np.abs(np.where(self.valid[..., None], np.asarray(logits) - self.logits, 0)).max())


def overrides(case: str) -> dict[str, Any]:
    """Sizes from config.json under the spec's names."""
    c = json.loads((FIXTURES / case / "config.json").read_text())

    def first(*names: str) -> Any:
        return next((c[n] for n in names if c.get(n) is not None), None)

    if case in RECURRENT:
        found = {ours: c[theirs] for ours, theirs in RECURRENT[case].items()}
        found |= {
            "dtype": "float32",
            "vocab": c["vocab_size"],
            "embed": c["hidden_size"],
            "layers": c["num_hidden_layers"],
        }
        return found | ({"theta": c["rope_parameters"]["rope_theta"]} if case == "qwen3_next" else {})

    width, heads = first("hidden_size", "n_embd"), first("num_attention_heads", "n_head")
    found = {
        "dtype": "float32", "vocab": c["vocab_size"], "embed": width, "heads": heads,
        "kv_heads": c.get("num_key_value_heads", heads), "mlp": first("intermediate_size", "n_inner") or 4 * width,
        "layers": first("num_hidden_layers", "n_layer"), "head_dim": c.get("head_dim") or width // heads,
    }  # fmt: skip
    theta = c["rope_parameters"]["rope_theta"] if "rope_parameters" in c else None
    with_theta = ("llama", "llama_sharded", "llama_tied", "llama3", "qwen2", "qwen2_yarn", "qwen3", "gpt_neox")
    more: dict[str, dict[str, Any]] = {
        "gemma2": {"window": c.get("sliding_window"), "attention_cap": c.get("attn_logit_softcapping"),
                   "logit_cap": c.get("final_logit_softcapping"),
                   "query_scale": c.get("query_pre_attn_scalar", 1) ** -0.5},
        "recurrent_gemma": {"rnn": c.get("lru_width"), "mlp": found["mlp"] // 2,
                            "window": c.get("attention_window_size"), "logit_cap": c.get("logits_soft_cap")},
        "mixtral": {"experts": c.get("num_local_experts"), "active": c.get("num_experts_per_tok"), "theta": theta},
        "qwen3_moe": {"experts": first("num_experts", "num_local_experts"), "active": c.get("num_experts_per_tok"),
                      "mlp": c.get("moe_intermediate_size"), "theta": theta},
        "deepseek_v3": _deepseek(c) if case == "deepseek_v3" else {},
        "mistral": {"window": c.get("sliding_window"), "theta": theta},
        "gpt2": {"context": c.get("n_positions")},
        **{key: {"theta": theta} for key in with_theta},
    }  # fmt: skip
    found.update(more.get(case, {}))
    for name in {"recurrent_gemma": ["head_dim"], "deepseek_v3": ["kv_heads"]}.get(case, []):
        del found[name]
    return found


def _deepseek(c: dict[str, Any]) -> dict[str, Any]:
    rope = c["rope_parameters"]
    return {
        "head_dim": c["qk_nope_head_dim"], "rotary_dim": c["qk_rope_head_dim"], "value_dim": c["v_head_dim"],
        "rank": c["kv_lora_rank"], "query_rank": c["q_lora_rank"], "mlp": c["moe_intermediate_size"],
        "experts": c["n_routed_experts"], "active": c["num_experts_per_tok"], "dense": c["first_k_dense_replace"],
        "dense_mlp": c["intermediate_size"], "shared": c["n_shared_experts"], "groups": c["n_group"],
        "active_groups": c["topk_group"], "expert_scale": c["routed_scaling_factor"], "theta": rope["rope_theta"],
        "stretch": rope["factor"], "original": rope["original_max_position_embeddings"],
    }  # fmt: skip


def model(case: str, **changed: Any) -> Model:
    local = HERE / "specs" / f"{SPECS[case]}.yaml"
    return load(local if local.exists() else SPECS[case], overrides(case) | changed)


@cache
def case(name: str) -> Case:
    from runtime.weights.load import load as read

    folder = FIXTURES / ("llama" if name == "llama_sharded" else name)
    made = model(name)
    with np.load(folder / "reference.npz") as r:
        arrays = {k: r[k] for k in ("tokens", "lengths", "logits", "greedy")}
    return Case(made, dict(read(made, FIXTURES / name).arrays), **arrays)
