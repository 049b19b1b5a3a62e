#!/usr/bin/env python3
"""The tokens that llama.cpp's samplers leave of random logits, with probabilities: expected.json beside this file.

    pip install llama-cpp-python==0.3.36 numpy && python3 make.py [libllama.so]

Without an argument the library of that package is used; one built from its sources works as well. Another version may have
other parameters.

XTC, which is random, is recorded with probability 1. For mirostat we record a sequence: the remaining tokens at each step, which
depend on earlier draws, and the token that llama.cpp drew. The gate feeds that token to our sampler.
"""
import ctypes as c, json, pathlib, sys
import numpy as np

if len(sys.argv) > 1:
    path = sys.argv[1]
else:
    import llama_cpp
    path = str(next(pathlib.Path(llama_cpp.__file__).parent.glob("lib/libllama.*")))
lib = c.CDLL(path)


class Data(c.Structure):
    _fields_ = [("id", c.c_int32), ("logit", c.c_float), ("p", c.c_float)]


class Array(c.Structure):
    _fields_ = [("data", c.POINTER(Data)), ("size", c.c_size_t), ("selected", c.c_int64), ("sorted", c.c_bool)]


class Bias(c.Structure):
    _fields_ = [("token", c.c_int32), ("bias", c.c_float)]


class Vector(c.Structure):
    """The layout of std::vector in libstdc++ and libc++."""
    _fields_ = [("begin", c.c_void_p), ("end", c.c_void_p), ("room", c.c_void_p)]


kept = []


def vector(array):
    kept.append(array)
    at = c.addressof(array)
    return Vector(at, at + c.sizeof(array), at + c.sizeof(array))


f, i, u, n = c.c_float, c.c_int32, c.c_uint32, c.c_size_t
INIT = {"top_k": [i], "top_p": [f, n], "min_p": [f, n], "typical": [f, n], "temp": [f], "xtc": [f, f, n, u],
        "mirostat": [i, u, f, f, i], "mirostat_v2": [u, f, f], "penalties": [i, i, f, f, f], "top_n_sigma": [f],
        "logit_bias": [i, i, c.POINTER(Bias)]}


def sampler(name, *args):
    if name == "dry":
        # The C function takes breakers as text with a vocabulary; this one, from llama.cpp's tests, as tokens.
        multiplier, base, allowed, last_n, breakers = args
        inner = (Vector * max(len(breakers), 1))(*[vector((i * len(b))(*b)) for b in breakers])
        outer = vector(inner)
        if not breakers:
            outer.end = outer.begin
        init = getattr(lib, "_Z30llama_sampler_init_dry_testingffiiRKSt6vectorIS_IiSaIiEESaIS1_EE")
        init.argtypes, init.restype = [f, f, i, i, c.POINTER(Vector)], c.c_void_p
        return c.c_void_p(init(multiplier, base, allowed, last_n, c.byref(outer)))
    init = getattr(lib, "llama_sampler_init_" + name)
    init.argtypes, init.restype = INIT[name], c.c_void_p
    return c.c_void_p(init(*args))


lib.llama_sampler_accept.argtypes = [c.c_void_p, c.c_int32]
lib.llama_sampler_apply.argtypes = [c.c_void_p, c.POINTER(Array)]
lib.llama_sampler_free.argtypes = [c.c_void_p]


def apply(chain, logits):
    data = (Data * len(logits))(*[Data(k, x, 0) for k, x in enumerate(logits)])
    array = Array(data, len(logits), -1, False)
    for s in chain:
        lib.llama_sampler_apply(s, c.byref(array))
    return [array.data[k] for k in range(array.size)], array.selected, data


def survivors(rows):
    rows = [r for r in rows if r.logit > -np.inf]
    weights = np.exp(np.array([r.logit for r in rows], np.float64) - max(r.logit for r in rows))
    p = weights / weights.sum()
    return {r.id: round(float(x), 6) for r, x in sorted(zip(rows, p), key=lambda rx: rx[0].id)}


rng = np.random.default_rng(11)
LOGITS = [[round(float(x), 3) for x in row] for row in
          [rng.normal(0, 3, 64), rng.normal(-4, 2, 64), rng.gumbel(0, 1.5, 200), rng.normal(0, 1, 200),
           np.concatenate([rng.normal(8, 0.5, 5), rng.normal(-6, 1, 95)]), rng.normal(0, 1, 600)]]
HISTORIES = [[int(x) for x in h] for h in
             [rng.integers(0, 64, 20), [1, 2, 3, 4, 9, 1, 2, 3, 4, 7, 5, 1, 2, 3], [5, 6] * 12,
              np.resize(rng.integers(0, 8, 11), 60), rng.integers(0, 4, 90), [7] * 30, [3],
              [8, 2, 3, 1, 6, 5, 8, 2, 3, 1, 6]]]
# Our names and defaults: links missing in a step are off.
OFF = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0}
cases = []


def case(logits, ours, theirs, history=(), breakers=()):
    chain = [sampler(*s) for s in theirs]
    for token in history:
        for s in chain:
            lib.llama_sampler_accept(s, token)
    rows, _, data = apply(chain, LOGITS[logits])
    entry = {"logits": logits, "sampling": {**OFF, **ours}, "left": survivors(rows)}
    if history:
        entry["history"] = list(history)
    if breakers:
        entry["breakers"] = breakers
    cases.append(entry)
    for s in chain:
        lib.llama_sampler_free(s)


for l in range(len(LOGITS)):
    vocab = len(LOGITS[l])
    for k in [1, 5, 40]:
        case(l, {"top_k": k}, [("top_k", k)])
    for p in [0.2, 0.9, 0.999]:
        case(l, {"top_p": p}, [("top_p", p, 0)])
        case(l, {"typical_p": p}, [("typical", p, 0)])
    for p in [0.02, 0.3, 1]:
        case(l, {"min_p": p}, [("min_p", p, 0)])
    for s in [0.5, 1.5]:
        case(l, {"top_n_sigma": s}, [("top_n_sigma", s)])
    for t in [0.01, 0.1, 0.5]:
        case(l, {"xtc_probability": 1, "xtc_threshold": t}, [("xtc", 1, t, 0, 1)])
    case(l, {"temperature": 0.6, "top_k": 30}, [("temp", 0.6), ("top_k", 30)])
    bias = [(3, 2.5), (9, -np.inf), (20, -1.25), (3, 0.5)]
    case(l, {"logit_bias": [{"token": t, "bias": None if b == -np.inf else b} for t, b in bias], "top_k": 12},
         [("logit_bias", vocab, len(bias), (Bias * len(bias))(*[Bias(*b) for b in bias])), ("top_k", 12)])

for h, history in enumerate(HISTORIES):
    for l in [0, 1]:
        for repeat, frequency, presence, last in [(1.3, 0, 0, 64), (1, 0.2, 0, 8), (0.8, 0.1, 0.7, 16), (1, 0, -0.5, 64)]:
            case(l, {"repeat_penalty": repeat, "frequency_penalty": frequency, "presence_penalty": presence,
                     "repeat_last_n": last},
                 [("penalties", len(LOGITS[l]), last, repeat, frequency, presence)], history)
    for multiplier, base, allowed, last, breakers in [(0.8, 1.75, 2, 64, []), (1, 1.2, 1, 64, [[4]]), (0.5, 2, 3, 20, [[2, 3], [2]]),
                                                      (0.7, 1.5, 1, 64, [[2, 3]]), (2, 1, 0, 64, [[3, 4, 9], [6]]), (100, 90, 1, 64, [])]:
        case(h % 2, {"dry_multiplier": multiplier, "dry_base": base, "dry_allowed_length": allowed, "dry_last_n": last},
             [("dry", multiplier, base, allowed, last, breakers)], history, breakers)

# The whole chain in its default order, and in others.
for l in range(len(LOGITS)):
    vocab, history = len(LOGITS[l]), HISTORIES[l]
    # At least those that top-n-sigma leaves: llama.cpp's typical-p computes nothing for the others.
    sigma = 50 if l == 4 else 2.5
    steps = {"penalties": ("penalties", vocab, 64, 1.1, 0.05, 0.1), "dry": ("dry", 0.8, 1.75, 2, 64, []),
             "top_n_sigma": ("top_n_sigma", sigma), "top_k": ("top_k", 12), "typ_p": ("typical", 0.95, 0),
             "top_p": ("top_p", 0.93, 0), "min_p": ("min_p", 0.01, 0), "xtc": ("xtc", 1, 0.15, 0, 1),
             "temperature": ("temp", 0.8)}
    ours = {"repeat_penalty": 1.1, "frequency_penalty": 0.05, "presence_penalty": 0.1, "dry_multiplier": 0.8, "top_n_sigma": sigma,
            "top_k": 12, "typical_p": 0.95, "top_p": 0.93, "min_p": 0.01, "xtc_probability": 1, "xtc_threshold": 0.15,
            "temperature": 0.8}
    orders = [list(steps), ["temperature", "top_p", "penalties", "top_k", "dry"], ["top_k", "penalties", "dry", "temperature"],
              ["xtc", "typ_p", "min_p", "top_n_sigma"], ["min_p", "top_k", "penalties", "top_p"]]
    for order in orders:
        case(l, {**ours, "chain": order}, [steps[s] for s in order], history)

mirostat = []
for version, tau, eta, t in [(1, 5, 0.1, 1), (1, 2, 0.5, 0.8), (1, 4, 0.3, 1.1), (2, 5, 0.1, 1), (2, 2, 0.5, 1.3), (2, 0.2, 0.9, 1)]:
    for l in [0, 2, 3, 5] if version == 1 and tau < 5 else [0, 2, 3]:
        last = ("mirostat", len(LOGITS[l]), 5, tau, eta, 100) if version == 1 else ("mirostat_v2", 5, tau, eta)
        chain = [sampler("temp", t), sampler(*last)]
        steps = []
        for step in range(6):
            # Other logits for the same number of tokens.
            turned = LOGITS[l][step:] + LOGITS[l][:step]
            rows, selected, data = apply(chain, turned)
            steps.append({"left": survivors(rows), "chosen": rows[selected].id})
        mirostat.append({"logits": l, "sampling": {**OFF, "temperature": t, "mirostat": f"v{version}", "mirostat_tau": tau,
                                                   "mirostat_eta": eta}, "steps": steps})
        for s in chain:
            lib.llama_sampler_free(s)

lines = ",\n".join(json.dumps(x, separators=(",", ":")) for x in cases)
runs = ",\n".join(json.dumps(x, separators=(",", ":")) for x in mirostat)
out = f'{{"logits":{json.dumps(LOGITS, separators=(",", ":"))},\n"cases":[\n{lines}\n],\n"mirostat":[\n{runs}\n]}}\n'
pathlib.Path(__file__).with_name("expected.json").write_text(out)
print(len(cases), "cases,", len(mirostat), "runs of mirostat,", len(out) >> 10, "KB")
