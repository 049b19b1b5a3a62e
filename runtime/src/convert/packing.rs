//! Serialization for the journal: little-endian numbers, and lists after their length in bytes. The reader
//! expects damaged data: a length never causes an allocation larger than the data.

/// Appends values to a buffer.
#[derive(Default)]
pub(crate) struct Pack(pub(crate) Vec<u8>);

impl Pack {
    pub(crate) fn number(&mut self, n: u64) {
        self.0.extend_from_slice(&n.to_le_bytes());
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn words(&mut self, words: &[u32]) {
        self.number(4 * words.len() as u64);
        words.iter().for_each(|w| self.0.extend_from_slice(&w.to_le_bytes()));
    }

    pub(crate) fn floats(&mut self, floats: &[f32]) {
        self.number(4 * floats.len() as u64);
        floats.iter().for_each(|f| self.0.extend_from_slice(&f.to_le_bytes()));
    }
}

/// Reads the values back in the same order. Every method returns `None` if too few bytes are left.
pub(crate) struct Unpack<'a>(pub(crate) &'a [u8]);

impl<'a> Unpack<'a> {
    pub(crate) fn number(&mut self) -> Option<u64> {
        let (head, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*head))
    }

    pub(crate) fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.number()?).ok()?;
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }

    pub(crate) fn words(&mut self) -> Option<Vec<u32>> {
        Some(self.bytes()?.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect())
    }

    pub(crate) fn floats(&mut self) -> Option<Vec<f32>> {
        Some(self.bytes()?.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }
}
