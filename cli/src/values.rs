//! Parsers for argument values that have a type in the library.

use crate::tasks::Kind;
use dollop::Level;
use dollop::Precision;

pub fn level(text: &str) -> Result<Level, String> {
    text.parse().ok().and_then(Level::from_bits).ok_or_else(|| "levels are 2, 3, 4, 6 and 8 bits".into())
}

/// Kinds of tasks, without duplicates, in the order of [`Kind::ALL`].
#[derive(Clone)]
pub struct Kinds(pub Vec<Kind>);

/// Parses average bits, from 2 to 8.
pub fn mean_bits(text: &str) -> Result<f64, String> {
    let wrong = || format!("`{text}`: bits on average are a number from 2 to 8, such as 3.2");
    text.parse().ok().filter(|bits| (2.0..=8.0).contains(bits)).ok_or_else(wrong)
}

pub fn kinds(list: &str) -> Result<Kinds, String> {
    if list == "all" {
        return Ok(Kinds(Kind::ALL.to_vec()));
    }
    let named: Vec<&str> = list.split(',').collect();
    if let Some(other) = named.iter().find(|name| Kind::ALL.iter().all(|kind| kind.name() != **name)) {
        let known: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        return Err(format!("`{other}` is no kind of task; there are {}, and all", known.join(", ")));
    }
    Ok(Kinds(Kind::ALL.into_iter().filter(|kind| named.contains(&kind.name())).collect()))
}

/// Parses a precision, or bits as an exact precision.
pub fn precision_or_bits(text: &str) -> Result<Precision, String> {
    level(text).map(Precision::Exact).or_else(|_| text.parse::<Precision>()).map_err(|_| {
        format!("`{text}` is neither a level (2, 3, 4, 6 or 8) nor adaptive, adaptive:Q or exact:B")
    })
}

pub fn isa(name: &str) -> Result<dollop::internal::kernels::cpu::Isa, String> {
    use dollop::internal::kernels::cpu::Isa;
    let known = || Isa::available().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Isa::named(name).ok_or_else(|| format!("this machine has {}", known()))
}

pub fn gpu_kernels(list: &str) -> Result<dollop::GpuVariants, String> {
    use dollop::GpuInputs;
    let mut subgroups = false;
    let mut inputs = GpuInputs::Auto;
    for name in list.split(',') {
        match name {
            "plain" | "single" if inputs == GpuInputs::Auto => inputs = GpuInputs::Single,
            "half" if inputs == GpuInputs::Auto => inputs = GpuInputs::Half,
            "bytes" if inputs == GpuInputs::Auto => inputs = GpuInputs::Bytes,
            "subgroups" => subgroups = true,
            _ => {
                return Err("variants are subgroups, one of single, half and bytes, or plain for none".into());
            }
        }
    }
    Ok(dollop::GpuVariants { subgroups, inputs })
}

pub fn backend(name: &str) -> Result<dollop::BackendChoice, String> {
    use dollop::BackendChoice as B;
    match (name, name.strip_prefix("gpu:").map(str::parse)) {
        ("auto", _) => Ok(B::Auto),
        ("cpu", _) => Ok(B::Cpu),
        ("gpu", _) => Ok(B::Gpu(None)),
        (_, Some(Ok(index))) => Ok(B::Gpu(Some(index))),
        _ => Err("backends are auto, cpu, gpu and gpu:N".into()),
    }
}
