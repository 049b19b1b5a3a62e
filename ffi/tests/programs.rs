//! Gate 81: programs in C, C++ and Python use the library as its header describes, linked dynamically and statically.
//!
//! `DOLLOP_TEST_LIBRARY` names a folder with libdollop.so and libdollop.a. Without it, both are built first, in the
//! profile of this test. `DOLLOP_TEST_CFLAGS` is added to the compiler flags, and `DOLLOP_TEST_RUNNER` is put before
//! programs: `tests/ffi.sh` uses them for sanitizers and valgrind. `tests/aarch64.sh` also sets other compilers
//! (`DOLLOP_TEST_CC`, `DOLLOP_TEST_CXX`), and runs the programs under qemu.
#![cfg(target_os = "linux")]

use dollop_tests::talker::Talker;
use dollop_tests::{default_model, full, root};
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

const WARNINGS: [&str; 4] = ["-Wall", "-Wextra", "-Werror", "-pedantic"];
const ENDS_IN_A_LINE_FEED: &str = "{{ messages[-1].content }}{{ '\\n' }}";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Link {
    Dynamic,
    Static,
}

/// Runs a command that must succeed.
fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } =
        command.output().unwrap_or_else(|e| panic!("{command:?}: {e}: is it installed?"));
    let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?}: {status}\n{out}{err}");
    out.into_owned()
}

fn words(variable: &str) -> Vec<String> {
    env::var(variable).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

/// The folder of the library.
fn library() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        if let Some(folder) = env::var_os("DOLLOP_TEST_LIBRARY") {
            return folder.into();
        }
        // This program is in `deps`, below the folder of its profile.
        let program = env::current_exe().unwrap();
        let folder = program.ancestors().nth(2).unwrap().to_path_buf();
        // With tests, so that the library's dependencies have the same features as in `cargo test --workspace`.
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
        cargo.args(["build", "--quiet", "--workspace", "--lib", "--tests"]).current_dir(root());
        if folder.ends_with("release") {
            cargo.arg("--release");
        }
        run(&mut cargo);
        folder
    })
}

/// Compiles a program against the header and links it.
fn compile(source: &str, link: Link, folder: &Path) -> PathBuf {
    let source = root().join(source);
    let stem = source.file_stem().unwrap().to_string_lossy();
    let program = folder.join(format!("{stem}-{link:?}"));
    let cpp = source.extension().is_some_and(|e| e == "cpp");
    let (variable, usual) = if cpp { ("DOLLOP_TEST_CXX", "g++") } else { ("DOLLOP_TEST_CC", "gcc") };
    let mut compiler = Command::new(env::var(variable).unwrap_or(usual.into()));
    compiler.arg(if cpp { "-std=c++17" } else { "-std=c11" }).args(WARNINGS).arg("-g");
    compiler.args(words("DOLLOP_TEST_CFLAGS"));
    compiler.arg("-I").arg(root().join("ffi/include")).arg(&source).arg("-o").arg(&program).arg("-pthread");
    match link {
        Link::Dynamic => {
            let path = library().display().to_string();
            compiler.args([format!("-L{path}"), "-l:libdollop.so".into(), format!("-Wl,-rpath,{path}")]);
        }
        Link::Static => {
            compiler.arg(library().join("libdollop.a")).args(["-ldl", "-lm"]);
        }
    }
    run(&mut compiler);
    let needed = run(Command::new("readelf").arg("-d").arg(&program));
    assert_eq!(needed.contains("[libdollop.so]"), link == Link::Dynamic, "{needed}");
    program
}

fn start(program: &Path) -> Command {
    let mut runner = words("DOLLOP_TEST_RUNNER").into_iter();
    match runner.next() {
        Some(first) => {
            let mut command = Command::new(first);
            command.args(runner).arg(program);
            command
        }
        None => Command::new(program),
    }
}

/// Compiles and runs a test program with its fixtures. Returns the number of checks that it made.
fn checks(source: &str, link: Link) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let program = compile(source, link, folder.path());
    Talker::new("hé 🙂".as_bytes(), ENDS_IN_A_LINE_FEED).write(&at("talker"));
    let mut broken = Talker::new(b"ok", ENDS_IN_A_LINE_FEED);
    broken.overflow = Some((1, b'h'));
    broken.layers = 3;
    broken.write(&at("broken"));
    std::fs::write(at("garbage.gguf"), b"GGUF\x03\0\0\0").unwrap();
    std::fs::create_dir(at("cache")).unwrap();
    let mut command = start(&program);
    command.arg(default_model()).args(["talker", "broken", "garbage.gguf", "cache"].map(at));
    let out = run(&mut command);
    out.trim().strip_suffix(" checks").and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{out}"))
}

#[test]
fn every_status_is_provoked_dynamic() {
    assert!(checks("ffi/tests/c/statuses.c", Link::Dynamic) > 150);
}

#[test]
fn every_status_is_provoked_static() {
    assert!(checks("ffi/tests/c/statuses.c", Link::Static) > 150);
}

#[test]
fn every_function_works_in_c_dynamic() {
    assert!(checks("ffi/tests/c/functions.c", Link::Dynamic) > 150);
}

#[test]
fn every_function_works_in_c_static() {
    assert!(checks("ffi/tests/c/functions.c", Link::Static) > 150);
}

#[test]
fn sessions_are_saved_and_memory_is_given_back_in_c() {
    assert!(checks("ffi/tests/c/saved.c", Link::Dynamic) > 150);
    if full() {
        assert!(checks("ffi/tests/c/saved.c", Link::Static) > 150);
    }
}

#[test]
fn the_wrapper_works_in_cpp() {
    for link in [Link::Dynamic, Link::Static] {
        assert!(checks("ffi/tests/cpp/wrapper.cpp", link) > 40);
    }
}

#[test]
fn the_examples_answer() {
    let text = std::fs::read_to_string(root().join("examples/c/chat.c")).unwrap();
    assert!(text.lines().count() <= 40, "the C example has {} lines", text.lines().count());
    let folder = tempfile::tempdir().unwrap();
    let c = compile("examples/c/chat.c", Link::Dynamic, folder.path());
    let out = run(start(&c).arg(default_model()));
    assert!(out.contains("Paris"), "{out}");
    let cpp = compile("examples/cpp/chat.cpp", Link::Dynamic, folder.path().join("").as_path());
    let out = run(start(&cpp).arg(default_model()).stdin(std::process::Stdio::null()));
    assert!(out.starts_with("> "), "{out}");
}

/// The header compiles alone in both languages.
#[test]
fn the_header_is_c_and_cpp() {
    let header = root().join("ffi/include/dollop.h");
    for (compiler, standard, language) in [("gcc", "-std=c11", "c"), ("g++", "-std=c++17", "c++")] {
        let mut command = Command::new(compiler);
        command.args([standard, "-fsyntax-only", "-x", language, "-include"]).arg(&header).args(WARNINGS);
        run(command.arg("/dev/null"));
    }
}

#[test]
fn only_dollop_is_exported() {
    let all = run(Command::new("nm").args(["-D", "--defined-only"]).arg(library().join("libdollop.so")));
    let names: Vec<&str> = all.lines().filter_map(|l| l.split_whitespace().last()).collect();
    assert!(names.len() > 40, "{all}");
    let other: Vec<_> = names.iter().filter(|n| !n.starts_with("dollop_")).collect();
    assert!(other.is_empty(), "{other:?}");
    // The library exports only names that the header declares.
    let header = std::fs::read_to_string(root().join("ffi/include/dollop.h")).unwrap();
    for name in &names {
        assert!(header.contains(&format!("{name}(")), "{name} is not in the header");
    }
}

#[test]
fn python_reaches_it() {
    let mut python = Command::new("python3");
    python.arg(root().join("ffi/tests/smoke.py")).arg(library().join("libdollop.so")).arg(default_model());
    let out = run(&mut python);
    assert!(out.contains("Paris"), "{out}");
}
