#!/usr/bin/env python3
"""Random blocks of every GGUF element type with their values, from the `gguf` package (pip install gguf numpy).

Writes blocks.bin beside this file: for each type u32 id, u32 bytes, u32 elements, then the bytes, then f32 values.
"""
import pathlib, struct
import numpy as np, gguf
from gguf import GGMLQuantizationType as T

rng = np.random.default_rng(7)
out = open(pathlib.Path(__file__).with_name("blocks.bin"), "wb")
# Byte positions of the f16 fields, which must contain normal numbers: random bits could be NaN.
HALVES = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q2_K: [80, 82], T.Q3_K: [108],
          T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208], T.IQ4_NL: [0], T.MXFP4: [], T.F32: [], T.F16: [0], T.BF16: [], T.IQ4_XS: [0]}
for ty, halves in HALVES.items():
    length, size = gguf.GGML_QUANT_SIZES[ty]
    n = 2048 // length if length > 1 else 256
    blocks = rng.integers(0, 256, (n, size), dtype=np.uint8)
    for at in halves:
        blocks[:, at:at + 2] = rng.normal(0, 0.1, n).astype(np.float16).view(np.uint8).reshape(n, 2)
    if ty == T.MXFP4:
        blocks[:, 0] = rng.integers(100, 140, n)
        blocks[:3, 0] = [0, 1, 2]
    if ty in (T.F32, T.BF16):
        blocks = rng.normal(0, 0.1, n).astype("<f4").view(np.uint8).reshape(n, 4)[:, 4 - size:].copy()
    values = gguf.quants.dequantize(blocks, ty).astype("<f4").reshape(-1)
    out.write(struct.pack("<III", int(ty), blocks.size, values.size) + blocks.tobytes() + values.tobytes())
out.close()
