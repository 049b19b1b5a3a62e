#!/usr/bin/env python3
"""Logits of tiny models from `transformers`, one file per configuration (pip install torch transformers safetensors).

Weights are not stored: they come from a counter-based generator, which the tests also have (see `values`). So a golden is the
config.json, the tensors of the safetensors file that `save_pretrained` writes (name, shape, scale, offset), the token
ids, and the logits of every position. Norms and biases are random, too: ones and zeros would hide mistakes.

A golden in the "draft" style has tensors of a draft head after its layers. One in the "ling" style has the keys of Ling's own
configuration, whose class `transformers` does not have. One in the "published" style also has what only published files of its
family contain: stacked experts, and tensors of a draft head, which readers leave out.

Arguments: names of configurations, by default all. NAME.json has everything but the logits, NAME.f32 the logits, [tokens, vocab] LE.
"""
import json, math, pathlib, sys, tempfile, zlib
import numpy as np, torch, transformers
from safetensors import safe_open
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).parent
TOKENS = [(i * 37 + i * i * 11) % 251 + 3 for i in range(48)]
BASE = dict(vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0,
            tie_word_embeddings=False)
MOE = dict(num_experts=8, num_experts_per_tok=2)
Q2 = dict(**MOE, moe_intermediate_size=64, shared_expert_intermediate_size=80)
Q3 = dict(**MOE, moe_intermediate_size=64, head_dim=32)
OSS = dict(num_local_experts=8, num_experts_per_tok=3, head_dim=32, intermediate_size=96, num_hidden_layers=3, rms_norm_eps=1e-5,
           initializer_range=0.02, rope_parameters=dict(rope_type="yarn", rope_theta=150000.0, factor=4.0, beta_fast=32.0,
                                                        beta_slow=1.0, truncate=False, original_max_position_embeddings=40))
kinds = lambda full, window: dict(rope_parameters=dict(full_attention=full, sliding_attention=window))
G3 = dict(num_hidden_layers=3, head_dim=32, query_pre_attn_scalar=24, tie_word_embeddings=True, vocab_size=256, sliding_window=10,
          layer_types=["sliding_attention", "full_attention", "sliding_attention"],
          **kinds(dict(rope_type="linear", factor=8.0, rope_theta=1e6), dict(rope_type="default", rope_theta=1e4)))
G4 = dict(num_hidden_layers=4, head_dim=32, global_head_dim=48, num_global_key_value_heads=1, attention_k_eq_v=True, enable_moe_block=True,
          num_experts=8, top_k_experts=3, moe_intermediate_size=40, hidden_size_per_layer_input=0, tie_word_embeddings=True,
          vocab_size=256, sliding_window=10, final_logit_softcapping=15.0,
          layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"])
G4E = G4 | dict(enable_moe_block=False, num_experts=None, top_k_experts=None, moe_intermediate_size=None, attention_k_eq_v=False,
                hidden_size_per_layer_input=16, vocab_size_per_layer_input=256, num_hidden_layers=6, num_kv_shared_layers=3,
                use_double_wide_mlp=True, layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2)
SIGHT = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
NEXT = dict(**MOE, norm_topk_prob=True, moe_intermediate_size=64, shared_expert_intermediate_size=80, head_dim=32, num_hidden_layers=4,
            linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=32, linear_value_head_dim=32)
Q35 = dict(head_dim=32, num_hidden_layers=4, linear_num_key_heads=2, linear_num_value_heads=6, linear_key_head_dim=32,
           linear_value_head_dim=32)
Q35MOE = dict(**Q35, **MOE, moe_intermediate_size=64, shared_expert_intermediate_size=80)
GLM = dict(n_routed_experts=8, num_experts_per_tok=3, n_shared_experts=1, moe_intermediate_size=48, head_dim=32, num_hidden_layers=3,
           first_k_dense_replace=1, routed_scaling_factor=1.5, rms_norm_eps=1e-5)
MLA = dict(kv_lora_rank=48, q_lora_rank=None, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32, num_key_value_heads=4, n_routed_experts=8,
           num_experts_per_tok=3, n_shared_experts=2, moe_intermediate_size=48, num_hidden_layers=3, first_k_dense_replace=1)
LING = dict(n_routed_experts=16, num_experts_per_tok=3, n_shared_experts=1, moe_intermediate_size=48, head_dim=32, num_hidden_layers=3,
            first_k_dense_replace=1, routed_scaling_factor=2.5)
GRANITE = dict(num_local_experts=8, num_experts_per_tok=3, intermediate_size=48, embedding_multiplier=6.0, residual_multiplier=0.22,
               attention_multiplier=0.15, logits_scaling=0.5, rms_norm_eps=1e-5)
MELLUM = dict(num_experts=8, num_experts_per_tok=3, moe_intermediate_size=48, head_dim=32, num_hidden_layers=4, sliding_window=10,
              layer_types=["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"])
ERNIE = dict(moe_num_experts=8, moe_k=3, moe_intermediate_size=48, moe_num_shared_experts=2, num_hidden_layers=3)
DOTS = dict(n_routed_experts=8, num_experts_per_tok=3, n_shared_experts=2, moe_intermediate_size=48, num_hidden_layers=3, first_k_dense_replace=1,
            norm_topk_prob=True, routed_scaling_factor=2.5)
MINIMAX = dict(num_local_experts=8, num_experts_per_tok=3, intermediate_size=48, head_dim=32)
HUNYUAN = dict(num_experts=8, moe_topk=3, intermediate_size=48, head_dim=16)
TRINITY = dict(num_experts=8, num_experts_per_tok=3, num_shared_experts=1, moe_intermediate_size=48, head_dim=32, num_hidden_layers=5,
               num_dense_layers=1, route_scale=2.5, sliding_window=10)
KDA = dict(linear_head_dim=32, linear_num_heads=4, kv_lora_rank=48, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32, num_local_experts=8,
           num_experts_per_tok=3, moe_intermediate_size=48, num_key_value_heads=4, num_hidden_layers=5)
LING3 = dict(head_dim=32, kv_lora_rank=48, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32, num_local_experts=8, num_experts_per_tok=3,
            moe_intermediate_size=48, num_key_value_heads=4, num_hidden_layers=5, first_k_dense_replace=1, rope_theta=6e6)
EYES = dict(depth=1, hidden_size=32, intermediate_size=32, num_heads=2, out_hidden_size=64, patch_size=4, num_position_embeddings=16)
kinds_of = lambda letters: [dict(F="full_attention", L="linear_attention")[letter] for letter in letters]
GRANITE4 = dict(GRANITE, mamba_n_heads=8, mamba_n_groups=2, mamba_d_state=32, mamba_d_head=16, shared_intermediate_size=80, num_hidden_layers=4,
                layer_types=kinds_of("LLFL"))
NEMOTRON = dict(mamba_num_heads=8, mamba_head_dim=16, n_groups=2, ssm_state_size=32, head_dim=32, n_routed_experts=8, num_experts_per_tok=3,
                moe_intermediate_size=48, moe_shared_expert_intermediate_size=80, routed_scaling_factor=2.5)
LAGUNA = dict(num_experts=8, num_experts_per_tok=3, moe_intermediate_size=48, shared_expert_intermediate_size=80, head_dim=32, sliding_window=10,
              num_hidden_layers=5, moe_routed_scaling_factor=2.5, num_attention_heads_per_layer=[4, 6, 6, 6, 4])
PHI = dict(num_local_experts=8, num_experts_per_tok=2, intermediate_size=48, rms_norm_eps=1e-5)
blocks_of = lambda letters: [{"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}[letter] for letter in letters]
rope = lambda kind, theta=10000.0, **kw: dict(rope_parameters=dict(rope_type=kind, rope_theta=theta, **kw))
MODELS = {  # name: (class prefix, changes, style of config.json)
    "olmoe": ("Olmoe", dict(**MOE, num_key_value_heads=4), "old"),
    "olmoe-gqa-norm": ("Olmoe", dict(**MOE, norm_topk_prob=True), "new"),
    "olmoe-clip": ("Olmoe", dict(**MOE, clip_qkv=0.8), "old"),
    "mixtral": ("Mixtral", dict(num_local_experts=8, num_experts_per_tok=2, **rope("default", 1e6)), "new"),
    "mixtral-window": ("Mixtral", dict(num_local_experts=4, num_experts_per_tok=2, sliding_window=16), "old"),
    "qwen2moe": ("Qwen2Moe", Q2, "new"),
    "qwen2moe-norm-tied": ("Qwen2Moe", dict(**(Q2 | dict(tie_word_embeddings=True)), norm_topk_prob=True), "old"),
    "qwen2moe-sparse-step": ("Qwen2Moe", dict(**Q2, num_hidden_layers=4, decoder_sparse_step=2), "old"),
    "qwen2moe-mlp-only-window": ("Qwen2Moe", dict(**Q2, num_hidden_layers=3, mlp_only_layers=[1], use_sliding_window=True,
                                                  sliding_window=12, max_window_layers=2), "new"),
    "qwen3moe": ("Qwen3Moe", dict(**Q3, norm_topk_prob=True), "old"),
    "qwen3moe-plain": ("Qwen3Moe", dict(**Q3, norm_topk_prob=False, **rope("default", 5e5)), "new"),
    "qwen3moe-mlp-only": ("Qwen3Moe", dict(**Q3, norm_topk_prob=True, num_hidden_layers=3, mlp_only_layers=[0]), "new"),
    "qwen3moe-window": ("Qwen3Moe", dict(**Q3, norm_topk_prob=True, use_sliding_window=True, sliding_window=10), "old"),
    "gptoss": ("GptOss", dict(**OSS, sliding_window=10), "old"),
    "gptoss-listed": ("GptOss", dict(**(OSS | dict(num_hidden_layers=4)), sliding_window=12, swiglu_limit=1.5, swiglu_alpha=1.2,
                                     layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"]), "new"),
    "gptoss-mxfp4": ("GptOss", dict(**(OSS | dict(num_hidden_layers=2)), sliding_window=16), "mxfp4"),
    "gemma3": ("Gemma3Text", dict(G3, final_logit_softcapping=15.0), "new"),
    "gemma3-rhythm": ("Gemma3Text", dict(G3 | dict(num_hidden_layers=7, layer_types=None, query_pre_attn_scalar=32), hidden_size=48), "old"),
    "gemma3-sight": ("Gemma3", dict(text_config=BASE | G3, vision_config=SIGHT, mm_tokens_per_image=4), "new"),
    "gemma4": ("Gemma4Text", G4, "new"),
    "gemma4-dense": ("Gemma4Text", dict(G4 | dict(enable_moe_block=False, num_experts=None, top_k_experts=None, moe_intermediate_size=None,
                                                  attention_k_eq_v=False, num_hidden_layers=3,
                                                  layer_types=["sliding_attention", "sliding_attention", "full_attention"])), "new"),
    "gemma4-inputs": ("Gemma4Text", G4E, "new"),
    "gemma4-inputs-alone": ("Gemma4Text", dict(G4E | dict(num_kv_shared_layers=0, num_hidden_layers=3, use_double_wide_mlp=False,
                                                          layer_types=G4E["layer_types"][:3])), "new"),
    "gemma4-sight": ("Gemma4", dict(text_config=BASE | G4 | dict(global_head_dim=64, use_bidirectional_attention="vision"), audio_config=None,
                                    vision_config=SIGHT | dict(num_key_value_heads=2, head_dim=16)), "released"),
    "qwen3next": ("Qwen3Next", NEXT, "old"),
    "qwen3next-mlp-only": ("Qwen3Next", dict(**(NEXT | dict(norm_topk_prob=False, num_hidden_layers=3, linear_conv_kernel_dim=3,
                                                            linear_key_head_dim=24, linear_value_head_dim=16)), mlp_only_layers=[1],
                                             attention_bias=True,
                                             layer_types=["full_attention", "linear_attention", "linear_attention"]), "new"),
    "qwen35moe": ("Qwen3_5MoeText", Q35MOE, "new"),
    "qwen35moe-published": ("Qwen3_5Moe", dict(text_config=dict(**(BASE | Q35MOE | dict(num_hidden_layers=2)), layer_types=[
        "linear_attention", "full_attention"],
        **rope("default", 1e7, partial_rotary_factor=0.25, mrope_section=[2, 1, 1], mrope_interleaved=True)), vision_config=EYES, tie_word_embeddings=False), "published"),
    "qwen35": ("Qwen3_5Text", dict(**(Q35 | dict(linear_num_value_heads=2)), tie_word_embeddings=True), "new"),
    "qwen35-grouped": ("Qwen3_5Text", dict(**Q35, full_attention_interval=2, **rope("default", 1e7, partial_rotary_factor=0.5)), "new"),
    "glm4moe": ("Glm4Moe", dict(**GLM, attention_bias=True, use_qk_norm=True), "draft"),
    "glm4moe-groups": ("Glm4Moe", dict(**(GLM | dict(n_shared_experts=2, first_k_dense_replace=2, n_routed_experts=12)), n_group=4, topk_group=2,
                                       norm_topk_prob=False, **rope("default", 1e6, partial_rotary_factor=0.25)), "old"),
    "deepseek2-lite": ("DeepseekV2", dict(**MLA, topk_method="greedy", n_group=1, topk_group=1, routed_scaling_factor=1.0, **rope(
        "yarn", factor=4.0, original_max_position_embeddings=32, beta_fast=32, beta_slow=1, mscale=0.707, mscale_all_dim=0.707)), "old"),
    "deepseek2-v2": ("DeepseekV2", dict(**(MLA | dict(q_lora_rank=40)), topk_method="group_limited_greedy", n_group=4, topk_group=2,
                                        routed_scaling_factor=4.0), "new"),
    "deepseek2-v3": ("DeepseekV3", dict(**(MLA | dict(q_lora_rank=40, n_routed_experts=16, n_shared_experts=1)), n_group=4, topk_group=2, **rope(
        "yarn", factor=4.0, original_max_position_embeddings=32, beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=1.0)), "draft"),
    "deepseek2-halves": ("DeepseekV3", dict(**MLA, n_group=1, topk_group=1, rope_interleave=False, attention_bias=True, norm_topk_prob=False),
                         "new"),
    "deepseek2-flash": ("Glm4MoeLite", dict(**(MLA | dict(q_lora_rank=32)), n_group=1, topk_group=1, rms_norm_eps=1e-5,
                                            routed_scaling_factor=1.8), "draft"),
    "bailingmoe2": ("SarvamMoE", dict(**LING, attention_bias=True, n_group=4, topk_group=2, **rope("default", 600000.0, partial_rotary_factor=0.5)), "ling"),
    "bailingmoe2-sarvam": ("SarvamMoE", dict(**LING, **rope("default", 8e6)), "new"),
    "granitemoe": ("GraniteMoe", GRANITE, "old"),
    "granitemoe-shared": ("GraniteMoeShared", dict(**(GRANITE | dict(tie_word_embeddings=True, logits_scaling=4.0)), shared_intermediate_size=80), "new"),
    "mellum": ("Mellum", dict(**MELLUM, **kinds(dict(rope_type="yarn", rope_theta=5e5, factor=4.0, original_max_position_embeddings=32),
                                               dict(rope_type="default", rope_theta=1e4))), "new"),
    "mellum-dense": ("Mellum", dict(**MELLUM, norm_topk_prob=False, mlp_layer_types=["dense", "sparse", "sparse", "sparse"]), "new"),
    "ernie4_5moe": ("Ernie4_5_Moe", dict(**ERNIE, tie_word_embeddings=True), "new"),
    "ernie4_5moe-apart": ("Ernie4_5_Moe", dict(**ERNIE, moe_layer_start_index=0, moe_layer_interval=2), "old"),
    "dots1": ("Dots1", DOTS, "old"),
    "dots1-window": ("Dots1", dict(**(DOTS | dict(norm_topk_prob=False)), n_group=4, topk_group=2, attention_bias=True, sliding_window=10,
                                   max_window_layers=1), "new"),
    "minimaxm2": ("MiniMaxM2", dict(**MINIMAX, **rope("default", 5e6, partial_rotary_factor=0.5)), "rotary_dim"),
    "minimaxm2-plain": ("MiniMaxM2", dict(**MINIMAX | dict(num_key_value_heads=4), **rope("default", 5e6, partial_rotary_factor=1.0)), "rotary_dim"),
    "hunyuanmoe": ("HunYuanMoEV1", HUNYUAN, "hunyuan"),
    "hunyuanmoe-alpha": ("HunYuanMoEV1", dict(**HUNYUAN, **rope("dynamic", alpha=1000.0, factor=1.0)), "new"),
    "afmoe": ("Afmoe", dict(**TRINITY, mup_enabled=True), "new"),
    "afmoe-plain": ("Afmoe", dict(**TRINITY, layer_types=["sliding_attention", "full_attention", "full_attention", "sliding_attention",
                                                          "full_attention"]), "new"),
    "kimi-linear": ("KimiLinear", dict(KDA, layer_types=kinds_of("LLFLF"), mlp_layer_types=["dense"] + ["sparse"] * 4), "kimi"),
    "kimi-linear-resaved": ("KimiLinear", dict(KDA, layer_types=kinds_of("FLLLF"), mlp_layer_types=["sparse", "dense"] + ["sparse"] * 3, q_lora_rank=40,
                                               n_shared_experts=2, n_group=4, topk_group=2, norm_topk_prob=False, linear_conv_kernel_dim=3), "new"),
    "bailingmoe3": ("BailingHybrid", dict(LING3, num_hidden_layers=6, layer_group_size=3, kda_lower_bound=-4.0, n_group=4, topk_group=2, q_lora_rank=40), "ling3"),
    "bailingmoe3-resaved": ("BailingHybrid", dict(LING3, layer_types=kinds_of("LFLLF"), n_group=1, topk_group=1, norm_topk_prob=False, n_shared_experts=2,
                                                  kda_safe_gate=False), "new"),
    "flexolmo": ("FlexOlmo", dict(num_experts=8, num_experts_per_tok=3, intermediate_size=48), "new"),
    "flexolmo-norm": ("FlexOlmo", dict(num_experts=8, num_experts_per_tok=3, intermediate_size=48, num_key_value_heads=4, norm_topk_prob=True,
                                       attention_bias=True), "old"),
    "nemotronh": ("NemotronH", dict(NEMOTRON, layers_block_type=blocks_of("MEM*E")), "nemotron"),
    "nemotronh-groups": ("NemotronH", dict(NEMOTRON, layers_block_type=blocks_of("*EM-E"), n_group=4, topk_group=2, norm_topk_prob=False, n_groups=4,
                                           use_conv_bias=False), "new"),
    "nemotronh-dense": ("NemotronH", dict(NEMOTRON, layers_block_type=blocks_of("M-*-M"), tie_word_embeddings=False), "nemotron"),
    "granitehybrid": ("GraniteMoeHybrid", dict(GRANITE4), "granite4"),
    "granitehybrid-dense": ("GraniteMoeHybrid", dict(GRANITE4, num_local_experts=0, num_experts_per_tok=0, tie_word_embeddings=True, mamba_n_groups=1, logits_scaling=8.0,
                                                     mamba_conv_bias=False, layer_types=kinds_of("FLLL")), "new"),
    "laguna": ("Laguna", dict(LAGUNA, layer_types=["full_attention"] + ["sliding_attention"] * 3 + ["full_attention"], **kinds(
        dict(rope_type="yarn", rope_theta=5e5, factor=4.0, original_max_position_embeddings=32, partial_rotary_factor=0.5),
        dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=1.0))), "new"),
    "laguna-values": ("Laguna", dict(LAGUNA, num_hidden_layers=3, num_attention_heads_per_layer=None, gating="per-element", sliding_window=0,
                                     mlp_layer_types=["dense", "dense", "sparse"]), "new"),
    "phimoe": ("Phimoe", dict(PHI, attention_bias=True, lm_head_bias=True, **rope(
        "longrope", short_factor=[1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 1.8, 2.2], long_factor=[1.0, 1.5, 2.0, 3.0, 5.0, 9.0, 20.0, 40.0],
        short_mscale=math.sqrt(1 + math.log(2) / math.log(96)), long_mscale=1.3, original_max_position_embeddings=96), max_position_embeddings=192), "phi"),
    "phimoe-plain": ("Phimoe", dict(PHI, router_jitter_noise=0.3, sliding_window=10), "new"),
    "llama": ("Llama", {}, "old"),
    "llama-tied-head-dim": ("Llama", dict(tie_word_embeddings=True, head_dim=24), "new"),
    "llama-bias": ("Llama", dict(attention_bias=True), "new"),
    "llama-linear": ("Llama", rope("linear", factor=4.0), "old"),
    "llama-llama3": ("Llama", rope("llama3", 500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                   original_max_position_embeddings=32), "old"),
    "llama-yarn": ("Llama", rope("yarn", factor=4.0, original_max_position_embeddings=32), "new"),
    "mistral-window": ("Mistral", dict(sliding_window=7), "new"),
    "qwen2": ("Qwen2", {}, "old"),
    "qwen2-window-tied": ("Qwen2", dict(tie_word_embeddings=True, num_hidden_layers=3, use_sliding_window=True,
                                        sliding_window=9, max_window_layers=1), "old"),
    "qwen3": ("Qwen3", dict(head_dim=32), "new"),
    "qwen3-yarn": ("Qwen3", dict(head_dim=16, **rope("yarn", 1e6, factor=2.0, original_max_position_embeddings=64,
                                                     beta_fast=16.0, beta_slow=2.0)), "old"),
}


def numbers(name, shape):
    """SplitMix64 of (CRC-32 of the name << 32) + index, upper 24 bits."""
    n = int(np.prod(shape))
    with np.errstate(over="ignore"):
        z = np.arange(n, dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()) << 32)
        z = (z + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).reshape(shape)


def values(name, shape, scale, offset):
    """offset + scale · u, u uniform in [-1, 1)."""
    u = numbers(name, shape).astype(np.float32) / np.float32(1 << 23) - np.float32(1)
    return np.float32(offset) + np.float32(scale) * u


def pack(tensors, arrays):
    """MXFP4 blocks instead of experts' matrices, as in gpt-oss's files. Returns the dequantized values."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors
    plain = dict(arrays)
    for key, shape, _, _ in list(tensors):
        if not key.endswith(("gate_up_proj", "down_proj")):
            continue
        tensors[:] = [t for t in tensors if t[0] != key]
        del arrays[key]
        e, cols, rows = shape
        parts = []
        for part, size, low, high in [("blocks", [e, rows, cols // 32, 16], 0, 256), ("scales", [e, rows, cols // 32], 122, 125)]:
            name = f"{key}_{part}"
            arrays[name] = (low + numbers(name, size) % (high - low)).astype(np.uint8)
            tensors.append([name, size, low, high])
            parts.append(torch.from_numpy(arrays[name]))
        plain[key] = convert_moe_packed_tensors(*parts, dtype=torch.float32).contiguous().numpy()
        assert list(plain[key].shape) == shape
    tensors.sort()
    return plain


def publish(tensors, config):
    """Names and shapes as in published files: stacked experts, and a draft head."""
    experts = config["text_config"]["num_experts"]
    stacks, out = {}, []
    for key, shape, scale, offset in tensors:
        base, _, part = key.partition(".experts.")
        if not part:
            out.append([key, shape, scale, offset])
        elif part == "0.gate_proj.weight":
            out.append([base + ".experts.gate_up_proj", [experts, 2 * shape[0], shape[1]], scale, offset])
        elif part == "0.down_proj.weight":
            out.append([base + ".experts.down_proj", [experts, *shape], scale, offset])
    d = config["text_config"]["hidden_size"]
    extra = {"fc.weight": [d, 2 * d], "norm.weight": [d], "pre_fc_norm_hidden.weight": [d], "layers.0.self_attn.q_norm.weight": [32],
             "layers.0.mlp.gate.weight": [experts, d]}
    out += [[f"mtp.{name}", shape, 0.3, 0.0] for name, shape in extra.items()]
    return sorted(out)


KIMI = dict(max_position_embeddings="model_max_length", norm_topk_prob="moe_renormalize", n_group="num_expert_group", num_local_experts="num_experts",
            num_experts_per_tok="num_experts_per_token", n_shared_experts="num_shared_experts")


def kimi_style(config, tensors):
    """Kimi Linear as it is published: layers are counted from one, and dense blocks have names of their own."""
    c = {KIMI.get(key, key): value for key, value in config.items()}
    types = c.pop("layer_types")
    numbers = {kind: [i + 1 for i, t in enumerate(types) if t == kind] for kind in set(types)}
    c["first_k_dense_replace"] = c.pop("mlp_layer_types").count("dense")
    c["linear_attn_config"] = dict(full_attn_layers=numbers["full_attention"], kda_layers=numbers["linear_attention"], head_dim=c.pop("linear_head_dim"),
                                   num_heads=c.pop("linear_num_heads"), short_conv_kernel_size=c.pop("linear_conv_kernel_dim"))
    c |= dict(mla_use_nope=True, moe_layer_freq=1, moe_router_activation_func="sigmoid", rope_scaling=None, rope_theta=10000.0, use_grouped_topk=True)
    for key in ("qk_head_dim",):
        c.pop(key, None)
    names = {f"block_sparse_moe.{part}_proj": f"mlp.{part}_proj" for part in ("gate", "up", "down")}
    for tensor in tensors:
        for theirs, published in names.items():
            tensor[0] = tensor[0].replace(theirs, published)
    return c


def ling3_style(config):
    """Ling-3.0 as it is published."""
    c = dict(config, architectures=["BailingMoeV3ForCausalLM"], head_dim=config["linear_head_dim"], no_kda_lora=True, rope_theta=6e6, rope_scaling=None,
             gated_attention_proj_granularity_type="head_wise", score_function="sigmoid", moe_router_enable_expert_bias=True,
             moe_shared_expert_intermediate_size=config["moe_intermediate_size"])
    for key in ("linear_head_dim", "linear_num_heads", "linear_conv_kernel_dim", "layer_types", "mlp_layer_types", "rope_parameters", "qk_head_dim"):
        c.pop(key, None)
    for ours, theirs in dict(KIMI, num_mtp_layers="num_nextn_predict_layers").items():
        if theirs in c and ours not in ("num_local_experts", "num_mtp_layers", "n_shared_experts"):
            c[ours] = c.pop(theirs)
    return c


def nemotron_style(config, tensors):
    """Nemotron 3 as it is published, with tensors of a draft head; or Nemotron-H, which has no experts."""
    letters = dict(linear_attention="M", moe="E", full_attention="*", mlp="-")
    c = dict(config, time_step_limit=[0.0, None], num_hidden_layers=len(config["layers_block_type"]))
    c["hybrid_override_pattern"] = "".join(letters[kind] for kind in c.pop("layers_block_type"))
    c.pop("mtp_layers_block_type")
    if "E" in c["hybrid_override_pattern"]:
        d = c["hidden_size"]
        tensors += [[f"mtp.layers.0.{name}", shape, 0.3, 0.0] for name, shape in [("eh_proj.weight", [d, 2 * d]), ("enorm.weight", [d])]]
        c["num_nextn_predict_layers"] = 1
    else:
        for key in [key for key in c if "moe" in key or "expert" in key or key in ("n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor")]:
            c.pop(key)
    return c


def old_style(config):
    """The keys as written by transformers 4."""
    c = dict(config)
    r = dict(c.pop("rope_parameters", None) or {})
    if "sliding_attention" in r:
        c["rope_local_base_freq"] = r["sliding_attention"]["rope_theta"]
        c["sliding_window_pattern"] = c.pop("_sliding_window_pattern")
        r = dict(r["full_attention"])
    c["rope_theta"] = r.pop("rope_theta", 10000.0)
    c["rope_scaling"] = None if r.get("rope_type", "default") == "default" else r
    c["torch_dtype"] = c.pop("dtype", "float32")
    if "partial_rotary_factor" in r:
        c["partial_rotary_factor"] = r.pop("partial_rotary_factor")
    for key in ("layer_types",):
        c.pop(key, None)
    return c


def ling(config):
    """The keys that Ling-mini-2.0 has instead of those of `transformers`."""
    c = old_style(config)
    names = dict(n_routed_experts="num_experts", n_shared_experts="num_shared_experts", attention_bias="use_qkv_bias")
    c = {names.get(key, key): value for key, value in c.items()}
    return c | dict(model_type="bailing_moe", architectures=["BailingMoeV2ForCausalLM"], score_function="sigmoid",
                    moe_router_enable_expert_bias=True, use_rmsnorm=True, use_bias=False, norm_head=False,
                    moe_shared_expert_intermediate_size=c["moe_intermediate_size"])


def spread(key, shape, ones):
    """Scale and offset of a tensor's values. `ones`: norms are stored without the one that is added to them."""
    if key.endswith("A_log"):
        return 1.0, -1.5
    if "norm" in key and not key.endswith("bias"):
        return 0.3, 0.0 if ones and not key.endswith("linear_attn.norm.weight") else 1.0
    scale = 0.2 if key.endswith("bias") else 1.0 if "embed" in key else 2.2 / shape[-1] ** 0.5
    return scale, 0.0


def make(name, prefix, changes, style):
    nested = "text_config" in changes
    config = getattr(transformers, prefix + "Config")(**(changes if nested else {**BASE, **changes}))
    # Models that have a configuration of their own and another's class.
    of = dict(SarvamMoE="Glm4Moe").get(prefix, prefix)
    name_of = of + "ForConditionalGeneration" if nested else of.removesuffix("Text") + "ForCausalLM"
    model = getattr(transformers, name_of)
    ones = prefix.startswith(("Gemma3", "Qwen3Next", "Qwen3_5"))
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model(config).float().save_pretrained(folder)
        tensors = []
        with safe_open(folder / "model.safetensors", "np") as f:
            for key in sorted(f.keys()):
                shape = list(f.get_slice(key).get_shape())
                tensors.append([key, shape, *spread(key, shape, ones)])
        if style == "kimi":
            kimi_style(json.loads((folder / "config.json").read_text()), tensors)
        if style == "published":
            tensors = publish(tensors, json.loads((folder / "config.json").read_text()))
        arrays = {key: values(key, *rest) for key, *rest in tensors}
        plain = pack(tensors, arrays) if style == "mxfp4" else arrays
        save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
        written = json.loads((folder / "config.json").read_text())
        if style in ("old", "phi", "rotary_dim"):
            written = old_style(written)
        if style == "phi":
            written["architectures"] = ["PhiMoEForCausalLM"]
        if style == "rotary_dim":
            written["rotary_dim"] = int(written.pop("partial_rotary_factor") * written["head_dim"])
        if style == "kimi":
            written = kimi_style(written, [])
        if style == "granite4":
            # The names and keys of the published files.
            names = dict(linear_attention="mamba", full_attention="attention")
            written = old_style(dict(written, kinds=written["layer_types"], position_embedding_type="nope"))
            written["layer_types"] = [names[kind] for kind in written.pop("kinds")]
        if style == "ling3":
            written = ling3_style(written)
        if style == "released":
            # As in checkpoints: one number for all layers of a kind.
            text = written["text_config"]
            of = next(iter(text.pop("per_layer_config").values()))
            text |= dict(global_head_dim=of["head_dim"], num_global_key_value_heads=of["num_key_value_heads"])
        (folder / "config.json").write_text(json.dumps(written))
        m, info = model.from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"], (name, info)
        with torch.no_grad():
            logits = m.eval().float()(torch.tensor([TOKENS]), use_cache=False).logits[0].numpy()
    if style in ("draft", "ling3"):
        # As published: one layer after those that are computed.
        layer, d = written["num_hidden_layers"], written["hidden_size"]
        extra = {"eh_proj.weight": [d, 2 * d], "enorm.weight": [d], "hnorm.weight": [d], "shared_head.norm.weight": [d], "mlp.gate.weight": [8, d]}
        tensors += [[f"model.layers.{layer}.{name}", shape, 0.3, 0.0] for name, shape in extra.items()]
        written["num_nextn_predict_layers"] = 1
    if style == "ling":
        written = ling(written)
    if style == "nemotron":
        written = nemotron_style(written, tensors)
    if style == "hunyuan":
        # As published: a number for every layer.
        each = dict(moe_topk=written["moe_topk"], moe_intermediate_size=written["intermediate_size"], num_shared_expert=1)
        written |= {key: [value] * written["num_hidden_layers"] for key, value in each.items()}
    if style == "mxfp4":
        written["quantization_config"] = dict(quant_method="mxfp4")
    (HERE / f"{name}.json").write_text(json.dumps(dict(config=written, tensors=tensors, tokens=TOKENS)))
    logits.astype("<f4").tofile(HERE / f"{name}.f32")
    print(f"{name}: {len(tensors)} tensors, logits {logits.min():.2f} to {logits.max():.2f}, spread {logits.std():.2f}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, (prefix, changes, style) in MODELS.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        make(name, prefix, changes, style)
