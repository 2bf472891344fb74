//! Stop, reset, pause, and what becomes of chains that are kept.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use super::super::{test_guest::*, *};
use crate::event_loop::EventFd;

fn started(features: RingFeatures) -> (TestGuest, Arc<VirtQueue>) {
    let guest = TestGuest::new(8, features);
    let queue = Arc::new(VirtQueue::new(0, 256));
    queue.start(&guest.config, &guest.memory).unwrap();
    (guest, queue)
}

/// Three chains of 8 writable bytes each.
fn three(guest: &mut TestGuest) {
    for head in 0..3 {
        guest.chain(head, &[(DATA + 16 * u64::from(head + 1), 8, WRITE)]);
    }
}

fn signalled(event: &EventFd) -> bool {
    let mut counter = [0; 8];
    rustix::io::read(event.as_fd(), &mut counter).is_ok()
}

fn duplicate(event: &EventFd) -> Option<OwnedFd> {
    Some(event.as_fd().try_clone_to_owned().unwrap())
}

#[test]
fn a_ring_goes_on_before_the_newest_chains_that_were_kept() {
    // Which of three chains are completed, and where the ring goes on.
    for (completed, next) in [
        ([false, false, false], 0),
        ([true, false, false], 1),
        ([false, true, false], 2),
        ([false, false, true], 3),
        ([true, true, false], 2),
        ([true, true, true], 3),
    ] {
        let (mut guest, queue) = started(RingFeatures::default());
        three(&mut guest);
        let mut chains = [(); 3].map(|()| queue.pop().unwrap().unwrap());
        for (chain, completed) in chains.iter_mut().zip(completed) {
            if completed {
                chain.complete(None).unwrap();
            }
        }
        assert_eq!(queue.stop(), Some(next), "{completed:?}");
    }
}

#[test]
fn what_is_held_back_for_its_turn_is_taken_again_after_a_stop() {
    let (mut guest, queue) = started(RingFeatures { in_order: true, ..RingFeatures::default() });
    three(&mut guest);
    let mut chains = [(); 3].map(|()| queue.pop().unwrap().unwrap());
    chains[1].complete(None).unwrap();
    chains[2].complete(None).unwrap();
    assert_eq!((guest.used_index(), queue.kept(), queue.kept_heads()), (0, 1, vec![0]));
    assert_eq!(queue.stop(), Some(0));
}

#[test]
fn early_completions_come_out_in_order() {
    let (mut guest, queue) = started(RingFeatures { in_order: true, ..RingFeatures::default() });
    three(&mut guest);
    let mut chains = [(); 3].map(|()| queue.pop().unwrap().unwrap());
    chains[2].write(b"33").unwrap();
    chains[2].complete(None).unwrap();
    chains[0].write(b"1").unwrap();
    chains[0].complete(None).unwrap();
    assert_eq!((guest.used_index(), guest.used(0)), (1, (0, 1)));
    chains[1].complete(None).unwrap();
    assert_eq!((guest.used_index(), guest.used(1), guest.used(2)), (3, (1, 0), (2, 2)));
    assert_eq!(chains[1].complete(None), Err(ChainError::Completed { head: 1 }));
}

#[test]
fn in_turn_early_completions_come_out_in_order_for_a_driver_that_did_not_ask_for_it() {
    let mut guest = TestGuest::new(8, RingFeatures::default());
    guest.config.in_turn = true;
    let queue = Arc::new(VirtQueue::new(0, 256));
    queue.start(&guest.config, &guest.memory).unwrap();
    // With IN_ORDER a chain would have to go on in the next descriptor.
    guest.descriptor(DESCRIPTORS, 5, DATA, 8, WRITE | NEXT, 1);
    guest.descriptor(DESCRIPTORS, 1, DATA, 8, WRITE, 0);
    guest.publish(5);
    guest.chain(0, &[(DATA, 8, WRITE)]);
    let [mut first, mut second] = [(); 2].map(|()| queue.pop().unwrap().unwrap());
    second.complete(None).unwrap();
    assert_eq!(guest.used_index(), 0);
    first.complete(None).unwrap();
    assert_eq!((guest.used_index(), guest.used(0).0, guest.used(1).0), (2, 5, 0));
}

#[test]
fn a_ring_is_taken_up_where_its_used_index_stands_if_nothing_was_given_back_before_its_turn() {
    let (mut guest, queue) = started(RingFeatures::default());
    let next = |guest: &TestGuest| guest.config.resume_index(&guest.memory);
    assert_eq!(next(&guest), Ok(0));
    three(&mut guest);
    let mut chains = [(); 3].map(|()| queue.pop().unwrap().unwrap());
    chains[0].complete(None).unwrap();
    assert_eq!(next(&guest), Ok(1));
    chains[2].complete(None).unwrap();
    assert_eq!(next(&guest), Err(RingError::OutOfOrder { used: 2 }));
    chains[1].complete(None).unwrap();
    assert_eq!(next(&guest), Ok(3));
    // Around the ring, and with as much available as there can be.
    for round in 0..5 {
        for head in 0..8 {
            guest.chain(head, &[(DATA, 8, WRITE)]);
        }
        assert_eq!(next(&guest), Ok(3 + 8 * round));
        for _ in 0..8 {
            queue.pop().unwrap().unwrap().complete(None).unwrap();
        }
        assert_eq!(next(&guest), Ok(11 + 8 * round));
    }
    guest.config.used = HOLE;
    assert!(matches!(next(&guest), Err(RingError::RingAddress { part: RingPart::Used, .. })));
}

#[test]
fn a_stopped_ring_can_be_taken_up_again_by_another_queue() {
    let (mut guest, queue) = started(RingFeatures { event_idx: true, ..RingFeatures::default() });
    three(&mut guest);
    queue.pop().unwrap().unwrap().complete(None).unwrap();
    let kept = queue.pop().unwrap().unwrap();
    guest.config.next_available = queue.stop().unwrap();
    let other = Arc::new(VirtQueue::new(0, 256));
    let call = EventFd::new().unwrap();
    other.set_call(duplicate(&call));
    other.start(&guest.config, &guest.memory).unwrap();
    assert!(signalled(&call), "the driver may have missed a call");
    for head in 1..3 {
        let mut chain = other.pop().unwrap().unwrap();
        assert_eq!(chain.head(), head);
        chain.write(b"again").unwrap();
        chain.complete(None).unwrap();
    }
    assert_eq!((guest.used_index(), guest.used(1), guest.used(2)), (3, (1, 5), (2, 5)));
    drop(kept);
}

#[test]
fn a_stale_chain_touches_nothing() {
    let (mut guest, queue) = started(RingFeatures::default());
    three(&mut guest);
    guest.put(DATA, b"before");
    let mut chain = queue.pop().unwrap().unwrap();
    let batch = queue.pop_batch(8, BatchLayout { header: 0, trailer: 1 }).unwrap().unwrap();
    queue.stop();
    queue.start(&guest.config, &guest.memory).unwrap();
    let (before, ring) = (guest.get(DATA, 64), guest.get(USED, 68));
    let stale = ChainError::Stale { head: 0 };
    assert_eq!(chain.write(b"x"), Err(stale.clone()));
    assert_eq!(chain.read(&mut [0]), Err(stale.clone()));
    assert_eq!(chain.check(), Err(stale.clone()));
    assert_eq!(chain.writable_leases().err(), Some(stale.clone()));
    assert_eq!(chain.write_from_fd(guest_file().as_fd(), Some(0), 8), Err(stale.clone()));
    assert_eq!(chain.complete(None), Err(stale));
    assert_eq!(batch.write_zeroes(), Err(BatchError::Stale));
    assert_eq!(batch.write_from((&[7u8; 64][..]).into(), &[0, 0], 1), Err(BatchError::Stale));
    assert_eq!(batch.write_trailer(7, None, 0), Err(BatchError::Stale));
    assert_eq!(batch.complete(), Err(BatchError::Stale));
    drop((chain, batch));
    assert_eq!((guest.get(DATA, 64), guest.get(USED, 68)), (before, ring));
    // Nor does it stand in the way of the new ones with the same heads.
    assert_eq!((queue.kept(), queue.abandoned()), (0, 0));
    let chains = [(); 3].map(|()| queue.pop().unwrap().unwrap());
    assert_eq!(chains.map(|chain| chain.head()), [0, 1, 2]);
}

fn guest_file() -> OwnedFd {
    let file = rustix::fs::memfd_create("file", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::io::pwrite(&file, b"from the file", 0).unwrap();
    file
}

#[test]
fn a_paused_queue_hands_out_nothing_and_takes_back() {
    let (mut guest, queue) = started(RingFeatures::default());
    three(&mut guest);
    let mut kept = queue.pop().unwrap().unwrap();
    queue.pause();
    assert!(queue.pop().unwrap().is_none());
    assert!(queue.pop_batch(1, BatchLayout::default()).unwrap().is_none());
    assert!(!queue.kicked() && !queue.processed());
    kept.complete(None).unwrap();
    assert_eq!((guest.used_index(), queue.kept()), (1, 0));
    queue.resume();
    assert_eq!(queue.pop().unwrap().unwrap().head(), 1);
}

#[test]
fn a_stop_waits_for_a_copy_under_way() {
    let (mut guest, queue) = started(RingFeatures::default());
    three(&mut guest);
    let mut chain = queue.pop().unwrap().unwrap();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let (stopped, wait) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        // Blocks in the kernel until there is something in the pipe.
        let copy = scope.spawn(move || chain.write_from_fd(reader.as_fd(), None, 8));
        while queue.generation_is_free() {
            std::thread::yield_now();
        }
        let queue = Arc::clone(&queue);
        scope.spawn(move || {
            queue.stop();
            stopped.send(()).unwrap();
        });
        assert!(wait.recv_timeout(Duration::from_millis(20)).is_err(), "stopped before the copy ended");
        rustix::io::write(&writer, b"bytes").unwrap();
        assert_eq!(copy.join().unwrap(), Ok(5));
        wait.recv().unwrap();
    });
    assert_eq!(guest.get(DATA + 16, 5), b"bytes");
}

#[test]
fn chains_of_an_old_table_keep_its_memory_and_the_ring_moves_on() {
    let (mut guest, queue) = started(RingFeatures::default());
    three(&mut guest);
    let mut chain = queue.pop().unwrap().unwrap();
    // The same ring, at other addresses of ours: a copy of what it holds.
    let (old, ring) = (guest.memory.clone(), guest.get(0, SEAM as usize));
    guest.memory = GuestMemory::new(vec![region(0, SEAM, true)]).unwrap();
    guest.put(0, &ring);
    queue.update_memory(&guest.memory).unwrap();
    chain.write(b"old").unwrap();
    chain.complete(None).unwrap();
    let mut bytes = [0; 3];
    old.read(DATA + 16, &mut bytes).unwrap();
    assert_eq!((&bytes, guest.get(DATA + 16, 3)), (b"old", vec![0; 3]));
    assert_eq!((guest.used_index(), guest.used(0)), (1, (0, 3)));
    assert_eq!(queue.pop().unwrap().unwrap().head(), 1);
    let nowhere = GuestMemory::new(vec![region(0, 0x1000, true)]).unwrap();
    assert_eq!(queue.update_memory(&nowhere).unwrap_err().rule(), "ring-address");
    assert!(matches!(queue.state(), QueueState::Failed(_)));
}

#[test]
fn an_error_is_signalled_once_and_ends_with_the_ring() {
    let (mut guest, queue) = started(RingFeatures::default());
    let err = EventFd::new().unwrap();
    queue.set_err(duplicate(&err));
    assert!(!signalled(&err));
    guest.publish(99);
    assert!(queue.pop().is_err() && queue.pop().is_err());
    assert!(signalled(&err) && !signalled(&err));
    assert_eq!(queue.stop(), Some(0));
    assert_eq!(queue.state(), QueueState::Stopped);
    assert!(queue.pop().unwrap().is_none());
    let fresh = TestGuest::new(8, RingFeatures::default());
    queue.start(&fresh.config, &fresh.memory).unwrap();
    assert_eq!(queue.state(), QueueState::Running);
}

#[test]
fn a_dropped_chain_is_abandoned_not_kept() {
    let (mut guest, queue) = started(RingFeatures::default());
    three(&mut guest);
    drop(queue.pop().unwrap().unwrap());
    assert_eq!((queue.kept(), queue.abandoned()), (0, 1));
    drop(queue.pop_batch(8, BatchLayout::default()).unwrap().unwrap());
    assert_eq!((queue.kept(), queue.abandoned(), guest.used_index()), (0, 3, 0));
}

#[test]
fn indices_wrap() {
    for features in
        [RingFeatures::default(), RingFeatures { in_order: true, event_idx: true, ..RingFeatures::default() }]
    {
        let mut guest = TestGuest::new(8, features);
        // As if 65530 chains had gone through before.
        guest.put(USED + 2, &65530u16.to_le_bytes());
        guest.config.next_available = 65530;
        guest.begin_at(65530);
        let queue = Arc::new(VirtQueue::new(0, 256));
        queue.start(&guest.config, &guest.memory).unwrap();
        for round in 0u16..20 {
            guest.chain(round % 8, &[(DATA, 8, WRITE)]);
            let mut chain = queue.pop().unwrap().unwrap();
            chain.write(&[0; 3]).unwrap();
            chain.complete(None).unwrap();
            let index = 65530u16.wrapping_add(round);
            assert_eq!(
                (guest.used_index(), guest.used(index)),
                (index.wrapping_add(1), ((round % 8).into(), 3))
            );
        }
        assert_eq!(queue.stop(), Some(65530u16.wrapping_add(20)));
    }
}
