//! Values of arguments that the library has a type for, from what people write.

use dollop::quant::Level;

pub fn level(text: &str) -> Result<Level, String> {
    text.parse().ok().and_then(Level::from_bits).ok_or_else(|| "levels are 2, 3, 4, 6 and 8 bits".into())
}

pub fn isa(name: &str) -> Result<dollop::kernels::cpu::Isa, String> {
    use dollop::kernels::cpu::Isa;
    let known = || Isa::available().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Isa::named(name).ok_or_else(|| format!("this machine has {}", known()))
}

pub fn gpu_kernels(list: &str) -> Result<dollop::kernels::GpuVariants, String> {
    use dollop::kernels::GpuInputs;
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
    Ok(dollop::kernels::GpuVariants { subgroups, inputs })
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
