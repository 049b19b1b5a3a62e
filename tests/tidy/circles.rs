//! No files of the library import each other in a circle. A file and those in its own folder (`pool.rs` and
//! `pool/…`) count as one, so imports between parent and child do not count.

use super::library;
use std::collections::{BTreeMap, BTreeSet};

type Path = Vec<String>;

struct File {
    /// Code without comments and unit tests.
    code: String,
    /// Its imports, as paths from the crate's root.
    imports: Vec<Path>,
    /// Its re-exports: the name (`*` for all), and the path.
    exports: Vec<(String, Path)>,
}

fn path(text: &str) -> Path {
    text.split("::").map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
}

/// Files by their module's path.
fn files() -> BTreeMap<Path, File> {
    let mut all = BTreeMap::new();
    for (name, text) in library() {
        let mut module = path(&name.trim_end_matches(".rs").replace('/', "::"));
        if module.last().is_some_and(|last| last == "mod") {
            module.pop();
        }
        if module.iter().any(|part| part == "tests" || part == "lib") {
            continue;
        }
        let code: String =
            text.lines().flat_map(|line| [line.split("//").next().unwrap_or_default(), "\n"]).collect();
        let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
        all.insert(module, File { code, imports: Vec::new(), exports: Vec::new() });
    }
    let modules: BTreeSet<Path> = all.keys().cloned().collect();
    for (module, file) in &mut all {
        let (uses, rest) = statements(&file.code);
        for (exported, tree) in uses {
            for (name, path) in leaves(&tree) {
                let Some(path) = absolute(module, &path, &modules) else { continue };
                match exported {
                    true => file.exports.push((name, path)),
                    false => file.imports.push(path),
                }
            }
        }
        file.imports.extend(named(&rest).iter().filter_map(|path| absolute(module, path, &modules)));
    }
    all
}

/// The `use` statements of a file, each with whether it exports, and the rest of the code.
fn statements(code: &str) -> (Vec<(bool, String)>, String) {
    let (mut uses, mut rest, mut open) = (Vec::new(), String::new(), None::<(bool, String)>);
    for line in code.lines() {
        let plain = line.trim_start();
        let bare = match plain.strip_prefix("pub(").and_then(|l| l.split_once(')')) {
            Some((_, bare)) => bare.trim_start(),
            None => plain.strip_prefix("pub ").unwrap_or(plain),
        };
        if let (None, Some(tree)) = (&open, bare.strip_prefix("use ")) {
            open = Some((bare.len() < plain.len(), tree.to_owned()));
        } else if let Some((_, tree)) = &mut open {
            tree.push_str(plain);
        } else {
            rest.extend([line, "\n"]);
        }
        if open.as_ref().is_some_and(|(_, tree)| tree.trim_end().ends_with(';')) {
            uses.extend(open.take().map(|(exports, tree)| (exports, tree.trim_end_matches(';').to_owned())));
        }
    }
    (uses, rest)
}

/// The paths in a tree such as `a::{b, c::{self, d}}`, with their names.
fn leaves(tree: &str) -> Vec<(String, Path)> {
    let tree = tree.trim();
    let Some((stem, inner)) = tree.split_once('{') else {
        let (path_text, alias) = tree.split_once(" as ").unwrap_or((tree, ""));
        let mut path = path(path_text);
        path.pop_if(|last| last == "self");
        let name = if alias.is_empty() { path.last().cloned().unwrap_or_default() } else { alias.to_owned() };
        return vec![(name, path)];
    };
    let inner = inner.trim_end().trim_end_matches('}').to_owned() + &"}".repeat(depth(inner));
    let (mut parts, mut deep) = (vec![String::new()], 0);
    for c in inner.chars() {
        deep += i32::from(c == '{') - i32::from(c == '}');
        match c {
            ',' if deep == 0 => parts.push(String::new()),
            c => parts.last_mut().unwrap().push(c),
        }
    }
    let parts = parts.iter().filter(|part| !part.trim().is_empty());
    parts.flat_map(|part| leaves(part)).map(|(name, rest)| (name, [path(stem), rest].concat())).collect()
}

/// Braces opened but not closed in `inner`, without the last ones.
fn depth(inner: &str) -> usize {
    let taken = inner.trim_end().trim_end_matches('}');
    taken.matches('{').count() - taken.matches('}').count()
}

/// Paths in code that begin with `crate` or `super`.
fn named(code: &str) -> Vec<Path> {
    let word = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let words = code.split(|c| !word(c)).filter(|w| w.starts_with("crate::") || w.starts_with("super::"));
    words.map(path).collect()
}

/// From the crate's root on; `None` for another crate.
fn absolute(module: &[String], path: &[String], modules: &BTreeSet<Path>) -> Option<Path> {
    let mut base = module.to_vec();
    let mut rest = path;
    match path.first()?.as_str() {
        "crate" => (base, rest) = (Path::new(), &path[1..]),
        "self" => rest = &path[1..],
        "super" => {
            while rest.first().is_some_and(|part| part == "super") {
                base.pop();
                rest = &rest[1..];
            }
        }
        first => {
            let child = [module, &[first.to_owned()]].concat();
            modules.get(&child)?;
        }
    }
    Some([&base[..], rest].concat())
}

/// The module that defines something, whatever exports it.
fn home(path: &Path, files: &BTreeMap<Path, File>, hops: usize) -> Option<Path> {
    let at = (1..=path.len()).rev().find(|&n| files.contains_key(&path[..n]))?;
    let (module, rest) = path.split_at(at);
    let Some(name) = rest.first().filter(|_| hops < 8) else { return Some(module.to_vec()) };
    for (export, target) in &files[module].exports {
        if export == name && target != path {
            return home(&[&target[..], &rest[1..]].concat(), files, hops + 1);
        }
        if export == "*" {
            let from = home(&target[..target.len() - 1].to_vec(), files, hops + 1)?;
            if defines(&files[&from].code, name) {
                return Some(from);
            }
        }
    }
    Some(module.to_vec())
}

fn defines(code: &str, name: &str) -> bool {
    ["fn", "struct", "enum", "trait", "const", "type", "static", "macro_rules!"].iter().any(|kind| {
        let after = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        code.split(&format!("{kind} {name}")).skip(1).any(after)
    })
}

/// The path from `at` back to a file that is already on it.
fn circle(
    at: &Path,
    edges: &BTreeMap<Path, BTreeSet<Path>>,
    way: &mut Vec<Path>,
    done: &mut BTreeSet<Path>,
) -> bool {
    if way.contains(at) {
        way.push(at.clone());
        return true;
    }
    if done.contains(at) {
        return false;
    }
    way.push(at.clone());
    if edges.get(at).is_some_and(|to| to.iter().any(|to| circle(to, edges, way, done))) {
        return true;
    }
    done.extend(way.pop());
    false
}

#[test]
fn no_files_import_each_other() {
    let files = files();
    let mut edges: BTreeMap<Path, BTreeSet<Path>> = BTreeMap::new();
    for (module, file) in &files {
        for to in file.imports.iter().filter_map(|path| home(path, &files, 0)) {
            if !to.starts_with(module) && !module.starts_with(&to) {
                edges.entry(module.clone()).or_default().insert(to);
            }
        }
    }
    let count: usize = edges.values().map(BTreeSet::len).sum();
    assert!(count > 500, "only {count} imports between files were seen");
    let mut done = BTreeSet::new();
    for at in files.keys() {
        let mut way = Vec::new();
        if circle(at, &edges, &mut way, &mut done) {
            let from = way.iter().position(|at| Some(at) == way.last()).unwrap();
            let way: Vec<String> = way[from..].iter().map(|at| at.join("::")).collect();
            panic!("files that import each other: {}", way.join(" → "));
        }
    }
}
