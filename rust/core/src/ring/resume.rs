//! Where to go on with a ring whose device is gone and has not said how far it was.

use super::{
    RingConfig,
    error::{RingError, RingPart},
    layout,
};
use crate::memory::{GuestMemory, MemoryError};

impl RingConfig {
    /// The available index to go on with: the used index, if what was used is what was made available before it. Then all that the
    /// device had begun and not given back is begun anew.
    ///
    /// # Errors
    /// [`RingError::OutOfOrder`]: chains were given back out of their order, so that nobody knows which are still to be done.
    /// The ring is not in guest memory, or of an impossible size.
    pub fn resume_index(&self, memory: &GuestMemory) -> Result<u16, RingError> {
        let Self { size, available, used, .. } = *self;
        if !size.is_power_of_two() || size > layout::MAX_QUEUE_SIZE {
            return Err(RingError::QueueSize { size: size.into(), max: layout::MAX_QUEUE_SIZE });
        }
        let read = |part, address: u64, len: usize| {
            let mut bytes = vec![0; len];
            memory.read(address, &mut bytes[..]).map_err(|error| match error {
                MemoryError::Unreachable { address, len, source } => {
                    RingError::Unreachable { address, len, source: source.into() }
                }
                _ => RingError::RingAddress { part, address, len: len as u64 },
            })?;
            Ok::<_, RingError>(bytes)
        };
        let used_ring = read(RingPart::Used, used, layout::used_len(size, false))?;
        let available_ring = read(RingPart::Available, available, layout::available_len(size, false))?;
        let index = word(&used_ring, layout::USED_INDEX);
        let added = word(&available_ring, layout::AVAILABLE_INDEX);
        // Of what was used, those whose place in the available ring was not written anew.
        let not_used = added.wrapping_sub(index).min(size);
        let (mut given, mut back) = (Vec::new(), Vec::new());
        for age in 1..=index.min(size - not_used) {
            let place = usize::from(index.wrapping_sub(age) & (size - 1));
            given.push(word(&available_ring, layout::AVAILABLE_RING + layout::AVAILABLE_ENTRY * place));
            back.push(word(&used_ring, layout::USED_RING + layout::USED_ENTRY * place));
        }
        given.sort_unstable();
        back.sort_unstable();
        if given == back { Ok(index) } else { Err(RingError::OutOfOrder { used: index }) }
    }
}

fn word(bytes: &[u8], at: usize) -> u16 {
    bytes
        .get(at..at + 2)
        .map_or(0, |word| word.iter().rev().fold(0, |value, &byte| value << 8 | u16::from(byte)))
}
