#!/usr/bin/env python3
"""Some rows of real matrices: make.py SmolLM2-135M-Instruct.Q4_1.gguf (pip install gguf numpy).

The GGUF is quantized itself (Q4_1), which would make its weights too easy to quantize again: rows of the one Q8_0
matrix (the embedding) are taken as they are, and rows of the others with the rounding noise of their own step added.
Writes smollm2.f16: per matrix u32 rows, u32 cols, f16 values. SmolLM2 is Apache-2.0.
"""
import pathlib, sys
import numpy as np
from gguf import GGUFReader, dequantize

rng = np.random.default_rng(5)
with open(pathlib.Path(__file__).with_name("smollm2.f16"), "wb") as out:
    for t in GGUFReader(sys.argv[1]).tensors:
        take = {"token_embd.weight": 48, "blk.3.attn_q.weight": 16, "blk.15.ffn_up.weight": 16, "blk.20.ffn_down.weight": 8}.get(t.name)
        if not take:
            continue
        w = dequantize(t.data, t.tensor_type)
        w = w[rng.choice(len(w), take, replace=False)].astype(np.float32)
        if t.tensor_type.name == "Q4_1":
            blocks = w.reshape(-1, 32)
            step = (blocks.max(1) - blocks.min(1)) / 15
            w = (blocks + step[:, None] * (rng.random(blocks.shape) - 0.5)).reshape(w.shape)
        out.write(np.array(w.shape, "<u4").tobytes() + w.astype("<f2").tobytes())
