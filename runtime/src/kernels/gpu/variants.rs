//! The features of an adapter beyond the minimum, and the kernels' variants that use them.

use crate::kernels::{GpuInputs, GpuVariants};
use dollop_shaders::{BYTES, HALF, Kernel, SINGLE, Variant, WORKGROUP, find};

/// Subgroup sizes that kernels can use: any power of two that divides a workgroup, at least 2, because with
/// one lane the reduction would not end.
const SUBGROUPS: std::ops::RangeInclusive<u32> = 2..=WORKGROUP;

/// The smallest and the largest subgroup size of an adapter, if kernels can use them.
pub(super) fn subgroups(features: wgpu::Features, info: &wgpu::AdapterInfo) -> Option<[u32; 2]> {
    let sizes = [info.subgroup_min_size, info.subgroup_max_size];
    let fit = sizes.iter().all(|size| size.is_power_of_two() && SUBGROUPS.contains(size));
    (features.contains(wgpu::Features::SUBGROUP) && fit).then_some(sizes)
}

/// The features to request when opening a device.
pub(super) fn features(used: GpuVariants) -> wgpu::Features {
    let mut features = wgpu::Features::empty();
    features.set(wgpu::Features::SUBGROUP, used.subgroups);
    features.set(wgpu::Features::SHADER_F16, used.inputs == GpuInputs::Half);
    features
}

/// The index of a kernel's variant with the permitted features, as far as the kernel has one.
pub(super) fn choose(kernel: Kernel, plain: Variant, used: GpuVariants) -> Option<usize> {
    let inputs = match used.inputs {
        // The kernel that reads prepared inputs determines their format.
        _ if kernel == Kernel::Prepare => plain.inputs,
        GpuInputs::Auto | GpuInputs::Single => SINGLE,
        GpuInputs::Half => HALF,
        GpuInputs::Bytes => BYTES,
    };
    let wanted = [inputs, SINGLE]
        .into_iter()
        .flat_map(|inputs| [used.subgroups, false].map(|subgroups| Variant { inputs, subgroups, ..plain }));
    wanted.into_iter().find_map(|variant| find(kernel, variant))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subgroups_are_used_where_they_divide_a_workgroup() {
        let info = |min, max| wgpu::AdapterInfo {
            subgroup_min_size: min,
            subgroup_max_size: max,
            ..wgpu::AdapterInfo::new(wgpu::DeviceType::Cpu, wgpu::Backend::Vulkan)
        };
        let has = wgpu::Features::SUBGROUP;
        for (min, max) in [(4, 4), (8, 32), (64, 64), (32, 128)] {
            assert_eq!(subgroups(has, &info(min, max)), Some([min, max]));
            assert_eq!(subgroups(wgpu::Features::empty(), &info(min, max)), None);
        }
        for (min, max) in [(0, 0), (1, 32), (24, 48), (64, 256)] {
            assert_eq!(subgroups(has, &info(min, max)), None, "{min} to {max}");
        }
    }

    #[test]
    fn a_kernel_without_a_variant_runs_as_it_is() {
        let one = Variant { planes: 3, ..Variant::default() };
        let many = Variant { tokens: dollop_shaders::MANY, ..one };
        let plain = Variant::default();
        let chosen =
            |kernel, variant, used| dollop_shaders::SHADERS[choose(kernel, variant, used).unwrap()].variant;
        for inputs in [GpuInputs::Single, GpuInputs::Half, GpuInputs::Bytes] {
            let used = GpuVariants { subgroups: true, inputs };
            let [half, bytes] = [GpuInputs::Half, GpuInputs::Bytes].map(|i| i == inputs);
            assert_eq!(chosen(Kernel::Combine, plain, used), plain);
            for kernel in [Kernel::RmsNorm, Kernel::Place, Kernel::Attention, Kernel::Route] {
                assert_eq!(chosen(kernel, plain, used), Variant { subgroups: true, ..plain });
            }
            for (kernel, subgroups) in
                [(Kernel::Linear, true), (Kernel::GateUp, false), (Kernel::Down, false)]
            {
                let is = |variant, inputs| {
                    assert_eq!(chosen(kernel, variant, used), Variant { subgroups, inputs, ..variant });
                };
                is(one, if bytes { BYTES } else { SINGLE });
                is(
                    many,
                    if bytes {
                        BYTES
                    } else if half {
                        HALF
                    } else {
                        SINGLE
                    },
                );
                is(Variant { planes: 0, ..one }, SINGLE);
                is(Variant { planes: 0, ..many }, if half { HALF } else { SINGLE });
                assert_eq!(chosen(kernel, many, GpuVariants::PLAIN), many);
            }
        }
    }
}
