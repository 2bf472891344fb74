//! rust-vmm's traits of guest memory, so that its crates (`virtio-queue`, say) run on ours.
//!
//! They want an address at any time: memory that is mapped on demand is refused to them
//! ([`GuestMemoryError::HostAddressNotAvailable`]). They cannot tell of memory that went away either: who
//! uses them asks [`GuestMemory::poisoned`] afterwards.
//!
//! # Safety
//! A slice is made of a range inside a backing that is mapped whole; it borrows the region, which keeps it so.
#![allow(unsafe_code)]

use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestUsize, MemoryRegionAddress, VolatileSlice, bitmap::BS,
};

use super::guest::{GuestMemory, Region};

impl GuestMemoryRegion for Region {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.len
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.guest_address)
    }

    fn bitmap(&self) -> BS<'_, Self::B> {}

    fn get_host_address(&self, address: MemoryRegionAddress) -> Result<*mut u8, GuestMemoryError> {
        let slice = self.get_slice(address, 1)?;
        Ok(slice.ptr_guard_mut().as_ptr())
    }

    /// Writes through a slice of a region that is mapped read-only would end the process: none is given.
    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, BS<'_, Self::B>>, GuestMemoryError> {
        let end = offset.0.checked_add(count as u64).ok_or(GuestMemoryError::InvalidBackendAddress)?;
        if end > self.len {
            return Err(GuestMemoryError::InvalidBackendAddress);
        }
        let base = self.backing.resident().filter(|_| self.backing.writable());
        let base = base.ok_or(GuestMemoryError::HostAddressNotAvailable)?;
        // SAFETY: offset + count <= the region's length, not more than the backing has, which is mapped
        // whole and for writing while the region lives; nobody makes references into it.
        Ok(unsafe { VolatileSlice::new(base.as_ptr().add(offset.0 as usize), count) })
    }
}

impl GuestMemoryRegionBytes for Region {}

impl GuestMemoryBackend for GuestMemory {
    type R = Region;

    fn num_regions(&self) -> usize {
        self.regions().len()
    }

    fn find_region(&self, address: GuestAddress) -> Option<&Region> {
        let after = self.regions().partition_point(|region| region.guest_address <= address.0);
        let region = self.regions().get(after.checked_sub(1)?)?;
        (address.0 - region.guest_address < region.len).then_some(region)
    }

    fn iter(&self) -> impl Iterator<Item = &Region> {
        self.regions().iter()
    }
}
