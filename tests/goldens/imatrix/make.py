#!/usr/bin/env python3
"""Importance matrices in both formats of llama.cpp, for the tiny model `olmoe` (pip install gguf numpy).

small.gguf is written with the `gguf` package in the layout of llama.cpp's tools/imatrix (save_imatrix), small.dat as its
save_imatrix_legacy writes it. Energies are small integers, so that a test can compute the expected value:
column c of matrix m of the file, expert e, has 1 + (7c + 3e + m) % 11, times the tokens. Expert e has 100·e tokens: expert 0
was never chosen. Dense matrices have 1024 tokens.
"""
import pathlib, struct
import numpy as np, gguf

HERE = pathlib.Path(__file__).parent
EXPERTS, D, FF, CHUNK, CHUNKS = 8, 64, 96, 512, 2
STACKS = {"ffn_gate_exps": D, "ffn_up_exps": D, "ffn_down_exps": FF}
DENSE = {"attn_q": D, "attn_k": D, "attn_v": D, "attn_output": D, "ffn_gate_inp": D}

entries = {}
for layer in range(2):
    for part, cols in sorted((DENSE | STACKS).items()):
        n = EXPERTS if part in STACKS else 1
        counts = np.array([100.0 * e for e in range(n)] if n > 1 else [CHUNK * CHUNKS], np.float32)
        c, e = np.arange(cols)[None], np.arange(n)[:, None]
        entries[f"blk.{layer}.{part}.weight"] = (counts, (1.0 + (7 * c + 3 * e + len(entries)) % 11) * counts[:, None])

w = gguf.GGUFWriter(HERE / "small.gguf", "")
w.kv_data[0].clear()  # no architecture: an imatrix has none
w.add_type("imatrix")
w.add_array("imatrix.datasets", ["texts/wiki.train.raw"])
w.add_uint32("imatrix.chunk_count", CHUNKS)
w.add_uint32("imatrix.chunk_size", CHUNK)
for name, (counts, sums) in sorted(entries.items()):
    w.add_tensor(name + ".in_sum2", sums.astype(np.float32))
    w.add_tensor(name + ".counts", counts[:, None])
    w.add_tensor(name + ".in_sum", (0 * sums).astype(np.float32))
w.write_header_to_file()
w.write_kv_data_to_file()
w.write_tensors_to_file()
w.close()

with open(HERE / "small.dat", "wb") as f:
    text = lambda s: f.write(struct.pack("<i", len(s)) + s.encode())
    f.write(struct.pack("<i", len(entries)))
    for name, (counts, sums) in sorted(entries.items()):
        text(name)
        calls = -(-int(counts.max()) // CHUNK)
        # An expert without tokens is stored as ones.
        means = np.where(counts[:, None] > 0, sums / np.maximum(counts[:, None], 1), 1.0)
        f.write(struct.pack("<ii", calls, means.size) + (means * calls).astype("<f4").tobytes())
    f.write(struct.pack("<i", CHUNKS))
    text("texts/wiki.train.raw")
