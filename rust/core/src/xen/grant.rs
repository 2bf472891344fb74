//! Pages that other domains granted, in our address space: all of a request, or none.
//!
//! # Safety
//! A mapping's pointers lie within its range, which it holds, and each lease holds the mapping.
#![allow(unsafe_code)]

use std::{
    mem::ManuallyDrop,
    ptr::NonNull,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::io::Errno;

use super::{
    abi::FRAME,
    gntdev::{Grant, GrantCalls, UnmapNotify},
};
use crate::memory::{
    Access, Backing, GuestMemory, Hold, Lease, MapError, Mapping, MemoryError, MemoryKind, Owner, Region,
};

/// How long is waited between two tries for a page that is not there for the moment.
const AGAIN_PAUSE: Duration = Duration::from_millis(1);

/// A grant that could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantFailure {
    /// Its place in the request.
    pub index: usize,
    /// The grant.
    pub grant: Grant,
    /// What the kernel says.
    pub errno: Errno,
    /// It can be mapped for reading, and was to be written.
    pub read_only: bool,
}

impl GrantFailure {
    /// The errno in words that fit a grant. The kernel has one for all that is wrong with one.
    pub fn reason(&self) -> &'static str {
        match self.errno {
            Errno::INVAL if self.read_only => "it is granted for reading only",
            Errno::INVAL => "there is no such domain or reference, or it is not granted to this domain",
            Errno::AGAIN => "the page is not there for the moment and did not come back in time",
            Errno::NOMEM => "no memory for the mapping",
            _ => "the hypervisor refused",
        }
    }
}

/// Why grants could not be mapped. Nothing stays mapped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GrantMapError {
    /// No grant was given, or more than the interface can take.
    #[error("{0} grants: between 1 and 2^32 - 1 can be mapped at once")]
    Count(usize),
    /// The byte that is to be cleared is not in the pages, or they are not to be written.
    #[error(
        "byte {offset} cannot be cleared when {pages} pages are unmapped: it must lie in them, and they be writable"
    )]
    Notify {
        /// The byte.
        offset: u64,
        /// The pages.
        pages: usize,
    },
    /// The domain is this one, which must not map what it granted itself: see [`super::Gntdev`].
    #[error(
        "domain {domain} is this one: on x86 a PVH or HVM domain must not map its own grants, Xen would take the pages away"
    )]
    Own {
        /// The domain.
        domain: u16,
    },
    /// Single grants are bad.
    #[error("{} of {count} grants could not be mapped; the first is reference {} of domain {}: {}", failures.len(),
        failures.first().map_or(0, |first| first.grant.reference),
        failures.first().map_or(0, |first| first.grant.domain),
        failures.first().map_or("", GrantFailure::reason))]
    Grants {
        /// Grants in the request.
        count: usize,
        /// All that are bad, by index.
        failures: Vec<GrantFailure>,
    },
    /// The request as a whole failed.
    #[error("{count} grants could not be mapped: {errno}")]
    Refused {
        /// Grants in the request.
        count: usize,
        /// What the kernel says.
        errno: Errno,
    },
}

impl GrantMapError {
    /// The kernel's error, of the first grant that failed or of the call; None where the kernel was not asked.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Count(_) | Self::Notify { .. } | Self::Own { .. } => None,
            Self::Grants { failures, .. } => failures.first().map(|first| first.errno),
            Self::Refused { errno, .. } => Some(*errno),
        }
    }
}

/// What is to be mapped.
#[derive(Clone, Copy, Debug)]
pub struct GrantRequest<'a> {
    /// The pages, in their order; they may be of several domains.
    pub grants: &'a [Grant],
    /// For writing too?
    pub writable: bool,
    /// How long a page that is not there for the moment is waited for.
    pub patience: Duration,
    /// What is to happen when they are unmapped.
    pub notify: UnmapNotify,
    /// How many bad grants are looked for, at most, when the request fails: each costs some tries.
    pub named: usize,
}

/// Why a batch was not mapped.
enum Refusal {
    /// A grant in it is bad.
    Bad(Errno),
    /// Something else.
    Other(Errno),
}

/// Granted pages, mapped one after the other. When it is dropped they are given back, and the other domains may use
/// them anew.
#[derive(Debug)]
pub struct GrantMapping {
    /// Unmapped before the device forgets the grants.
    mapping: ManuallyDrop<Mapping>,
    calls: Arc<dyn GrantCalls>,
    index: u64,
    pages: usize,
    writable: bool,
}

impl GrantMapping {
    /// Maps the grants, all or none.
    ///
    /// # Errors
    /// [`GrantMapError::Grants`] with each bad one (of which `request.named` are looked for); or the request as a whole
    /// failed.
    pub fn map(calls: &Arc<dyn GrantCalls>, request: &GrantRequest<'_>) -> Result<Self, GrantMapError> {
        let GrantRequest { grants, writable, notify, .. } = *request;
        let count = grants.len();
        if count == 0 || u32::try_from(count).is_err() {
            return Err(GrantMapError::Count(count));
        }
        if let Some(own) = grants.iter().find(|grant| calls.must_not_map(grant.domain)) {
            return Err(GrantMapError::Own { domain: own.domain });
        }
        if let Some(offset) = notify.clear_byte
            && (!writable || offset >= (count * FRAME) as u64)
        {
            return Err(GrantMapError::Notify { offset, pages: count });
        }
        let deadline = Instant::now() + request.patience;
        let mapped = match Self::try_map(calls, grants, writable, deadline) {
            Ok(mapped) => mapped,
            Err(Refusal::Bad(errno)) => return Err(find_bad(calls, request, deadline, errno)),
            Err(Refusal::Other(errno)) => return Err(GrantMapError::Refused { count, errno }),
        };
        // Only now: the kernel asks whether the pages are mapped for writing.
        let notified = calls.notify_on_unmap(mapped.index, notify);
        notified.map_err(|errno| GrantMapError::Refused { count, errno })?;
        Ok(mapped)
    }

    fn try_map(
        calls: &Arc<dyn GrantCalls>,
        grants: &[Grant],
        writable: bool,
        deadline: Instant,
    ) -> Result<Self, Refusal> {
        let pages = grants.len();
        let index = calls.announce(grants).map_err(Refusal::Other)?;
        let base = loop {
            match calls.map(index, pages, writable) {
                Err(Errno::AGAIN) if Instant::now() < deadline => std::thread::sleep(AGAIN_PAUSE),
                Err(errno) => {
                    // It was announced, and is nothing to anybody: what this answers changes nothing.
                    let _ = calls.forget(index, pages);
                    return Err(match errno {
                        Errno::INVAL | Errno::AGAIN => Refusal::Bad(errno),
                        _ => Refusal::Other(errno),
                    });
                }
                Ok(base) => break base,
            }
        };
        // SAFETY: just mapped, for this many pages; a fault is mended by the kernel's page.
        let mapping = unsafe { Mapping::new(base, pages * FRAME, rustix::param::page_size(), writable) };
        let (mapping, calls) = (ManuallyDrop::new(mapping), Arc::clone(calls));
        Ok(Self { mapping, calls, index, pages, writable })
    }

    /// How many pages are mapped.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// The first byte of the first page.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.mapping.base()
    }

    /// The mapping as a table of one region, whose addresses are offsets.
    ///
    /// # Errors
    /// [`MemoryError::Forked`].
    pub fn into_memory(self) -> Result<GuestMemory, MemoryError> {
        GuestMemory::new(vec![Region::new(0, 0, Arc::new(self))])
    }
}

impl Drop for GrantMapping {
    fn drop(&mut self) {
        let ours = self.mapping.owner().is_this_process();
        // SAFETY: dropped once, here.
        unsafe { ManuallyDrop::drop(&mut self.mapping) };
        // A child has the same open device, and must not take from its parent what that has mapped.
        if ours {
            // An error can only mean that the device knows of nothing: nothing is left to do.
            let _ = self.calls.forget(self.index, self.pages);
        }
    }
}

/// Which grants of a request that failed are bad? What is mapped as a batch has none, so halves are tried, and halves of
/// what fails: a few bad ones in a long request are found in a few tries.
fn find_bad(
    calls: &Arc<dyn GrantCalls>,
    request: &GrantRequest<'_>,
    deadline: Instant,
    errno: Errno,
) -> GrantMapError {
    let GrantRequest { grants, writable, named, .. } = *request;
    let count = grants.len();
    let mut failures = Vec::new();
    // Ranges that are known to fail, the first on top.
    let mut failing = vec![(0..count, errno)];
    while let Some((range, errno)) = failing.pop().filter(|_| failures.len() < named) {
        if let ([grant], index) = (&grants[range.clone()], range.start) {
            let alone = || GrantMapping::try_map(calls, std::slice::from_ref(grant), false, deadline);
            let read_only = writable && errno == Errno::INVAL && alone().is_ok();
            failures.push(GrantFailure { index, grant: *grant, errno, read_only });
            continue;
        }
        let middle = range.start + range.len() / 2;
        for half in [middle..range.end, range.start..middle] {
            if let Err(Refusal::Bad(errno)) =
                GrantMapping::try_map(calls, &grants[half.clone()], writable, deadline)
            {
                failing.push((half, errno));
            }
        }
    }
    match failures.is_empty() {
        true => GrantMapError::Refused { count, errno },
        false => GrantMapError::Grants { count, failures },
    }
}

impl Hold for GrantMapping {
    fn poisoned(&self) -> bool {
        self.mapping.poisoned()
    }
}

impl Backing for GrantMapping {
    fn kind(&self) -> MemoryKind {
        MemoryKind::Grant
    }
    fn len(&self) -> u64 {
        (self.pages * FRAME) as u64
    }
    fn writable(&self) -> bool {
        self.writable
    }
    fn owner(&self) -> Owner {
        self.mapping.owner()
    }
    fn resident(&self) -> Option<NonNull<u8>> {
        Some(self.base())
    }
    fn lease(self: Arc<Self>, offset: u64, len: u64, _access: Access) -> Result<Lease, MapError> {
        let size = Backing::len(&*self);
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(MapError::BeyondEnd { len, offset, size });
        }
        // SAFETY: inside the mapping, which lives while the lease does; the table checked that a writer may write.
        Ok(unsafe { Lease::new(self.base().add(offset as usize), len, self) })
    }
}

#[cfg(test)]
mod tests {
    use super::{super::fake_grants::FakeGrants, *};

    fn grant(domain: u16, reference: u32) -> Grant {
        Grant { domain, reference }
    }

    fn request(grants: &[Grant]) -> GrantRequest<'_> {
        GrantRequest {
            grants,
            writable: true,
            patience: Duration::from_secs(60),
            notify: UnmapNotify::default(),
            named: usize::MAX,
        }
    }

    /// Domain 3 grants 8 to 11, 11 for reading only; domain 4 grants 8.
    fn granted() -> (Arc<FakeGrants>, Arc<dyn GrantCalls>) {
        let fake = Arc::new(FakeGrants::default());
        for (domain, reference, writable) in
            [(3, 8, true), (3, 9, true), (3, 10, true), (3, 11, false), (4, 8, true)]
        {
            fake.grant(grant(domain, reference), writable);
        }
        let calls: Arc<dyn GrantCalls> = fake.clone();
        (fake, calls)
    }

    #[test]
    fn pages_of_several_domains_are_mapped_in_the_order_of_the_request() {
        let (fake, calls) = granted();
        let grants = [grant(4, 8), grant(3, 10), grant(3, 8)];
        fake.write(grants[1], 5, b"from three");
        let memory = GrantMapping::map(&calls, &request(&grants)).unwrap().into_memory().unwrap();
        let mut bytes = [0; 10];
        memory.read(FRAME as u64 + 5, &mut bytes).unwrap();
        assert_eq!(&bytes, b"from three");
        memory.write(0, b"to four").unwrap();
        assert_eq!(fake.read(grants[0], 0, 7), b"to four");
        assert_eq!(fake.announced(), 1);
        drop(memory);
        assert_eq!(fake.announced(), 0);
    }

    #[test]
    fn a_batch_with_bad_references_names_each_and_leaves_nothing() {
        let (fake, calls) = granted();
        let grants = [grant(3, 8), grant(3, 77), grant(3, 11), grant(5, 8)];
        let error = GrantMapping::map(&calls, &request(&grants)).unwrap_err();
        let failure =
            |index, read_only| GrantFailure { index, grant: grants[index], errno: Errno::INVAL, read_only };
        let failures = vec![failure(1, false), failure(2, true), failure(3, false)];
        assert_eq!(error, GrantMapError::Grants { count: 4, failures: failures.clone() });
        assert_eq!(failures[1].reason(), "it is granted for reading only");
        assert_eq!(
            error.to_string(),
            "3 of 4 grants could not be mapped; the first is reference 77 of domain 3: \
             there is no such domain or reference, or it is not granted to this domain"
        );
        assert_eq!(fake.announced(), 0);
    }

    #[test]
    fn as_many_bad_references_are_looked_for_as_are_asked_for() {
        let fake = Arc::new(FakeGrants::default());
        (0..1000).filter(|number| number % 100 != 7).for_each(|number| fake.grant(grant(3, number), true));
        let calls: Arc<dyn GrantCalls> = fake.clone();
        let grants: Vec<_> = (0..1000).map(|number| grant(3, number)).collect();
        let bad = |named| match GrantMapping::map(&calls, &GrantRequest { named, ..request(&grants) })
            .unwrap_err()
        {
            GrantMapError::Grants { failures, .. } => failures.iter().map(|one| one.index).collect(),
            _ => Vec::new(),
        };
        assert_eq!(bad(usize::MAX), (0..10).map(|hundred| 100 * hundred + 7).collect::<Vec<_>>());
        let tries = fake.tries();
        assert_eq!(bad(2), [7, 107]);
        assert!(fake.tries() - tries < 50, "{} tries", fake.tries() - tries);
    }

    #[test]
    fn a_page_that_is_not_there_for_the_moment_is_tried_again() {
        let (fake, calls) = granted();
        fake.take_away(grant(3, 9), 3);
        let grants = [grant(3, 8), grant(3, 9)];
        GrantMapping::map(&calls, &request(&grants)).unwrap();
        fake.take_away(grant(3, 9), u32::MAX);
        let request = GrantRequest { patience: Duration::ZERO, ..request(&grants) };
        let error = GrantMapping::map(&calls, &request).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::AGAIN));
        assert!(error.to_string().contains("1 of 2 grants"), "{error}");
        assert_eq!(fake.announced(), 0);
    }

    #[test]
    fn a_byte_to_be_cleared_lies_in_writable_pages() {
        let (_, calls) = granted();
        let map = |writable, offset| {
            let notify = UnmapNotify { clear_byte: Some(offset), port: None };
            GrantMapping::map(&calls, &GrantRequest { writable, notify, ..request(&[grant(3, 8)]) })
        };
        assert!(map(true, FRAME as u64 - 1).is_ok());
        for (writable, offset) in [(true, FRAME as u64), (false, 0)] {
            let error = map(writable, offset).unwrap_err();
            assert_eq!(error, GrantMapError::Notify { offset, pages: 1 });
        }
    }

    #[test]
    fn a_domain_that_must_not_be_mapped_is_refused() {
        let (fake, calls) = granted();
        fake.set_own(4);
        let error = GrantMapping::map(&calls, &request(&[grant(3, 8), grant(4, 8)])).unwrap_err();
        assert_eq!((error.clone(), error.errno()), (GrantMapError::Own { domain: 4 }, None));
        assert_eq!(fake.tries(), 0);
    }

    #[test]
    fn no_grants_are_refused() {
        let (_, calls) = granted();
        assert_eq!(GrantMapping::map(&calls, &request(&[])).unwrap_err(), GrantMapError::Count(0));
    }
}
