//! A ring of a guest that grants its memory: what is mapped when, and what a bad reference does.
#![allow(unsafe_code)] // a method that is unsafe to call

use std::{
    ptr::NonNull,
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::io::Errno;

use super::super::{
    layout::{INDIRECT, NEXT, WRITE},
    *,
};
use crate::{
    memory::{GRANT_ADDRESS, GrantCache, MapError},
    xen::{Grant, GrantCalls, GrantMapError, UnmapNotify, abi::gnttab::CopySegment, fake_grants::FakeGrants},
};

const DOMAIN: u16 = 7;
const SIZE: u16 = 8;
/// The page with the descriptors and the available ring, and that with the used ring.
const RING: u32 = 30;
const AVAILABLE: u64 = 0x400;
/// What the guest grants for reading; an indirect table; a buffer of two pages; nothing from there on.
const QUESTION: u32 = 40;
const TABLE: u32 = 41;
const ANSWER: u32 = 42;
const BAD: u32 = 44;
/// A buffer that is mapped, and not copied. (Here nothing can be copied, so what the device reads is mapped in any case.)
const LONG: u32 = 4164;

/// The fake, and the used index at each moment at which the device gave something back.
#[derive(Debug, Default)]
struct Watched {
    fake: FakeGrants,
    given_back: Mutex<Vec<(u32, u16)>>,
    batches: Mutex<Vec<(u64, u32)>>,
}

impl GrantCalls for Watched {
    fn announce(&self, grants: &[Grant]) -> Result<u64, Errno> {
        let index = self.fake.announce(grants)?;
        self.batches.lock().unwrap().push((index, grants[0].reference));
        Ok(index)
    }
    fn map(&self, index: u64, pages: usize, writable: bool) -> Result<NonNull<u8>, Errno> {
        self.fake.map(index, pages, writable)
    }
    fn forget(&self, index: u64, pages: usize) -> Result<(), Errno> {
        let first = self.batches.lock().unwrap().iter().find(|batch| batch.0 == index).unwrap().1;
        self.given_back.lock().unwrap().push((first, used_index(&self.fake)));
        self.fake.forget(index, pages)
    }
    fn notify_on_unmap(&self, index: u64, notify: UnmapNotify) -> Result<(), Errno> {
        self.fake.notify_on_unmap(index, notify)
    }
    unsafe fn copy(&self, _segments: &mut [CopySegment]) -> Result<(), Errno> {
        Err(Errno::NOSYS)
    }
}

fn grant(reference: u32) -> Grant {
    Grant { domain: DOMAIN, reference }
}

fn at(reference: u32, offset: u64) -> u64 {
    GRANT_ADDRESS | u64::from(reference) << 12 | offset
}

fn used_index(fake: &FakeGrants) -> u16 {
    u16::from_le_bytes(fake.read(grant(RING + 1), 2, 2).try_into().unwrap())
}

/// The guest's hand, and the device's queue.
struct Guest {
    calls: Arc<Watched>,
    cache: Arc<GrantCache>,
    queue: Arc<VirtQueue>,
    next: u16,
}

fn config(ring: u32) -> RingConfig {
    let features = RingFeatures { indirect: true, ..RingFeatures::default() };
    let (descriptors, available, used) = (at(ring, 0), at(ring, AVAILABLE), at(ring + 1, 0));
    RingConfig { size: SIZE, descriptors, available, used, next_available: 0, features, in_turn: false }
}

impl Guest {
    fn new() -> Self {
        let calls = Arc::new(Watched::default());
        for (reference, writable) in [
            (RING, true),
            (RING + 1, true),
            (QUESTION, false),
            (TABLE, false),
            (ANSWER, true),
            (ANSWER + 1, true),
        ] {
            calls.fake.grant(grant(reference), writable);
        }
        let cache = GrantCache::new(Arc::clone(&calls) as Arc<dyn GrantCalls>, DOMAIN, Duration::ZERO);
        Self { calls, cache, queue: Arc::new(VirtQueue::new(0, 256)), next: 0 }
    }

    fn start(self) -> Self {
        self.queue.start(&config(RING), &self.cache.memory().unwrap()).unwrap();
        self
    }

    fn table(&self, page: u32, buffers: &[(u64, u32, u16)]) {
        for (index, &(address, len, flags)) in buffers.iter().enumerate() {
            let more = if index + 1 < buffers.len() { NEXT } else { 0 };
            let mut descriptor = address.to_le_bytes().to_vec();
            descriptor.extend(len.to_le_bytes());
            descriptor.extend((flags | more).to_le_bytes());
            descriptor.extend((index as u16 + 1).to_le_bytes());
            self.calls.fake.write(grant(page), 16 * index as u64, &descriptor);
        }
    }

    /// Makes a chain of these descriptors available, from the first on.
    fn chain(&mut self, buffers: &[(u64, u32, u16)]) {
        self.table(RING, buffers);
        let slot = u64::from(self.next % SIZE);
        self.calls.fake.write(grant(RING), AVAILABLE + 4 + 2 * slot, &[0, 0]);
        self.next += 1;
        self.calls.fake.write(grant(RING), AVAILABLE + 2, &self.next.to_le_bytes());
    }

    fn given_back(&self) -> Vec<(u32, u16)> {
        std::mem::take(&mut *self.calls.given_back.lock().unwrap())
    }
}

#[test]
fn buffers_are_mapped_as_they_are_granted_and_given_back_before_the_used_index() {
    let mut guest = Guest::new().start();
    assert_eq!(guest.cache.mapped_pages(), 2, "the ring's two pages, of which one has two parts");
    guest.calls.fake.write(grant(QUESTION), 5, b"question");
    guest.chain(&[(at(QUESTION, 5), 8, 0), (at(ANSWER, 8192 - u64::from(LONG)), LONG, WRITE)]);
    let mut chain = guest.queue.pop().unwrap().unwrap();
    assert_eq!(guest.cache.mapped_pages(), 2 + 1 + 2);
    let maps = guest.calls.fake.maps();
    assert_eq!(maps[maps.len() - 2..], [(vec![QUESTION], false), (vec![ANSWER, ANSWER + 1], true)]);
    let mut question = [0; 8];
    chain.read(&mut question).unwrap();
    chain.write(&[0; 64]).unwrap();
    chain.write(b"answered").unwrap();
    assert_eq!((&question, guest.given_back()), (b"question", vec![]));
    chain.complete(None).unwrap();
    assert_eq!((used_index(&guest.calls.fake), guest.given_back()), (1, vec![(QUESTION, 0), (ANSWER, 0)]));
    assert_eq!(guest.calls.fake.read(grant(ANSWER + 1), 0, 4), b"ered");
    assert_eq!(guest.cache.mapped_pages(), 2, "the ring is mapped still");
    let maps = guest.calls.fake.maps().len();
    guest.chain(&[(at(ANSWER, 0), LONG, WRITE)]);
    guest.queue.pop_batch(8, BatchLayout::default()).unwrap().unwrap().complete().unwrap();
    assert_eq!(guest.calls.fake.maps().len(), maps + 1, "one more chain, one more buffer");
    assert_eq!(guest.given_back(), [(ANSWER, 1)]);
}

#[test]
fn a_stopped_queue_has_nothing_mapped_kept_chains_included() {
    let mut guest = Guest::new().start();
    guest.chain(&[(at(ANSWER, 0), LONG, WRITE)]);
    let mut kept = guest.queue.pop().unwrap().unwrap();
    guest.queue.stop();
    assert_eq!((guest.calls.fake.announced(), guest.cache.mapped_pages()), (0, 0));
    assert!(matches!(kept.write(b"late"), Err(ChainError::Stale { .. })));
    let guest = guest.start();
    assert_eq!(guest.cache.mapped_pages(), 2, "started anew");
}

#[test]
fn an_indirect_table_is_mapped_with_its_chain() {
    let mut guest = Guest::new().start();
    guest.table(TABLE, &[(at(QUESTION, 0), 4, 0), (at(ANSWER, 0), LONG, WRITE)]);
    guest.chain(&[(at(TABLE, 0), 32, INDIRECT)]);
    let mut chain = guest.queue.pop().unwrap().unwrap();
    assert_eq!(guest.cache.mapped_pages(), 2 + 2 + 2);
    chain.complete(None).unwrap();
    assert_eq!(guest.cache.mapped_pages(), 2);
}

#[test]
fn a_bad_reference_in_a_descriptor_is_named_and_fails_its_queue_alone() {
    let named = |buffer: (u64, u32, u16)| {
        let mut guest = Guest::new().start();
        guest.chain(&[(at(QUESTION, 0), 4, 0), buffer]);
        let error = guest.queue.pop().unwrap_err();
        assert_eq!(guest.queue.state(), QueueState::Failed(error.clone()));
        assert_eq!(guest.cache.mapped_pages(), 2, "nothing of the chain stays mapped");
        guest.queue.stop();
        assert_eq!(guest.calls.fake.announced(), 0);
        let text = error.to_string();
        let RingError::Unreachable { source, .. } = error else { panic!("{error}") };
        let MapError::Grant(GrantMapError::Grants { failures, .. }) = *source else { panic!("{text}") };
        (failures[0].grant.reference, text)
    };
    let (reference, text) = named((at(ANSWER, 0), 3 * 4096, WRITE));
    assert_eq!(reference, BAD);
    assert!(
        text.contains("1 of 3 grants could not be mapped; the first is reference 44 of domain 7"),
        "{text}"
    );
    let (reference, text) = named((at(QUESTION, 0), LONG, WRITE));
    assert_eq!(reference, QUESTION);
    assert!(text.ends_with("it is granted for reading only"), "{text}");
    named((at(u32::MAX, 0), 1, 0));
    named((at(BAD, 0), 32, INDIRECT));
}

#[test]
fn a_buffer_longer_than_all_that_is_granted_costs_few_tries() {
    let mut guest = Guest::new().start();
    guest.chain(&[(at(ANSWER, 0), u32::MAX, WRITE)]);
    let tries = guest.calls.fake.tries();
    guest.queue.pop().unwrap_err();
    assert!(guest.calls.fake.tries() - tries < 100, "{} tries", guest.calls.fake.tries() - tries);
}

#[test]
fn a_ring_at_a_bad_reference_does_not_start() {
    let guest = Guest::new();
    let error = guest.queue.start(&config(RING + 1), &guest.cache.memory().unwrap()).unwrap_err();
    assert_eq!(error.rule(), "unreachable");
    assert_eq!(guest.calls.fake.announced(), 0);
}
