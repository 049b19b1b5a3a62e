//! What an adapter has beyond what every kernel needs, and which variants of the kernels are used because of it.

use crate::kernels::GpuVariants;
use dollop_shaders::{Kernel, Variant, WORKGROUP, find};

/// Sizes of subgroups that kernels can use: any power of two that makes whole subgroups of a workgroup, and none so small
/// that passing on a value of each would not end.
const SUBGROUPS: std::ops::RangeInclusive<u32> = 2..=WORKGROUP;

/// The least and the largest size of an adapter's subgroups, where kernels can use them.
pub(super) fn subgroups(features: wgpu::Features, info: &wgpu::AdapterInfo) -> Option<[u32; 2]> {
    let sizes = [info.subgroup_min_size, info.subgroup_max_size];
    let fit = sizes.iter().all(|size| size.is_power_of_two() && SUBGROUPS.contains(size));
    (features.contains(wgpu::Features::SUBGROUP) && fit).then_some(sizes)
}

/// What a device must be opened with.
pub(super) fn features(used: GpuVariants) -> wgpu::Features {
    let mut features = wgpu::Features::empty();
    features.set(wgpu::Features::SUBGROUP, used.subgroups);
    features
}

/// The index of a kernel's variant that uses what may be used, as far as the kernel has one that does.
pub(super) fn choose(kernel: Kernel, plain: Variant, used: GpuVariants) -> Option<usize> {
    let by_subgroups = Variant { subgroups: true, ..plain };
    used.subgroups.then(|| find(kernel, by_subgroups)).flatten().or_else(|| find(kernel, plain))
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
        let used = GpuVariants { subgroups: true };
        let plain = Variant::default();
        for kernel in [Kernel::Route, Kernel::Combine] {
            assert_eq!(choose(kernel, plain, used), find(kernel, plain));
        }
        for kernel in [Kernel::Linear, Kernel::RmsNorm, Kernel::Place, Kernel::Attention] {
            let index = choose(kernel, plain, used).unwrap();
            assert!(dollop_shaders::SHADERS[index].variant.subgroups);
            assert_eq!(choose(kernel, plain, GpuVariants::PLAIN), find(kernel, plain));
        }
    }
}
