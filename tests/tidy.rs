//! Gate 7: the code follows ARCHITECTURE.md: modules import only what its table allows, unsafe code stays where it
//! may be, the library does not print, exit or read the environment, files and pages are short, gates are listed.

#[path = "tidy/circles.rs"]
mod circles;

use dollop_tests::root;
use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            all.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            all.push(path);
        }
    }
    all
}

fn library() -> Vec<(String, String)> {
    let src = root().join("runtime/src");
    let name = |p: &PathBuf| p.strip_prefix(&src).unwrap().to_string_lossy().replace('\\', "/");
    sources(&src).iter().map(|p| (name(p), fs::read_to_string(p).unwrap())).collect()
}

/// The table in ARCHITECTURE.md: module, and what it may import.
fn table() -> Vec<(String, Vec<String>)> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let from = text.find("| room | may import |").expect("ARCHITECTURE.md has the import table");
    let rows = text[from..].lines().skip(2).take_while(|l| l.starts_with('|'));
    let cell = |c: &str| c.trim().trim_matches('`').to_owned();
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        (cell(cells[0]), cells[1].split(',').map(cell).filter(|c| !c.is_empty() && c != "nothing").collect())
    })
    .collect()
}

fn room(file: &str) -> &str {
    file.split('/').next().unwrap().trim_end_matches(".rs")
}

#[test]
fn rooms_import_only_what_the_table_allows() {
    let table = table();
    let mut edges = 0;
    for (file, text) in library() {
        let from = room(&file);
        if from == "lib" {
            continue;
        }
        let allowed = &table
            .iter()
            .find(|(name, _)| name == from)
            .unwrap_or_else(|| panic!("`{from}` is not in the table"))
            .1;
        for (n, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for part in code.split("crate::").skip(1) {
                let to: String = part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                edges += 1;
                assert!(
                    to == from || allowed.contains(&to),
                    "{file}:{}: `{from}` may not import `{to}`",
                    n + 1
                );
            }
        }
    }
    assert!(edges > 100, "only {edges} imports were seen");
}

#[test]
fn unsafe_code_stays_in_its_rooms_and_is_argued() {
    let mut seen = 0;
    for (file, text) in library() {
        let lines: Vec<&str> = text.lines().collect();
        for (n, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if !code.contains("unsafe {") && !code.contains("unsafe impl") && !code.contains("unsafe fn") {
                continue;
            }
            seen += 1;
            assert!(
                file.starts_with("store/os")
                    || file.starts_with("kernels/cpu/")
                    || file == "kernels/gpu/pipelines.rs",
                "{file}:{}: unsafe code",
                n + 1
            );
        }
    }
    assert!(seen > 5, "the search finds nothing");
}

/// The C interface uses only the library's API, and every function goes through the one panic boundary.
#[test]
fn the_c_interface_is_thin_and_has_one_boundary() {
    let (mut functions, mut boundaries) = (0, 0);
    for path in sources(&root().join("ffi/src")) {
        let text = fs::read_to_string(&path).unwrap();
        boundaries += text.matches("match catch_unwind(").count();
        for function in text.split("#[unsafe(no_mangle)]").skip(1) {
            functions += 1;
            let body = &function[function.find('{').unwrap()..];
            let guarded = body[1..].split_once("\n}").unwrap().0.contains("run(|| ");
            let fails = function.split_once('{').unwrap().0.contains("-> dollop_status");
            assert!(guarded || !fails, "{}: {function}", path.display());
        }
        for forbidden in ["println!", "eprintln!", "print!(", "process::exit", "env::var"] {
            assert!(!text.contains(forbidden), "{}: {forbidden}", path.display());
        }
    }
    assert!(functions > 40 && boundaries == 1, "{functions} functions, {boundaries} boundaries");
}

/// The rest of the library checks properties of a family, not its name. Tokenizers have their own names, some
/// of which are the same.
#[test]
fn only_its_file_knows_a_family_by_name() {
    let of_family = |file: &str| file.starts_with("model/families/") && !file.ends_with("/mod.rs");
    let all = library();
    let mut names = Vec::new();
    for (file, text) in all.iter().filter(|(file, _)| of_family(file)) {
        let quoted = |key: &str| {
            text.split(key).skip(1).filter_map(|t| t.split('"').nth(1)).map(str::to_owned).collect::<Vec<_>>()
        };
        let own = [quoted("    name: "), quoted("model_type: ")].concat();
        assert!(!own.is_empty(), "{file} names no family");
        names.extend(own.into_iter().map(|name| (file.clone(), name)));
    }
    assert!(names.len() >= 14, "the search finds {names:?}");
    for (file, text) in &all {
        let of_tests = file.ends_with("tests.rs") || file.contains("/tests/");
        if of_tests || file.starts_with("tokenizer") || file == "model/tokens.rs" {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().unwrap();
        for (home, name) in names.iter().filter(|(home, _)| home != file) {
            let own = names.iter().any(|(other, same)| other == file && same == name);
            assert!(
                own || !code.contains(&format!("\"{name}\"")),
                "{file} names `{name}`, which is {home}'s"
            );
        }
    }
}

/// The interface stays small: variations are fields of a call.
#[test]
fn the_seam_to_processors_stays_small() {
    let (_, text) = library().into_iter().find(|(file, _)| file == "kernels/mod.rs").unwrap();
    let body = text.split("pub trait Backend").nth(1).unwrap().split("\n}").next().unwrap();
    let methods = body.matches("\n    fn ").count();
    assert!((10..=20).contains(&methods), "{methods} methods");
}

#[test]
fn only_the_gpu_backend_knows_wgpu() {
    let mut seen = 0;
    for (file, text) in library() {
        for (n, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if code.contains("wgpu::") || code.contains("dollop_shaders") {
                seen += 1;
                assert!(file.starts_with("kernels/gpu/"), "{file}:{}: the GPU's libraries", n + 1);
            }
        }
    }
    assert!(seen > 20, "the search finds nothing");
}

#[test]
fn kernels_stay_readable() {
    let mut seen = 0;
    let root = root().join("shaders/wgsl");
    for folder in [root.clone(), root.join("shared")] {
        for path in fs::read_dir(folder).unwrap().flatten().map(|e| e.path()).filter(|p| p.is_file()) {
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.lines().count() <= 200, "{} has {} lines", path.display(), text.lines().count());
            assert!(text.starts_with("//"), "{} does not say what it is for", path.display());
            seen += 1;
        }
    }
    assert!(seen > 15);
}

#[test]
fn the_library_does_not_print_exit_or_read_the_environment() {
    for (file, text) in library() {
        let code = text.split("#[cfg(test)]").next().unwrap();
        for forbidden in ["println!", "eprintln!", "print!(", "process::exit", "env::var", "SystemTime::now"]
        {
            assert!(!code.contains(forbidden) || file.ends_with("tests.rs"), "{file}: {forbidden}");
        }
    }
}

#[test]
fn the_program_prints_through_its_screen_alone() {
    let mut seen = 0;
    for path in sources(&root().join("cli/src")) {
        let text = fs::read_to_string(&path).unwrap();
        seen += text.matches("note!(").count() + text.matches("screen::").count();
        if path.ends_with("screen.rs") {
            continue;
        }
        for (n, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let streams = code.matches("io::stdout()").count() + code.matches("io::stderr()").count();
            let asked = code.matches(").is_terminal()").count();
            assert!(
                !code.contains("println!(") && !code.contains("print!(") && streams <= asked,
                "{}:{}: control characters of files would reach the terminal",
                path.display(),
                n + 1
            );
        }
    }
    assert!(seen > 40, "the search finds nothing");
}

#[test]
fn files_stay_readable() {
    let mut all = sources(&root().join("runtime/src"));
    all.extend(sources(&root().join("cli/src")));
    all.extend(sources(&root().join("server")));
    all.extend(sources(&root().join("shaders/src")));
    all.extend(sources(&root().join("ffi")));
    assert!(all.len() > 40);
    for path in all {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.lines().count() <= 600, "{} has {} lines", path.display(), text.lines().count());
        assert!(text.starts_with("//!"), "{} does not say what it is for", path.display());
    }
}

/// The number of words of every sentence of a page: of its prose and lists, without tables, headings and code.
fn sentences(page: &str) -> Vec<usize> {
    let mut code = false;
    let prose = page.lines().map(|line| {
        code ^= line.starts_with("```");
        let item = line.trim_start().strip_prefix("- ");
        let apart = code || line.starts_with(['#', '|', '`']) || line.starts_with("    ");
        match (apart || line.is_empty(), item) {
            (true, _) => ". ".to_owned(),
            (_, Some(item)) => format!(". {item} "),
            _ => format!("{line} "),
        }
    });
    let prose: String = prose.collect();
    let ends = prose.replace(['?', '!'], ".").replace(".)", ").").replace(".**", "**.");
    ends.split(". ").map(|s| s.split_whitespace().count()).filter(|&words| words > 1).collect()
}

#[test]
fn pages_stay_readable() {
    let text = |page: &str| fs::read_to_string(root().join(page)).unwrap();
    let all = text("ARCHITECTURE.md").split_whitespace().count();
    assert!(all <= 1200, "ARCHITECTURE.md has {all} words");
    let docs =
        ["bindings", "cpu", "file", "gpu", "server", "sessions", "streaming"].map(|d| format!("docs/{d}.md"));
    for page in docs.iter().map(String::as_str).chain(["ARCHITECTURE.md"]) {
        let words = sentences(&text(page));
        assert!(words.len() >= 8, "{page}: the search finds {} sentences", words.len());
        let (mean, most) = (words.iter().sum::<usize>() / words.len(), words.iter().max().unwrap());
        assert!(mean <= 20 && *most <= 60, "{page}: {mean} words a sentence, {most} in the longest");
    }
}

#[test]
fn every_gate_is_listed_once() {
    let list = fs::read_to_string(root().join("tests/GATES.md")).unwrap();
    let mut listed = Vec::new();
    for cell in list.lines().filter_map(|l| l.strip_prefix("| ")?.split(" |").next()) {
        for part in cell.split(", ").filter(|p| p.starts_with(|c: char| c.is_ascii_digit())) {
            let (from, to) = part.split_once('–').unwrap_or((part, part));
            listed.extend(from.parse::<u32>().unwrap()..=to.parse().unwrap());
        }
    }
    assert!(listed.is_sorted_by(|a, b| a < b), "a number is used twice, or out of order: {listed:?}");
    let mut seen = 0;
    for folder in ["tests", "cli/tests", "server/tests", "ffi", "runtime/src"] {
        for path in sources(&root().join(folder)) {
            let text = fs::read_to_string(&path).unwrap();
            for gate in text.split("Gate ").skip(1).chain(text.split("fn gate_").skip(1)) {
                let digits: String = gate.chars().take_while(char::is_ascii_digit).collect();
                let Ok(number) = digits.parse() else { continue };
                seen += 1;
                assert!(listed.contains(&number), "{}: gate {number} is not in GATES.md", path.display());
            }
        }
    }
    assert!(seen > 80, "only {seen} gates were seen");
}

#[test]
fn the_way_into_the_code_is_short() {
    let page = fs::read_to_string(root().join("CONTRIBUTING.md")).unwrap();
    let mut whole = 0;
    for row in page
        .lines()
        .skip_while(|l| !l.starts_with("| file | lines"))
        .skip(2)
        .take_while(|l| l.starts_with('|'))
    {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let lines = fs::read_to_string(root().join(cells[1])).unwrap().lines().count();
        let said: usize = cells[2].parse().unwrap();
        assert!(
            lines.abs_diff(said) <= 20,
            "{} has {lines} lines, and CONTRIBUTING.md says {said}",
            cells[1]
        );
        whole += lines;
    }
    assert!((500..=1500).contains(&whole), "{whole} lines");
}

#[test]
fn functions_fit_a_screen() {
    let mut seen = 0;
    for folder in ["runtime/src", "cli/src", "server/src", "ffi/src", "shaders"] {
        for path in sources(&root().join(folder)) {
            let text = fs::read_to_string(&path).unwrap();
            let lines: Vec<&str> = text.lines().collect();
            for (n, line) in lines.iter().enumerate() {
                let code = line.trim_start();
                let before = code.split("fn ").next().unwrap();
                let words =
                    ["pub", "pub(super)", "pub(crate)", "const", "unsafe", "extern", "\"C\"", "pub(in"];
                if !code.contains("fn ") || !before.split_whitespace().all(|w| words.contains(&w)) {
                    continue;
                }
                let indent = &line[..line.len() - code.len()];
                // A declaration ends with a semicolon at its own depth, anything else with a brace there.
                let ends = |l: &&str| match l.strip_prefix(indent) {
                    Some(rest) => rest == "}" || rest.ends_with(';') && !rest.starts_with(' '),
                    None => false,
                };
                let Some(length) = lines[n..].iter().position(ends) else { continue };
                seen += 1;
                assert!(length < 80, "{}:{}: a function of {} lines", path.display(), n + 1, length + 1);
            }
        }
    }
    assert!(seen > 1000, "only {seen} functions were seen");
}
