//! The feed-forward weights of a layer: one dense block, or a router with what accompanies the routed
//! experts.

use super::LayerOf;
use crate::error::{Error, Result};
use crate::experts::Expert;
use crate::kernels::{Activation, Biases, Router};
use crate::model::tensors::{Declared, Held, Met, Tensors, part};
use crate::quant::Matrix;

/// The feed-forward half of a layer.
#[derive(Clone, Debug)]
// One per layer: the difference in size does not matter.
#[allow(clippy::large_enum_variant)]
pub enum Ffn {
    /// One dense block.
    Dense(Expert),
    /// A router and routed experts.
    Moe(Moe),
    /// Nothing: the layer is a mixer.
    Nothing,
}

/// What the declarations of a layer with experts depend on.
#[derive(Clone, Copy)]
pub struct MoeOf<'a> {
    layer: LayerOf<'a>,
    router: Router,
}

part! {
    /// Router and shared expert. The routed experts come through `ExpertSource`.
    Moe(of: MoeOf) {
        /// Router, `[experts, d]`, f32.
        first router: Matrix = Declared::small(of.layer.name("ffn_gate_inp.weight"), of.router.experts, of.layer.d);
        /// `[1, d]`: the sigmoid of this product multiplies the shared expert's output.
        also shared_gate: Option<Matrix> = Declared::small(of.layer.name("ffn_gate_inp_shexp.weight"), 1, of.layer.d).maybe();
        /// Bias of the router's logits, `[experts]`.
        also router_bias: Option<Vec<f32>> =
            Declared::vector(of.layer.name("ffn_gate_inp.bias"), of.router.experts).only_if(of.layer.spec.ffn.biases);
        /// `[experts]`: added to the scores for choosing experts, but not to their gates.
        first choice_bias: Option<Vec<f32>> =
            Declared::vector(of.layer.name("exp_probs_b.bias"), of.router.experts).only_if(of.layer.spec.ffn.choice_bias);
        /// `[d]`: norm of the router's input.
        first router_norm: Option<Vec<f32>> =
            Declared::vector(of.layer.name("ffn_gate_inp.scale"), of.layer.d).only_if(of.layer.spec.ffn.beside);
        /// `[experts]`: factors on the gates.
        first scales: Option<Vec<f32>> =
            Declared::vector(of.layer.name("ffn_down_exps.scale"), of.router.experts).only_if(of.layer.spec.ffn.beside);
        /// Biases of the routed experts.
        first biases: Option<ExpertBiases> = of;
        /// An expert that every token uses.
        first shared: Option<Expert> = of.layer.shared();
        /// A dense block in parallel with the routed experts.
        first beside: Option<Beside> = of;
    }
}

part! {
    /// A dense block in parallel with the routed experts. `ffn_norm` of the layer is this block's input norm.
    Beside(of: MoeOf) {
        /// The dense block.
        first block: Expert = of.layer.block("");
        /// `[d]`: norm of the block's output.
        first post_norm: Vec<f32> = Declared::vector(of.layer.name("post_ffw_norm_1.weight"), of.layer.d);
        /// `[d]`: norm of the experts' input.
        first experts_norm: Vec<f32> = Declared::vector(of.layer.name("pre_ffw_norm_2.weight"), of.layer.d);
        /// `[d]`: norm of the experts' sum.
        first experts_post_norm: Vec<f32> = Declared::vector(of.layer.name("post_ffw_norm_2.weight"), of.layer.d);
    }
}

part! {
    /// Biases of the routed experts' matrices.
    ExpertBiases(of: MoeOf) {
        /// `[experts, ff]`.
        first gate: Vec<f32> = of.bias("gate", of.layer.width("_exps").unwrap_or(0));
        /// `[experts, ff]`.
        first up: Vec<f32> = of.bias("up", of.layer.width("_exps").unwrap_or(0));
        /// `[experts, d]`.
        first down: Vec<f32> = of.bias("down", of.layer.d);
    }
}

impl ExpertBiases {
    /// The arguments that the kernels take.
    pub fn slices(&self) -> Biases<'_> {
        Biases { gate: &self.gate, up: &self.up, down: &self.down }
    }
}

impl MoeOf<'_> {
    fn bias(&self, part: &str, rows: usize) -> Declared {
        Declared::small(self.layer.name(&format!("ffn_{part}_exps.bias")), self.router.experts, rows)
    }
}

optional!(ExpertBiases, MoeOf, |of| of.layer.spec.ffn.biases);
optional!(Beside, MoeOf, |of| of.layer.spec.ffn.beside);

impl Moe {
    /// The block that every token uses: the shared expert or the parallel dense block.
    pub fn always(&self) -> Option<&Expert> {
        self.shared.as_ref().or(self.beside.as_ref().map(|beside| &beside.block))
    }
}

impl Held for Ffn {
    type Of<'o> = LayerOf<'o>;

    fn declare(of: LayerOf<'_>, to: &mut Vec<Declared>) {
        match of.routed() {
            None if !of.spec.feeds => {}
            None => Expert::declare(of.block(""), to),
            Some(router) => {
                Moe::declare(MoeOf { layer: of, router }, to);
                to.extend(of.stacks(router.experts));
            }
        }
    }

    fn read(from: &dyn Tensors, of: LayerOf<'_>) -> Result<Ffn> {
        let ffn = match of.routed() {
            None if !of.spec.feeds => return Ok(Ffn::Nothing),
            None => Ffn::Dense(Expert::read(from, of.block(""))?),
            Some(router) => Ffn::Moe(Moe::read(from, MoeOf { layer: of, router })?),
        };
        let always = match &ffn {
            Ffn::Dense(_) => true,
            Ffn::Moe(moe) => moe.always().is_some(),
            Ffn::Nothing => false,
        };
        check_always(of, always)?;
        Ok(ffn)
    }

    fn each<'a>(&'a self, met: &mut dyn FnMut(Met<'a>)) {
        match self {
            Ffn::Dense(block) => block.each(met),
            Ffn::Moe(moe) => moe.each(met),
            Ffn::Nothing => {}
        }
    }

    fn each_mut<'a>(&'a mut self, met: &mut dyn FnMut(&'a mut Matrix)) {
        match self {
            Ffn::Dense(block) => block.each_mut(met),
            Ffn::Moe(moe) => moe.each_mut(met),
            Ffn::Nothing => {}
        }
    }
}

/// Refuses a clamped activation in a block that every token uses. The kernels clamp only in routed experts;
/// no published model needs more.
fn check_always(of: LayerOf<'_>, always: bool) -> Result<()> {
    if always && matches!(of.spec.ffn.activation, Activation::Clamped { .. }) {
        let what = format!(
            "layer {}: a clamped activation is supported in routed experts only, not in dense or shared blocks",
            of.layer
        );
        return Err(Error::unsupported(what));
    }
    Ok(())
}

impl Held for Expert {
    type Of<'o> = [Declared; 3];

    fn declare(of: [Declared; 3], to: &mut Vec<Declared>) {
        to.extend(of);
    }

    fn read(from: &dyn Tensors, [gate, up, down]: [Declared; 3]) -> Result<Expert> {
        let (gate, up) = (Option::<Matrix>::read(from, gate)?, Matrix::read(from, up)?);
        Ok(Expert { gate, up, down: Matrix::read(from, down)?, place: None })
    }

    fn each<'a>(&'a self, met: &mut dyn FnMut(Met<'a>)) {
        self.matrices().for_each(|m| met(Met::Matrix(m)));
    }

    fn each_mut<'a>(&'a mut self, met: &mut dyn FnMut(&'a mut Matrix)) {
        self.matrices_mut().for_each(met);
    }
}

impl Held for Option<Expert> {
    type Of<'o> = [Declared; 3];

    fn declare(of: [Declared; 3], to: &mut Vec<Declared>) {
        to.extend(of);
    }

    fn read(from: &dyn Tensors, of: [Declared; 3]) -> Result<Self> {
        if of.iter().any(Declared::is_known) { Expert::read(from, of).map(Some) } else { Ok(None) }
    }

    fn each<'a>(&'a self, met: &mut dyn FnMut(Met<'a>)) {
        self.iter().for_each(|e| e.each(met));
    }

    fn each_mut<'a>(&'a mut self, met: &mut dyn FnMut(&'a mut Matrix)) {
        self.iter_mut().for_each(|e| e.each_mut(met));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Metadata;
    use crate::model::Spec;

    /// Regression test: the GPU backend panicked on such a file.
    #[test]
    fn a_limited_activation_is_of_routed_experts_alone() {
        let mut meta = Metadata::new();
        meta.insert("general.architecture", "gpt-oss");
        for (key, value) in [
            ("block_count", 1u32),
            ("context_length", 64),
            ("embedding_length", 64),
            ("attention.head_count", 4),
            ("attention.sliding_window", 8),
            ("expert_count", 4),
            ("expert_used_count", 2),
        ] {
            meta.insert(format!("gpt-oss.{key}"), value);
        }
        meta.insert("gpt-oss.attention.layer_norm_rms_epsilon", 1e-5f32);
        let spec = Spec::from_metadata(&meta).unwrap();
        let of = LayerOf { layer: 0, d: spec.d, spec: &spec.layers[0], per_layer: 0, rows: &|_| None };
        check_always(of, false).unwrap();
        assert!(matches!(check_always(of, true), Err(Error::Unsupported { .. })));
    }
}
