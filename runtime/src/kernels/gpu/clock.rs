//! Kernel times, if a program requests them. The device writes a timestamp after each dispatch; each submission
//! is waited for. Commands and results do not change, but waits take time: measure speed without it.

use super::device::{Device, Memory, clock_features};
use crate::error::{Error, Result};
use crate::telemetry::GpuKernelTime;
use dollop_shaders::{SHADERS, Shader};
use std::collections::BTreeMap;

/// The most timestamps of one submission.
const STAMPS: u32 = 4096;
const BYTES: u64 = 8 * STAMPS as u64;

/// A kernel's variant, and the workgroups of its launch.
type Launch = (usize, [u32; 2]);

pub(super) struct Clock {
    set: wgpu::QuerySet,
    resolved: Memory,
    landing: Memory,
    /// Nanoseconds per tick.
    period: f64,
    /// The launches between the timestamps of this submission.
    launches: Vec<Launch>,
    /// Launches and ticks, in total.
    total: BTreeMap<Launch, (u64, u64)>,
}

impl Clock {
    /// # Errors
    /// `Device` if the adapter has no timestamps.
    pub(super) fn new(gpu: &Device) -> Result<Clock> {
        use wgpu::BufferUsages as U;
        if !gpu.device.features().contains(clock_features()) {
            return Err(Error::Device("the adapter does not say how long kernels take".into()));
        }
        Ok(Clock {
            set: gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: None,
                ty: wgpu::QueryType::Timestamp,
                count: STAMPS,
            }),
            resolved: gpu.raw(BYTES, U::QUERY_RESOLVE | U::COPY_SRC, "times")?,
            landing: gpu.raw(BYTES, U::MAP_READ | U::COPY_DST, "times")?,
            period: gpu.queue.get_timestamp_period().into(),
            launches: Vec::new(),
            total: BTreeMap::new(),
        })
    }

    /// Whether the submission must end before the next launch.
    pub(super) fn full(&self) -> bool {
        self.launches.len() + 1 >= STAMPS as usize
    }

    /// Called before the first launch of a submission.
    pub(super) fn begin(&self, pass: &mut wgpu::ComputePass<'static>) {
        if self.launches.is_empty() {
            pass.write_timestamp(&self.set, 0);
        }
    }

    /// Called after every launch.
    pub(super) fn end(&mut self, pass: &mut wgpu::ComputePass<'static>, index: usize, grid: [u32; 2]) {
        self.launches.push((index, grid));
        pass.write_timestamp(&self.set, self.launches.len() as u32);
    }

    /// Adds the last command of a submission.
    pub(super) fn resolve(&self, encoder: &mut wgpu::CommandEncoder) {
        if self.launches.is_empty() {
            return;
        }
        let count = self.launches.len() as u32 + 1;
        encoder.resolve_query_set(&self.set, 0..count, &self.resolved.buffer, 0);
        let bytes = 8 * u64::from(count);
        encoder.copy_buffer_to_buffer(&self.resolved.buffer, 0, &self.landing.buffer, 0, bytes);
    }

    /// Waits for the submission and adds its times to the totals.
    pub(super) fn collect(&mut self, gpu: &Device) -> Result<()> {
        let launches = std::mem::take(&mut self.launches);
        if launches.is_empty() {
            return Ok(());
        }
        let bytes = 8 * (launches.len() as u64 + 1);
        self.landing.buffer.map_async(wgpu::MapMode::Read, ..bytes, |_| ());
        gpu.wait(None)?;
        {
            let view = self.landing.buffer.get_mapped_range(..bytes);
            let view = view.map_err(|e| Error::Device(format!("reading times: {e}")))?;
            let times: Vec<u64> = bytemuck::pod_collect_to_vec(&view);
            for (launch, pair) in launches.into_iter().zip(times.windows(2)) {
                let (count, ticks) = self.total.entry(launch).or_default();
                *count += 1;
                *ticks += pair[1].saturating_sub(pair[0]);
            }
        }
        self.landing.buffer.unmap();
        Ok(())
    }

    /// The totals so far, longest first.
    pub(super) fn times(&self) -> Vec<GpuKernelTime> {
        let time = |(&(index, workgroups), &(launches, ticks)): (&Launch, &(u64, u64))| GpuKernelTime {
            kernel: name(&SHADERS[index]),
            workgroups,
            launches,
            nanoseconds: (ticks as f64 * self.period) as u64,
        };
        let mut all: Vec<GpuKernelTime> = self.total.iter().map(time).collect();
        all.sort_by_key(|k| std::cmp::Reverse(k.nanoseconds));
        all
    }
}

/// A kernel's name, with its variant.
fn name(s: &Shader) -> String {
    let v = s.variant;
    let planes = if v.planes > 0 { format!(", {} planes", v.planes) } else { String::new() };
    let tokens = if v.tokens > 1 { format!(", {} tokens", v.tokens) } else { String::new() };
    let mixed = if v.mixed { ", refined" } else { "" };
    format!("{:?}{planes}{tokens}{mixed}", s.kernel)
}
