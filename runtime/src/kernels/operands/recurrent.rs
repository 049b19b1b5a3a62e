//! The calls of mixers with a state: gated short convolutions and gated delta nets.

/// A gated delta net for several tokens (arXiv 2412.06464), between its projections.
pub struct DeltaCall<'a, 's, Buf> {
    /// Queries, keys and values, `[tokens, channels]`.
    pub qkv: &'a Buf,
    /// `[tokens, v_heads · v_dim]`. The normed output is multiplied by a function of these ([`Delta::gate`]).
    pub z: &'a Buf,
    /// `[tokens, v_heads]`. Its sigmoid is the share of a correction that is written. [`Rule::Add`] does not use it.
    pub beta: &'a Buf,
    /// `[tokens, decays]`: the length of a step, for the decay per step. Backends may overwrite it.
    pub alpha: &'a mut Buf,
    /// The tokens' sequences. A slot of a state is for one position ([`Delta::state_values`]).
    pub sequences: &'a mut (dyn Iterator<Item = Recurrent<'s, Buf>> + 's),
    /// The operation itself.
    pub shape: &'a Delta<'a>,
    /// Scratch, `[tokens, channels]`.
    pub mixed: &'a mut Buf,
    /// `[tokens, v_heads · v_dim]`.
    pub out: &'a mut Buf,
}

/// The tokens of one sequence in a call, like [`Sequence`](super::Sequence), for a mixer with a state.
pub struct Recurrent<'a, Buf> {
    /// The number of tokens.
    pub tokens: usize,
    /// `[slots, values of a slot]`.
    pub state: &'a mut Buf,
    /// The slot to read: the state after the tokens before. `None` if there are none; the state is then zero.
    pub from: Option<usize>,
    /// The slot to write, a different one.
    pub to: usize,
}

/// A mixer with a state that belongs to one position. It reads one slot of the state and writes another.
pub enum Recur<'a, 's, Buf> {
    /// A gated short convolution.
    Conv(ConvCall<'a, 's, Buf>),
    /// A gated delta net.
    Delta(DeltaCall<'a, 's, Buf>),
}

/// The most inputs in a window of a gated delta net's convolution.
pub const MAX_TAPS: usize = 4;

/// A gated delta net, without its buffers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Delta<'a> {
    /// Heads of queries and keys; divides `v_heads`.
    pub k_heads: usize,
    /// Heads of values, each with its own memory.
    pub v_heads: usize,
    /// Values of a key.
    pub k_dim: usize,
    /// Values of a value, a multiple of 16.
    pub v_dim: usize,
    /// Inputs in the convolution's window, the newest last: 2 to [`MAX_TAPS`].
    pub taps: usize,
    /// Whether value head `j` uses key head `j % k_heads`. Otherwise neighbouring value heads share one.
    pub tiled: bool,
    /// What a token writes to the memory.
    pub rule: Rule<'a>,
    /// `[channels, taps]`: weights of the convolution.
    pub conv: &'a [f32],
    /// `[channels]`: biases of the convolution.
    pub bias: Option<&'a [f32]>,
    /// Which values of the memory have a common decay.
    pub decay: Decay,
    /// `[v_heads]`, negative: the rate of decay.
    pub a: &'a [f32],
    /// `[decays]`: added to the length of a step.
    pub dt: &'a [f32],
    /// The function of the output gate.
    pub gate: Gate,
    /// Weights of the norm: `[v_dim]`, the same for each head; or `[v_heads · v_dim]`, with one norm over all value
    /// heads that share a key head ([`Delta::norm_dim`]).
    pub norm: &'a [f32],
    /// Epsilon of that norm.
    pub eps: f32,
}

/// The decay of the memory of a delta net per step, from the length `x` of the step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decay {
    /// One per head: `e^(a · ln(1 + e^x))`.
    Heads,
    /// One per value of a key (arXiv 2510.26692), by the formula of [`Decay::Heads`].
    Channels,
    /// One per value of a key: `e^(lower · sigmoid(−a · x))`. This is `lower`, which is negative.
    Bounded(f32),
}

/// What a token writes to the memory of a delta net.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule<'a> {
    /// The delta rule: β times the difference between the value and what the memory holds for the key. Queries and
    /// keys are scaled to unit length, and the gate multiplies the output after the norm.
    Correct,
    /// Mamba-2 (arXiv 2405.21060): the value times the length of the step. Queries and keys are not scaled, β is not
    /// used, and the gate multiplies the output before the norm.
    Add {
        /// `[v_heads]`: the value times this is added to the output.
        skip: &'a [f32],
    },
}

/// The function of the gate of a delta net's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// `x · sigmoid(x)`.
    Silu,
    /// `sigmoid(x)`.
    Sigmoid,
}

impl Delta<'_> {
    /// Whether the rule is [`Rule::Add`].
    pub fn adds(&self) -> bool {
        matches!(self.rule, Rule::Add { .. })
    }

    /// Decays of a token.
    pub fn decays(&self) -> usize {
        match self.decay {
            Decay::Heads => self.v_heads,
            Decay::Channels | Decay::Bounded(_) => self.v_heads * self.k_dim,
        }
    }

    /// Channels of a token: all values of its queries, keys and values.
    pub fn channels(&self) -> usize {
        2 * self.k_heads * self.k_dim + self.v_heads * self.v_dim
    }

    /// Values of a state: the last inputs of the convolution, `[taps − 1, channels]`, oldest first, and the
    /// heads' memory, `[v_heads, k_dim, v_dim]`.
    pub fn state_values(&self) -> usize {
        (self.taps - 1) * self.channels() + self.v_heads * self.k_dim * self.v_dim
    }

    /// Values of an output that have one norm.
    pub fn norm_dim(&self) -> usize {
        match self.rule {
            Rule::Correct => self.v_dim,
            Rule::Add { .. } => self.v_heads / self.k_heads * self.v_dim,
        }
    }

    /// The key head that a value head uses.
    pub fn key_head(&self, head: usize) -> usize {
        if self.tiled { head % self.k_heads } else { head / (self.v_heads / self.k_heads) }
    }
}

/// A gated short convolution over tokens, for each channel. With a token's `[B, C, v]` the result is
/// `C ⊙ conv(B ⊙ v)`; the last tap multiplies the token's own `B ⊙ v`.
pub struct ConvCall<'a, 's, Buf> {
    /// `[tokens, 3 · d]`: B, C and v, one after the other.
    pub x: &'a Buf,
    /// The sequences of the tokens. A slot of a state is `[taps - 1, d]`: the last inputs `B ⊙ v`, oldest first.
    pub sequences: &'a mut (dyn Iterator<Item = Recurrent<'s, Buf>> + 's),
    /// `[d, taps]`, the newest tap last.
    pub weight: &'a [f32],
    /// `[d]`, added to the sums.
    pub bias: Option<&'a [f32]>,
    /// Values of `B ⊙ v` in the window of a token.
    pub taps: usize,
    /// `[tokens, d]`.
    pub out: &'a mut Buf,
}
