//! The memory of a Xen guest that offers it by grants: what its driver names is mapped for as long as it is used.
//!
//! Such a guest's addresses have bit 63 set: `1 << 63 | reference << 12 | offset in the page`, and a buffer of several pages
//! has consecutive references (Linux, drivers/xen/grant-dma-ops.c, XEN_GRANT_DMA_ADDR_OFF). The whole range of
//! addresses is one region, and a lease maps the pages that it spans, for no more than it asks:
//!
//! - A ring leases its three parts when it starts, so its pages stay mapped until it stops, and an access to the ring
//!   costs what it costs in ordinary memory. A page that is mapped already is not mapped a second time, where what is
//!   mapped allows what is asked.
//! - The buffers of a chain are leased when it is taken: what is short is copied (see `grant_copies`), the rest is mapped, all that is
//!   read together and all that is written: for reading if the device reads it, because the guest grants it for reading
//!   only then. It is unmapped when the chain is completed, before the used index is written: a guest does not
//!   take a page back that is still mapped, and gives the device up (Linux: "still in use by backend domain").
//! - A reference that is bad is an error of who leases: of the queue whose driver named it; of who completes, where what was written
//!   is copied.
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
    grant_copies::copies,
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
    /// Where its first page is in the mapping, in bytes.
    at: usize,
    pages_of: Weak<Pages>,
}

/// Pages that are mapped while anybody leases them: runs of consecutive references.
#[derive(Debug)]
struct Pages {
    mapping: GrantMapping,
    runs: Vec<(u32, u64)>,
    cache: Arc<GrantCache>,
}

/// Consecutive references.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: u32,
    pages: u64,
}

impl Run {
    /// Those that a range of addresses spans.
    fn of(offset: u64, len: u64) -> Result<Self, MapError> {
        let end = offset.checked_add(len).filter(|&end| len > 0 && end <= GRANT_ADDRESSES);
        let end = end.ok_or(MapError::BeyondEnd { len, offset, size: GRANT_ADDRESSES })?;
        let first = (offset / FRAME as u64) as u32;
        Ok(Self { first, pages: (end - 1) / FRAME as u64 - u64::from(first) + 1 })
    }

    /// Where the run begins in another that has all of it, in bytes.
    fn within(self, other: Self) -> Option<usize> {
        let before = u64::from(self.first.checked_sub(other.first)?);
        (before + self.pages <= other.pages).then_some(before as usize * FRAME)
    }

    fn references(self) -> impl Iterator<Item = u32> {
        (0..self.pages).map(move |page| self.first + page as u32)
    }
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

    pub(super) fn calls(&self) -> &dyn GrantCalls {
        &*self.calls
    }

    /// How many pages are mapped now; one that is mapped twice, for reading and for writing, counts twice.
    pub fn mapped_pages(&self) -> u64 {
        self.lock().mapped.values().map(|entry| entry.pages).sum()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock can panic half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pages that somebody leases already, and where they begin in their mapping.
    fn find(&self, wanted: Run, writable: bool) -> Option<(Arc<Pages>, usize)> {
        let state = self.lock();
        let before = state.mapped.range(..=(wanted.first, u64::MAX)).rev().take(LOOKED_AT);
        let mut fitting = before.filter_map(|(&(first, _), entry)| {
            let inside = wanted.within(Run { first, pages: entry.pages })?;
            (entry.writable || !writable).then_some((entry, inside))
        });
        // None for one whose last lease is ending.
        fitting.find_map(|(entry, inside)| Some((entry.pages_of.upgrade()?, entry.at + inside)))
    }

    /// Maps runs one behind the other.
    fn map(self: &Arc<Self>, runs: &[Run], writable: bool) -> Result<Arc<Pages>, MapError> {
        let references = runs.iter().flat_map(|run| run.references());
        let grants = references.map(|reference| Grant { domain: self.domain, reference });
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
        state.next += runs.len() as u64;
        let keys = runs.iter().map(|run| run.first).zip(number..).collect();
        let mapped = Arc::new(Pages { mapping, runs: keys, cache: Arc::clone(self) });
        let mut at = 0;
        for (&Run { first, pages }, number) in runs.iter().zip(number..) {
            let entry = Entry { pages, writable, at, pages_of: Arc::downgrade(&mapped) };
            state.mapped.insert((first, number), entry);
            at += pages as usize * FRAME;
        }
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
        let (run, writable) = (Run::of(offset, len)?, access == Access::Write);
        let (mapped, at) = match self.find(run, writable) {
            Some(found) => found,
            None => (self.map(&[run], writable)?, 0),
        };
        Ok(lease_of(&mapped, at, offset, len))
    }
    /// What is short is copied; what is not is mapped together.
    fn lease_for_request(
        self: Arc<Self>,
        ranges: &[(u64, u64)],
        access: Access,
    ) -> Result<Vec<Lease>, MapError> {
        let writable = access == Access::Write;
        if let Some(leases) = copies(&self, ranges, access) {
            return Ok(leases);
        }
        let mut runs: Vec<Run> = Vec::new();
        let mut bytes = 0;
        // Each is in what is mapped already, or at a place in what will be.
        let mut places = Vec::with_capacity(ranges.len());
        for &(offset, len) in ranges {
            let run = Run::of(offset, len)?;
            if let Some(found) = self.find(run, writable) {
                places.push(Ok(found));
                continue;
            }
            places.push(Err(bytes));
            bytes += run.pages as usize * FRAME;
            runs.push(run);
        }
        let mapped = if runs.is_empty() { None } else { Some(self.map(&runs, writable)?) };
        let leases = ranges.iter().zip(places).filter_map(|(&(offset, len), place)| {
            Some(match place {
                Ok((found, at)) => lease_of(&found, at, offset, len),
                Err(at) => lease_of(mapped.as_ref()?, at, offset, len),
            })
        });
        Ok(leases.collect())
    }
}

/// A lease on a range whose first page begins at `at` in a mapping that has all of its pages.
fn lease_of(mapped: &Arc<Pages>, at: usize, offset: u64, len: u64) -> Lease {
    let inside = at + (offset % FRAME as u64) as usize;
    // SAFETY: the mapping has the pages of the range from there on, and lives while the lease does.
    unsafe { Lease::new(mapped.mapping.base().add(inside), len, Arc::clone(mapped) as Arc<dyn Hold>) }
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
            let mut state = self.cache.lock();
            for run in &self.runs {
                state.mapped.remove(run);
            }
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
