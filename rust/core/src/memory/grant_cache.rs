//! The memory of a Xen guest that offers it by grants: what its driver names is mapped for as long as it is used.
//!
//! Such a guest's addresses have bit 63 set: `1 << 63 | reference << 12 | offset in the page`, and a buffer of several pages
//! has consecutive references (Linux, drivers/xen/grant-dma-ops.c, XEN_GRANT_DMA_ADDR_OFF). The whole range of
//! addresses is one region, and a lease maps the pages that it spans, for no more than it asks:
//!
//! - A ring leases its three parts when it starts, so its pages stay mapped until it stops, and an access to the ring
//!   costs what it costs in ordinary memory. A page that is mapped already is not mapped a second time, where what is
//!   mapped allows what is asked.
//! - A buffer is leased when its chain is taken: for reading if the device reads it, because the guest grants it for reading
//!   only then. It is unmapped when the chain is completed, before the used index is written: a guest does not
//!   take a page back that is still mapped, and gives the device up (Linux: "still in use by backend domain").
//! - A reference that is bad is an error of who leases: of the queue whose driver named it.
//!
//! Stop the queues before the reset of a device is answered: then nothing is mapped for it any more.
//!
//! # Safety
//! A lease lies within the pages of one mapping, which it holds.
#![allow(unsafe_code)]

use std::{
    collections::BTreeMap,
    ptr::NonNull,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use super::{
    backing::{Access, Backing, Hold, Lease, MemoryKind},
    error::{MapError, MemoryError},
    fork::Owner,
    guest::{GuestMemory, Region},
};
use crate::xen::{Grant, GrantCalls, GrantMapping, GrantRequest, UnmapNotify, abi::FRAME};

/// What marks an address as made of a grant reference (`XEN_GRANT_DMA_ADDR_OFF`).
pub const GRANT_ADDRESS: u64 = 1 << 63;

/// Addresses that references make: there are 2^32 of them.
const GRANT_ADDRESSES: u64 = (FRAME as u64) << 32;

/// How many bad references an error names: a guest can name any number of them.
const NAMED: usize = 4;

/// How many mappings that begin before a page are looked at, to find one that has it.
const LOOKED_AT: usize = 8;

/// The granted memory of one domain.
///
/// ```no_run
/// use std::{sync::Arc, time::Duration};
/// use xenvirt_core::{memory::GrantCache, xen::Gntdev};
///
/// let gntdev = Arc::new(Gntdev::open()?);
/// let cache = GrantCache::new(gntdev, 3, Duration::from_secs(5));
/// let memory = cache.memory()?; // what a queue is started with, its ring's addresses as the driver wrote them
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct GrantCache {
    calls: Arc<dyn GrantCalls>,
    domain: u16,
    patience: Duration,
    owner: Owner,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What is mapped now, by its first reference and a number of its own.
    mapped: BTreeMap<(u32, u64), Entry>,
    next: u64,
}

#[derive(Debug)]
struct Entry {
    /// Asked before an `Arc` is made of it: the last one must not be dropped under the lock.
    pages: u64,
    writable: bool,
    pages_of: Weak<Pages>,
}

/// Pages that are mapped while anybody leases them.
#[derive(Debug)]
struct Pages {
    mapping: GrantMapping,
    first: u32,
    number: u64,
    cache: Arc<GrantCache>,
}

impl GrantCache {
    /// The memory of a domain; nothing is mapped. A page that is not there for the moment (paged out) is waited for as
    /// long as `patience`.
    pub fn new(calls: Arc<dyn GrantCalls>, domain: u16, patience: Duration) -> Arc<Self> {
        let (owner, state) = (Owner::this_process(), Mutex::default());
        Arc::new(Self { calls, domain, patience, owner, state })
    }

    /// All addresses that can be made of references, as a table.
    ///
    /// # Errors
    /// [`MemoryError::Forked`].
    pub fn memory(self: &Arc<Self>) -> Result<GuestMemory, MemoryError> {
        GuestMemory::new(vec![self.region()])
    }

    /// The same as a region, for a table that has others beside it.
    pub fn region(self: &Arc<Self>) -> Region {
        Region::new(GRANT_ADDRESS, GRANT_ADDRESS, Arc::clone(self) as Arc<dyn Backing>)
    }

    /// The domain.
    pub fn domain(&self) -> u16 {
        self.domain
    }

    /// How many pages are mapped now; one that is mapped twice, for reading and for writing, counts twice.
    pub fn mapped_pages(&self) -> u64 {
        self.lock().mapped.values().map(|entry| entry.pages).sum()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock can panic half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pages from a reference on that somebody leases already.
    fn find(&self, first: u32, pages: u64, writable: bool) -> Option<Arc<Pages>> {
        let state = self.lock();
        let before = state.mapped.range(..=(first, u64::MAX)).rev().take(LOOKED_AT);
        let mut fitting = before.filter(|((start, _), entry)| {
            u64::from(first - start) + pages <= entry.pages && (entry.writable || !writable)
        });
        // None for one whose last lease is ending.
        fitting.find_map(|(_, entry)| entry.pages_of.upgrade())
    }

    fn map(self: &Arc<Self>, first: u32, pages: u64, writable: bool) -> Result<Arc<Pages>, MapError> {
        let last = u32::try_from(u64::from(first) + pages - 1).map_err(|_| MapError::Length(pages))?;
        let grants = (first..=last).map(|reference| Grant { domain: self.domain, reference });
        let request = GrantRequest {
            grants: &grants.collect::<Vec<_>>(),
            writable,
            patience: self.patience,
            notify: UnmapNotify::default(),
            named: NAMED,
        };
        let mapping = GrantMapping::map(&self.calls, &request)?;
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        let mapped = Arc::new(Pages { mapping, first, number, cache: Arc::clone(self) });
        let entry = Entry { pages, writable, pages_of: Arc::downgrade(&mapped) };
        state.mapped.insert((first, number), entry);
        Ok(mapped)
    }
}

impl Hold for GrantCache {
    fn poisoned(&self) -> bool {
        let state = self.lock();
        let mapped: Vec<Arc<Pages>> =
            state.mapped.values().filter_map(|entry| entry.pages_of.upgrade()).collect();
        // Each may be the last that holds its pages, and asks for the lock then.
        drop(state);
        mapped.iter().any(|pages| pages.mapping.poisoned())
    }
}

impl Backing for GrantCache {
    fn kind(&self) -> MemoryKind {
        MemoryKind::Grant
    }
    fn len(&self) -> u64 {
        GRANT_ADDRESSES
    }
    /// What is granted for reading only is not mapped for writing: that is the lease's error.
    fn writable(&self) -> bool {
        true
    }
    fn owner(&self) -> Owner {
        self.owner
    }
    fn resident(&self) -> Option<NonNull<u8>> {
        None
    }
    fn lease(self: Arc<Self>, offset: u64, len: u64, access: Access) -> Result<Lease, MapError> {
        let end = offset.checked_add(len).filter(|&end| len > 0 && end <= GRANT_ADDRESSES);
        let end = end.ok_or(MapError::BeyondEnd { len, offset, size: GRANT_ADDRESSES })?;
        let frame = FRAME as u64;
        let first = (offset / frame) as u32;
        let pages = (end - 1) / frame - u64::from(first) + 1;
        let writable = access == Access::Write;
        let mapped = match self.find(first, pages, writable) {
            Some(mapped) => mapped,
            None => self.map(first, pages, writable)?,
        };
        let inside = u64::from(first - mapped.first) * frame + offset % frame;
        // SAFETY: the mapping has the pages from `first` on, and lives while the lease does.
        Ok(unsafe { Lease::new(mapped.mapping.base().add(inside as usize), len, mapped) })
    }
}

impl Hold for Pages {
    fn poisoned(&self) -> bool {
        self.mapping.poisoned()
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // In a child another thread of its parent may have held the lock.
        if self.cache.owner.is_this_process() {
            self.cache.lock().mapped.remove(&(self.first, self.number));
        }
        // Then the mapping goes: when the lease's drop returns, the guest may have its pages back.
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        memory::MemoryError,
        xen::{GrantMapError, fake_grants::FakeGrants},
    };

    const DOMAIN: u16 = 7;
    /// 20 and 21 may be written, 22 and 23 only read.
    const WRITABLE: u32 = 20;
    const READ_ONLY: u32 = 22;

    fn grant(reference: u32) -> Grant {
        Grant { domain: DOMAIN, reference }
    }

    fn address(reference: u32, offset: u64) -> u64 {
        GRANT_ADDRESS | u64::from(reference) << 12 | offset
    }

    fn granted() -> (Arc<FakeGrants>, Arc<GrantCache>, GuestMemory) {
        let fake = Arc::new(FakeGrants::default());
        (WRITABLE..WRITABLE + 4).for_each(|reference| fake.grant(grant(reference), reference < READ_ONLY));
        let cache = GrantCache::new(Arc::clone(&fake) as Arc<dyn GrantCalls>, DOMAIN, Duration::ZERO);
        let memory = cache.memory().unwrap();
        (fake, cache, memory)
    }

    #[test]
    fn a_page_is_mapped_for_an_access_and_for_no_more_than_it_asks() {
        let (fake, cache, memory) = granted();
        memory.write(address(WRITABLE, 4090), b"across pages").unwrap();
        assert_eq!(fake.read(grant(WRITABLE + 1), 0, 6), b" pages");
        fake.write(grant(READ_ONLY), 100, b"read only");
        let mut bytes = [0; 9];
        memory.read(address(READ_ONLY, 100), &mut bytes).unwrap();
        assert_eq!(&bytes, b"read only");
        assert_eq!(fake.maps(), [(vec![WRITABLE, WRITABLE + 1], true), (vec![READ_ONLY], false)]);
        assert_eq!((fake.announced(), cache.mapped_pages()), (0, 0));
    }

    #[test]
    fn what_is_mapped_already_is_not_mapped_again() {
        let (fake, cache, memory) = granted();
        let ring = memory.lease(address(WRITABLE, 0), 8192, Access::Write).unwrap();
        let second = memory.lease(address(WRITABLE + 1, 16), 8, Access::Read).unwrap();
        assert_eq!((fake.maps().len(), cache.mapped_pages()), (1, 2));
        // SAFETY: both lie in the pages of the first.
        assert_eq!(second.base(), unsafe { ring.base().add(4096 + 16) });
        drop(ring);
        assert_eq!(fake.announced(), 1, "the second has it still");
        drop(second);
        assert_eq!((fake.announced(), cache.mapped_pages()), (0, 0));
    }

    #[test]
    fn what_is_mapped_for_reading_is_mapped_anew_for_writing() {
        let (fake, _, memory) = granted();
        let read = memory.lease(address(WRITABLE, 0), 8, Access::Read).unwrap();
        let written = memory.lease(address(WRITABLE, 0), 8, Access::Write).unwrap();
        let again = memory.lease(address(WRITABLE, 0), 8, Access::Read).unwrap();
        assert_eq!(fake.maps().len(), 2);
        drop((read, written, again));
        assert_eq!(fake.announced(), 0);
    }

    #[test]
    fn a_bad_reference_is_the_error_of_who_asks() {
        let (fake, _, memory) = granted();
        let bad = |address, access| match memory.lease(address, 8192, access).unwrap_err() {
            MemoryError::Unreachable { source: MapError::Grant(error), .. } => error,
            other => panic!("{other}"),
        };
        let GrantMapError::Grants { failures, .. } = bad(address(READ_ONLY + 1, 0), Access::Read) else {
            panic!("single grants")
        };
        assert_eq!((failures.len(), failures[0].grant), (1, grant(READ_ONLY + 2)));
        let GrantMapError::Grants { failures, .. } = bad(address(WRITABLE + 1, 0), Access::Write) else {
            panic!("single grants")
        };
        assert_eq!((failures.len(), failures[0].grant, failures[0].read_only), (1, grant(READ_ONLY), true));
        assert_eq!(fake.announced(), 0);
    }

    #[test]
    fn addresses_that_no_reference_makes_are_outside() {
        let (_, _, memory) = granted();
        let last = address(u32::MAX, 4095);
        let mut bytes = [0; 2];
        for outside in [0, GRANT_ADDRESS - 1, last, last + 1, u64::MAX - 1] {
            let error = memory.read(outside, &mut bytes).unwrap_err();
            assert!(matches!(error, MemoryError::OutOfRange { .. }), "{outside:#x}: {error}");
        }
        assert!(matches!(memory.read(last, &mut bytes[..1]), Err(MemoryError::Unreachable { .. })));
    }
}
