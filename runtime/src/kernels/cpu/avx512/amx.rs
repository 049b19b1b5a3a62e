//! Sixteen tokens at a time with AMX: a group of a tile's codes is a tile register as it is.

use super::{Params, Stretch, add_group, keep, totals};
use crate::kernels::cpu::nested::Activations;
use crate::quant::{TILE_ROWS, UNIT_COLS, VECTOR};
use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

/// Tokens of a block: the rows of a tile register.
pub(super) const BLOCK: usize = 16;

/// Whether the processor has it and the system lets this process use it: tile registers are 8 KB more of every thread's
/// state, which Linux saves for those only that asked.
pub(in crate::kernels::cpu) fn available() -> bool {
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    *ALLOWED.get_or_init(|| {
        const TILES_AND_INT8: u32 = 3 << 24;
        let has = __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & TILES_AND_INT8 == TILES_AND_INT8;
        has && permission()
    })
}

#[cfg(target_os = "linux")]
fn permission() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const REQUEST_PERMISSION: i64 = 0x1023;
    const TILE_DATA: i64 = 18;
    let result: i64;
    // SAFETY: this system call changes what the process may use, and no memory. Kernels that do not know it say so.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") REQUEST_PERMISSION,
            in("rsi") TILE_DATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn permission() -> bool {
    false
}

/// What the tile registers hold: 0 to 3 the products of as many groups; 4 and 6 activations; 5 and 7 codes.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Groups in flight: a product takes 52 cycles, of which 16 until the next may begin.
const AT_ONCE: usize = 4;

impl Config {
    const fn new(units: usize) -> Config {
        let mut c = Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let mut tile = 0;
        while tile < 8 {
            (c.rows[tile], c.row_bytes[tile]) = match tile {
                0..AT_ONCE => (BLOCK as u8, 4 * TILE_ROWS as u16),
                4 | 6 => (BLOCK as u8, (units * UNIT_COLS) as u16),
                _ => ((units * UNIT_COLS / 4) as u8, VECTOR as u16),
            };
            tile += 1;
        }
        c
    }
}

/// This thread's tile registers, set up for groups of `UNITS · 32`, and given back in the end.
pub(super) struct Tiles<const UNITS: usize>(());

/// The products of a group, `[BLOCK, TILE_ROWS]`.
#[repr(C, align(64))]
struct Dots(MaybeUninit<[[i32; TILE_ROWS]; BLOCK]>);

macro_rules! products {
    ($sum:literal, $q:literal, $codes:literal, $at:expr) => {
        asm!(
            concat!("tileloadd tmm", $q, ", [{q} + {stride}]"),
            concat!("tileloadd tmm", $codes, ", [{codes} + {vector}]"),
            concat!("tilezero tmm", $sum),
            concat!("tdpbsud tmm", $sum, ", tmm", $q, ", tmm", $codes),
            q = in(reg) $at.0,
            stride = in(reg) UNITS * UNIT_COLS,
            codes = in(reg) $at.1,
            vector = in(reg) VECTOR,
            options(nostack, preserves_flags, readonly),
        )
    };
}

macro_rules! store {
    ($sum:literal, $to:expr) => {
        asm!(
            concat!("tilestored [{to} + {vector}], tmm", $sum),
            to = in(reg) $to,
            vector = in(reg) VECTOR,
            options(nostack, preserves_flags),
        )
    };
}

impl<const UNITS: usize> Tiles<UNITS> {
    /// # Safety
    /// The machine has AMX, this process may use it, and this thread has no other `Tiles`.
    pub(super) unsafe fn new() -> Self {
        let config = const { &Config::new(UNITS) };
        // SAFETY: the caller's promise; the configuration is a valid one, and nothing else uses tile registers.
        unsafe { asm!("ldtilecfg [{}]", in(reg) config, options(nostack, preserves_flags, readonly)) };
        Tiles(())
    }

    /// The products of groups with BLOCK tokens.
    ///
    /// # Safety
    /// Every pointer of `q` is to the activations of BLOCK tokens, which lie in a row, every one of `codes` to a group.
    #[inline(always)]
    unsafe fn products(
        &self,
        q: [*const i8; AT_ONCE],
        codes: [*const u8; AT_ONCE],
        to: &mut [Dots; AT_ONCE],
    ) {
        // SAFETY: reads what the caller promises, and writes all of `to`; the registers are ours.
        unsafe {
            products!(0, 4, 5, (q[0], codes[0]));
            products!(1, 6, 7, (q[1], codes[1]));
            products!(2, 4, 5, (q[2], codes[2]));
            products!(3, 6, 7, (q[3], codes[3]));
            store!(0, &mut to[0]);
            store!(1, &mut to[1]);
            store!(2, &mut to[2]);
            store!(3, &mut to[3]);
        }
    }

    /// A stretch, whose first group is `from`, times up to BLOCK tokens from `first` on.
    ///
    /// # Safety
    /// The machine has the features; the stretch is filled, `x` has its groups, the tokens, and BLOCK − 1 beyond the
    /// last.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c,avx2,fma")]
    pub(super) unsafe fn tokens(
        &self,
        s: &Stretch,
        x: &Activations,
        from: usize,
        first: usize,
        sums: &mut [[f32; TILE_ROWS]],
    ) {
        let mut dots = [const { Dots(MaybeUninit::uninit()) }; AT_ONCE];
        let (q, a, sum) = x.group(from);
        // Bytes of a token's group, and from one group to the next.
        let (row, stride) = (UNITS * UNIT_COLS, x.stride() * UNITS * UNIT_COLS);
        // SAFETY: the caller's promise; a prefetch of any address is allowed.
        unsafe {
            let (q, a, sum) =
                (q.as_ptr().add(first * UNITS * UNIT_COLS), a.as_ptr().add(first), sum.as_ptr().add(first));
            let mut totals = totals::<BLOCK>(sums);
            for g in (0..s.groups).step_by(AT_ONCE) {
                // Where fewer are left, the last is computed again.
                let at: [usize; AT_ONCE] = std::array::from_fn(|i| (g + i).min(s.groups - 1));
                let codes = at.map(|g| s.codes.as_ptr().add(g * UNITS).cast::<u8>());
                self.products(at.map(|g| q.add(g * stride)), codes, &mut dots);
                // What comes next, these tokens' next groups or the next tokens' first, is in the second-level cache:
                // products waited for it half of their time.
                let next = if g + AT_ONCE < s.groups { (g + AT_ONCE) * stride } else { row * BLOCK };
                for (g, (i, dots)) in (g..s.groups).zip(dots.iter().enumerate()) {
                    let next = q.wrapping_add(next + i * stride);
                    let (a, sum) = (a.add(g * x.stride()), sum.add(g * x.stride()));
                    let p: Params = s.params.get_unchecked(g).assume_init();
                    let dots = dots.0.as_ptr().cast::<i32>();
                    for (n, total) in totals.iter_mut().enumerate() {
                        _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(n * row));
                        let dot = _mm512_load_si512(dots.add(n * TILE_ROWS).cast());
                        *total = add_group(p, dot, *a.add(n), *sum.add(n), *total);
                    }
                }
            }
            keep(totals, sums);
        }
    }
}

impl<const UNITS: usize> Drop for Tiles<UNITS> {
    fn drop(&mut self) {
        // SAFETY: nothing is in the registers that anybody wants.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }
}
