//! Short granted buffers: the hypervisor copies them, which costs less than to map and to unmap.
//!
//! What the device reads is copied when the chain is taken. What it writes goes to ordinary memory first, zeroes before, and is
//! copied to the guest when the chain is completed, before the used index is written; all of it, because a driver assumes nothing of
//! what lies behind the used length (virtio 1.3, section 2.7.8.2). A reference that turns out to be bad is an error of who completes.
//!
//! # Safety
//! A lease points into the copies, which it holds. They are words with interior mutability, and are accessed by raw pointers alone.
#![allow(unsafe_code)]

use std::{
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::{
    backing::{Access, Backing, Hold, Lease},
    copy::{Source, copy_to_guest},
    error::MemoryError,
    grant_cache::{GRANT_ADDRESS, GrantCache},
};
use crate::xen::copy_ranges;

/// How many bytes of a request are copied, at most, those that are read and those that are written: a page, and a header.
pub(super) const MOST_BYTES: u64 = 4096 + 64;

/// What each range is aligned to: a table of descriptors is loaded by words.
const ALIGN: u64 = size_of::<u64>() as u64;

/// Copies of the ranges of one request, one behind the other.
#[derive(Debug)]
struct Copies {
    words: Box<[AtomicU64]>,
    cache: Arc<GrantCache>,
    /// Offset and length of each, in all that the domain can grant.
    ranges: Vec<(u64, u64)>,
    /// Nothing is to be copied to the guest, any more.
    settled: AtomicBool,
}

impl Copies {
    fn base(&self) -> Option<NonNull<u8>> {
        NonNull::new(self.words.as_ptr().cast_mut().cast())
    }

    /// The ranges, each with its place in the copies.
    fn places(&self) -> impl Iterator<Item = (u64, u64, u64)> {
        self.ranges.iter().scan(0, |next, &(offset, len)| {
            let at = *next;
            *next += len.next_multiple_of(ALIGN);
            Some((offset, len, at))
        })
    }

    fn copy(&self, access: Access) -> bool {
        let Some(base) = self.base() else { return false };
        let (calls, domain) = (self.cache.calls(), self.cache.domain());
        // SAFETY: the words have room for all ranges; they are read into before anybody has a lease.
        unsafe { copy_ranges(calls, domain, &self.ranges, base, ALIGN, access) }
    }

    /// By mapping: it waits for pages that are not there, and says what is wrong with a reference.
    fn write_by_mapping(&self) -> Result<(), MemoryError> {
        let Some(base) = self.base() else { return Ok(()) };
        for (offset, len, at) in self.places() {
            let mapped = Arc::clone(&self.cache).lease(offset, len, Access::Write);
            let address = GRANT_ADDRESS | offset;
            let mapped = mapped.map_err(|source| MemoryError::Unreachable { address, len, source })?;
            // SAFETY: the range lies in the words, and the lease was made for as many bytes, to write.
            unsafe { copy_to_guest(mapped.base(), Source::from_raw(base.add(at as usize), len as usize)) };
        }
        Ok(())
    }
}

impl Hold for Copies {
    fn poisoned(&self) -> bool {
        false
    }

    fn settle(&self) -> Result<(), MemoryError> {
        if self.settled.swap(true, Ordering::AcqRel) || self.copy(Access::Write) {
            return Ok(());
        }
        self.write_by_mapping()
    }
}

/// Copies of short ranges of a domain's grants, offset and length of each; None where they are not short or cannot be copied, for
/// whatever reason: mapping them tells it.
pub(super) fn copies(cache: &Arc<GrantCache>, ranges: &[(u64, u64)], access: Access) -> Option<Vec<Lease>> {
    let bytes = ranges.iter().try_fold(0u64, |sum, &(_, len)| sum.checked_add(len))?;
    if bytes > MOST_BYTES {
        return None;
    }
    let room = ranges.iter().map(|(_, len)| len.next_multiple_of(ALIGN)).sum::<u64>();
    let copies = Arc::new(Copies {
        words: (0..room / ALIGN).map(|_| AtomicU64::new(0)).collect(),
        cache: Arc::clone(cache),
        ranges: ranges.to_vec(),
        settled: AtomicBool::new(access == Access::Read),
    });
    if access == Access::Read && !copies.copy(Access::Read) {
        return None;
    }
    let base = copies.base()?;
    let leases = copies.places().map(|(_, len, at)| {
        // SAFETY: the range lies in the words, which the lease holds.
        unsafe { Lease::new(base.add(at as usize), len, Arc::clone(&copies) as Arc<dyn Hold>) }
    });
    Some(leases.collect())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        memory::GuestMemory,
        ring::{ChainError, RingConfig, RingError, RingFeatures, VirtQueue},
        xen::{Grant, GrantCalls, fake_grants::FakeGrants},
    };

    const DOMAIN: u16 = 7;
    const DESCRIPTORS: u32 = 10;
    const AVAILABLE: u32 = 11;
    const USED: u32 = 12;
    const HEADER: u32 = 20;
    const DATA: u32 = 21;
    const SIZE: u16 = 8;
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;

    fn grant(reference: u32) -> Grant {
        Grant { domain: DOMAIN, reference }
    }

    /// A ring in granted pages, and the buffers of one chain.
    struct Driver(Arc<FakeGrants>, Arc<GrantCache>);

    impl Driver {
        fn new(data_writable: bool) -> Self {
            let fake = Arc::new(FakeGrants::default());
            [DESCRIPTORS, AVAILABLE, USED, HEADER].iter().for_each(|&page| fake.grant(grant(page), true));
            [DATA, DATA + 1, DATA + 2].iter().for_each(|&page| fake.grant(grant(page), data_writable));
            let cache = GrantCache::new(Arc::clone(&fake) as Arc<dyn GrantCalls>, DOMAIN, Duration::ZERO);
            Self(fake, cache)
        }

        /// Offers a chain of buffers: reference, offset in its page, length, flags.
        fn offer(&self, buffers: &[(u32, u64, u32, u16)]) {
            for (index, &(reference, offset, len, flags)) in buffers.iter().enumerate() {
                let last = index + 1 == buffers.len();
                let mut descriptor = Vec::new();
                descriptor.extend((GRANT_ADDRESS | u64::from(reference) << 12 | offset).to_le_bytes());
                descriptor.extend(len.to_le_bytes());
                descriptor.extend((flags | if last { 0 } else { NEXT }).to_le_bytes());
                descriptor.extend((index as u16 + 1).to_le_bytes());
                self.0.write(grant(DESCRIPTORS), 16 * index as u64, &descriptor);
            }
            self.0.write(grant(AVAILABLE), 0, &[0, 0, 1, 0, 0, 0]);
        }

        fn queue(&self) -> Arc<VirtQueue> {
            let [descriptors, available, used] =
                [DESCRIPTORS, AVAILABLE, USED].map(|page| GRANT_ADDRESS | u64::from(page) << 12);
            let features =
                RingFeatures { event_idx: false, indirect: false, in_order: false, notify_on_empty: false };
            let config = RingConfig {
                size: SIZE,
                descriptors,
                available,
                used,
                next_available: 0,
                features,
                in_turn: false,
            };
            let queue = Arc::new(VirtQueue::new(0, SIZE));
            let memory: GuestMemory = self.1.memory().unwrap();
            queue.start(&config, &memory).unwrap();
            queue
        }

        fn used_index(&self) -> Vec<u8> {
            self.0.read(grant(USED), 2, 2)
        }
    }

    #[test]
    fn short_buffers_are_copied_and_reach_the_guest_before_the_used_index() {
        let driver = Driver::new(true);
        driver.0.write(grant(HEADER), 100, b"what is asked");
        driver.offer(&[(HEADER, 100, 13, 0), (DATA, 4090, 4096, WRITE), (HEADER, 300, 1, WRITE)]);
        let queue = driver.queue();
        let ring = driver.0.maps().len();
        let mut chain = queue.pop().unwrap().unwrap();
        let mut asked = [0; 13];
        chain.read(&mut asked).unwrap();
        assert_eq!(&asked, b"what is asked");
        chain.write(&[7; 4096]).unwrap();
        chain.write(&[9]).unwrap();
        assert_eq!((driver.0.read(grant(DATA), 4090, 1), driver.used_index()), (vec![0], vec![0, 0]));
        chain.complete(None).unwrap();
        assert_eq!(driver.used_index(), [1, 0]);
        assert_eq!(driver.0.read(grant(DATA), 4089, 3), [0, 7, 7]);
        assert_eq!(driver.0.read(grant(DATA + 1), 4089, 2), [7, 0]);
        assert_eq!(driver.0.read(grant(HEADER), 299, 3), [0, 9, 0]);
        assert_eq!(driver.0.maps().len(), ring, "nothing was mapped but the ring");
    }

    #[test]
    fn longer_buffers_of_a_chain_are_mapped_together_and_given_back_with_it() {
        let driver = Driver::new(true);
        driver.offer(&[(DATA, 0, 4096, WRITE), (DATA + 1, 8, 4088, WRITE), (DATA + 2, 0, 64, WRITE)]);
        let queue = driver.queue();
        let ring = (driver.0.maps().len(), driver.1.mapped_pages());
        let mut chain = queue.pop().unwrap().unwrap();
        assert_eq!(driver.0.maps()[ring.0..], [(vec![DATA, DATA + 1, DATA + 2], true)]);
        chain.write(&[5; 8248]).unwrap();
        chain.complete(None).unwrap();
        assert_eq!(driver.1.mapped_pages(), ring.1);
        assert_eq!(driver.0.read(grant(DATA + 1), 7, 2), [0, 5]);
        assert_eq!(driver.0.read(grant(DATA + 2), 63, 2), [5, 0]);
    }

    #[test]
    fn a_reference_that_cannot_be_written_stops_the_queue_when_its_chain_is_completed() {
        let driver = Driver::new(false);
        driver.offer(&[(DATA, 0, 64, WRITE)]);
        let queue = driver.queue();
        let mut chain = queue.pop().unwrap().unwrap();
        chain.write(&[1; 64]).unwrap();
        assert_eq!(chain.complete(None), Err(ChainError::Fault { head: 0 }));
        assert_eq!(driver.used_index(), [0, 0]);
        let error = queue.pop().unwrap_err();
        let RingError::Unreachable { address, len: 64, .. } = error else { panic!("{error}") };
        assert_eq!(address, GRANT_ADDRESS | u64::from(DATA) << 12);
    }

    #[test]
    fn a_reference_that_cannot_be_read_stops_the_queue_when_its_chain_is_taken() {
        let driver = Driver::new(true);
        driver.offer(&[(HEADER, 0, 16, 0), (77, 0, 16, 0)]);
        let error = driver.queue().pop().unwrap_err();
        assert!(error.to_string().contains("reference 77 of domain 7"), "{error}");
    }

    #[test]
    fn a_chain_that_is_dropped_leaves_the_guests_memory_alone() {
        let driver = Driver::new(true);
        driver.offer(&[(DATA, 0, 64, WRITE)]);
        let queue = driver.queue();
        let mut chain = queue.pop().unwrap().unwrap();
        chain.write(&[1; 64]).unwrap();
        drop(chain);
        queue.stop();
        assert_eq!(driver.0.read(grant(DATA), 0, 64), [0; 64]);
    }
}
