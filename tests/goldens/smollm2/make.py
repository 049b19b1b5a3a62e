#!/usr/bin/env python3
"""Greedy answers and bits per byte of SmolLM2-135M-Instruct, by `transformers` on the dequantized GGUF, in f32.

    make.py SmolLM2-135M-Instruct.Q4_1.gguf     (pip install torch transformers gguf tokenizers; apt r-cran-janeaustenr)

Writes ../text/austen.txt if absent, and expected.json: per prompt the rendered text, its ids, 40 greedy ids and the margin
between the two best logits at each; and bits per byte of the text by the rule of ../text/README.md.
"""
import json, math, pathlib, re, sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2] / "models"))
import corpus, make_default

PROMPTS = ["What is the capital of France?", "Write a haiku about rain.", "How do I boil an egg?", "Explain gravity in one sentence.",
           "What is 7 times 6?", "Name three primary colors."]

def load(dense):
    """The GGUF as a `transformers` model (its query and key rows are stored as neighbours in pairs)."""
    get = lambda key: dense.get("llama." + key)
    heads, kv_heads = get("attention.head_count"), get("attention.head_count_kv")
    config = LlamaConfig(vocab_size=get("vocab_size"), hidden_size=get("embedding_length"),
                         intermediate_size=get("feed_forward_length"), num_hidden_layers=get("block_count"),
                         num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=8192,
                         rms_norm_eps=1e-5, tie_word_embeddings=True, rope_theta=100000.0, bos_token_id=1, eos_token_id=2)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 100000.0}
    names = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
             "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
             "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    state = {}
    for name in dense.tensors:
        name = name.removesuffix(".weight")
        w = torch.from_numpy(dense.matrix(name).copy()).float()
        if name == "token_embd":
            state["model.embed_tokens.weight"] = w
        elif name == "output_norm":
            state["model.norm.weight"] = w
        elif m := re.match(r"blk\.(\d+)\.(\w+)", name):
            if m[2] in ("attn_q", "attn_k"):
                n = heads if m[2] == "attn_q" else kv_heads
                w = w.reshape(n, w.shape[0] // n // 2, 2, -1).swapaxes(1, 2).reshape(w.shape)
            state[f"model.layers.{m[1]}.{names[m[2]]}.weight"] = w
    model = LlamaForCausalLM(config)
    model.load_state_dict(state, strict=False)
    return model.eval()


torch.set_num_threads(1)
text = HERE.parent / "text/austen.txt"
if not text.exists():
    novel = next(t for t in corpus.austen() if len(t) > 15000)
    text.write_text(novel[:novel.rindex("\n", 0, 12000)] + "\n")
dense = make_default.Dense(sys.argv[1])
model, tok = load(dense), make_default.make_tokenizer(dense)
out = {"prompts": []}
with torch.no_grad():
    for p in PROMPTS:
        prompt = make_default.chat(p)
        ids = tok.encode(prompt).ids
        got, margins, past, step = [], [], None, torch.tensor([ids])
        for _ in range(40):
            r = model(step, past_key_values=past, use_cache=True)
            past = r.past_key_values
            top = r.logits[0, -1].topk(2)
            margins.append(round((top.values[0] - top.values[1]).item(), 5))
            got.append(top.indices[0].item())
            if got[-1] == 2:
                break
            step = top.indices[:1][None]
        out["prompts"].append({"message": p, "text": prompt, "ids": ids, "greedy": got, "margins": margins})
        print(p, "->", repr(tok.decode(got)), "least margin", min(margins), flush=True)
    ids = tok.encode(text.read_text()).ids
    nll = size = 0
    for at in range(0, len(ids), 512):
        window = ids[at:at + 512]
        logits = model(torch.tensor([window]), use_cache=False).logits[0].double()
        nll += torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(window[1:]), reduction="sum").item()
        size += len(tok.decode(window).encode()) - len(tok.decode(window[:1]).encode())
out["text"] = {"tokens": len(ids), "bytes": size, "bits_per_byte": nll / math.log(2) / size}
(HERE / "expected.json").write_text(json.dumps(out, indent=0))
print(out["text"])
