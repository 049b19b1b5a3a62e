//! The instruction sets of this machine, and how to run code that uses them.
//!
//! An [`Isa`] beyond the scalar one is created only after detection ([`Isa::available`]). So holding one
//! permits calling its functions.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod amx;

use std::fmt;

/// An instruction set that this machine has and that we have kernels for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Kind);

/// Every instruction set, whether or not this machine has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The compiler's baseline; the reference.
    Scalar,
    /// x86-64 with AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// x86-64 with AVX-512 (F, BW, VL, VNNI).
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// The same with tile registers for bfloat16 (AMX), which products of many tokens use.
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// AArch64 with the dot-product extension.
    #[cfg(target_arch = "aarch64")]
    Dotprod,
    /// AArch64 with the extension for matrices of bytes (i8mm).
    #[cfg(target_arch = "aarch64")]
    I8mm,
}

impl Isa {
    /// The instruction sets of this machine, slowest first.
    pub fn available() -> Vec<Isa> {
        #[allow(unused_mut)]
        let mut all = vec![Isa(Kind::Scalar)];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx2") && has!("fma") && has!("f16c") {
                all.push(Isa(Kind::Avx2));
                if has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512vnni") {
                    all.push(Isa(Kind::Avx512));
                    if amx::available() {
                        all.push(Isa(Kind::Amx));
                    }
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            use std::arch::is_aarch64_feature_detected as has;
            if has!("dotprod") {
                all.push(Isa(Kind::Dotprod));
            }
            if has!("i8mm") {
                all.push(Isa(Kind::I8mm));
            }
        }
        all
    }

    /// The fastest.
    #[doc(hidden)]
    pub fn best() -> Isa {
        *Isa::available().last().expect("scalar is always there")
    }

    /// The instruction set of this name (as [`fmt::Display`] prints it), if this machine has it.
    pub fn named(name: &str) -> Option<Isa> {
        Isa::available().into_iter().find(|isa| isa.to_string() == name)
    }

    /// Whether products of many tokens are computed in bfloat16.
    pub(super) fn halves(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.0 == Kind::Amx;
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    pub(super) fn kind(self) -> Kind {
        self.0
    }

    /// Runs `f`. What is inlined into `f` is compiled for this instruction set.
    #[inline]
    pub(super) fn run<R>(self, f: impl FnOnce() -> R) -> R {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2<R>(f: impl FnOnce() -> R) -> R {
                f()
            }
            #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
            fn avx512<R>(f: impl FnOnce() -> R) -> R {
                f()
            }
            match self.0 {
                Kind::Scalar => {}
                // SAFETY: the value exists only where detection found the features that the function enables.
                Kind::Avx2 => return unsafe { avx2(f) },
                // SAFETY: as above.
                Kind::Avx512 | Kind::Amx => return unsafe { avx512(f) },
            }
        }
        f()
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Kind::Amx => "amx",
            #[cfg(target_arch = "aarch64")]
            Kind::Dotprod => "dotprod",
            #[cfg(target_arch = "aarch64")]
            Kind::I8mm => "i8mm",
        })
    }
}
