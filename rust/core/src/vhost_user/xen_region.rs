//! Regions of a Xen guest's memory (XEN_MMAP): who maps them is the backend, with the device that the frontend sends.

use std::{fmt, os::fd::OwnedFd, path::Path, sync::Arc, time::Duration};

use super::{MemoryRegion, XenMapFlags};
use crate::{
    memory::{
        AttachRequest, Backing, ForeignWindows, GRANT_ADDRESS, GrantCache, MapError, MemoryError, Part,
    },
    xen::{
        ForeignCalls, Gntdev, Grant, GrantCalls, GrantMapError, GrantMapping, GrantRequest, Privcmd,
        UnmapNotify, abi::FRAME,
    },
};

const PAGE: u64 = FRAME as u64;

/// Pages of a region of grants that is mapped in advance: many times what the largest ring has.
const MOST_IN_ADVANCE: u64 = 1 << 14;

/// How many bad references an error names.
const NAMED: usize = 4;

/// Bytes of a guest that stay mapped for each of its regions; what is in use at a time may exceed it.
const MAPPED_LIMIT: u64 = 1 << 30;

/// How long frames and grants that are paged out are waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is made of a descriptor that came with a region: the kernel's devices, or those of a test.
pub trait XenDevices: fmt::Debug + Send + Sync {
    /// /dev/xen/privcmd, for a foreign region.
    fn foreign(&self, device: OwnedFd) -> Arc<dyn ForeignCalls>;
    /// /dev/xen/gntdev, for a region of grants.
    fn grants(&self, device: OwnedFd) -> Arc<dyn GrantCalls>;
}

/// The kernel's.
#[derive(Debug)]
pub struct KernelDevices;

impl KernelDevices {
    /// Is there anything to be mapped with? Only then is XEN_MMAP of use.
    pub fn are_there() -> bool {
        Path::new("/dev/xen/privcmd").exists()
    }
}

impl XenDevices for KernelDevices {
    fn foreign(&self, device: OwnedFd) -> Arc<dyn ForeignCalls> {
        Arc::new(Privcmd::from_fd(device))
    }
    fn grants(&self, device: OwnedFd) -> Arc<dyn GrantCalls> {
        Arc::new(Gntdev::from_fd(device))
    }
}

/// Why a region of Xen's memory is not mapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum XenRegionError {
    /// There is no domain of that number.
    #[error("domain {0} is no domain id: it has 16 bits")]
    Domain(u32),
    /// vhost-user leaves the offset to other files.
    #[error("mmap offset {0:#x}: a region of a device begins at 0")]
    Offset(u64),
    /// It cannot be mapped.
    #[error(transparent)]
    Map(#[from] MapError),
    /// It is no region of memory.
    #[error(transparent)]
    Table(#[from] MemoryError),
}

/// What backs such a region. Foreign memory is mapped by windows when it is touched, grants as the flags say.
pub(super) fn back(
    said: &MemoryRegion,
    device: OwnedFd,
    devices: &dyn XenDevices,
) -> Result<Arc<dyn Backing>, XenRegionError> {
    let domain = u16::try_from(said.xen_domain).map_err(|_| XenRegionError::Domain(said.xen_domain))?;
    if said.mmap_offset != 0 {
        return Err(XenRegionError::Offset(said.mmap_offset));
    }
    // It need not begin, or end, where a page does; what is mapped does.
    let within = said.guest_address % PAGE;
    let start = said.guest_address - within;
    let pages = within.checked_add(said.size).ok_or(MapError::Length(said.size))?.div_ceil(PAGE);
    let whole: Arc<dyn Backing> = if said.xen_flags.contains(XenMapFlags::FOREIGN) {
        let request = AttachRequest { domain, writable: true, patience: PATIENCE, limit: MAPPED_LIMIT };
        let end = pages.checked_mul(PAGE).and_then(|size| start.checked_add(size));
        let range = start..end.ok_or(MapError::Length(said.size))?;
        let (_, memory) =
            ForeignWindows::attach(devices.foreign(device), std::slice::from_ref(&range), &request)?;
        let region = memory.regions().first().ok_or(MapError::Length(said.size))?;
        Arc::clone(&region.backing)
    } else {
        let first = start & !GRANT_ADDRESS;
        let calls = devices.grants(device);
        if said.xen_flags.contains(XenMapFlags::NO_ADVANCE_MAP) {
            // One that is said to go on behind the last reference ends there.
            let cache: Arc<dyn Backing> = GrantCache::new(calls, domain, PATIENCE);
            let size = said.size.min(cache.len().saturating_sub(first + within));
            return Ok(Part::of(cache, first + within, size)?);
        }
        in_advance(&calls, domain, first / PAGE, pages).map_err(MapError::from)?
    };
    Ok(Part::of(whole, within, said.size)?)
}

/// Pages from a reference on, mapped for as long as what is given lives; for reading alone if they are granted so.
fn in_advance(
    calls: &Arc<dyn GrantCalls>,
    domain: u16,
    first: u64,
    pages: u64,
) -> Result<Arc<dyn Backing>, GrantMapError> {
    let count = usize::try_from(pages).unwrap_or(usize::MAX);
    if pages > MOST_IN_ADVANCE {
        return Err(GrantMapError::Count(count));
    }
    // A reference has 32 bits, and an address room for 51.
    let references = first..first.saturating_add(pages);
    let grants =
        references.map(|reference| Some(Grant { domain, reference: u32::try_from(reference).ok()? }));
    let grants = grants.collect::<Option<Vec<_>>>().ok_or(GrantMapError::Count(count))?;
    let (notify, patience) = (UnmapNotify::default(), PATIENCE);
    let request = |writable| GrantRequest { grants: &grants, writable, patience, notify, named: NAMED };
    let mapped = match GrantMapping::map(calls, &request(true)) {
        Err(GrantMapError::Grants { failures, .. }) if failures.iter().all(|bad| bad.read_only) => {
            GrantMapping::map(calls, &request(false))
        }
        other => other,
    };
    Ok(Arc::new(mapped?))
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;
    use crate::{
        memory::{GuestMemory, MemoryKind},
        vhost_user::{MemorySlots, TableError},
        xen::{
            Grant,
            fake_domain::{DOMAIN, FakeDomain},
            fake_grants::FakeGrants,
        },
    };

    #[derive(Debug)]
    struct FakeDevices {
        domain: Arc<FakeDomain>,
        grants: Arc<FakeGrants>,
    }

    impl XenDevices for FakeDevices {
        fn foreign(&self, _device: OwnedFd) -> Arc<dyn ForeignCalls> {
            self.domain.clone()
        }
        fn grants(&self, _device: OwnedFd) -> Arc<dyn GrantCalls> {
            self.grants.clone()
        }
    }

    /// A domain of 16 frames, which grants pages 8 to 10.
    fn devices() -> Arc<FakeDevices> {
        let grants = Arc::new(FakeGrants::default());
        for reference in 8..11 {
            grants.grant(Grant { domain: DOMAIN, reference }, true);
        }
        Arc::new(FakeDevices { domain: Arc::new(FakeDomain::new(16)), grants })
    }

    fn file(size: u64) -> OwnedFd {
        let file = memfd_create("region", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, size).unwrap();
        file
    }

    fn region(guest_address: u64, size: u64, xen_flags: XenMapFlags) -> MemoryRegion {
        let xen_domain = DOMAIN.into();
        MemoryRegion {
            guest_address,
            size,
            user_address: guest_address,
            mmap_offset: 0,
            xen_flags,
            xen_domain,
        }
    }

    fn read(memory: &GuestMemory, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        memory.read(address, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn one_table_has_every_kind_of_memory() {
        let devices = devices();
        let late = XenMapFlags::GRANT | XenMapFlags::NO_ADVANCE_MAP;
        let granted = GRANT_ADDRESS + 8 * PAGE;
        let regions = [
            region(4 * PAGE, 8 * PAGE, XenMapFlags::FOREIGN),
            region(1 << 40, PAGE, XenMapFlags::empty()),
            region(granted, PAGE, XenMapFlags::GRANT),
            region(granted + PAGE, 1 << 40, late),
        ];
        let slots = MemorySlots::with_devices(devices.clone());
        let slots = slots.map(regions.map(|region| (region, file(PAGE))).into()).unwrap();
        let memory = slots.table();
        let kinds: Vec<_> = memory.regions().iter().map(|region| region.backing.kind().name()).collect();
        assert_eq!(kinds, ["foreign", "file", "grant", "grant"]);
        assert_eq!(read(memory, 5 * PAGE - 1, 2), [4, 5]);
        memory.write(11 * PAGE, b"written").unwrap();
        assert_eq!(devices.domain.bytes(11, 0, 7), b"written");
        memory.write(1 << 40, b"file").unwrap();
        // Across the border of what is mapped in advance and what is not.
        memory.write(granted + PAGE - 2, b"both").unwrap();
        let grant = |reference| Grant { domain: DOMAIN, reference };
        assert_eq!(devices.grants.read(grant(8), PAGE - 2, 2), b"bo");
        assert_eq!(devices.grants.read(grant(9), 0, 2), b"th");
        assert_eq!(devices.grants.announced(), 1);
        let slots = slots.without(&regions[2]).unwrap();
        assert_eq!(devices.grants.announced(), 1, "the table before it still lives");
        drop(slots);
    }

    #[test]
    fn a_region_need_not_begin_where_a_page_does() {
        let devices = devices();
        let slots = MemorySlots::with_devices(devices.clone());
        let foreign = region(4 * PAGE + 0x30, PAGE, XenMapFlags::FOREIGN);
        let granted = region(GRANT_ADDRESS + 8 * PAGE + 0x30, 0x20, XenMapFlags::GRANT);
        let slots = slots.map(vec![(foreign, file(1)), (granted, file(1))]).unwrap();
        let memory = slots.table();
        assert_eq!(read(memory, 5 * PAGE - 1, 2), [4, 5]);
        let outside = memory.read(4 * PAGE, &mut [0]).unwrap_err();
        assert!(matches!(outside, MemoryError::OutOfRange { .. }), "{outside}");
        memory.write(granted.guest_address, b"here").unwrap();
        assert_eq!(devices.grants.read(Grant { domain: DOMAIN, reference: 8 }, 0x30, 4), b"here");
    }

    #[test]
    fn a_frame_that_is_not_there_is_an_error_of_its_access() {
        let slots = MemorySlots::with_devices(devices());
        let slots = slots.map(vec![(region(0, 64 * PAGE, XenMapFlags::FOREIGN), file(1))]).unwrap();
        let memory = slots.table();
        assert_eq!(memory.regions()[0].backing.kind(), MemoryKind::Foreign { domain: DOMAIN });
        assert_eq!(read(memory, 15 * PAGE, 1), [15]);
        let error = memory.read(16 * PAGE, &mut [0]).unwrap_err();
        assert!(matches!(error, MemoryError::Unreachable { .. }), "{error}");
    }

    #[test]
    fn what_cannot_be_mapped_is_refused_with_the_domain_and_the_reason() {
        let bad_grant = region(GRANT_ADDRESS + 10 * PAGE, 2 * PAGE, XenMapFlags::GRANT);
        let no_domain = MemoryRegion { xen_domain: 0x1_0007, ..region(0, PAGE, XenMapFlags::FOREIGN) };
        let offset = MemoryRegion { mmap_offset: PAGE, ..region(0, PAGE, XenMapFlags::FOREIGN) };
        for (said, why) in [
            (bad_grant, "domain 7: 1 of 2 grants could not be mapped; the first is reference 11"),
            (no_domain, "domain 65543 is no domain id"),
            (offset, "begins at 0"),
        ] {
            let error = MemorySlots::with_devices(devices()).map(vec![(said, file(1))]).err().unwrap();
            assert!(matches!(error, TableError::Xen { .. }));
            assert!(error.to_string().contains(why), "{error}");
        }
    }
}
