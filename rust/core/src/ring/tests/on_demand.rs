//! A ring over memory that is mapped only while it is used: what single chains need of it is given back with them.

use std::sync::{Arc, atomic::Ordering};

use super::super::{test_guest::*, *};
use crate::memory::{MapError, on_demand::on_demand};

const PARTS: usize = 3;

/// A guest whose memory is mapped for it, and on demand for the device; the queue; how many leases live.
fn started(features: RingFeatures) -> (TestGuest, Arc<VirtQueue>, impl Fn() -> usize) {
    let guest = TestGuest::new(8, features);
    let (memory, leases) = on_demand(&guest.memory);
    let queue = Arc::new(VirtQueue::new(0, 256));
    queue.start(&guest.config, &memory).unwrap();
    (guest, queue, move || leases.load(Ordering::Relaxed))
}

#[test]
fn a_chain_is_mapped_until_it_is_completed() {
    let (mut guest, queue, leases) = started(RingFeatures::default());
    assert_eq!(leases(), PARTS, "the ring's own parts stay mapped");
    guest.memory.write(SEAM - 4, b"question").unwrap();
    guest.chain(2, &[(SEAM - 4, 8, 0), (DATA, 16, WRITE)]);
    let mut chain = queue.pop().unwrap().unwrap();
    assert_eq!(leases(), PARTS + 3, "a buffer in two regions, and one in one");
    let mut question = [0; 8];
    chain.read(&mut question).unwrap();
    chain.write(b"answer").unwrap();
    assert_eq!(&question, b"question");
    chain.complete(None).unwrap();
    assert_eq!(leases(), PARTS);
    assert_eq!((guest.get(DATA, 6), guest.used(0)), (b"answer".to_vec(), (2, 6)));
    queue.stop();
    assert_eq!(leases(), 0);
}

#[test]
fn an_indirect_table_is_mapped_with_its_chain() {
    let (mut guest, queue, leases) = started(RingFeatures { indirect: true, ..RingFeatures::default() });
    guest.table(TABLE, 0, &[(DATA, 4, 0), (DATA + 8, 4, WRITE)]);
    guest.chain(0, &[(TABLE, 32, INDIRECT)]);
    let batch = queue.pop_batch(8, BatchLayout { header: 4, trailer: 0 }).unwrap().unwrap();
    assert_eq!(leases(), PARTS + 3);
    batch.complete().unwrap();
    assert_eq!(leases(), PARTS);
}

#[test]
fn with_in_order_a_chain_that_is_held_back_is_unmapped_already() {
    let (mut guest, queue, leases) = started(RingFeatures { in_order: true, ..RingFeatures::default() });
    guest.chain(0, &[(DATA, 4, WRITE)]);
    guest.chain(1, &[(DATA + 8, 4, WRITE)]);
    let mut first = queue.pop().unwrap().unwrap();
    let mut second = queue.pop().unwrap().unwrap();
    second.complete(None).unwrap();
    assert_eq!((leases(), guest.used_index()), (PARTS + 1, 0));
    first.complete(None).unwrap();
    assert_eq!((leases(), guest.used_index()), (PARTS, 2));
}

#[test]
fn a_chain_that_is_dropped_or_refused_is_unmapped() {
    let (mut guest, queue, leases) = started(RingFeatures::default());
    guest.chain(0, &[(DATA, 4, WRITE)]);
    drop(queue.pop().unwrap().unwrap());
    assert_eq!(leases(), PARTS);
    guest.chain(1, &[(DATA, 4, 0), (SEAM - 4, 4, WRITE)]); // the test's memory refuses its last bytes
    let refused = queue.pop().unwrap_err();
    let source = Box::new(MapError::Length(4));
    assert_eq!(refused, RingError::Unreachable { address: SEAM - 4, len: 4, source });
    assert_eq!(leases(), PARTS);
}

#[test]
fn a_lease_on_a_chain_outlives_the_ring() {
    let (mut guest, queue, leases) = started(RingFeatures::default());
    guest.chain(0, &[(DATA, 4, 0), (DATA + 8, 4, WRITE)]);
    let chain = queue.pop().unwrap().unwrap();
    let views = chain.writable_leases().unwrap();
    queue.stop();
    assert_eq!((views.len(), leases()), (1, 2), "all of the chain, and nothing of the ring");
    drop(views);
    assert_eq!(leases(), 0);
    assert!(matches!(chain.readable_leases(), Err(ChainError::Stale { .. })));
}
