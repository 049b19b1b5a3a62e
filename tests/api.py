#!/usr/bin/env python3
"""Lists the public items of a crate from rustdoc's JSON: one line per item, with fields and variants on their type's."""
import json
import sys

# Items that the listing may contain: the interface for apps, not the internals.
MOST = 167

crate = json.load(open(sys.argv[1]))
index = crate["index"]
lines, items = [], 0


def generics(args):
    if not args:
        return ""
    if "angle_bracketed" in args:
        inner = args["angle_bracketed"]
        parts = [x.get("lifetime") or (ty(x["type"]) if "type" in x else "_") for x in inner["args"]]
        for bound in inner["constraints"]:
            term = bound["binding"].get("equality", {}).get("type")
            parts.append(bound["name"] + (" = " + ty(term) if term else ""))
        return "<" + ", ".join(parts) + ">" if parts else ""
    inner = args.get("parenthesized") or {}
    out = inner.get("output")
    return "(" + ", ".join(ty(t) for t in inner.get("inputs", [])) + ")" + (" -> " + ty(out) if out else "")


def path(p):
    return p["path"].split("::")[-1] + generics(p.get("args"))


def bounds(all_of):
    out = []
    for b in all_of:
        if "trait_bound" in b:
            maybe = "?" if b["trait_bound"]["modifier"] == "maybe" else ""
            out.append(maybe + path(b["trait_bound"]["trait"]))
        elif "outlives" in b:
            out.append(b["outlives"])
    return " + ".join(out)


def ty(t):
    kind, inner = next(iter(t.items()))
    if kind == "resolved_path":
        return path(inner)
    if kind in ("primitive", "generic"):
        return inner
    if kind == "borrowed_ref":
        life = inner["lifetime"] + " " if inner["lifetime"] else ""
        return "&" + life + ("mut " if inner["is_mutable"] else "") + ty(inner["type"])
    if kind == "slice":
        return "[" + ty(inner) + "]"
    if kind == "array":
        return "[" + ty(inner["type"]) + "; " + inner["len"] + "]"
    if kind == "tuple":
        return "(" + ", ".join(map(ty, inner)) + ")"
    if kind == "impl_trait":
        return "impl " + bounds(inner)
    if kind == "dyn_trait":
        parts = [path(b["trait"]) for b in inner["traits"]] + ([inner["lifetime"]] if inner["lifetime"] else [])
        return "dyn " + " + ".join(parts)
    if kind == "qualified_path":
        return ty(inner["self_type"]) + "::" + inner["name"]
    raise SystemExit(f"a type that this script does not know: {kind}")


def signature(item):
    f = item["inner"]["function"]
    args = []
    for name, t in f["sig"]["inputs"]:
        if name == "self":
            text = ty(t)
            args.append({"Self": "self", "&Self": "&self", "&mut Self": "&mut self"}.get(text, "self: " + text))
        else:
            args.append(f"{name}: {ty(t)}")
    given = [p for p in f["generics"]["params"] if not p["name"].startswith("impl ") and "type" in p["kind"]]
    given = ", ".join(p["name"] + (": " + b if (b := bounds(p["kind"]["type"]["bounds"])) else "") for p in given)
    out = f["sig"]["output"]
    return f"fn {item['name']}{'<' + given + '>' if given else ''}({', '.join(args)})" + (f" -> {ty(out)}" if out else "")


def say(text, deep, counts=True):
    global items
    items += counts
    lines.append("    " * deep + text)


def grows(item):
    return " .." if "non_exhaustive" in item["attrs"] else ""


def fields(ids):
    found = [index[str(i)] for i in ids if i is not None and str(i) in index]
    return ", ".join(f"{f['name']}: {ty(f['inner']['struct_field'])}" for f in found if f["visibility"] in ("public", "default"))


def methods(impls, deep):
    found = [index[str(i)] for impl in impls for i in index[str(impl)]["inner"]["impl"]["items"]
             if str(i) in index and index[str(impl)]["inner"]["impl"]["trait"] is None]
    for m in sorted((m for m in found if m["visibility"] == "public"), key=lambda m: m["name"]):
        if "function" in m["inner"]:
            say(signature(m), deep)
        elif "assoc_const" in m["inner"]:
            say(f"const {m['name']}: {ty(m['inner']['assoc_const']['type'])}", deep)


def item(it, name, deep):
    kind, inner = next(iter(it["inner"].items()))
    if kind == "module":
        say(f"mod {name}", deep)
        module(it, deep + 1)
    elif kind == "struct":
        parts = inner["kind"].get("plain", {}).get("fields", []) if isinstance(inner["kind"], dict) else []
        shown = fields(parts)
        say(f"struct {name}" + (f" {{ {shown}{grows(it)} }}" if shown else ""), deep)
        methods(inner["impls"], deep + 1)
    elif kind == "enum":
        variants = []
        for v in (index[str(i)] for i in inner["variants"] if str(i) in index):
            of = v["inner"]["variant"]["kind"]
            if of == "plain":
                variants.append(v["name"])
            elif "tuple" in of:
                parts = [ty(index[str(i)]["inner"]["struct_field"]) for i in of["tuple"] if i is not None]
                variants.append(f"{v['name']}({', '.join(parts)})")
            else:
                variants.append(f"{v['name']} {{ {fields(of['struct']['fields'])} }}")
        say(f"enum {name} {{ {', '.join(variants)}{grows(it)} }}", deep)
        methods(inner["impls"], deep + 1)
    elif kind == "trait":
        say(f"trait {name}", deep)
        for m in (index[str(i)] for i in inner["items"] if str(i) in index):
            say(signature(m) if "function" in m["inner"] else m["name"], deep + 1)
    elif kind == "function":
        say(signature(it), deep)
    elif kind == "constant":
        say(f"const {name}: {ty(inner['type'])}", deep)
    elif kind == "type_alias":
        say(f"type {name}", deep)
    else:
        raise SystemExit(f"an item that this script does not know: {kind} {name}")


def module(it, deep):
    found = []
    for i in it["inner"]["module"]["items"]:
        x = index.get(str(i))
        if x is None or x["visibility"] != "public":
            continue
        if "use" in x["inner"]:
            target = index.get(str(x["inner"]["use"]["id"]))
            if target is not None:
                found.append((x["inner"]["use"]["name"], target))
        else:
            found.append((x["name"], x))
    order = ["module", "struct", "enum", "trait", "function", "constant", "type_alias"]
    for name, x in sorted(found, key=lambda f: (order.index(next(iter(f[1]["inner"]))), f[0])):
        item(x, name, deep)


module(index[str(crate["root"])], 0)
if items > MOST:
    raise SystemExit(f"{items} public items: more than {MOST}; what an app does not need belongs under `internal`")
print(f"What the crate `dollop` exports: {items} items. Written by tests/api.sh; `..` may grow.\n")
print("\n".join(lines))
