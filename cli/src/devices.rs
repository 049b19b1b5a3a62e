//! `dollop devices`.

use crate::Failure;
use crate::args::DevicesArgs;

#[cfg(feature = "gpu")]
pub fn devices(args: &DevicesArgs) -> Result<(), Failure> {
    use crate::output::bytes;
    use crate::{note, screen};
    use dollop::internal::kernels::{GpuInputs, GpuVariants};
    use std::io::Write;

    let all = dollop::internal::kernels::gpu::adapters();
    let mut out = screen::stdout();
    if args.json {
        writeln!(out, "{}", screen::json(&all, true)?)?;
        return Ok(());
    }
    for a in &all {
        let kind = if a.software { ", software: --backend auto leaves it alone" } else { "" };
        writeln!(out, "gpu:{}  {} ({}; {}{kind})", a.index, a.name, a.api, a.driver)?;
        match &a.missing {
            Some(missing) => writeln!(out, "       cannot run the kernels: it lacks {missing}")?,
            None => {
                writeln!(out, "       up to {} in one buffer", bytes(a.max_binding_bytes))?;
                match a.subgroups {
                    Some([least, most]) if least == most => {
                        writeln!(out, "       subgroups of {most}: used")?
                    }
                    Some([least, most]) => writeln!(out, "       subgroups of {least} to {most}: used")?,
                    None => writeln!(out, "       no subgroups that kernels can use")?,
                }
                let own = match a.of(GpuVariants::default()).inputs {
                    GpuInputs::Bytes => "8 bits",
                    _ => "single precision",
                };
                let others = if a.f16 { "single, half, bytes" } else { "single, bytes (it has no f16)" };
                writeln!(
                    out,
                    "       products in {own}; others with --gpu-kernels subgroups,NAME: {others}"
                )?;
            }
        }
    }
    if all.is_empty() {
        note!("no GPU was found (Vulkan, Metal or DirectX 12); models run on the CPU");
    }
    Ok(())
}

#[cfg(not(feature = "gpu"))]
pub fn devices(_: &DevicesArgs) -> Result<(), Failure> {
    Err("this build has no GPU kernels (feature `gpu`)".into())
}
