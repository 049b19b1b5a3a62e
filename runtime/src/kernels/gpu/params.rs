//! The parameters of every kernel as the host writes them. `tests.rs` compares names and offsets with the
//! kernels' sources.

use dollop_shaders::Kernel;

/// Parameters of a kernel.
pub(super) trait Params: bytemuck::NoUninit {
    /// The kernel they belong to.
    const KERNEL: Kernel;
    /// Members with their offsets.
    const FIELDS: &'static [(&'static str, usize)];
}

macro_rules! params {
    ($(#[$doc:meta])* $kernel:ident, $name:ident { $($field:ident: $ty:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, bytemuck::NoUninit)]
        #[repr(C)]
        pub(super) struct $name {
            $(pub(super) $field: $ty),*
        }

        impl Params for $name {
            const KERNEL: Kernel = Kernel::$kernel;
            const FIELDS: &'static [(&'static str, usize)] =
                &[$((stringify!($field), std::mem::offset_of!($name, $field))),*];
        }
    };
}

/// One matrix of a `linear` dispatch.
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Part {
    pub(super) base: u32,
    pub(super) rows: u32,
    pub(super) group: u32,
    pub(super) tiles: u32,
    pub(super) alpha: f32,
    pub(super) centre: f32,
    pub(super) at: u32,
    pub(super) stride: u32,
}

params!(
    /// `linear.wgsl`.
    Linear, LinearParams { cols: u32, tokens: u32, flags: u32, eps: f32, parts: u32, bias: u32, each: u32, part: [Part; 3] }
);

/// Bits of [`LinearParams::flags`].
pub(super) const NORM: u32 = 1;
/// See [`NORM`].
pub(super) const BIAS: u32 = 2;
/// See [`NORM`].
pub(super) const ADDED: u32 = 4;

params!(
    /// `heads.wgsl`.
    Heads, HeadsParams {
        base: u32, rows: u32, cols: u32, group: u32, alpha: f32, centre: f32, heads: u32, kept: u32,
    }
);

params!(
    /// `prepare.wgsl`.
    Prepare, PrepareParams { cols: u32, rows: u32, flags: u32, eps: f32, first: u32 }
);

/// A bit of [`PrepareParams::flags`], beside [`NORM`].
pub(super) const LISTED: u32 = 2;

params!(
    /// `rotate.wgsl`.
    Rotate, RotateParams { rows: u32, block: u32, blocks: u32, table: u32, norm: f32 }
);

params!(
    /// `gate_up.wgsl`.
    GateUp, GateUpParams {
        d: u32, ff: u32, group: u32, group_up: u32, top_k: u32, first: u32, place: u32, plain: u32,
        experts: u32, kind: u32, alpha: f32, limit: f32,
    }
);

params!(
    /// `route_gate_up.wgsl`.
    RouteGateUp, RouteGateUpParams {
        d: u32, ff: u32, group: u32, group_up: u32, experts: u32, top_k: u32, renormalize: u32, scale: f32, table: u32,
        kept: u32, at: u32,
    }
);

params!(
    /// `down.wgsl`.
    Down, DownParams { d: u32, ff: u32, group: u32, first: u32, place: u32, experts: u32 }
);

params!(
    /// `down_sum.wgsl`.
    DownSum, DownSumParams { d: u32, ff: u32, group: u32, top_k: u32, first: u32, gated: u32 }
);

params!(
    /// `embed.wgsl`.
    Embed, EmbedParams {
        base: u32, first: u32, rows: u32, cols: u32, group: u32, alpha: f32, centre: f32, ids: u32, scale: f32,
    }
);

params!(
    /// `rms_norm.wgsl`.
    RmsNorm, RmsNormParams { cols: u32, rows: u32, eps: f32, centred: u32 }
);

params!(
    /// `place.wgsl`.
    Place, PlaceParams {
        heads: u32, kv_heads: u32, head_dim: u32, half: u32, pos: u32, capacity: u32, q_norm: u32, k_norm: u32,
        v_norm: u32, eps: f32, limit: f32, latent: u32, late: u32,
    }
);

params!(
    /// `attention.wgsl`.
    Attention, AttentionParams {
        heads: u32, kv_heads: u32, head_dim: u32, capacity: u32, base: u32, pos: u32, window: u32, scale: f32,
        sinks: u32, v_dim: u32,
    }
);

params!(
    /// `attention_many.wgsl`.
    AttentionMany, AttentionManyParams {
        heads: u32, kv_heads: u32, head_dim: u32, capacity: u32, pos: u32, tokens: u32, queries: u32, scale: f32,
        sinks: u32, v_dim: u32,
    }
);

/// Queries per workgroup of `attention_many`, limited by workgroup memory; 0 if it is too small.
pub(super) fn queries_at_once(head_dim: usize) -> usize {
    const MOST: usize = 16;
    const CELLS: usize = 512;
    (CELLS / head_dim.div_ceil(4) / 4 * 4).min(MOST)
}

params!(
    /// `attend_one.wgsl`.
    AttendOne, AttendOneParams {
        heads: u32, kv_heads: u32, head_dim: u32, half: u32, pos: u32, capacity: u32, base: u32, q_norm: u32,
        k_norm: u32, v_norm: u32, eps: f32, limit: f32, window: u32, scale: f32, tiles: u32, sinks: u32,
        latent: u32, late: u32, v_dim: u32,
    }
);

params!(
    /// `attend_merge.wgsl`.
    AttendMerge, AttendMergeParams { v_dim: u32, tiles: u32, sinks: u32 }
);

/// Positions per tile (`shared/attend.wgsl`).
pub(super) const TILE: usize = 128;

/// Values that `attend_one` writes for a tile of a head.
pub(super) fn partial_values(v_dim: usize) -> usize {
    4 * (v_dim.div_ceil(4) + 1)
}

params!(
    /// `route.wgsl`.
    Route, RouteParams {
        experts: u32, top_k: u32, renormalize: u32, scale: f32, scaled: u32, jobs: u32, table: u32, at: u32, first: u32,
        kind: u32, eps: f32, biased: u32, groups: u32, kept: u32,
    }
);

params!(
    /// `group.wgsl`.
    Group, GroupParams { experts: u32, slots: u32, jobs: u32, table: u32 }
);

params!(
    /// `conv.wgsl`.
    Conv, ConvParams { d: u32, taps: u32, tokens: u32, before_slot: u32, after_slot: u32, before: u32, bias: u32 }
);

params!(
    /// `delta_mix.wgsl`.
    DeltaMix, DeltaMixParams {
        k_heads: u32, v_heads: u32, k_dim: u32, v_dim: u32, taps: u32, tokens: u32, values: u32, before_slot: u32,
        after_slot: u32, before: u32, bias: u32, adds: u32,
    }
);

params!(
    /// `delta.wgsl`.
    Delta, DeltaParams {
        k_heads: u32, v_heads: u32, k_dim: u32, v_dim: u32, taps: u32, tokens: u32, values: u32, before_slot: u32,
        after_slot: u32, before: u32, tiled: u32, decays: u32, adds: u32, lower: f32,
    }
);

params!(
    /// `gated_norm.wgsl`.
    GatedNorm, GatedNormParams {
        heads: u32, dim: u32, weights: u32, gate_first: u32, stride: u32, first: u32, sigmoid: u32, eps: f32,
    }
);

params!(
    /// `combine.wgsl`.
    Combine, CombineParams { d: u32, top_k: u32, at: u32 }
);

params!(
    /// `elementwise.wgsl`.
    Elementwise, ElementwiseParams { len: u32, at: u32, row: u32, stride: u32, each: u32, scale: f32 }
);

params!(
    /// `gate_rows.wgsl`.
    GateRows, GateRowsParams { d: u32 }
);

params!(
    /// `argmax.wgsl`.
    Argmax, ArgmaxParams { len: u32, pairs: u32 }
);

params!(
    /// `top_k.wgsl`.
    TopK, TopKParams { len: u32, pairs: u32, k: u32 }
);

/// Words of a job (`shared/job.wgsl`): offsets of its matrices, [`place`], three corrections, offsets of
/// their refinements or [`NOWHERE`], the number of slots, the gate of a lone slot, the expert, the slots.
pub(super) const JOB_WORDS: usize = 24;

/// Words of an expert's entry in the table (`route.wgsl`): the beginning of a job.
pub(super) const ENTRY_WORDS: usize = 13;

/// Offsets of a job's parts, in words.
pub(super) const JOB_PLACE: usize = 3;
/// See [`JOB_PLACE`].
pub(super) const JOB_FITS: usize = 4;
/// See [`JOB_PLACE`].
pub(super) const JOB_TOPS: usize = 10;
/// See [`JOB_PLACE`].
pub(super) const JOB_COUNT: usize = 13;
/// See [`JOB_PLACE`].
pub(super) const JOB_GATE: usize = 14;
/// See [`JOB_PLACE`].
pub(super) const JOB_EXPERT: usize = 15;
/// See [`JOB_PLACE`].
pub(super) const JOB_SLOTS: usize = 16;

/// The offset of a missing refinement.
pub(super) const NOWHERE: u32 = u32::MAX;

/// The kernels' limits: experts per layer, experts per token, and values per head.
pub(super) const MAX_EXPERTS: usize = 1024;
/// See [`MAX_EXPERTS`].
pub(super) const MAX_TOP_K: usize = 64;
/// See [`MAX_EXPERTS`].
pub(super) const MAX_HEAD: usize = 512;
/// The limit for a key or query if values are shorter.
pub(super) const MAX_WIDE: usize = 640;

/// The most experts of a layer for which `gate_up` can make the choice itself.
pub(super) const MAX_CHOSEN_AMONG: usize = 512;

/// The most buffers for the experts of a layer, and for their refinements: as many as [`place`] can encode.
pub(super) const MAX_BANKS: usize = 1 << 12;

/// The planes that are read, from a [`place`].
pub(super) fn planes_of(place: u32) -> u32 {
    place & 255
}

/// A word that the jobs of one dispatch share: the index of the experts' buffer in the layer, the same for
/// their refinements, and the planes to read.
pub(super) fn place(bank: usize, refinements: usize, planes: u32) -> u32 {
    debug_assert!(bank < MAX_BANKS && refinements < MAX_BANKS && planes < 1 << 8);
    (refinements as u32) << 20 | (bank as u32) << 8 | planes
}
