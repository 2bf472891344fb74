//! The memory that a frontend shares: what it said of each region, and the mapping that was made of it.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use super::{MemoryRegion, XenMapFlags};
use crate::memory::{GuestMemory, MapError, MappedMemory, MemoryError, Region};

/// How many regions are taken (what libvhost-user and rust-vmm take, too).
pub const MAX_MEMORY_SLOTS: usize = 509;

/// Why a memory table was refused. The one before stays in force.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// A region cannot be mapped.
    #[error("region at {address:#x}: {error}")]
    Map {
        /// Guest physical address of the region.
        address: u64,
        /// Why.
        error: MapError,
    },
    /// The regions do not make a table.
    #[error(transparent)]
    Table(#[from] MemoryError),
    /// There are as many already as are taken.
    #[error("{count} regions: at most {MAX_MEMORY_SLOTS} are taken")]
    TooMany {
        /// How many there would be.
        count: usize,
    },
    /// REM_MEM_REG names none of the regions.
    #[error("no region of {size:#x} bytes at guest address {guest:#x}, user address {user:#x}")]
    NoSuchRegion {
        /// Guest physical address.
        guest: u64,
        /// User address.
        user: u64,
        /// Length in bytes.
        size: u64,
    },
    /// Foreign memory and grants are mapped by a Xen transport.
    #[error("region at {address:#x} is Xen memory ({flags:?}), which is not mapped here")]
    Xen {
        /// Guest physical address.
        address: u64,
        /// What it is.
        flags: XenMapFlags,
    },
}

/// The regions in force. Changing it makes a new one, so that a refusal leaves the old one whole.
#[derive(Clone, Default)]
pub struct MemorySlots {
    slots: Vec<(MemoryRegion, Region)>,
    table: GuestMemory,
}

impl MemorySlots {
    /// SET_MEM_TABLE: maps all regions anew.
    pub fn map(regions: Vec<(MemoryRegion, OwnedFd)>) -> Result<Self, TableError> {
        let slots = regions.into_iter().map(|(region, fd)| Ok((region, map(&region, &fd)?)));
        Self::new(slots.collect::<Result<_, TableError>>()?)
    }

    /// ADD_MEM_REG.
    pub fn with(&self, region: MemoryRegion, fd: OwnedFd) -> Result<Self, TableError> {
        let mut slots = self.slots.clone();
        slots.push((region, map(&region, &fd)?));
        Self::new(slots)
    }

    /// REM_MEM_REG: the region is known by its addresses and its size.
    pub fn without(&self, gone: &MemoryRegion) -> Result<Self, TableError> {
        let key = |r: &MemoryRegion| (r.guest_address, r.user_address, r.size);
        let mut slots = self.slots.clone();
        slots.retain(|(region, _)| key(region) != key(gone));
        if slots.len() == self.slots.len() {
            let (guest, user, size) = key(gone);
            return Err(TableError::NoSuchRegion { guest, user, size });
        }
        Self::new(slots)
    }

    /// The table for rings and devices.
    pub fn table(&self) -> &GuestMemory {
        &self.table
    }

    fn new(slots: Vec<(MemoryRegion, Region)>) -> Result<Self, TableError> {
        if slots.len() > MAX_MEMORY_SLOTS {
            return Err(TableError::TooMany { count: slots.len() });
        }
        let table = GuestMemory::new(slots.iter().map(|(_, region)| region.clone()).collect())?;
        Ok(Self { slots, table })
    }
}

fn map(region: &MemoryRegion, fd: &OwnedFd) -> Result<Region, TableError> {
    let address = region.guest_address;
    if !region.xen_flags.is_empty() {
        return Err(TableError::Xen { address, flags: region.xen_flags });
    }
    let mapped = MappedMemory::file(fd.as_fd(), region.mmap_offset, region.size, true);
    let mapped = mapped.map_err(|error| TableError::Map { address, error })?;
    Ok(Region::new(address, region.user_address, Arc::new(mapped)))
}
