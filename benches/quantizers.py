#!/usr/bin/env python3
"""ggml's codes on the same weights: a GGUF of f32 weights that were quantized and dequantized by ggml.

    pip install numpy gguf
    quantizers.py LIBGGML SOURCE OUT TYPE[,TYPE…] [--energies FILE]

LIBGGML is ggml's base library as a shared object; SOURCE is the output of `requantize SOURCE OUT --dither`; FILE is the
output of `requantize … --energies FILE`, E(x²) of each matrix's inputs, used as the importance matrix. Only matrices of
blocks are quantized, as with `requantize --blocks`. K-quants take 256 weights at a time: rows of other widths are joined,
and their importance repeated, without padding. Writes OUT.TYPE, and prints the bits per weight."""
import ctypes
import os
import sys

import gguf
import numpy as np

args = sys.argv[1:]
energies = {}
if "--energies" in args:
    at = args.index("--energies")
    for line in open(args[at + 1]):
        name, *values = line.split()
        energies[name] = np.array(values, np.float32)
    del args[at : at + 2]
library, source, out, types = args
lib = ctypes.CDLL(library, mode=os.RTLD_LAZY)
lib.ggml_quantize_chunk.restype = ctypes.c_size_t
pointer = lambda a: None if a is None else a.ctypes.data_as(ctypes.c_void_p)


def through(w, importance, ty):
    """Weights after quantizing and dequantizing, and their quantized bytes."""
    block, _ = gguf.GGML_QUANT_SIZES[ty]
    rows, cols = w.shape
    joined = next(n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n * cols % block == 0)
    assert rows % joined == 0, f"{rows} rows of {cols}"
    wide = np.ascontiguousarray(w.reshape(rows // joined, cols * joined), np.float32)
    if importance is not None:
        importance = np.tile(importance, joined).astype(np.float32)
    raw = np.zeros(w.nbytes, np.uint8)
    size = lib.ggml_quantize_chunk(
        ctypes.c_int(int(ty)), pointer(wide), pointer(raw), ctypes.c_int64(0), ctypes.c_int64(rows // joined),
        ctypes.c_int64(cols * joined), pointer(importance))
    assert 0 < size <= raw.nbytes
    return gguf.quants.dequantize(raw[:size], ty).reshape(w.shape), size


for name in types.split(","):
    ty = gguf.GGMLQuantizationType[name]
    lib.ggml_quantize_init(ctypes.c_int(int(ty)))
    reader = gguf.GGUFReader(source, "c")
    path = f"{out}.{name}"
    # The same file, with other values in the blocks' matrices.
    with open(source, "rb") as of, open(path, "wb") as to:
        while part := of.read(1 << 24):
            to.write(part)
    written = np.memmap(path, mode="r+")
    weights = bytes_ = 0
    for t in reader.tensors:
        assert t.tensor_type == gguf.GGMLQuantizationType.F32, f"{t.name} is no f32"
        if not t.name.startswith("blk.") or len(t.shape) < 2:
            continue
        shape = tuple(int(n) for n in reversed(t.shape))
        w = np.array(t.data, np.float32).reshape(shape)
        many = w.reshape(-1, *shape[-2:])
        parts = []
        known = energies.get(t.name)
        # Each expert has its own, one after the other.
        known = [None] * len(many) if known is None else known.reshape(-1, shape[-1])
        for one, importance in zip(many, known, strict=True):
            values, size = through(one, importance, ty)
            parts.append(values)
            bytes_ += size
        weights += w.size
        new = np.concatenate(parts).astype("<f4").tobytes()
        written[t.data_offset : t.data_offset + len(new)] = np.frombuffer(new, np.uint8)
    written.flush()
    print(f"{name}{', with importance' if energies else ''}: {8 * bytes_ / weights:.3f} bits per weight", flush=True)
