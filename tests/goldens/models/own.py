#!/usr/bin/env python3
"""Logits of tiny models that `transformers` does not have, in the form of make.py (pip install numpy, and what make.py needs).

The forward pass is written here, in f64, from the models' own code: SmallThinker's `modeling_smallthinker.py`, beside its weights
(PowerInfer/SmallThinker-4BA0.6B-Instruct, -21BA3B-Instruct), with which llama.cpp's `src/models/smallthinker.cpp` agrees; and GroveMoE's
`modeling_grove_moe.py` (inclusionAI/GroveMoE-Inst), where narrow experts read the layer's input. In llama.cpp they do not.

Arguments: names of configurations, by default all.
"""
import json, sys
import numpy as np
from make import HERE, TOKENS, spread, values

THINKER = dict(architectures=["SmallThinkerForCausalLM"], model_type="smallthinker", vocab_size=256, hidden_size=64, num_hidden_layers=5,
               num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=128, rms_norm_eps=1e-6, rope_theta=1.5e6,
               moe_num_primary_experts=8, moe_num_active_primary_experts=3, moe_ffn_hidden_size=48, moe_enable_early_router=True,
               moe_primary_router_apply_softmax=False, rope_layout=[0, 1, 1, 1, 0], sliding_window_layout=[0, 1, 1, 1, 0], sliding_window_size=10,
               bos_token_id=1, eos_token_id=2, tie_word_embeddings=False, torch_dtype="float32")
GROVE = dict(architectures=["GroveMoeForCausalLM"], model_type="grove_moe", vocab_size=256, hidden_size=64, num_hidden_layers=3,
             num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=128, rms_norm_eps=1e-6, rope_theta=1e6,
             num_experts=8, num_experts_per_tok=3, moe_intermediate_size=48, intermediate_size=96, norm_topk_prob=True, hidden_act="silu",
             decoder_sparse_step=1, mlp_only_layers=[], bos_token_id=1, eos_token_id=2, tie_word_embeddings=False, torch_dtype="float32")
MODELS = {
    "grovemoe": GROVE,
    "grovemoe-tied": dict(GROVE, num_hidden_layers=2, num_experts=6, num_experts_per_tok=4, tie_word_embeddings=True, num_key_value_heads=4),
    "smallthinker": THINKER,
    # As the smaller model: no windows, RoPE in all layers, and the embedding is the head.
    "smallthinker-plain": dict(THINKER, num_hidden_layers=3, rope_layout=[1] * 3, sliding_window_layout=[0] * 3, tie_word_embeddings=True,
                               moe_primary_router_apply_softmax=True),
}


def norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rotate(x, theta):
    """RoPE of [tokens, heads, dim], dimension i with i + dim / 2."""
    half = x.shape[-1] // 2
    angle = np.arange(len(x))[:, None, None] * (1.0 / theta ** (np.arange(half) / half))
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)


def attention(c, w, x, rotated, window):
    n, d, (heads, kv) = len(x), c["head_dim"], (c["num_attention_heads"], c["num_key_value_heads"])
    q, k, v = ((x @ w[f"self_attn.{part}_proj.weight"].T).reshape(n, -1, d) for part in "qkv")
    if "self_attn.q_norm.weight" in w:
        q, k = (norm(part, w[f"self_attn.{name}_norm.weight"], c["rms_norm_eps"]) for name, part in (("q", q), ("k", k)))
    if rotated:
        q, k = rotate(q, c["rope_theta"]), rotate(k, c["rope_theta"])
    k, v = (np.repeat(part, heads // kv, axis=1) for part in (k, v))
    scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(d)
    ago = np.arange(n)[:, None] - np.arange(n)
    scores[:, (ago < 0) | (window is not None and ago >= window)] = -np.inf
    return np.einsum("hqk,khd->qhd", softmax(scores), v).reshape(n, -1) @ w["self_attn.o_proj.weight"].T


def grove(c, w, x):
    """Experts of Qwen3, pairs of which share a narrow one."""
    y = np.zeros_like(x)
    for t, row in enumerate(x @ w["mlp.gate.weight"].T):
        best = np.argsort(-row, kind="stable")[:c["num_experts_per_tok"]]
        gates = softmax(row)[best]
        for e, gate in zip(best, gates / gates.sum()):
            for factor, name in ((1, f"experts.{e}"), (0.05, f"chunk_experts.{e // 2}")):
                of = lambda part: w[f"mlp.{name}.{part}_proj.weight"]
                g = of("gate") @ x[t]
                y[t] += factor * gate * (of("down") @ (g / (1 + np.exp(-g)) * (of("up") @ x[t])))
    return y


def thinker(c, w, logits, x):
    y = np.zeros_like(x)
    for t, row in enumerate(logits):
        best = np.argsort(-row, kind="stable")[:c["moe_num_active_primary_experts"]]
        gates = softmax(row[best]) if c["moe_primary_router_apply_softmax"] else 1 / (1 + np.exp(-row[best]))
        for e, gate in zip(best, gates / gates.sum()):
            of = lambda part: w[f"block_sparse_moe.experts.{e}.{part}.weight"]
            y[t] += gate * (of("down") @ (np.maximum(of("gate") @ x[t], 0) * (of("up") @ x[t])))
    return y


def shapes(c):
    d, q, kv = c["hidden_size"], *(c[f"num_{of}_heads"] * c["head_dim"] for of in ("attention", "key_value"))
    layer = {"input_layernorm": [d], "post_attention_layernorm": [d], "self_attn.q_proj": [q, d], "self_attn.k_proj": [kv, d],
             "self_attn.v_proj": [kv, d], "self_attn.o_proj": [d, q]}
    block = lambda name, ff: {name.format(part): [d, ff] if part == "down" else [ff, d] for part in ("gate", "up", "down")}
    if c["model_type"] == "grove_moe":
        layer |= {"self_attn.q_norm": [c["head_dim"]], "self_attn.k_norm": [c["head_dim"]], "mlp.gate": [c["num_experts"], d]}
        for e in range(c["num_experts"]):
            layer |= block(f"mlp.experts.{e}.{{}}_proj", c["moe_intermediate_size"])
        for e in range(c["num_experts"] // 2):
            layer |= block(f"mlp.chunk_experts.{e}.{{}}_proj", c["head_dim"])
    else:
        layer["block_sparse_moe.primary_router"] = [c["moe_num_primary_experts"], d]
        for e in range(c["moe_num_primary_experts"]):
            layer |= block(f"block_sparse_moe.experts.{e}.{{}}", c["moe_ffn_hidden_size"])
    all = {"model.embed_tokens": [c["vocab_size"], d], "model.norm": [d]}
    all |= {f"model.layers.{i}.{part}": shape for i in range(c["num_hidden_layers"]) for part, shape in layer.items()}
    return all if c["tie_word_embeddings"] else all | {"lm_head": [c["vocab_size"], d]}


def make(name, c):
    tensors = [[f"{part}.weight", shape, *spread(f"{part}.weight", shape, False)] for part, shape in sorted(shapes(c).items())]
    all = {key: values(key, *rest).astype(np.float64) for key, *rest in tensors}
    x, eps = all["model.embed_tokens.weight"][TOKENS], c["rms_norm_eps"]
    for i in range(c["num_hidden_layers"]):
        prefix = f"model.layers.{i}."
        w = {key.removeprefix(prefix): value for key, value in all.items() if key.startswith(prefix)}
        first, second = (w[f"{part}_layernorm.weight"] for part in ("input", "post_attention"))
        if c["model_type"] == "grove_moe":
            x = x + attention(c, w, norm(x, first, eps), True, None)
            x = x + grove(c, w, norm(x, second, eps))
            continue
        # The router reads the layer's input, without a norm.
        logits = x @ w["block_sparse_moe.primary_router.weight"].T
        window = c["sliding_window_size"] if c["sliding_window_layout"][i] else None
        x = x + attention(c, w, norm(x, first, eps), c["rope_layout"][i], window)
        x = x + thinker(c, w, logits, norm(x, second, eps))
    logits = norm(x, all["model.norm.weight"], eps) @ all.get("lm_head.weight", all["model.embed_tokens.weight"]).T
    (HERE / f"{name}.json").write_text(json.dumps(dict(config=c, tensors=tensors, tokens=TOKENS)))
    logits.astype("<f4").tofile(HERE / f"{name}.f32")
    print(f"{name}: {len(tensors)} tensors, logits {logits.min():.2f} to {logits.max():.2f}, spread {logits.std():.2f}", flush=True)


if __name__ == "__main__":
    for name, config in MODELS.items():
        if not sys.argv[1:] or name in sys.argv[1:]:
            make(name, config)
