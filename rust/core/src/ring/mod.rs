//! Virtqueues: split rings (virtio 1.3, section 2.7), the device's side and the driver's.
//!
//! The way of a chain: [`VirtQueue::pop`] takes a [`QueueChain`] (or [`VirtQueue::pop_batch`] a whole
//! [`QueueBatch`]) whose descriptors were read once, checked and translated; the device reads and
//! writes its bytes; completing it puts it in the used ring and calls the driver, if the driver wants.
//!
//! The driver's half is a [`DriverRing`], and a [`DriverQueue`] with memory for the buffers: bytes go in,
//! bytes come out.
//!
//! Two types: a [`RingConfig`] is what somebody says about a ring, a [`Ring`] is one that runs; what
//! runs was checked. A driver that breaks a rule gets a [`RingError`] that names it, never a panic, a
//! hang, or an access outside of the guest's memory.

mod access;
mod arena;
mod background;
mod batch;
mod batch_copy;
mod chain;
mod chain_error;
mod driver_queue;
mod driver_side;
mod error;
mod in_flight;
mod layout;
mod parts;
mod queue;
mod request;
mod requests;
mod resume;
mod service;
mod split;
#[cfg(test)]
mod test_guest;
#[cfg(test)]
mod tests;
mod transfer;
mod walk;

pub use background::Background;
pub use batch::{Mask, QueueBatch};
pub use chain::{Chain, QueueChain, Segment};
pub use chain_error::{BatchError, ChainError};
pub use driver_queue::{Completion, DriverError, DriverQueue, FILL};
pub use driver_side::{Buffer, DriverRing, UsedChain};
pub use error::{RULES, RingError, RingPart};
pub use layout::MAX_QUEUE_SIZE;
pub use queue::{Caller, QueueCounters, QueueState, VirtQueue};
pub use request::{Outcome, QueueRequest};
pub use requests::BatchLayout;
pub use split::SplitRing;

use crate::memory::GuestMemory;

/// What was negotiated about rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFeatures {
    /// VIRTIO_F_EVENT_IDX: each side says at which index it wants to be notified.
    pub event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC: a descriptor may point to a table of descriptors.
    pub indirect: bool,
    /// VIRTIO_F_IN_ORDER: chains are used in the order in which they were made available.
    pub in_order: bool,
    /// VIRTIO_F_NOTIFY_ON_EMPTY (legacy): a call whenever everything was used, wanted or not.
    pub notify_on_empty: bool,
}

/// A ring, as somebody configured it: nothing is checked yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingConfig {
    /// Queue size in descriptors: a power of two, at most 32768.
    pub size: u16,
    /// Guest physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest physical address of the available ring.
    pub available: u64,
    /// Guest physical address of the used ring.
    pub used: u64,
    /// The available index to begin with: 0 on a fresh ring, what the last device answered on another.
    pub next_available: u16,
    /// What was negotiated.
    pub features: RingFeatures,
    /// Chains are given back in the order in which they were made available, though no driver asked for it (see
    /// [`RingFeatures::in_order`]): then the used index alone says what is still to be done.
    pub in_turn: bool,
}

impl RingConfig {
    /// Checks the ring and translates its addresses, once. The used index is read here.
    pub fn activate(&self, memory: &GuestMemory) -> Result<Ring, RingError> {
        SplitRing::new(self, memory).map(Ring::Split)
    }
}

/// A running ring of either layout. There is one layout now; packed rings come to stand beside it.
#[derive(Debug)]
pub enum Ring {
    /// Three parts, virtio 1.3 section 2.7.
    Split(SplitRing),
}
