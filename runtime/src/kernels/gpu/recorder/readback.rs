//! Read-backs: submits all recorded commands and copies memory to the host. While the device computes, the host
//! records the commands of the guessed next token ([`super::super::ahead`]), which end with the same read-back.

use super::{Recorder, launch_in};
use crate::error::{Error, Result};
use crate::kernels::gpu::ahead::{self, Launches, Part};
use crate::kernels::gpu::device::{Device, Memory};

impl Recorder {
    /// Submits and waits for all recorded commands, and fills every part from its memory, starting at a byte offset.
    pub(in crate::kernels::gpu) fn read(
        &mut self,
        gpu: &Device,
        parts: &mut [(&Memory, u64, &mut [u8])],
    ) -> Result<()> {
        use wgpu::BufferUsages as U;
        gpu.check()?;
        let bytes: u64 = parts.iter().map(|(.., out)| landing_bytes(out)).sum();
        if bytes == 0 {
            return Ok(());
        }
        if self.landing.as_ref().is_none_or(|landing| landing.buffer.size() < bytes) {
            self.landing = None;
            self.landing = Some(gpu.raw(bytes, U::MAP_READ | U::COPY_DST, "a read-back")?);
        }
        let landing = self.landing().id;
        let copies: Vec<Part> =
            parts.iter().map(|(from, at, out)| (from.id, *at, out.len() as u64)).collect();
        let launches = match self.ahead.take(&copies, landing) {
            Some((commands, launches)) => {
                self.ring_at = 0;
                self.submit_commands(gpu, commands);
                self.stats.ahead += 1;
                Some(launches)
            }
            None => {
                self.give_up(gpu);
                let launches = self.ahead.whole();
                self.pass = None;
                let mut encoder = self
                    .encoder
                    .take()
                    .unwrap_or_else(|| gpu.device.create_command_encoder(&Default::default()));
                self.land(&mut encoder, parts);
                self.encoder = Some(encoder);
                self.submit(gpu);
                launches
            }
        };
        self.ahead.begin();
        self.stats.readbacks += 1;
        self.stats.read_bytes += parts.iter().map(|(.., out)| out.len() as u64).sum::<u64>();
        self.landing().buffer.map_async(wgpu::MapMode::Read, ..bytes, |_| ());
        // Meanwhile the device computes.
        if let Some(launches) = launches.and_then(ahead::next) {
            self.prepare(gpu, launches, copies, parts);
        }
        gpu.wait(None)?;
        self.handed_over = None;
        let landing = &self.landing().buffer;
        {
            let view = landing.get_mapped_range(..bytes);
            let view = view.map_err(|e| Error::Device(format!("reading back: {e}")))?;
            let mut at = 0;
            for (.., out) in parts {
                out.copy_from_slice(&view[at..at + out.len()]);
                at += landing_bytes(out) as usize;
            }
        }
        landing.unmap();
        Ok(())
    }

    /// The target of this read-back.
    fn landing(&self) -> &Memory {
        self.landing.as_ref().expect("was made for its parts")
    }

    /// Copies the parts of a read-back to its target.
    fn land(&self, encoder: &mut wgpu::CommandEncoder, parts: &[(&Memory, u64, &mut [u8])]) {
        let landing = &self.landing().buffer;
        let mut at = 0;
        for (from, at_bytes, out) in parts {
            encoder.copy_buffer_to_buffer(&from.buffer, *at_bytes, landing, at, out.len() as u64);
            at += landing_bytes(out);
        }
    }

    /// Records the commands of guessed launches, and of the same read-back.
    fn prepare(
        &mut self,
        gpu: &Device,
        launches: Launches,
        copies: Vec<Part>,
        parts: &[(&Memory, u64, &mut [u8])],
    ) {
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&Default::default()).forget_lifetime();
        for (launch, group) in &launches {
            launch_in(&mut pass, &self.pipelines, launch, group);
        }
        drop(pass);
        self.land(&mut encoder, parts);
        self.ahead.keep(launches, copies, self.landing().id, encoder.finish());
    }
}

/// Bytes of a part in the read-back's target.
fn landing_bytes(out: &[u8]) -> u64 {
    out.len().next_multiple_of(16) as u64
}
