//! Runs float loops compiled for a given instruction set.

/// Runs `$body`, where `$lanes` is the instruction set's type for sixteen floats.
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
