//! Every kernel translated to the languages of Metal and DirectX 12, as wgpu does there, so that an
//! untranslatable kernel fails on any machine. The drivers' compilers can be tested only on those systems.

use super::*;
use dollop_shaders::{BYTES, HALF, Shader};
use naga::back::hlsl::{self, ShaderModel};
use naga::back::msl;
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{Module, ResourceBinding, ShaderStage};

fn parsed(s: &Shader) -> (Module, ModuleInfo) {
    let module = naga::front::wgsl::parse_str(&s.source.concat()).unwrap();
    let info = Validator::new(ValidationFlags::all(), Capabilities::all()).validate(&module).unwrap();
    (module, info)
}

fn bindings(s: &Shader) -> impl Iterator<Item = (ResourceBinding, u32, bool)> {
    (0..).zip(s.writable).map(|(binding, &mutable)| (ResourceBinding { group: 0, binding }, binding, mutable))
}

/// Metal's bindings: immediates first, and the lengths of all buffers last, for bounds checks.
fn to_msl(s: &Shader, (module, info): &(Module, ModuleInfo), lang_version: (u8, u8)) -> String {
    let target = |(at, slot, mutable)| {
        (at, msl::BindTarget { buffer: Some(slot as u8 + 1), mutable, ..msl::BindTarget::default() })
    };
    let resources = msl::EntryPointResources {
        resources: bindings(s).map(target).collect(),
        immediates_buffer: Some(0),
        sizes_buffer: Some(s.writable.len() as u8 + 1),
    };
    let checked = BoundsCheckPolicy::ReadZeroSkipWrite;
    let options = msl::Options {
        lang_version,
        per_entry_point_map: [(s.entry.to_owned(), resources)].into_iter().collect(),
        fake_missing_bindings: false,
        bounds_check_policies: BoundsCheckPolicies {
            index: checked,
            buffer: checked,
            image_load: checked,
            binding_array: BoundsCheckPolicy::Unchecked,
        },
        zero_initialize_workgroup_memory: false,
        ..msl::Options::default()
    };
    let entry_point = Some((ShaderStage::Compute, s.entry.to_owned()));
    let pipeline = msl::PipelineOptions { entry_point, ..msl::PipelineOptions::default() };
    let (text, translated) = msl::write_string(module, info, &options, &pipeline)
        .unwrap_or_else(|e| panic!("{:?}, {:?} for Metal {lang_version:?}: {e}", s.kernel, s.variant));
    let [Ok(entry)] = &translated.entry_point_names[..] else {
        panic!("{:?}, {:?}: {:?}", s.kernel, s.variant, translated.entry_point_names)
    };
    assert!(text.contains(&format!("void {entry}(")), "{text}");
    text
}

/// DirectX 12's bindings: written buffers are unordered views, read buffers resource views, and immediates root
/// constants.
fn to_hlsl(s: &Shader, (module, info): &(Module, ModuleInfo), shader_model: ShaderModel) -> String {
    let target = |(at, register, _)| {
        (at, hlsl::BindTarget { register, restrict_indexing: true, ..hlsl::BindTarget::default() })
    };
    let options = hlsl::Options {
        shader_model,
        binding_map: bindings(s).map(target).collect(),
        fake_missing_bindings: false,
        immediates_target: Some(hlsl::BindTarget::default()),
        zero_initialize_workgroup_memory: false,
        ..hlsl::Options::default()
    };
    let entry_point = Some((ShaderStage::Compute, s.entry.to_owned()));
    let pipeline = hlsl::PipelineOptions { entry_point };
    let mut text = String::new();
    let translated = hlsl::Writer::new(&mut text, &options, &pipeline)
        .write(module, info, None)
        .unwrap_or_else(|e| panic!("{:?}, {:?} for {shader_model:?}: {e}", s.kernel, s.variant));
    let [Ok(entry)] = &translated.entry_point_names[..] else {
        panic!("{:?}, {:?}: {:?}", s.kernel, s.variant, translated.entry_point_names)
    };
    assert!(text.contains(&format!("void {entry}(")), "{text}");
    text
}

/// The lowest shader model under which wgpu reports support for a variant. Variants that every adapter supports go to
/// the 5.1 compiler if there is no newer one.
fn least_model(s: &Shader) -> ShaderModel {
    match s.variant {
        v if v.inputs == HALF => ShaderModel::V6_2,
        v if v.subgroups => ShaderModel::V6_0,
        _ => ShaderModel::V5_1,
    }
}

#[test]
fn every_kernel_can_be_translated_for_metal_and_directx() {
    let [mut halves, mut bytes, mut subgroups] = [0; 3];
    for s in SHADERS {
        let module = parsed(s);
        // The oldest and the newest versions that wgpu requests; they spell some functions differently.
        let old = (to_msl(s, &module, (2, 0)), to_hlsl(s, &module, least_model(s)));
        let new = (to_msl(s, &module, (4, 0)), to_hlsl(s, &module, ShaderModel::V6_9));
        let both = |msl, hlsl| {
            let has = [&old, &new].map(|(m, h)| m.contains(msl) && h.contains(hlsl));
            assert_eq!(has[0], has[1], "{:?}, {:?}", s.kernel, s.variant);
            usize::from(has[0])
        };
        subgroups += both("simd_shuffle_xor(", "WaveReadLaneAt(");
        halves += both("half4 ", "half4 ");
        // A lane's four products in one instruction, if there is one.
        bytes += usize::from(new.1.contains("dot4add_i8packed("));
        assert!(!old.1.contains("dot4add_i8packed("), "a shader model that has it not");
    }
    let count = |is: fn(&Shader) -> bool| SHADERS.iter().filter(|&s| is(s)).count();
    assert_eq!(subgroups, count(|s| s.variant.subgroups));
    assert_eq!(halves, count(|s| s.variant.inputs == HALF && s.kernel != Kernel::Prepare));
    assert_eq!(bytes, count(|s| s.variant.inputs == BYTES && s.kernel != Kernel::Prepare));
    assert!(subgroups > 0 && halves > 0 && bytes > 0);
}
