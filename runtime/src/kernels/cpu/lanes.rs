//! Sixteen floats in the registers of an instruction set, so that one loop over floats serves all of them.
#![allow(unsafe_code)]

use half::f16;

/// A stored number.
pub(super) trait Cell: Copy + Send + Sync + 'static {
    /// Half precision, or else single.
    const HALF: bool;
}

impl Cell for f16 {
    const HALF: bool = true;
}

impl Cell for f32 {
    const HALF: bool = false;
}

/// Sixteen floats in the registers of an instruction set.
///
/// # Safety
/// Of every method: the machine has the instructions; pointers are good for 16 numbers.
pub(super) trait Lanes: Copy {
    /// Whether sixteen of these stay in registers beside their operands; otherwise four do.
    const MANY: bool;
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load<T: Cell>(at: *const T) -> Self;
    unsafe fn store(self, at: *mut f32);
    /// `self · x + sum`.
    unsafe fn times_plus(self, x: Self, sum: Self) -> Self;
}

/// `$body` with `$lanes` naming the type that holds sixteen floats. The caller must be compiled for the instruction
/// set.
macro_rules! with_lanes {
    ($isa:expr, $lanes:ident => $body:expr) => {
        match $isa.kind() {
            $crate::kernels::cpu::isa::Kind::Scalar => {
                type $lanes = $crate::kernels::cpu::scalar::Lanes16;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            $crate::kernels::cpu::isa::Kind::Avx2 => {
                type $lanes = $crate::kernels::cpu::avx2::Lanes16;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            $crate::kernels::cpu::isa::Kind::Avx512 | $crate::kernels::cpu::isa::Kind::Amx => {
                type $lanes = std::arch::x86_64::__m512;
                $body
            }
            #[cfg(target_arch = "aarch64")]
            $crate::kernels::cpu::isa::Kind::Dotprod | $crate::kernels::cpu::isa::Kind::I8mm => {
                type $lanes = $crate::kernels::cpu::neon::Lanes16;
                $body
            }
        }
    };
}
pub(super) use with_lanes;
