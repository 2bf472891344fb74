//! Kicks and calls: wanted, unwanted, never lost.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, atomic::Ordering},
};

use super::super::{test_guest::*, *};
use crate::event_loop::EventFd;

const EVENT_IDX: RingFeatures =
    RingFeatures { event_idx: true, indirect: false, in_order: false, notify_on_empty: false };
/// The driver's event word lies behind the available ring, the device's behind the used ring.
const USED_EVENT: u64 = AVAILABLE + 4 + 2 * 8;
const AVAILABLE_EVENT: u64 = USED + 4 + 8 * 8;

struct Fixture {
    guest: TestGuest,
    queue: Arc<VirtQueue>,
    call: EventFd,
}

impl Fixture {
    fn new(features: RingFeatures) -> Self {
        let guest = TestGuest::new(8, features);
        let queue = Arc::new(VirtQueue::new(0, 256));
        queue.start(&guest.config, &guest.memory).unwrap();
        let call = EventFd::new().unwrap();
        let fd: OwnedFd = call.as_fd().try_clone_to_owned().unwrap();
        queue.set_call(Some(fd));
        let fixture = Self { guest, queue, call };
        assert!(fixture.called(), "a call may have been wanted before there was an eventfd");
        fixture
    }

    fn called(&self) -> bool {
        let mut counter = [0; 8];
        rustix::io::read(self.call.as_fd(), &mut counter).is_ok()
    }

    fn add(&mut self, heads: std::ops::Range<u16>) {
        heads.for_each(|head| self.guest.chain(head % 8, &[(DATA, 8, WRITE)]));
    }

    fn use_one(&self) -> bool {
        self.queue.pop().unwrap().unwrap().complete(None).unwrap();
        self.called()
    }

    fn word(&self, address: u64) -> u16 {
        self.guest.word(address).load(Ordering::Acquire)
    }
}

#[test]
fn without_event_idx_the_driver_says_by_a_flag_whether_it_wants_calls() {
    let mut f = Fixture::new(RingFeatures::default());
    f.add(0..3);
    assert!(f.use_one());
    f.guest.word(AVAILABLE).store(1, Ordering::Release);
    assert!(!f.use_one());
    f.guest.word(AVAILABLE).store(0, Ordering::Release);
    assert!(f.use_one());
    assert_eq!(f.queue.counters().calls, 3);
}

#[test]
fn with_event_idx_a_call_comes_when_the_index_passes_the_event() {
    let mut f = Fixture::new(EVENT_IDX);
    f.add(0..6);
    // The flags mean nothing with EVENT_IDX (2.7.7.1).
    f.guest.word(AVAILABLE).store(1, Ordering::Release);
    f.guest.word(USED_EVENT).store(2, Ordering::Release);
    assert_eq!([f.use_one(), f.use_one(), f.use_one(), f.use_one()], [false, false, true, false]);
    f.guest.word(USED_EVENT).store(5, Ordering::Release);
    let batch = f.queue.pop_batch(8, BatchLayout::default()).unwrap().unwrap();
    batch.complete().unwrap();
    assert!(f.called());
    assert_eq!(f.queue.counters().calls, 3);
}

#[test]
fn notify_on_empty_calls_when_everything_was_used() {
    let mut f = Fixture::new(RingFeatures { notify_on_empty: true, ..RingFeatures::default() });
    f.guest.word(AVAILABLE).store(1, Ordering::Release);
    f.add(0..2);
    assert!(!f.use_one(), "one is left");
    assert!(f.use_one());
}

#[test]
fn kicks_are_unwanted_while_the_device_looks_and_wanted_afterwards() {
    let mut f = Fixture::new(RingFeatures::default());
    f.add(0..1);
    assert!(f.queue.kicked());
    assert_eq!(f.word(USED), 1, "NO_NOTIFY");
    assert!(f.use_one());
    assert!(!f.queue.processed());
    assert_eq!(f.word(USED), 0);
}

#[test]
fn a_ring_that_starts_asks_for_kicks_whatever_was_asked_before() {
    let guest = TestGuest::new(8, RingFeatures::default());
    guest.word(USED).store(1, Ordering::Release);
    let queue = Arc::new(VirtQueue::new(0, 256));
    queue.start(&guest.config, &guest.memory).unwrap();
    assert_eq!(guest.word(USED).load(Ordering::Acquire), 0);
}

#[test]
fn a_polled_ring_asks_for_no_kicks_until_it_sleeps() {
    for features in [RingFeatures::default(), EVENT_IDX] {
        let mut f = Fixture::new(features);
        f.queue.set_polled(true);
        f.add(0..1);
        assert!(f.queue.has_work());
        f.use_one();
        assert!(f.queue.pop().unwrap().is_none() && !f.queue.has_work());
        let asks =
            |f: &Fixture| if features.event_idx { f.word(AVAILABLE_EVENT) == 1 } else { f.word(USED) == 0 };
        assert!(!asks(&f));
        assert!(!f.queue.sleep());
        assert!(asks(&f));
    }
}

#[test]
fn a_polled_ring_has_work_once_for_what_the_device_leaves_in_it() {
    for features in [RingFeatures::default(), EVENT_IDX] {
        let mut f = Fixture::new(features);
        f.queue.set_polled(true);
        f.add(0..2);
        assert!(f.queue.has_work());
        f.queue.kicked();
        assert!(!f.queue.processed() && !f.queue.has_work());
        f.add(2..3);
        assert!(f.queue.has_work() && !f.queue.has_work());
        assert!(!f.queue.sleep());
        assert!(f.use_one());
    }
}

#[test]
fn with_event_idx_the_next_chain_is_the_one_to_be_kicked_for() {
    let mut f = Fixture::new(EVENT_IDX);
    f.add(0..3);
    f.queue.kicked();
    for _ in 0..3 {
        f.use_one();
    }
    assert!(!f.queue.processed());
    assert_eq!(f.word(AVAILABLE_EVENT), 3);
}

#[test]
fn kicks_come_also_when_the_device_leaves_chains_in_the_ring() {
    for features in [RingFeatures::default(), EVENT_IDX] {
        let mut f = Fixture::new(features);
        f.add(0..3);
        f.queue.kicked();
        f.use_one();
        // Two are left on purpose: no reason to look again, but the next one is to be kicked for.
        assert!(!f.queue.processed());
        if features.event_idx {
            assert_eq!(f.word(AVAILABLE_EVENT), 3);
        } else {
            assert_eq!(f.word(USED), 0);
        }
        f.queue.kicked();
        assert!(!f.queue.processed(), "a device that takes nothing is not asked for ever");
    }
}

#[test]
fn what_came_in_between_is_told_once() {
    for features in [RingFeatures::default(), EVENT_IDX] {
        let mut f = Fixture::new(features);
        f.add(0..1);
        f.queue.kicked();
        f.use_one();
        // The driver was told not to kick for this one.
        f.add(1..2);
        assert!(f.queue.processed());
        f.queue.kicked();
        f.use_one();
        assert!(!f.queue.processed());
    }
}

#[test]
fn an_empty_pop_arms_by_itself() {
    let mut f = Fixture::new(EVENT_IDX);
    f.add(0..2);
    f.queue.kicked();
    f.use_one();
    f.use_one();
    assert!(f.queue.pop().unwrap().is_none());
    assert_eq!(f.word(AVAILABLE_EVENT), 2);
    assert!(f.queue.pop_batch(4, BatchLayout::default()).unwrap().is_none());
}

#[test]
fn a_ring_that_was_served_before_calls_for_the_first_chain() {
    let mut guest = TestGuest::new(8, EVENT_IDX);
    guest.put(USED + 2, &4u16.to_le_bytes());
    guest.begin_at(4);
    guest.config.next_available = 4;
    guest.word(USED_EVENT).store(1, Ordering::Release);
    let queue = Arc::new(VirtQueue::new(0, 256));
    queue.start(&guest.config, &guest.memory).unwrap();
    let before = queue.counters().calls;
    guest.chain(0, &[(DATA, 1, WRITE)]);
    queue.pop().unwrap().unwrap().complete(None).unwrap();
    assert_eq!(queue.counters().calls, before + 1);
}
