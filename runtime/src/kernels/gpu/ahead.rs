//! Records the commands of the next token while the device computes the current one. Recording takes the host
//! about as long as a large device needs for half of the commands.
//!
//! We guess that the next token has the same launches as this one, with every position one further. The guess
//! itself is never executed: each later launch is compared with it. Only if all launches and the read-back
//! match, the prepared command buffer is submitted. Otherwise the launches that matched are recorded again,
//! and the rest as usual.

use dollop_shaders::{Kernel, SHADERS};

/// The most bindings of a kernel.
pub(super) const BINDINGS: usize = 8;

/// The most bytes of a kernel's parameters.
const PARAMS: usize = 128;

/// The most launches of a token that are stored.
const LAUNCHES: usize = 4096;

/// A launch.
pub(super) struct Launch {
    /// Index into `SHADERS`.
    pub(super) index: usize,
    /// Ids of the bound memory.
    pub(super) ids: [u64; BINDINGS],
    pub(super) workgroups: [u32; 2],
    params: [u8; PARAMS],
    params_len: usize,
}

impl Launch {
    pub(super) fn new(index: usize, ids: [u64; BINDINGS], workgroups: [u32; 2], params: &[u8]) -> Launch {
        let mut launch = Launch { index, ids, workgroups, params: [0; PARAMS], params_len: params.len() };
        launch.params[..params.len()].copy_from_slice(params);
        launch
    }

    pub(super) fn params(&self) -> &[u8] {
        &self.params[..self.params_len]
    }

    fn is(&self, other: &Launch) -> bool {
        self.index == other.index
            && self.ids == other.ids
            && self.workgroups == other.workgroups
            && self.params() == other.params()
    }

    /// The offset of the position in the parameters, if the kernel is for one token.
    fn position(&self) -> Option<usize> {
        let shader = &SHADERS[self.index];
        let attends = shader.kernel == Kernel::AttendOne;
        let at = shader.params.iter().find(|(name, _)| attends && *name == "pos")?.1;
        Some(at as usize)
    }

    /// The offsets of the read and the written slot of a state in the parameters, if the kernel has a state.
    fn slots(&self) -> Option<[usize; 2]> {
        let shader = &SHADERS[self.index];
        let at =
            |name| shader.params.iter().find(|(member, _)| *member == name).map(|param| param.1 as usize);
        matches!(shader.kernel, Kernel::Conv | Kernel::DeltaMix | Kernel::Delta)
            .then(|| ["before_slot", "after_slot"].map(|name| at(name).expect("its parameters")))
    }

    /// Changes the launch to that of the next token.
    fn advance(&mut self) {
        if let Some([from, to]) = self.slots() {
            // The next token reads the slot written here and writes the other. If that is kept, the guess fails.
            (0..4).for_each(|byte| self.params.swap(from + byte, to + byte));
        }
        if let Some(at) = self.position() {
            let pos: u32 = bytemuck::pod_read_unaligned(&self.params[at..at + 4]);
            self.params[at..at + 4].copy_from_slice(bytemuck::bytes_of(&pos.wrapping_add(1)));
        }
    }
}

/// A part of a read-back: memory id, first byte, length.
pub(super) type Part = (u64, u64, u64);

/// A token's launches with their bind groups.
pub(super) type Launches = Vec<(Launch, wgpu::BindGroup)>;

/// Prepared commands.
struct Ready {
    launches: Launches,
    parts: Vec<Part>,
    landing: u64,
    commands: wgpu::CommandBuffer,
    /// Launches that have matched so far.
    met: usize,
}

/// The current token's launches so far, and the prepared commands.
#[derive(Default)]
pub(super) struct Ahead {
    /// Launches recorded since the last read-back.
    recorded: Launches,
    /// Set after an earlier submission, or too many launches: the next token cannot be guessed from these.
    broken: bool,
    ready: Option<Ready>,
}

impl Ahead {
    /// Whether a launch matches the next guessed one. If so, it counts as recorded.
    pub(super) fn meets(&mut self, launch: &Launch) -> bool {
        match &mut self.ready {
            Some(ready) if ready.launches.get(ready.met).is_some_and(|(guess, _)| guess.is(launch)) => {
                ready.met += 1;
                true
            }
            _ => false,
        }
    }

    /// Whether launches matched the guess and are not in an encoder yet.
    pub(super) fn pending(&self) -> bool {
        self.ready.as_ref().is_some_and(|ready| ready.met > 0)
    }

    /// Drops the guess and returns the launches that matched; the caller must record them.
    pub(super) fn give_up(&mut self) -> Launches {
        let Some(Ready { mut launches, met, .. }) = self.ready.take() else { return Vec::new() };
        launches.truncate(met);
        launches
    }

    /// Stores a recorded launch.
    pub(super) fn record(&mut self, launch: Launch, group: wgpu::BindGroup) {
        if self.recorded.len() < LAUNCHES {
            self.recorded.push((launch, group));
        } else {
            self.broken = true;
        }
    }

    /// Called after recorded launches were submitted without a read-back.
    pub(super) fn handed_over(&mut self) {
        self.broken = true;
        self.recorded.clear();
    }

    /// Whether the prepared commands refer to freed memory.
    pub(super) fn names(&self, gone: &[u64]) -> bool {
        let launches = self.ready.iter().flat_map(|ready| &ready.launches);
        launches.flat_map(|(launch, _)| launch.ids).any(|id| gone.contains(&id))
    }

    /// The prepared commands and their launches, if all launches and this read-back match the guess.
    pub(super) fn take(&mut self, parts: &[Part], landing: u64) -> Option<(wgpu::CommandBuffer, Launches)> {
        let all = |ready: &Ready| {
            ready.met == ready.launches.len() && ready.parts == parts && ready.landing == landing
        };
        let ready = self.ready.take_if(|ready| all(ready))?;
        Some((ready.commands, ready.launches))
    }

    /// Takes the launches since the last read-back, if they are complete.
    pub(super) fn whole(&mut self) -> Option<Launches> {
        let launches = std::mem::take(&mut self.recorded);
        (!self.broken).then_some(launches)
    }

    /// Called after a read-back was submitted: launches from now on belong to the next token.
    pub(super) fn begin(&mut self) {
        self.recorded.clear();
        self.broken = false;
    }

    /// Stores prepared commands for guessed launches.
    pub(super) fn keep(
        &mut self,
        launches: Launches,
        parts: Vec<Part>,
        landing: u64,
        commands: wgpu::CommandBuffer,
    ) {
        self.ready = Some(Ready { launches, parts, landing, commands, met: 0 });
    }

    pub(super) fn forget(&mut self) {
        *self = Ahead::default();
    }
}

/// The launches of the token after one with `launches`. `None` if these are not one whole token, from its embedding
/// to its logits. If routers' choices are read back in between, consecutive read-backs have different launches.
pub(super) fn next(mut launches: Launches) -> Option<Launches> {
    if !is_a_token(launches.iter().map(|(launch, _)| launch)) {
        return None;
    }
    launches.iter_mut().for_each(|(launch, _)| launch.advance());
    Some(launches)
}

fn is_a_token<'a>(mut launches: impl DoubleEndedIterator<Item = &'a Launch> + Clone) -> bool {
    let is = |launch: Option<&Launch>, kernel| launch.is_some_and(|l| SHADERS[l.index].kernel == kernel);
    launches.clone().any(|launch| launch.position().is_some())
        && is(launches.next(), Kernel::Embed)
        && !is(launches.next_back(), Kernel::Route)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(kernel: Kernel) -> Launch {
        let index = SHADERS.iter().position(|s| s.kernel == kernel).unwrap();
        let size = SHADERS[index].params_size as usize;
        Launch::new(index, [0; BINDINGS], [1, 1], &vec![1; size])
    }

    #[test]
    fn only_a_token_from_its_embedding_to_its_logits_says_what_comes_next() {
        use Kernel::{AttendOne, Attention, Embed, Linear, Route};
        let is = |kernels: &[Kernel]| {
            let launches: Vec<Launch> = kernels.iter().map(|&k| launch(k)).collect();
            is_a_token(launches.iter())
        };
        assert!(is(&[Embed, Linear, AttendOne, Linear, Route, Linear]));
        // A prompt, and parts of a token whose routers' choices are read back.
        assert!(!is(&[Embed, Linear, Attention, Linear]));
        assert!(!is(&[Embed, Linear, AttendOne, Linear, Route]));
        assert!(!is(&[Linear, AttendOne, Linear, Route]));
        assert!(!is(&[Linear, AttendOne, Linear]));
        assert!(!is(&[]));
    }

    #[test]
    fn the_next_launch_differs_in_its_position_alone() {
        let (before, mut after) = (launch(Kernel::AttendOne), launch(Kernel::AttendOne));
        after.advance();
        let at = before.position().unwrap();
        assert!(!before.is(&after) && before.params()[..at] == after.params()[..at]);
        assert_eq!(before.params()[at + 4..], after.params()[at + 4..]);
        let pos = |l: &Launch| bytemuck::pod_read_unaligned::<u32>(&l.params()[at..at + 4]);
        assert_eq!(pos(&after), pos(&before) + 1);
        let (before, mut after) = (launch(Kernel::Linear), launch(Kernel::Linear));
        after.advance();
        assert!(before.is(&after));
    }
}
