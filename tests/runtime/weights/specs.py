"""Small specs with the shapes of tests/fixtures/hf, for the mappings alone."""

LLAMA = """
name: tiny-llama
dims: {vocab: 96, embed: 32, heads: 4, kv_heads: 2, head_dim: 8, mlp: 48}
args: {layers: 3}
dtypes: {params: float32, compute: float32}
blocks:
  layer:
    body:
      - residual: [{rms_norm: , name: pre_attention}, {attention: {position: rope}}]
      - residual: [{rms_norm: , name: pre_mlp}, {mlp: {gate: silu}}]
graph:
  - embed
  - repeat: {times: layers, cycle: [layer]}
  - {rms_norm: , name: final}
  - unembed
weights:
  huggingface:
    layout: out in
    tensors:
      embed.table: model.embed_tokens.weight
      layer.pre_attention.scale: model.layers.<layer>.input_layernorm.weight
      layer.attention.query: model.layers.<layer>.self_attn.q_proj.weight
      layer.attention.key: model.layers.<layer>.self_attn.k_proj.weight
      layer.attention.value: model.layers.<layer>.self_attn.v_proj.weight
      layer.attention.out: model.layers.<layer>.self_attn.o_proj.weight
      layer.pre_mlp.scale: model.layers.<layer>.post_attention_layernorm.weight
      layer.mlp.gate: model.layers.<layer>.mlp.gate_proj.weight
      layer.mlp.up: model.layers.<layer>.mlp.up_proj.weight
      layer.mlp.down: model.layers.<layer>.mlp.down_proj.weight
      final.scale: model.norm.weight
      unembed.out: lm_head.weight
"""

MIXTRAL = (
    LLAMA.replace("tiny-llama", "tiny-mixtral")
    .replace("mlp: 48}", "mlp: 24, experts: 4, active: 2}")
    .replace("{mlp: {gate: silu}}", "{moe: {gate: silu}}")
    .replace("layer.mlp.gate: model.layers.<layer>.mlp.gate_proj",
             "layer.moe.gate: model.layers.<layer>.block_sparse_moe.experts.<experts>.w1")
    .replace("layer.mlp.up: model.layers.<layer>.mlp.up_proj",
             "layer.moe.up: model.layers.<layer>.block_sparse_moe.experts.<experts>.w3")
    .replace("layer.mlp.down: model.layers.<layer>.mlp.down_proj",
             "layer.moe.down: model.layers.<layer>.block_sparse_moe.experts.<experts>.w2")
    + "      layer.moe.router: model.layers.<layer>.block_sparse_moe.gate.weight\n"
)  # fmt: skip

NEOX = """
name: tiny-neox
dims: {vocab: 80, embed: 32, heads: 4, kv_heads: heads, head_dim: 8, mlp: 64}
dtypes: {params: float32, compute: float32}
blocks:
  layer:
    body:
      - sum:
          - identity
          - [{layer_norm: , name: pre_attention}, {attention: {bias: true}}]
          - [{layer_norm: , name: pre_mlp}, {mlp: {act: gelu, bias: true}}]
graph:
  - embed
  - repeat: {times: 2, cycle: [layer]}
  - {layer_norm: , name: final}
  - unembed
weights:
  huggingface:
    layout: out in
    tensors:
      embed.table: gpt_neox.embed_in.weight
      layer.pre_attention.scale: L.<layer>.input_layernorm.weight
      layer.pre_attention.bias: L.<layer>.input_layernorm.bias
      layer.attention.{query, key, value}: L.<layer>.attention.query_key_value.weight = (heads {} head_dim) in
      layer.attention.{query_bias, key_bias, value_bias}:
        tensor: L.<layer>.attention.query_key_value.bias
        layout: (heads {} head_dim)
      layer.attention.out: L.<layer>.attention.dense.weight
      layer.attention.out_bias: L.<layer>.attention.dense.bias
      layer.pre_mlp.scale: L.<layer>.post_attention_layernorm.weight
      layer.pre_mlp.bias: L.<layer>.post_attention_layernorm.bias
      layer.mlp.up: L.<layer>.mlp.dense_h_to_4h.weight
      layer.mlp.up_bias: L.<layer>.mlp.dense_h_to_4h.bias
      layer.mlp.down: L.<layer>.mlp.dense_4h_to_h.weight
      layer.mlp.down_bias: L.<layer>.mlp.dense_4h_to_h.bias
      final.scale: gpt_neox.final_layer_norm.weight
      final.bias: gpt_neox.final_layer_norm.bias
      unembed.out: embed_out.weight
""".replace("L.<", "gpt_neox.layers.<")
