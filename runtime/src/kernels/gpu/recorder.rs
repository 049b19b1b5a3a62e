//! Commands for the device: pipelines created once, cached bind groups, and dispatches collected in one pass
//! until a result is read back (`readback`), another wait is due, or the ring is full.

mod readback;

use super::ahead::{Ahead, BINDINGS, Launch};
use super::clock::Clock;
use super::device::{Device, Memory};
use super::params::Params;
use super::pipelines;
use super::variants::choose;
use crate::error::Result;
use crate::telemetry::{GpuFault, GpuStats};
use dollop_shaders::{BYTES, HALF, Kernel, SHADERS, Shader, Variant};
use std::collections::HashMap;

/// Words of the ring.
const RING_WORDS: usize = 1 << 19;

/// Bytes of the ring.
pub(super) const RING_BYTES: usize = 4 * RING_WORDS;

/// The most words that one [`Recorder::put`] may take.
pub(super) const PUT_WORDS: usize = RING_WORDS / 2;

type GroupKey = (usize, [u64; BINDINGS]);

pub(super) struct Recorder {
    pipelines: Vec<Option<(wgpu::ComputePipeline, wgpu::BindGroupLayout)>>,
    /// Index of the variant in use, by requested variant: a search takes longer than the rest of a launch.
    chosen: HashMap<(Kernel, Variant), usize>,
    groups: HashMap<GroupKey, wgpu::BindGroup>,
    encoder: Option<wgpu::CommandEncoder>,
    /// Must end before `encoder`.
    pass: Option<wgpu::ComputePass<'static>>,
    /// Small tables that kernels read: ids, jobs, gates. Never written where a pending command reads.
    ring: Memory,
    ring_at: usize,
    /// The target of read-backs.
    landing: Option<Memory>,
    /// The last submission without a wait so far.
    handed_over: Option<wgpu::SubmissionIndex>,
    stats: GpuStats,
    clock: Option<Clock>,
    ahead: Ahead,
    /// For tests: a fault, and the number of submissions before it.
    pub(super) fault: Option<(u64, GpuFault)>,
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // A pass must end before its encoder.
        self.pass = None;
    }
}

impl Recorder {
    pub(super) fn new(gpu: &Device, clock: bool) -> Result<Recorder> {
        Ok(Recorder {
            pipelines: vec![None; SHADERS.len()],
            chosen: HashMap::new(),
            groups: HashMap::new(),
            encoder: None,
            pass: None,
            ring: gpu.memory(RING_BYTES as u64, "the ring")?,
            ring_at: 0,
            landing: None,
            handed_over: None,
            stats: GpuStats::default(),
            clock: if clock { Some(Clock::new(gpu)?) } else { None },
            ahead: Ahead::default(),
            fault: None,
        })
    }

    pub(super) fn stats(&self) -> GpuStats {
        let kernels = self.clock.as_ref().map(Clock::times).unwrap_or_default();
        GpuStats { kernels, ..self.stats.clone() }
    }

    fn pipeline(&mut self, gpu: &Device, index: usize) {
        let Shader { source, entry, writable, params_size, .. } = SHADERS[index];
        let entries: Vec<wgpu::BindGroupLayoutEntry> = (0u32..)
            .zip(writable)
            .map(|(binding, &writable)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage { read_only: !writable },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let device = &gpu.device;
        let group = device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries });
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&group)],
            immediate_size: params_size,
        });
        let module = pipelines::module(device, source.concat(), entry);
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(entry),
            layout: Some(&layout),
            module: &module,
            entry_point: Some(entry),
            // Every kernel writes its workgroup memory before it reads it.
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: gpu.pipelines().as_ref().map(|kept| &kept.cache),
        });
        self.pipelines[index] = Some((pipeline, group));
        self.stats.pipelines += 1;
    }

    /// Records one dispatch. Does nothing for an empty grid.
    pub(super) fn run<P: Params>(
        &mut self,
        gpu: &Device,
        variant: Variant,
        params: &P,
        memory: &[&Memory],
        grid: [usize; 2],
    ) {
        self.dispatch(gpu, variant, params, memory, None, grid);
    }

    /// [`Recorder::run`] with the ring as binding `at`.
    pub(super) fn run_with_ring<P: Params>(
        &mut self,
        gpu: &Device,
        variant: Variant,
        params: &P,
        memory: &[&Memory],
        at: usize,
        grid: [usize; 2],
    ) {
        self.dispatch(gpu, variant, params, memory, Some(at), grid);
    }

    /// The index of the variant to use for a requested one.
    fn chosen(&mut self, gpu: &Device, kernel: Kernel, variant: Variant) -> usize {
        *self.chosen.entry((kernel, variant)).or_insert_with(|| {
            choose(kernel, variant, gpu.variants)
                .unwrap_or_else(|| panic!("{kernel:?} has no variant {variant:?}"))
        })
    }

    /// The format of inputs that a kernel reads.
    pub(super) fn form(&mut self, gpu: &Device, kernel: Kernel, variant: Variant) -> u32 {
        SHADERS[self.chosen(gpu, kernel, variant)].variant.inputs
    }

    fn dispatch<P: Params>(
        &mut self,
        gpu: &Device,
        variant: Variant,
        params: &P,
        others: &[&Memory],
        ring: Option<usize>,
        grid: [usize; 2],
    ) {
        if grid.contains(&0) {
            return;
        }
        let groups = grid.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        if grid.iter().any(|&n| n > gpu.max_groups) {
            gpu.fail(format!("{:?}: {grid:?} workgroups, and there are up to {}", P::KERNEL, gpu.max_groups));
            return;
        }
        let index = self.chosen(gpu, P::KERNEL, variant);
        if self.pipelines[index].is_none() {
            let theirs = SHADERS[index].params.iter().map(|&(name, at)| (name, at as usize));
            assert!(theirs.eq(P::FIELDS.iter().copied()), "{:?}: parameters", P::KERNEL);
            self.pipeline(gpu, index);
        }
        if self.clock.as_ref().is_some_and(Clock::full) {
            self.submit(gpu);
        }
        self.forget_gone(gpu);
        let count = others.len() + usize::from(ring.is_some());
        assert_eq!(count, SHADERS[index].writable.len(), "{:?}: bindings", P::KERNEL);
        let mut memory = [&self.ring; BINDINGS];
        let mut rest = others.iter();
        for (i, to) in memory[..count].iter_mut().enumerate().filter(|&(i, _)| ring != Some(i)) {
            *to = rest.next().unwrap_or_else(|| panic!("binding {i} is missing"));
        }
        let memory = &memory[..count];
        let mut ids = [0; BINDINGS];
        ids.iter_mut().zip(memory).for_each(|(id, m)| *id = m.id);
        let launch = Launch::new(index, ids, groups, bytemuck::bytes_of(params));
        self.stats.dispatches += 1;
        let Variant { subgroups, inputs, .. } = SHADERS[index].variant;
        self.stats.subgroup_dispatches += u64::from(subgroups);
        let product = P::KERNEL != Kernel::Prepare;
        self.stats.half_dispatches += u64::from(product && inputs == HALF);
        self.stats.byte_dispatches += u64::from(product && inputs == BYTES);
        if self.ahead.meets(&launch) {
            return;
        }
        let (_, layout) = self.pipelines[index].as_ref().expect("was just made");
        let group = self.groups.entry((index, ids)).or_insert_with(|| {
            let entries: Vec<wgpu::BindGroupEntry> = (0u32..)
                .zip(memory)
                .map(|(binding, m)| wgpu::BindGroupEntry { binding, resource: m.buffer.as_entire_binding() })
                .collect();
            let descriptor = wgpu::BindGroupDescriptor { label: None, layout, entries: &entries };
            self.stats.bind_groups += 1;
            gpu.device.create_bind_group(&descriptor)
        });
        let group = group.clone();
        self.give_up(gpu);
        self.record(gpu, launch, group);
    }

    /// Drops bind groups and commands that refer to freed memory, since they keep it alive.
    pub(super) fn forget_gone(&mut self, gpu: &Device) {
        let gone = gpu.gone();
        if gone.is_empty() {
            return;
        }
        self.groups.retain(|(_, ids), _| !ids.iter().any(|id| gone.contains(id)));
        if self.ahead.names(&gone) {
            self.give_up(gpu);
        }
    }

    /// Records the launches that matched, if the guess as a whole did not match.
    fn give_up(&mut self, gpu: &Device) {
        for (launch, group) in self.ahead.give_up() {
            self.record(gpu, launch, group);
        }
    }

    /// Records a launch.
    fn record(&mut self, gpu: &Device, launch: Launch, group: wgpu::BindGroup) {
        let encoder =
            self.encoder.get_or_insert_with(|| gpu.device.create_command_encoder(&Default::default()));
        let pass = self
            .pass
            .get_or_insert_with(|| encoder.begin_compute_pass(&Default::default()).forget_lifetime());
        if let Some(clock) = &self.clock {
            clock.begin(pass);
        }
        launch_in(pass, &self.pipelines, &launch, &group);
        match &mut self.clock {
            Some(clock) => clock.end(pass, launch.index, launch.workgroups),
            None => self.ahead.record(launch, group),
        }
    }

    /// Writes words to the ring, where kernels can read them ([`Recorder::run_with_ring`]), and returns the index of
    /// the first, a multiple of `unit`. The kernel that reads them must be recorded before the next `put`.
    pub(super) fn put(&mut self, gpu: &Device, words: &[u32], unit: usize) -> u32 {
        assert!(words.len() <= PUT_WORDS, "{} words for the ring", words.len());
        let mut at = self.ring_at.next_multiple_of(unit);
        if at + words.len() > RING_WORDS {
            self.submit(gpu);
            at = 0;
        }
        // The queue's own writes are executed before staged ones. Nothing is staged for the ring, so no order is lost.
        gpu.queue.write_buffer(&self.ring.buffer, 4 * at as u64, bytemuck::cast_slice(words));
        self.ring_at = at + words.len();
        at as u32
    }

    /// Writes to memory, after all commands recorded so far.
    pub(super) fn write(&mut self, gpu: &Device, to: &Memory, at_bytes: u64, bytes: &[u8]) {
        // Staged writes are executed before the commands of the next submission.
        if self.encoder.is_some() || self.ahead.pending() {
            self.submit(gpu);
        }
        gpu.stage(to, at_bytes, bytes);
        self.stats.uploaded_bytes += bytes.len() as u64;
    }

    /// Submits the recorded commands, and waits for the previous submission of this kind. So the host is at
    /// most two chunks of a long prompt ahead: no wait is long, and a cancel takes effect soon.
    pub(super) fn hand_over(&mut self, gpu: &Device) -> Result<()> {
        let now = self.submit(gpu);
        match std::mem::replace(&mut self.handed_over, now) {
            Some(before) => gpu.wait(Some(before)),
            None => gpu.check(),
        }
    }

    /// Submits the recorded commands.
    pub(super) fn submit(&mut self, gpu: &Device) -> Option<wgpu::SubmissionIndex> {
        if self.ahead.pending() {
            self.give_up(gpu);
        }
        self.pass = None;
        self.ring_at = 0;
        let mut encoder = self.encoder.take()?;
        self.ahead.handed_over();
        if let Some(clock) = &mut self.clock {
            clock.resolve(&mut encoder);
        }
        let index = self.submit_commands(gpu, encoder.finish());
        if let Some(clock) = &mut self.clock {
            // The device stores an error for the next operation that returns one.
            let _ = clock.collect(gpu);
        }
        Some(index)
    }

    fn submit_commands(&mut self, gpu: &Device, commands: wgpu::CommandBuffer) -> wgpu::SubmissionIndex {
        match &mut self.fault {
            Some((0, fault)) => {
                gpu.suffer(*fault);
                self.fault = None;
            }
            Some((left, _)) => *left -= 1,
            None => {}
        }
        self.stats.submits += 1;
        gpu.submit(commands)
    }

    /// Drops the recorded commands, and the bind groups, which keep memory alive.
    pub(super) fn forget(&mut self) {
        self.pass = None;
        self.encoder = None;
        self.handed_over = None;
        self.ahead.forget();
        self.groups.clear();
    }
}

/// One launch in a pass.
fn launch_in(
    pass: &mut wgpu::ComputePass<'static>,
    pipelines: &[Option<(wgpu::ComputePipeline, wgpu::BindGroupLayout)>],
    launch: &Launch,
    group: &wgpu::BindGroup,
) {
    let (pipeline, _) = pipelines[launch.index].as_ref().expect("was made for it");
    pass.set_pipeline(pipeline);
    pass.set_bind_group(0, group, &[]);
    pass.set_immediates(0, launch.params());
    pass.dispatch_workgroups(launch.workgroups[0], launch.workgroups[1], 1);
}
