//! The table of regions: guest physical and frontend user addresses to host memory.
//!
//! # Safety
//! Pointers are handed out only for ranges that lie inside one region, and the region holds its backing.
#![allow(unsafe_code)]

use std::{ptr::NonNull, sync::Arc};

use super::mapped::Backing;

/// Why an access to guest memory failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The range does not lie in the memory table.
    #[error("guest range {address:#x}..+{len:#x} is not in the memory table ({regions})")]
    OutOfRange {
        /// Guest physical address.
        address: u64,
        /// Length in bytes.
        len: u64,
        /// The table, in words.
        regions: String,
    },
    /// Two regions overlap, or one is empty or wraps.
    #[error("memory table refused: {0}")]
    BadTable(String),
    /// The region is mapped read-only.
    #[error("guest range {address:#x}..+{len:#x} is read-only")]
    ReadOnly {
        /// Guest physical address.
        address: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The memory went away under us (a truncated file).
    #[error("guest range {address:#x}..+{len:#x} is gone: what backed it was truncated or taken away")]
    Fault {
        /// Guest physical address.
        address: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// One region of guest memory.
#[derive(Clone, Debug)]
pub struct Region {
    /// Guest physical address of the first byte.
    pub guest_address: u64,
    /// Address of the same byte in the frontend's own address space (vhost-user rings use it).
    pub user_address: u64,
    /// Length in bytes; not more than the backing has.
    pub len: u64,
    /// What holds the bytes.
    pub backing: Arc<dyn Backing>,
    /// The backing's base, when it is always mapped.
    base: Option<NonNull<u8>>,
}

// SAFETY: the pointer belongs to the backing, which is Send and Sync and outlives the region.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// A region that spans the whole backing.
    pub fn new(guest_address: u64, user_address: u64, backing: Arc<dyn Backing>) -> Self {
        Self { guest_address, user_address, len: backing.len(), base: backing.resident(), backing }
    }
}

/// An immutable table of regions, sorted by guest address. A change makes a new table that shares the
/// regions that stay: whoever holds the old one still reaches all of its memory.
#[derive(Clone, Debug, Default)]
pub struct GuestMemory {
    regions: Arc<[Region]>,
}

impl GuestMemory {
    /// Checks and sorts the regions: none empty, none wrapping, none overlapping.
    pub fn new(mut regions: Vec<Region>) -> Result<Self, MemoryError> {
        regions.sort_by_key(|region| region.guest_address);
        for region in &regions {
            if region.len == 0 || region.guest_address.checked_add(region.len - 1).is_none() {
                return Err(MemoryError::BadTable(format!(
                    "region at {:#x} of {:#x} bytes is empty or wraps",
                    region.guest_address, region.len
                )));
            }
        }
        for pair in regions.windows(2) {
            if pair[1].guest_address - pair[0].guest_address < pair[0].len {
                return Err(MemoryError::BadTable(format!(
                    "regions at {:#x} and {:#x} overlap",
                    pair[0].guest_address, pair[1].guest_address
                )));
            }
        }
        Ok(Self { regions: regions.into() })
    }

    /// The regions, sorted by guest address.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The host pointer of a guest range that lies in one always-mapped region. This is the ring's fast path.
    #[inline]
    pub fn translate(&self, address: u64, len: u64) -> Option<NonNull<u8>> {
        for region in self.regions.iter() {
            let offset = address.wrapping_sub(region.guest_address);
            if offset < region.len && len <= region.len - offset {
                // SAFETY: offset < len of the backing, which is mapped while the region lives.
                return region.base.map(|base| unsafe { base.add(offset as usize) });
            }
        }
        None
    }

    /// The guest physical address of a frontend user address.
    pub fn user_to_guest(&self, user_address: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let offset = user_address.wrapping_sub(region.user_address);
            (offset < region.len).then(|| region.guest_address + offset)
        })
    }
}
