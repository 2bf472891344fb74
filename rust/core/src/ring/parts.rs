//! The three parts of a split ring (virtio 1.3, 2.7), found in guest memory.

use super::{
    RingConfig,
    error::{RingError, RingPart},
    layout,
};
use crate::memory::{Access, GuestMemory, Lease, MemoryError};

/// The host pointers of the three parts, and what keeps them mapped.
#[derive(Debug)]
pub(super) struct Parts {
    pub descriptors: *mut u8,
    pub available: *mut u8,
    pub used: *mut u8,
    _leases: [Lease; 3],
}

/// Checks a ring's size and where its parts are, and leases them for their whole length.
pub(super) fn locate(config: &RingConfig, memory: &GuestMemory) -> Result<Parts, RingError> {
    let (size, event_idx) = (config.size, config.features.event_idx);
    if !size.is_power_of_two() || size > layout::MAX_QUEUE_SIZE {
        return Err(RingError::QueueSize { size: size.into(), max: layout::MAX_QUEUE_SIZE });
    }
    let find = |part, address: u64, len: usize, align: u64, access| {
        if !address.is_multiple_of(align) {
            return Err(RingError::RingAlignment { part, address, align });
        }
        let len = len as u64;
        let lease = memory.lease(address, len, access).map_err(|error| match error {
            MemoryError::ReadOnly { .. } => RingError::RingReadOnly { address },
            MemoryError::Fault { .. } => RingError::MemoryFault,
            MemoryError::Unreachable { address, len, source } => {
                RingError::Unreachable { address, len, source: source.into() }
            }
            _ => RingError::RingAddress { part, address, len },
        })?;
        // A region may begin anywhere in our memory: a file's offset need not be that of a page. What
        // is loaded and stored as words is at most eight bytes.
        if !(lease.base().as_ptr() as u64).is_multiple_of(align.min(8)) {
            return Err(RingError::RingAlignment { part, address, align });
        }
        Ok(lease)
    };
    let descriptors = find(
        RingPart::Descriptors,
        config.descriptors,
        layout::descriptors_len(size),
        layout::DESCRIPTOR_ALIGN,
        Access::Read,
    )?;
    let available = find(
        RingPart::Available,
        config.available,
        layout::available_len(size, event_idx),
        layout::AVAILABLE_ALIGN,
        Access::Read,
    )?;
    let used_len = layout::used_len(size, event_idx);
    let used = find(RingPart::Used, config.used, used_len, layout::USED_ALIGN, Access::Write)?;
    Ok(Parts {
        descriptors: descriptors.base().as_ptr(),
        available: available.base().as_ptr(),
        used: used.base().as_ptr(),
        _leases: [descriptors, available, used],
    })
}
