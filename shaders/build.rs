//! Assembles the kernels from their parts, validates every variant, and writes their bindings as Rust.

use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, BinaryOperator, Expression, Handle, Module, ScalarKind, StorageAccess, TypeInner};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

include!("variants.rs");

/// A variant, like the library's `Variant`.
#[derive(Clone, Copy, Debug, Default)]
struct Variant {
    planes: u32,
    tokens: u32,
    half: bool,
    mixed: bool,
    op: u32,
    subgroups: bool,
    inputs: u32,
}

fn variants(axes: &[Axis]) -> Vec<Variant> {
    let mut all = vec![Variant { tokens: 1, ..Variant::default() }];
    for axis in axes {
        let spread = |v: Variant| -> Vec<Variant> {
            match axis {
                Axis::Planes => (0..BITS.len() as u32).map(|planes| Variant { planes, ..v }).collect(),
                Axis::Tokens => TOKENS.iter().map(|&tokens| Variant { tokens, ..v }).collect(),
                Axis::Half => [false, true].map(|half| Variant { half, ..v }).to_vec(),
                Axis::One => vec![v],
                // Every expert has the first plane.
                Axis::Mixed if v.planes < 2 => vec![v],
                Axis::Mixed => [false, true].map(|mixed| Variant { mixed, ..v }).to_vec(),
                Axis::Subgroups => [false, true].map(|subgroups| Variant { subgroups, ..v }).to_vec(),
                Axis::Inputs => (SINGLE..=BYTES)
                    // With one token, a product's time is that of loading the weights, so `HALF` inputs gain
                    // nothing. Bytes need integer codes.
                    .filter(|&i| (i != HALF || v.tokens > 1) && (i != BYTES || v.planes > 0))
                    .map(|inputs| Variant { inputs, ..v })
                    .collect(),
                Axis::Forms => (SINGLE..=BYTES).map(|inputs| Variant { inputs, ..v }).collect(),
                Axis::Op => (0..OPS).map(|op| Variant { op, ..v }).collect(),
            }
        };
        all = all.into_iter().flat_map(spread).collect();
    }
    all
}

/// The file of an import.
fn imported(name: &str, v: &Variant) -> String {
    let weights = if v.planes == 0 { "f32" } else { "nested" };
    let inputs = ["single", "half", "bytes"][v.inputs as usize];
    let name = match name {
        "weights" => format!("weights_{weights}"),
        "unit" => format!("unit_{weights}{}", ["", "_half", "_bytes"][v.inputs as usize]),
        "inputs" => format!("{}_{inputs}", if v.tokens == 1 { "own" } else { "inputs" }),
        "form" => format!("form_{inputs}"),
        "input" if v.tokens > 1 => "prepared".to_owned(),
        "input" => "input_one".to_owned(),
        "normed" | "hidden" => format!("{name}_{}", if v.tokens == 1 { "one" } else { "many" }),
        "product" if v.tokens > 1 => "product_many".to_owned(),
        "product" => format!("product_{}", if v.planes == 0 { "row" } else { "one" }),
        "kv" => format!("kv_{}", if v.half { "half" } else { "single" }),
        "word" => format!("word_{}", if v.mixed { "mixed" } else { "whole" }),
        "reduce" => format!("reduce_{}", if v.subgroups { "subgroup" } else { "tree" }),
        name => name.to_owned(),
    };
    format!("shared/{name}")
}

/// Appends a file after the files that it imports, each once.
fn expand(file: &str, v: &Variant, files: &mut Files, parts: &mut Vec<String>) {
    let text = files.text(file);
    for name in text.lines().filter_map(|line| line.strip_prefix("#import ")) {
        let name = imported(name, v);
        if !parts.contains(&name) {
            expand(&name, v, files, parts);
        }
    }
    parts.push(file.to_owned());
}

/// The files read from `wgsl/`. A source is a list of files, so that the library contains each once.
#[derive(Default)]
struct Files(BTreeMap<String, String>);

impl Files {
    fn text(&mut self, file: &str) -> String {
        let read = || {
            let path = Path::new("wgsl").join(format!("{file}.wgsl"));
            fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        };
        self.0.entry(file.to_owned()).or_insert_with(read).clone()
    }

    /// A file without its imports.
    fn part(&self, file: &str) -> String {
        let lines = self.0[file].lines().filter(|line| !line.starts_with("#import "));
        lines.flat_map(|line| [line, "\n"]).collect()
    }
}

/// The name of the constant with a file's text.
fn constant(file: &str) -> String {
    file.replace('/', "_").to_uppercase()
}

/// A variant's constants, as WGSL.
fn head(axes: &[Axis], v: &Variant) -> String {
    // A directive must come first.
    let mut text = if v.inputs == HALF { "enable f16;\n".to_owned() } else { String::new() };
    let mut constant = |axis: Axis, name: &str, value: u32| {
        if axes.contains(&axis) {
            writeln!(text, "const {name} = {value}u;").expect("a string grows");
        }
    };
    constant(Axis::Planes, "PLANES", v.planes);
    constant(Axis::Planes, "BITS", BITS[v.planes as usize]);
    for axis in [Axis::Tokens, Axis::One] {
        constant(axis, "TOKENS", v.tokens);
        constant(axis, "ROWS", rows(v.tokens, v.planes));
        constant(axis, "COLS", columns(v.inputs));
    }
    constant(Axis::Op, "OP", v.op);
    text
}

/// Writes one shader as a Rust expression.
fn describe(
    kernel: &str,
    axes: &[Axis],
    v: &Variant,
    files: &mut Files,
    fixed: &mut BTreeSet<&'static str>,
) -> String {
    let label = format!("{kernel}, {v:?}");
    let (head, mut parts) = (head(axes, v), Vec::new());
    expand(kernel, v, files, &mut parts);
    let source = &(head.clone() + &parts.iter().map(|file| files.part(file)).collect::<String>());
    let module = naga::front::wgsl::parse_str(source)
        .unwrap_or_else(|e| panic!("{label}: {}", e.emit_to_string(source)));
    // Immediates are the only feature beyond WebGPU. A kernel that needs more than every adapter supports
    // fails here, except for variants of optional features.
    let mut capabilities = Capabilities::IMMEDIATES | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    capabilities.set(Capabilities::SUBGROUP, v.subgroups);
    capabilities.set(Capabilities::SHADER_FLOAT16, v.inputs == HALF);
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .validate(&module)
        .unwrap_or_else(|e| panic!("{label}: {}", e.emit_to_string(source)));
    if v.inputs != HALF {
        fixed_sums(&label, &module, &info, fixed);
    }
    let [entry] = &module.entry_points[..] else { panic!("{label}: one entry point") };
    let (mut bindings, mut params, mut size) = (Vec::new(), String::new(), 0);
    let mut shared = 0;
    for (_, g) in module.global_variables.iter() {
        match g.space {
            AddressSpace::Storage { access } => {
                let at = g.binding.as_ref().expect("a buffer is bound");
                assert_eq!(at.group, 0, "{label}: one group");
                bindings.push((at.binding, access.contains(StorageAccess::STORE)));
            }
            AddressSpace::Immediate => {
                let TypeInner::Struct { members, span } = &module.types[g.ty].inner else {
                    panic!("{label}: parameters are a struct")
                };
                size = *span;
                for m in members {
                    let name = m.name.as_deref().expect("members have names");
                    write!(params, "({name:?}, {}), ", m.offset).expect("a string grows");
                }
            }
            AddressSpace::WorkGroup => shared += module.types[g.ty].inner.size(module.to_ctx()),
            _ => {}
        }
    }
    bindings.sort_unstable();
    assert!(bindings.iter().enumerate().all(|(i, b)| b.0 == i as u32), "{label}: bindings from 0 on");
    let least = bindings.len() <= 8 && size <= 128 && shared <= 16 << 10;
    assert!(least, "{label}: more than every adapter has");
    let writable: Vec<bool> = bindings.iter().map(|b| b.1).collect();
    let names: Vec<String> = parts.iter().map(|file| constant(file)).collect();
    format!(
        "Shader {{ kernel: Kernel::{}, variant: {v:?}, source: &[{head:?}, {}], entry: {:?}, workgroup: {:?}, \
         writable: &{writable:?}, params: &[{params}], params_size: {size} }},\n",
        camel(kernel),
        names.join(", "),
        entry.name,
        entry.workgroup_size
    )
}

/// Functions whose sums must be the same in every kernel.
const FIXED: [&str; 22] = [
    "multiply",
    "add_unit",
    "add_loaded",
    "add_two",
    "add_slices",
    "take_unit",
    "stage",
    "sum_of_unit",
    "pack_unit",
    "product",
    "norm_scale",
    "take_head",
    "score_of",
    "attend",
    "score_tile",
    "weigh_tile",
    "add_value",
    "sum_values",
    "put_four",
    "put_tile",
    "put_together",
    "weigh",
];

/// Panics if a compiler could choose the order of sums in these functions (`shared/one.wgsl`): if floats are added
/// other than by `fma`, or an operand of a subtraction is a product or quotient. Records the functions it has checked.
fn fixed_sums(label: &str, module: &Module, info: &ModuleInfo, seen: &mut BTreeSet<&'static str>) {
    for (handle, function) in module.functions.iter() {
        let Some(&name) = FIXED.iter().find(|&&name| function.name.as_deref() == Some(name)) else {
            continue;
        };
        seen.insert(name);
        let computed = |mut e: Handle<Expression>| {
            while let Expression::Splat { value, .. } = function.expressions[e] {
                e = value;
            }
            matches!(
                function.expressions[e],
                Expression::Binary { op: BinaryOperator::Multiply | BinaryOperator::Divide, .. }
            )
        };
        for (e, expression) in function.expressions.iter() {
            let Expression::Binary { op, left, right } = *expression else { continue };
            let inner = info[handle][e].ty.inner_with(&module.types);
            if inner.scalar_kind() != Some(ScalarKind::Float) {
                continue;
            }
            let free = match op {
                BinaryOperator::Add => true,
                BinaryOperator::Subtract => computed(left) || computed(right),
                _ => false,
            };
            assert!(!free, "{label}: a sum in {name} is not fixed");
        }
    }
}

fn camel(kernel: &str) -> String {
    kernel.split('_').map(|w| w[..1].to_uppercase() + &w[1..]).collect()
}

fn main() {
    println!("cargo::rerun-if-changed=wgsl");
    println!("cargo::rerun-if-changed=variants.rs");
    let (mut names, mut shaders, mut files) = (String::new(), String::new(), Files::default());
    let mut fixed = BTreeSet::new();
    for (kernel, axes) in KERNELS {
        writeln!(names, "/// `wgsl/{kernel}.wgsl`.\n{},", camel(kernel)).expect("a string grows");
        for v in variants(axes) {
            shaders += &describe(kernel, axes, &v, &mut files, &mut fixed);
        }
    }
    // A renamed function would escape the check.
    assert_eq!(fixed, BTreeSet::from(FIXED), "functions whose sums were looked at");
    let texts = files.0.keys().map(|f| format!("const {}: &str = {:?};\n", constant(f), files.part(f)));
    let texts: String = texts.collect();
    let text = format!(
        "/// Rows of a matrix that a workgroup multiplies with one token.\npub const ROWS: u32 = {};\n\n\
         /// The same of unquantized weights.\npub const PLAIN_ROWS: u32 = {};\n\n\
         /// The same with [`MANY`].\npub const MANY_ROWS: u32 = {};\n\n\
         /// The same of `down_sum`.\npub const SUM_ROWS: u32 = {SUM_ROWS};\n\n\
         /// A kernel: a file of `wgsl/`.\n#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]\npub enum Kernel {{\n{names}}}\n\n\
         /// Every variant of every kernel.\npub static SHADERS: &[Shader] = &[\n{shaders}];\n\n{texts}",
        rows(TOKENS[0], 1),
        rows(TOKENS[0], 0),
        rows(TOKENS[1], 1)
    );
    let out = env::var_os("OUT_DIR").expect("cargo sets it");
    fs::write(Path::new(&out).join("shaders.rs"), text).expect("the folder is writable");
}
