//! The memory that a frontend shares: what it said of each region, and the mapping that was made of it.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use super::{
    MemoryRegion,
    xen_region::{KernelDevices, XenDevices, XenRegionError, back},
};
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
    /// Foreign memory or grants.
    #[error("region at {address:#x}, Xen memory of domain {domain}: {error}")]
    Xen {
        /// Guest physical address.
        address: u64,
        /// Whose memory it is.
        domain: u32,
        /// Why.
        error: XenRegionError,
    },
}

/// A region in force.
#[derive(Clone)]
struct Slot {
    said: MemoryRegion,
    region: Region,
    /// How often it was added.
    times: u32,
}

/// The regions in force. Changing it makes a new one, so that a refusal leaves the old one whole.
#[derive(Clone)]
pub struct MemorySlots {
    slots: Vec<Slot>,
    table: GuestMemory,
    devices: Arc<dyn XenDevices>,
}

impl Default for MemorySlots {
    /// None; Xen's memory is mapped by the kernel's devices.
    fn default() -> Self {
        Self::with_devices(Arc::new(KernelDevices))
    }
}

impl MemorySlots {
    /// None; Xen's memory is mapped by these devices.
    pub fn with_devices(devices: Arc<dyn XenDevices>) -> Self {
        Self { slots: Vec::new(), table: GuestMemory::default(), devices }
    }

    /// SET_MEM_TABLE: maps all regions anew.
    pub fn map(&self, regions: Vec<(MemoryRegion, OwnedFd)>) -> Result<Self, TableError> {
        let slots = regions.into_iter().map(|(said, fd)| self.map_one(said, fd));
        self.changed(slots.collect::<Result<_, TableError>>()?)
    }

    /// ADD_MEM_REG. The same region may come again, and then goes only when it was removed as often: QEMU
    /// 7.2 says everything of its memory once for each pair of queues of a network card. The newest
    /// mapping counts.
    pub fn with(&self, said: MemoryRegion, fd: OwnedFd) -> Result<Self, TableError> {
        let mut added = self.map_one(said, fd)?;
        let mut slots = self.slots.clone();
        match slots.iter_mut().find(|slot| key(&slot.said) == key(&said)) {
            Some(slot) => {
                added.times = slot.times.saturating_add(1);
                *slot = added;
            }
            None => slots.push(added),
        }
        self.changed(slots)
    }

    /// REM_MEM_REG: the region is known by its addresses and its size.
    pub fn without(&self, gone: &MemoryRegion) -> Result<Self, TableError> {
        let mut slots = self.slots.clone();
        let Some(slot) = slots.iter_mut().find(|slot| key(&slot.said) == key(gone)) else {
            let (guest, user, size) = key(gone);
            return Err(TableError::NoSuchRegion { guest, user, size });
        };
        slot.times -= 1;
        slots.retain(|slot| slot.times > 0);
        self.changed(slots)
    }

    /// The table for rings and devices.
    pub fn table(&self) -> &GuestMemory {
        &self.table
    }

    fn changed(&self, slots: Vec<Slot>) -> Result<Self, TableError> {
        if slots.len() > MAX_MEMORY_SLOTS {
            return Err(TableError::TooMany { count: slots.len() });
        }
        let table = GuestMemory::new(slots.iter().map(|slot| slot.region.clone()).collect())?;
        Ok(Self { slots, table, devices: Arc::clone(&self.devices) })
    }

    fn map_one(&self, said: MemoryRegion, fd: OwnedFd) -> Result<Slot, TableError> {
        let address = said.guest_address;
        let backing = if said.xen_flags.is_empty() {
            let mapped = MappedMemory::file(fd.as_fd(), said.mmap_offset, said.size, true);
            Arc::new(mapped.map_err(|error| TableError::Map { address, error })?)
        } else {
            let domain = said.xen_domain;
            back(&said, fd, &*self.devices).map_err(|error| TableError::Xen { address, domain, error })?
        };
        Ok(Slot { said, region: Region::new(address, said.user_address, backing), times: 1 })
    }
}

/// What a region is known by.
fn key(region: &MemoryRegion) -> (u64, u64, u64) {
    (region.guest_address, region.user_address, region.size)
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    fn region(guest_address: u64) -> (MemoryRegion, OwnedFd) {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 0x1000).unwrap();
        let said =
            MemoryRegion { guest_address, user_address: 0x7000, size: 0x1000, ..MemoryRegion::default() };
        (said, file)
    }

    #[test]
    fn a_region_that_is_added_twice_goes_when_it_is_removed_twice() {
        let (said, file) = region(0x4000);
        let once = MemorySlots::default().with(said, file).unwrap();
        let twice = once.with(said, region(0x4000).1).unwrap();
        assert_eq!(twice.table().regions().len(), 1);
        let removed = twice.without(&said).unwrap();
        assert_eq!(removed.table().regions().len(), 1);
        let removed = removed.without(&said).unwrap();
        assert_eq!(removed.table().regions().len(), 0);
        assert!(matches!(removed.without(&said), Err(TableError::NoSuchRegion { guest: 0x4000, .. })));
    }

    #[test]
    fn another_region_in_the_same_place_is_refused() {
        let (said, file) = region(0x4000);
        let slots = MemorySlots::default().with(said, file).unwrap();
        let (other, file) = region(0x4800);
        assert!(matches!(slots.with(other, file), Err(TableError::Table(_))));
        let (same, file) = region(0x4000);
        let table = vec![region(0x4000), (same, file)];
        assert!(matches!(MemorySlots::default().map(table), Err(TableError::Table(_))));
    }
}
