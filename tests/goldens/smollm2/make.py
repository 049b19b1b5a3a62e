#!/usr/bin/env python3
"""Greedy answers and bits per byte of SmolLM2-135M-Instruct, by `transformers` on the dequantized GGUF, in f32.

    make.py SmolLM2-135M-Instruct.Q4_1.gguf     (pip install torch transformers gguf tokenizers; apt r-cran-janeaustenr)

Writes ../text/austen.txt if absent, and expected.json: per prompt the rendered text, its ids, 40 greedy ids and the margin
between the two best logits at each; and bits per byte of the text by the rule of ../text/README.md.
"""
import json, math, pathlib, sys
import torch

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2] / "models"))
import corpus, make_default

PROMPTS = ["What is the capital of France?", "Write a haiku about rain.", "How do I boil an egg?", "Explain gravity in one sentence.",
           "What is 7 times 6?", "Name three primary colors."]
torch.set_num_threads(1)
text = HERE.parent / "text/austen.txt"
if not text.exists():
    novel = next(t for t in corpus.austen() if len(t) > 15000)
    text.write_text(novel[:novel.rindex("\n", 0, 12000)] + "\n")
model, tok, template = make_default.load_dense(sys.argv[1])
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
