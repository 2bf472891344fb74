//! A domain's grants as a region of memory: guest addresses that have bit 63 set name them (Linux,
//! drivers/xen/grant-dma-ops.c: the reference in the page number, the offset in the page as it is).
//!
//! # Safety
//! A lease's pointer lies in the mapping that the lease holds.
#![allow(unsafe_code)]

use std::{ptr::NonNull, sync::Arc, time::Duration};

use super::{
    abi::FRAME,
    gntdev::{Grant, GrantCalls, UnmapNotify},
    grant::{GrantMapError, GrantMapping, GrantRequest},
};
use crate::memory::{Access, Backing, Hold, Lease, MapError, MemoryKind, Owner};

/// Marks an address that is a grant.
pub const GRANT_ADDRESS: u64 = 1 << 63;

/// How long a page that is not there for the moment is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

const PAGE: u64 = FRAME as u64;

/// How many bad references an error names.
const NAMED: usize = 16;

/// Pages of one access: four times the longest buffer of Linux's block layer. A guest must not keep us busy with a
/// descriptor of 4 GiB.
const MOST_PAGES: u64 = 1024;

/// Grants of one domain, one reference after the other. Nothing of it is mapped until it is accessed, and each
/// access maps what it reaches, for no more than it wants to do, and gives it back when it ends: a page that a Linux
/// guest takes back while it is still mapped is lost to it.
#[derive(Debug)]
pub struct GrantRegion {
    calls: Arc<dyn GrantCalls>,
    domain: u16,
    /// Of the first page.
    first: u64,
    pages: u64,
    owner: Owner,
}

impl GrantRegion {
    /// The pages from a guest address on; `address` is the first byte of one, with or without
    /// [`GRANT_ADDRESS`].
    pub fn new(calls: Arc<dyn GrantCalls>, domain: u16, address: u64, pages: u64) -> Self {
        let first = (address & !GRANT_ADDRESS) / PAGE;
        Self { calls, domain, first, pages, owner: Owner::this_process() }
    }

    /// All pages, mapped for as long as what is given lives; for reading alone if they are granted so.
    ///
    /// # Errors
    /// As [`GrantMapping::map`].
    pub fn in_advance(&self) -> Result<Arc<dyn Backing>, GrantMapError> {
        let mapped = match self.map(0, self.pages, true) {
            Err(GrantMapError::Grants { failures, .. }) if failures.iter().all(|bad| bad.read_only) => {
                self.map(0, self.pages, false)
            }
            other => other,
        };
        Ok(Arc::new(mapped?))
    }

    fn map(&self, page: u64, pages: u64, writable: bool) -> Result<GrantMapping, GrantMapError> {
        let domain = self.domain;
        let count = usize::try_from(pages).map_err(|_| GrantMapError::Count(usize::MAX))?;
        let grants = (page..page.saturating_add(pages)).map(|page| {
            let reference = u32::try_from(self.first.saturating_add(page)).ok()?;
            Some(Grant { domain, reference })
        });
        // A reference has 32 bits, and an address room for 51.
        let grants: Option<Vec<Grant>> = grants.collect();
        let grants = grants.ok_or(GrantMapError::Count(count))?;
        let notify = UnmapNotify::default();
        GrantMapping::map(
            &self.calls,
            &GrantRequest { grants: &grants, writable, patience: PATIENCE, notify, named: NAMED },
        )
    }
}

impl Hold for GrantRegion {
    fn poisoned(&self) -> bool {
        false // nothing of it is mapped; each lease knows
    }
}

impl Backing for GrantRegion {
    fn kind(&self) -> MemoryKind {
        MemoryKind::Grant
    }
    fn len(&self) -> u64 {
        self.pages.saturating_mul(PAGE)
    }
    fn writable(&self) -> bool {
        true // known of each page when it is mapped
    }
    fn owner(&self) -> Owner {
        self.owner
    }
    fn resident(&self) -> Option<NonNull<u8>> {
        None
    }
    fn lease(self: Arc<Self>, offset: u64, len: u64, access: Access) -> Result<Lease, MapError> {
        let size = Backing::len(&*self);
        let Some(last) = offset.checked_add(len.saturating_sub(1)).filter(|&last| len > 0 && last < size)
        else {
            return Err(MapError::BeyondEnd { len, offset, size });
        };
        let (page, within) = (offset / PAGE, offset % PAGE);
        let pages = last / PAGE - page + 1;
        if pages > MOST_PAGES {
            return Err(MapError::Demand { len, most: MOST_PAGES * PAGE });
        }
        let mapped = Arc::new(self.map(page, pages, access == Access::Write)?);
        // SAFETY: the access ends inside its last page, and the lease holds the mapping.
        Ok(unsafe { Lease::new(mapped.base().add(within as usize), len, mapped) })
    }
}

#[cfg(test)]
mod tests {
    use super::{super::fake_grants::FakeGrants, *};
    use crate::memory::{GuestMemory, MemoryError, Region};

    const DOMAIN: u16 = 3;
    const BASE: u64 = GRANT_ADDRESS + 8 * PAGE;

    /// The domain grants 8 to 11, 11 for reading only.
    fn granted() -> (Arc<FakeGrants>, Arc<GrantRegion>) {
        let fake = Arc::new(FakeGrants::default());
        for reference in 8..12 {
            fake.grant(Grant { domain: DOMAIN, reference }, reference != 11);
        }
        let region = GrantRegion::new(fake.clone(), DOMAIN, BASE, 1 << 39);
        (fake, Arc::new(region))
    }

    fn grant(reference: u32) -> Grant {
        Grant { domain: DOMAIN, reference }
    }

    #[test]
    fn an_access_maps_what_it_reaches_and_gives_it_back() {
        let (fake, region) = granted();
        let memory = GuestMemory::new(vec![Region::new(BASE, BASE, region)]).unwrap();
        memory.write(BASE + PAGE - 2, b"abcd").unwrap();
        assert_eq!(fake.read(grant(8), PAGE - 2, 2), b"ab");
        assert_eq!(fake.read(grant(9), 0, 2), b"cd");
        assert_eq!(fake.announced(), 0);
        let lease = memory.lease(BASE, 2 * PAGE, Access::Read).unwrap();
        assert_eq!(fake.announced(), 1);
        drop(lease);
        assert_eq!(fake.announced(), 0);
    }

    #[test]
    fn a_page_that_is_granted_for_reading_is_read() {
        let (_, region) = granted();
        let memory = GuestMemory::new(vec![Region::new(BASE, BASE, region)]).unwrap();
        let mut byte = [1];
        memory.read(BASE + 3 * PAGE, &mut byte).unwrap();
        assert_eq!(byte, [0]);
        let error = memory.write(BASE + 3 * PAGE, b"x").unwrap_err();
        assert!(error.to_string().contains("granted for reading only"), "{error}");
    }

    #[test]
    fn a_bad_reference_is_an_error_of_its_access() {
        let (fake, region) = granted();
        let memory = GuestMemory::new(vec![Region::new(BASE, BASE, region)]).unwrap();
        for (address, len, why) in [
            (BASE + 4 * PAGE, 1, "reference 12 of domain 3"),
            (BASE + 4 * PAGE - 1, 2, "reference 12 of domain 3"),
            (GRANT_ADDRESS + (1 << 50), 1, "1 grants"), // a reference of more than 32 bits
            (BASE, (MOST_PAGES * PAGE + 1) as usize, "at most 4194304"),
        ] {
            let error = memory.read(address, &mut vec![0; len]).unwrap_err();
            assert!(matches!(error, MemoryError::Unreachable { .. }), "{error}");
            assert!(error.to_string().contains(why), "{error}");
        }
        assert_eq!(fake.announced(), 0);
        memory.read(BASE, &mut [0]).unwrap();
    }

    #[test]
    fn pages_in_advance_stay_mapped_and_are_written_if_all_may_be() {
        let (fake, _) = granted();
        for (pages, writable) in [(3, true), (4, false)] {
            let region = GrantRegion::new(fake.clone(), DOMAIN, BASE, pages);
            let backing = region.in_advance().unwrap();
            assert_eq!((backing.len(), backing.writable()), (pages * PAGE, writable));
            assert!(backing.resident().is_some());
            assert_eq!(fake.announced(), 1);
        }
        assert_eq!(fake.announced(), 0);
        let error = GrantRegion::new(fake.clone(), DOMAIN, BASE, 5).in_advance().unwrap_err();
        assert!(matches!(error, GrantMapError::Grants { count: 5, .. }), "{error}");
    }
}
