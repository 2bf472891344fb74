//! Each rule that the other side can break, broken once; and what is legal though it looks odd.
#![allow(unsafe_code)] // fork

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
};

use super::super::{test_guest::*, *};
use crate::memory::{MapError, on_demand::on_demand};

/// No feature but INDIRECT.
const INDIRECT_ONLY: RingFeatures =
    RingFeatures { event_idx: false, indirect: true, in_order: false, notify_on_empty: false };
const IN_ORDER: RingFeatures =
    RingFeatures { event_idx: false, indirect: true, in_order: true, notify_on_empty: false };
const PLAIN: RingFeatures =
    RingFeatures { event_idx: false, indirect: false, in_order: false, notify_on_empty: false };

fn started(features: RingFeatures) -> (TestGuest, Arc<VirtQueue>) {
    let guest = TestGuest::new(8, features);
    let queue = Arc::new(VirtQueue::new(0, 256));
    queue.start(&guest.config, &guest.memory).unwrap();
    (guest, queue)
}

/// What starting a ring says.
fn start(change: impl FnOnce(&mut TestGuest)) -> RingError {
    let mut guest = TestGuest::new(8, PLAIN);
    change(&mut guest);
    let queue = Arc::new(VirtQueue::new(0, 256));
    let error = queue.start(&guest.config, &guest.memory).unwrap_err();
    assert_eq!(queue.state(), QueueState::Failed(error.clone()));
    error
}

/// What taking a chain says. By batch it says the same, and both say it again.
fn pop(features: RingFeatures, program: impl Fn(&mut TestGuest)) -> RingError {
    let (mut guest, queue) = started(features);
    program(&mut guest);
    let error = queue.pop().unwrap_err();
    assert_eq!(queue.pop().unwrap_err(), error);
    assert_eq!(queue.counters().errors, 1);
    let (mut guest, queue) = started(features);
    program(&mut guest);
    assert_eq!(queue.pop_batch(1, BatchLayout::default()).unwrap_err(), error);
    assert!(matches!(queue.pop_batch(1, BatchLayout::default()), Err(again) if again == error));
    error
}

/// What taking a chain with a header of 4 and a trailer of 2 bytes says.
fn pop_batch(buffers: &[(u64, u32, u16)]) -> RingError {
    let (mut guest, queue) = started(PLAIN);
    guest.chain(0, buffers);
    queue.pop_batch(8, BatchLayout { header: 4, trailer: 2 }).unwrap_err()
}

/// What a driver says of what the device wrote, after it lent one chain of 8 writable bytes.
fn poll(index: u16, id: u32) -> RingError {
    let guest = TestGuest::new(8, PLAIN);
    let mut driver = DriverRing::new(&guest.config, &guest.memory).unwrap();
    driver.add(&[], &[Buffer { address: DATA, len: 8 }], None).unwrap().unwrap();
    driver.publish();
    guest.put(USED + 4, &id.to_le_bytes());
    guest.word(USED + 2).store(index, Ordering::Release);
    let error = driver.poll(&mut Vec::new()).unwrap_err();
    assert_eq!(driver.poll(&mut Vec::new()), Err(error.clone()));
    error
}

fn truncated() -> RingError {
    let (fd, mapped) = crate::memory::MappedMemory::memfd(0x20000).unwrap();
    let memory = GuestMemory::new(vec![crate::memory::Region::new(0, 0, Arc::new(mapped))]).unwrap();
    let queue = Arc::new(VirtQueue::new(0, 256));
    let config = RingConfig {
        size: 8,
        descriptors: DESCRIPTORS,
        available: AVAILABLE,
        used: USED,
        next_available: 0,
        features: PLAIN,
        in_turn: false,
    };
    queue.start(&config, &memory).unwrap();
    rustix::fs::ftruncate(&fd, 0).unwrap();
    queue.pop().unwrap_err()
}

fn device_failed() -> RingError {
    let (_guest, queue) = started(PLAIN);
    queue.fail(RingError::DeviceFailed);
    queue.pop().unwrap_err()
}

/// What a child says that was forked from the process with the queue.
fn forked() -> RingError {
    let (mut guest, queue) = started(PLAIN);
    guest.chain(0, &[(DATA, 4, 0)]);
    // SAFETY: the child takes no lock that another thread may have held, and ends by itself.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::_exit(if queue.pop().err() == Some(RingError::Forked) { 0 } else { 1 });
        }
        let mut status = -1;
        assert_eq!((libc::waitpid(child, &mut status, 0), status), (child, 0));
    }
    RingError::Forked
}

/// Each rule, as it is broken, and what is said then.
fn broken() -> Vec<(RingError, RingError)> {
    let head = 0;
    vec![
        (start(|guest| guest.config.size = 0), RingError::QueueSize { size: 0, max: 32768 }),
        (start(|guest| guest.config.size = 6), RingError::QueueSize { size: 6, max: 32768 }),
        (start(|guest| guest.config.size = 512), RingError::QueueSize { size: 512, max: 256 }),
        (
            start(|guest| guest.config.descriptors += 8),
            RingError::RingAlignment { part: RingPart::Descriptors, address: DESCRIPTORS + 8, align: 16 },
        ),
        (
            start(|guest| guest.config.available += 1),
            RingError::RingAlignment { part: RingPart::Available, address: AVAILABLE + 1, align: 2 },
        ),
        (
            start(|guest| guest.config.used += 2),
            RingError::RingAlignment { part: RingPart::Used, address: USED + 2, align: 4 },
        ),
        (
            start(|guest| guest.config.descriptors = SEAM - 16),
            RingError::RingAddress { part: RingPart::Descriptors, address: SEAM - 16, len: 128 },
        ),
        (
            start(|guest| guest.config.available = u64::MAX - 1),
            RingError::RingAddress { part: RingPart::Available, address: u64::MAX - 1, len: 20 },
        ),
        (
            start(|guest| guest.config.used = HOLE),
            RingError::RingAddress { part: RingPart::Used, address: HOLE, len: 68 },
        ),
        (start(|guest| guest.config.used = READ_ONLY), RingError::RingReadOnly { address: READ_ONLY }),
        (
            start(|guest| guest.config.next_available = 9),
            RingError::ResumeIndex { next: 9, used: 0, size: 8 },
        ),
        (
            {
                let (mut guest, queue) = started(PLAIN);
                (0..2).for_each(|head| guest.chain(head, &[(DATA, 4, 0)]));
                let kept = queue.pop().unwrap().unwrap();
                queue.pop().unwrap().unwrap().complete(None).unwrap();
                drop(kept);
                guest.config.resume_index(&guest.memory).unwrap_err()
            },
            RingError::OutOfOrder { used: 1 },
        ),
        (
            pop(PLAIN, |guest| guest.word(AVAILABLE + 2).store(9, Ordering::Release)),
            RingError::AvailableIndex { index: 9, seen: 0, limit: 8 },
        ),
        (
            pop(PLAIN, |guest| guest.word(AVAILABLE + 2).store(u16::MAX, Ordering::Release)),
            RingError::AvailableIndex { index: u16::MAX, seen: 0, limit: 8 },
        ),
        (
            {
                let (mut guest, queue) = started(PLAIN);
                (0..3).for_each(|head| guest.chain(head, &[(DATA, 4, 0)]));
                let kept = queue.pop().unwrap().unwrap();
                guest.word(AVAILABLE + 2).store(2, Ordering::Release);
                queue.kicked();
                let error = queue.pop().unwrap_err();
                drop(kept);
                error
            },
            RingError::AvailableIndex { index: 2, seen: 3, limit: 9 },
        ),
        (pop(PLAIN, |guest| guest.publish(8)), RingError::HeadIndex { head: 8, size: 8 }),
        (
            {
                let (mut guest, queue) = started(PLAIN);
                guest.chain(3, &[(DATA, 4, 0)]);
                guest.publish(3);
                let kept = queue.pop().unwrap().unwrap();
                let error = queue.pop().unwrap_err();
                drop(kept);
                error
            },
            RingError::HeadInFlight { head: 3 },
        ),
        (
            pop(PLAIN, |guest| {
                guest.descriptor(DESCRIPTORS, 0, DATA, 4, NEXT, 8);
                guest.publish(0);
            }),
            RingError::NextIndex { head, next: 8, entries: 8 },
        ),
        (
            pop(INDIRECT_ONLY, |guest| {
                guest.descriptor(TABLE, 0, DATA, 4, NEXT, 2);
                guest.chain(0, &[(TABLE, 32, INDIRECT)]);
            }),
            RingError::NextIndex { head, next: 2, entries: 2 },
        ),
        (
            pop(PLAIN, |guest| {
                guest.descriptor(DESCRIPTORS, 0, DATA, 4, NEXT, 0);
                guest.publish(0);
            }),
            RingError::ChainLength { head, limit: 8 },
        ),
        (
            pop(INDIRECT_ONLY, |guest| {
                guest.descriptor(TABLE, 0, DATA, 4, NEXT, 1);
                guest.descriptor(TABLE, 1, DATA, 4, NEXT, 0);
                guest.chain(0, &[(TABLE, 32, INDIRECT)]);
            }),
            RingError::ChainLength { head, limit: 2 },
        ),
        (
            // 2^32 + 1 bytes in four buffers, all of length 2^30 but for the last.
            huge(1),
            RingError::ChainBytes { head, bytes: (1 << 32) + 1 },
        ),
        (
            pop(PLAIN, |guest| guest.chain(0, &[(DATA, 4, 0), (DATA, 4, WRITE), (DATA, 0, 0)])),
            RingError::ReadableAfterWritable { head, descriptor: 2 },
        ),
        (
            pop(INDIRECT_ONLY, |guest| {
                guest.table(TABLE, 0, &[(DATA, 4, 0)]);
                guest.chain(0, &[(DATA, 4, WRITE), (TABLE, 16, INDIRECT)]);
            }),
            RingError::ReadableAfterWritable { head, descriptor: 0 },
        ),
        (
            pop(PLAIN, |guest| guest.chain(0, &[(HOLE - 4, 5, 0)])),
            RingError::BufferAddress { head, address: HOLE - 4, len: 5 },
        ),
        (
            pop(PLAIN, |guest| guest.chain(0, &[(HOLE, 1, WRITE)])),
            RingError::BufferAddress { head, address: HOLE, len: 1 },
        ),
        (
            pop(PLAIN, |guest| guest.chain(0, &[(u64::MAX, 2, 0)])),
            RingError::BufferAddress { head, address: u64::MAX, len: 2 },
        ),
        (
            on_demand_refused(),
            RingError::Unreachable { address: SEAM - 4, len: 4, source: Box::new(MapError::Length(4)) },
        ),
        (
            pop(PLAIN, |guest| guest.chain(0, &[(READ_ONLY, 4, WRITE)])),
            RingError::BufferReadOnly { head, address: READ_ONLY, len: 4 },
        ),
        (
            pop(PLAIN, |guest| guest.chain(0, &[(DATA, 4, 0), (TABLE, 16, INDIRECT)])),
            RingError::IndirectNotNegotiated { head, descriptor: 1 },
        ),
        (
            pop(INDIRECT_ONLY, |guest| {
                guest.table(TABLE, 0, &[(TABLE, 16, INDIRECT)]);
                guest.chain(0, &[(TABLE, 16, INDIRECT)]);
            }),
            RingError::IndirectNested { head, descriptor: 0 },
        ),
        (
            pop(INDIRECT_ONLY, |guest| {
                guest.table(TABLE, 0, &[(DATA, 4, 0)]);
                guest.chain(0, &[(TABLE, 16, INDIRECT), (DATA, 4, 0)]);
            }),
            RingError::IndirectWithNext { head, descriptor: 0 },
        ),
        (
            pop(INDIRECT_ONLY, |guest| guest.chain(0, &[(TABLE, 0, INDIRECT)])),
            RingError::IndirectLength { head, len: 0 },
        ),
        (
            pop(INDIRECT_ONLY, |guest| guest.chain(0, &[(TABLE, 24, INDIRECT)])),
            RingError::IndirectLength { head, len: 24 },
        ),
        (
            pop(INDIRECT_ONLY, |guest| guest.chain(0, &[(HOLE, 16, INDIRECT)])),
            RingError::IndirectAddress { head, address: HOLE, len: 16 },
        ),
        (
            pop(IN_ORDER, |guest| {
                guest.descriptor(DESCRIPTORS, 0, DATA, 4, NEXT, 2);
                guest.descriptor(DESCRIPTORS, 2, DATA, 4, 0, 0);
                guest.publish(0);
            }),
            RingError::InOrderNext { descriptor: 0, next: 2, expected: 1 },
        ),
        (
            pop_batch(&[(DATA, 3, 0), (DATA, 2, WRITE)]),
            RingError::ChainHeader { head, readable: 3, header: 4 },
        ),
        (
            pop_batch(&[(DATA, 4, 0), (DATA, 1, WRITE)]),
            RingError::ChainTrailer { head, writable: 1, trailer: 2 },
        ),
        (truncated(), RingError::MemoryFault),
        (forked(), RingError::Forked),
        (device_failed(), RingError::DeviceFailed),
        (poll(2, 0), RingError::UsedIndex { index: 2, next: 0, outstanding: 1 }),
        (poll(1, 1), RingError::UsedId { id: 1 }),
        (poll(1, 0x1_0000), RingError::UsedId { id: 0x1_0000 }),
    ]
}

/// Memory that is mapped for each chain, of which the test's refuses the last bytes of a region to a writer.
fn on_demand_refused() -> RingError {
    let mut guest = TestGuest::new(8, PLAIN);
    guest.chain(0, &[(SEAM - 4, 4, WRITE)]);
    let queue = Arc::new(VirtQueue::new(0, 256));
    queue.start(&guest.config, &on_demand(&guest.memory).0).unwrap();
    queue.pop().unwrap_err()
}

/// A chain of 2^32 bytes and some more, in memory of which nothing is ever touched.
fn huge_chain(more: u32) -> (TestGuest, Arc<VirtQueue>) {
    let mut guest = TestGuest::new(8, PLAIN);
    let mut regions = guest.memory.regions().to_vec();
    regions.push(region(1 << 32, 1 << 30, true));
    guest.memory = GuestMemory::new(regions).unwrap();
    let quarter = (1 << 32, 1 << 30, WRITE);
    guest.chain(0, &[quarter, quarter, quarter, quarter, (1 << 32, more, WRITE)]);
    let queue = Arc::new(VirtQueue::new(0, 256));
    queue.start(&guest.config, &guest.memory).unwrap();
    (guest, queue)
}

fn huge(more: u32) -> RingError {
    huge_chain(more).1.pop().unwrap_err()
}

#[test]
fn each_broken_rule_is_named_with_its_values() {
    let broken = broken();
    for (said, expected) in &broken {
        assert_eq!(said, expected);
        assert!(!said.to_string().is_empty());
    }
    let rules: BTreeSet<_> = broken.iter().map(|(said, _)| said.rule()).collect();
    assert_eq!(rules, BTreeSet::from(RULES), "a rule without a program that breaks it");
}

#[test]
fn buffers_of_no_bytes_are_legal_anywhere() {
    let (mut guest, queue) = started(PLAIN);
    guest.chain(0, &[(HOLE, 0, 0), (DATA, 4, 0), (u64::MAX, 0, WRITE)]);
    guest.chain(3, &[(0, 0, 0)]);
    let mut first = queue.pop().unwrap().unwrap();
    assert_eq!((first.readable(), first.writable()), (4, 0));
    first.complete(None).unwrap();
    let mut second = queue.pop().unwrap().unwrap();
    assert_eq!((second.readable(), second.writable()), (0, 0));
    second.complete(None).unwrap();
    assert_eq!((guest.used(0), guest.used(1)), ((0, 0), (3, 0)));
}

#[test]
fn unknown_flags_are_ignored() {
    let (mut guest, queue) = started(PLAIN);
    guest.chain(0, &[(DATA, 4, 0xFFF0), (DATA, 4, 0xFFF0 | WRITE)]);
    let chain = queue.pop().unwrap().unwrap();
    assert_eq!((chain.readable(), chain.writable()), (4, 4));
}

#[test]
fn an_indirect_table_may_be_of_any_length_and_lie_anywhere() {
    let (mut guest, queue) = started(INDIRECT_ONLY);
    // Longer than the queue, unaligned, and not a power of two.
    let table = TABLE + 3;
    let buffers: Vec<_> =
        (0..21).map(|index| (DATA + index, 1, if index < 11 { 0 } else { WRITE })).collect();
    for (index, &(address, len, flags)) in (0u16..).zip(&buffers) {
        let (more, next) = if index == 20 { (0, 7) } else { (NEXT, index + 1) };
        guest.descriptor(table, index, address, len, flags | more, next);
    }
    guest.put(DATA, b"hello world");
    guest.chain(0, &[(table, 21 * 16, INDIRECT)]);
    let mut chain = queue.pop().unwrap().unwrap();
    assert_eq!((chain.readable(), chain.writable()), (11, 10));
    let mut bytes = [0; 11];
    chain.read(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello world");
}

#[test]
fn an_indirect_table_may_cross_regions_that_touch() {
    let (mut guest, queue) = started(INDIRECT_ONLY);
    let mut table = Vec::new();
    for (index, flags) in [(0u16, NEXT), (1, NEXT | WRITE), (2, WRITE)] {
        table.extend((DATA + 8 * u64::from(index)).to_le_bytes());
        table.extend(8u32.to_le_bytes());
        table.extend(flags.to_le_bytes());
        table.extend((index + 1).to_le_bytes());
    }
    guest.put(SEAM - 20, &table[..20]);
    guest.put(SEAM, &table[20..]);
    guest.chain(0, &[(SEAM - 20, 48, INDIRECT)]);
    let chain = queue.pop().unwrap().unwrap();
    assert_eq!((chain.readable(), chain.writable()), (8, 16));
}

#[test]
fn an_indirect_table_may_have_more_entries_than_an_index_can_name() {
    let mut guest = TestGuest::new(8, INDIRECT_ONLY);
    let mut regions = guest.memory.regions().to_vec();
    regions.push(region(1 << 32, 1 << 20, true));
    guest.memory = GuestMemory::new(regions).unwrap();
    guest.descriptor(1 << 32, 0, DATA, 4, NEXT, u16::MAX);
    guest.descriptor(1 << 32, u16::MAX, DATA, 4, WRITE, 0);
    guest.chain(0, &[(1 << 32, 1 << 20, INDIRECT)]);
    let queue = Arc::new(VirtQueue::new(0, 256));
    queue.start(&guest.config, &guest.memory).unwrap();
    let chain = queue.pop().unwrap().unwrap();
    assert_eq!((chain.readable(), chain.writable()), (4, 4));
}

#[test]
fn a_chain_may_have_2_to_the_32_bytes_and_claims_one_less() {
    let (guest, queue) = huge_chain(0);
    let mut chain = queue.pop().unwrap().unwrap();
    assert_eq!(chain.writable(), 1 << 32);
    chain.complete(Some(1 << 32)).unwrap();
    assert_eq!(guest.used(0), (0, u32::MAX));
}

#[test]
fn a_buffer_may_go_on_in_the_region_that_touches() {
    let (mut guest, queue) = started(PLAIN);
    guest.put(SEAM - 3, b"abc");
    guest.put(SEAM, b"defgh");
    guest.chain(0, &[(SEAM - 3, 8, 0), (SEAM - 1, 2, WRITE)]);
    let mut chain = queue.pop().unwrap().unwrap();
    let mut bytes = [0; 8];
    chain.read(&mut bytes).unwrap();
    assert_eq!(&bytes, b"abcdefgh");
    chain.write(b"XY").unwrap();
    assert_eq!((guest.get(SEAM - 1, 1), guest.get(SEAM, 1)), (b"X".to_vec(), b"Y".to_vec()));
}

#[test]
fn with_in_order_a_chain_may_wrap_around_the_table() {
    let (mut guest, queue) = started(IN_ORDER);
    guest.table(DESCRIPTORS, 7, &[(DATA, 1, 0)]);
    guest.descriptor(DESCRIPTORS, 7, DATA, 1, NEXT, 0);
    guest.descriptor(DESCRIPTORS, 0, DATA, 1, 0, 0);
    guest.publish(7);
    assert_eq!(queue.pop().unwrap().unwrap().readable(), 2);
}

#[test]
fn chains_before_a_bad_one_are_handed_out_first() {
    let (mut guest, queue) = started(PLAIN);
    guest.chain(0, &[(DATA, 4, 0)]);
    guest.chain(1, &[(DATA, 4, 0)]);
    guest.publish(8);
    let batch = queue.pop_batch(8, BatchLayout { header: 4, trailer: 0 }).unwrap().unwrap();
    assert_eq!(batch.len(), 2);
    assert_eq!(queue.pop_batch(8, BatchLayout::default()).unwrap_err().rule(), "head-index");
    // The good ones can still be given back.
    batch.complete().unwrap();
    assert_eq!(guest.used_index(), 2);
}
