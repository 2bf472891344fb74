//! The registers of one queue.

use crate::ring::{RingConfig, RingFeatures};

/// What the driver said of one queue. Nothing of it is checked but the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSetup {
    /// Descriptors of the ring: a power of two, not above the largest size; 0 after a value that is neither.
    pub size: u16,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring.
    pub available: u64,
    /// Guest address of the used ring.
    pub used: u64,
    /// The driver has set it up.
    pub ready: bool,
}

impl QueueSetup {
    /// A queue of which nothing was said yet: as large as it may be.
    pub(super) fn new(max_size: u16) -> Self {
        Self { size: max_size, descriptors: 0, available: 0, used: 0, ready: false }
    }

    /// The ring, fresh.
    pub fn ring(&self, features: RingFeatures) -> RingConfig {
        let Self { size, descriptors, available, used, .. } = *self;
        RingConfig { size, descriptors, available, used, next_available: 0, features, in_turn: false }
    }
}

/// The queue's largest size, and what was said of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueRegisters {
    pub(super) max_size: u16,
    pub(super) setup: QueueSetup,
}

impl QueueRegisters {
    pub(super) fn new(max_size: u16) -> Self {
        Self { max_size, setup: QueueSetup::new(max_size) }
    }

    pub(super) fn reset(&mut self) {
        self.setup = QueueSetup::new(self.max_size);
    }

    /// QueueNum. What cannot be is kept as 0, with which the queue never gets ready.
    pub(super) fn set_size(&mut self, value: u32) {
        let valid = |size: &u16| size.is_power_of_two() && *size <= self.max_size;
        self.setup.size = u16::try_from(value).ok().filter(valid).unwrap_or(0);
    }
}

/// Replaces one half of an address.
pub(super) fn set_half(address: &mut u64, high: bool, value: u32) {
    let (shift, kept) = if high { (32, u64::from(u32::MAX)) } else { (0, !u64::from(u32::MAX)) };
    *address = *address & kept | u64::from(value) << shift;
}
