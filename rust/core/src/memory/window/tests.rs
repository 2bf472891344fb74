#![allow(clippy::single_range_in_vec_init, reason = "a guest with one bank")]

use std::{
    sync::{Arc, Barrier},
    time::Duration,
};

use super::*;
use crate::{
    memory::Access,
    xen::fake_domain::{DOMAIN, FakeDomain},
};

const PAGE: u64 = FRAME as u64;

fn attached(domain: &Arc<FakeDomain>, ranges: &[Range<u64>]) -> (Arc<ForeignWindows>, GuestMemory) {
    let patience = Duration::from_secs(60);
    let request = AttachRequest { domain: DOMAIN, writable: true, patience, limit: u64::MAX };
    ForeignWindows::attach(Arc::clone(domain) as _, ranges, &request).expect("attached")
}

/// A domain of so many windows, from 0 on.
fn guest(windows: u64) -> (Arc<FakeDomain>, Arc<ForeignWindows>, GuestMemory) {
    let domain = Arc::new(FakeDomain::new(windows * WINDOW_FRAMES));
    let (attached, memory) = attached(&domain, &[0..windows * WINDOW]);
    (domain, attached, memory)
}

fn byte(memory: &GuestMemory, address: u64) -> Result<u8, MemoryError> {
    let mut byte = [0];
    memory.read(address, &mut byte).map(|()| byte[0])
}

fn failures(error: MemoryError) -> Vec<(u64, Errno)> {
    match error {
        MemoryError::Unreachable {
            source: MapError::Foreign(ForeignMapError::Frames { failures, .. }),
            ..
        } => failures.iter().map(|failure| (failure.frame, failure.errno)).collect(),
        other => panic!("{other}"),
    }
}

#[test]
fn attaching_maps_nothing_and_a_touch_one_window() {
    let (domain, windows, memory) = guest(4);
    assert_eq!((windows.mapped_bytes(), domain.batches().len()), (0, 0));
    assert!(memory.translate(0, 1).is_none(), "no address without a lease");
    assert_eq!(byte(&memory, 2 * WINDOW + 3 * PAGE), Ok(3));
    assert_eq!((windows.mapped_bytes(), domain.batches()), (WINDOW, vec![256]));
    memory.write(2 * WINDOW + 5 * PAGE + 7, b"to the guest").unwrap();
    assert_eq!(domain.bytes(2 * WINDOW_FRAMES + 5, 7, 12), b"to the guest");
    assert_eq!(domain.batches().len(), 1, "it stays mapped");
}

#[test]
fn a_range_across_windows_is_one_piece() {
    let (domain, windows, memory) = guest(4);
    let lease = memory.lease(WINDOW - PAGE, 2 * PAGE + WINDOW, Access::Write).unwrap();
    assert_eq!((lease.len(), windows.mapped_bytes()), (2 * PAGE + WINDOW, 3 * WINDOW));
    memory.write(WINDOW - 3, b"abcdef").unwrap();
    let crossing = [domain.bytes(255, PAGE - 3, 3), domain.bytes(256, 0, 3)].concat();
    assert_eq!(crossing, b"abcdef");
}

#[test]
fn the_last_window_of_a_bank_may_be_short() {
    let domain = Arc::new(FakeDomain::new(300));
    let (windows, memory) = attached(&domain, &[0..300 * PAGE]);
    assert_eq!(byte(&memory, 299 * PAGE + 4095), Ok(299u64 as u8));
    assert_eq!((windows.mapped_bytes(), domain.batches()), (44 * PAGE, vec![44]));
    assert!(matches!(byte(&memory, 300 * PAGE), Err(MemoryError::OutOfRange { .. })));
}

#[test]
fn two_banks_are_one_table_under_one_limit() {
    let domain = Arc::new(FakeDomain::new(16));
    let high = 0x2_0000_0000 / PAGE;
    (0..512).for_each(|frame| domain.populate(high + frame, 0xaa));
    let (windows, memory) = attached(&domain, &[high * PAGE..high * PAGE + 2 * WINDOW, 0..16 * PAGE]);
    windows.set_limit(WINDOW).unwrap();
    assert_eq!((byte(&memory, high * PAGE + WINDOW), byte(&memory, 15 * PAGE)), (Ok(0xaa), Ok(15)));
    assert_eq!(windows.mapped_bytes(), 16 * PAGE, "the other one went for it");
    assert_eq!(
        memory.regions().iter().map(|region| region.guest_address).collect::<Vec<_>>(),
        [0, high * PAGE]
    );
}

#[test]
fn a_window_that_comes_again_is_at_its_address() {
    let (domain, windows, memory) = guest(2);
    let address = || memory.lease(WINDOW + 5, 1, Access::Read).unwrap().base();
    let before = address();
    windows.invalidate().unwrap();
    assert_eq!(windows.mapped_bytes(), 0);
    assert_eq!((address(), domain.batches().len()), (before, 2));
}

#[test]
fn what_was_changed_is_seen_after_invalidate() {
    let (domain, windows, memory) = guest(1);
    assert_eq!(byte(&memory, 9 * PAGE), Ok(9));
    domain.populate(9, 0x77);
    assert_eq!(byte(&memory, 9 * PAGE), Ok(9), "what is mapped stays mapped");
    windows.invalidate().unwrap();
    assert_eq!(byte(&memory, 9 * PAGE), Ok(0x77));
}

#[test]
fn a_leased_window_goes_when_its_lease_ends_and_is_used_by_nobody_else_until_then() {
    let (domain, windows, memory) = guest(2);
    let lease = memory.lease(0, 16, Access::Write).unwrap();
    byte(&memory, WINDOW).unwrap();
    windows.invalidate().unwrap();
    assert_eq!(windows.mapped_bytes(), WINDOW, "the one that is leased");

    domain.populate(9, 0x77);
    assert_eq!(byte(&memory, 9 * PAGE), Ok(0x77), "mapped for this access alone");
    assert_eq!(domain.batches().last(), Some(&1));
    memory.write(9 * PAGE, b"new").unwrap();
    assert_eq!(domain.bytes(9, 0, 3), b"new");

    // SAFETY: leased for so many bytes.
    unsafe { lease.base().write(1) };
    assert_eq!(domain.bytes(0, 0, 1), [1]);
    drop(lease);
    assert_eq!(windows.mapped_bytes(), 0);
    assert_eq!((byte(&memory, 9 * PAGE), windows.mapped_bytes()), (Ok(b'n'), WINDOW));
}

#[test]
fn a_hole_is_an_error_of_who_touches_it() {
    let (domain, windows, memory) = guest(1);
    domain.take_away(5);
    domain.take_away(7);
    assert_eq!(
        (byte(&memory, 6 * PAGE - 1).map_err(failures), byte(&memory, 6 * PAGE)),
        (Err(vec![(5, Errno::INVAL)]), Ok(6))
    );
    assert_eq!(byte(&memory, 5 * PAGE - 1), Ok(4));
    let mut many = vec![0; 4 * PAGE as usize];
    let error = memory.read(4 * PAGE + 1, &mut many).unwrap_err();
    assert_eq!(failures(error), [(5, Errno::INVAL), (7, Errno::INVAL)]);
    assert_eq!(many, vec![0; 4 * PAGE as usize], "not a byte");
    assert_eq!(windows.mapped_bytes(), WINDOW);
}

#[test]
fn a_hole_that_was_filled_is_found() {
    let (domain, windows, memory) = guest(1);
    domain.take_away(5);
    byte(&memory, 5 * PAGE).unwrap_err();
    domain.populate(5, 0x55);
    assert_eq!(byte(&memory, 5 * PAGE), Ok(0x55));
    assert_eq!(windows.mapped_bytes(), 0, "the window that knew it as a hole is gone");
    let batches = domain.batches().len();
    assert_eq!((byte(&memory, 5 * PAGE), domain.batches().len()), (Ok(0x55), batches + 1));
    assert_eq!((byte(&memory, 5 * PAGE), domain.batches().len()), (Ok(0x55), batches + 1));
}

#[test]
fn of_a_window_without_a_frame_nothing_is_kept() {
    let domain = Arc::new(FakeDomain::new(0));
    let (windows, memory) = attached(&domain, &[0..2 * WINDOW]);
    assert_eq!(failures(byte(&memory, 3 * PAGE).unwrap_err()), [(3, Errno::INVAL)]);
    assert_eq!(windows.mapped_bytes(), 0);
}

#[test]
fn the_longest_unused_goes_first_and_what_is_leased_stays() {
    let (domain, windows, memory) = guest(4);
    windows.set_limit(2 * WINDOW).unwrap();
    let lease = memory.lease(0, 1, Access::Read).unwrap();
    for window in 1..4 {
        byte(&memory, window * WINDOW).unwrap();
        assert!(windows.mapped_bytes() <= 2 * WINDOW);
    }
    assert_eq!(domain.batches().len(), 4);
    byte(&memory, 0).unwrap();
    byte(&memory, 3 * WINDOW).unwrap();
    assert_eq!(domain.batches().len(), 4, "both are still there");

    let all = memory.lease(0, 4 * WINDOW, Access::Read).unwrap();
    assert_eq!(windows.mapped_bytes(), 4 * WINDOW, "what is used at a time may exceed the limit");
    drop(all);
    assert_eq!(windows.mapped_bytes(), 2 * WINDOW);
    windows.set_limit(0).unwrap();
    assert_eq!(windows.mapped_bytes(), WINDOW);
    drop(lease);
    assert_eq!((windows.mapped_bytes(), windows.limit()), (0, 0));
}

#[test]
fn where_memory_is_short_others_are_given_back() {
    let (domain, windows, memory) = guest(4);
    for window in 0..3 {
        byte(&memory, window * WINDOW).unwrap();
    }
    domain.refuse(2);
    assert_eq!(byte(&memory, 3 * WINDOW), Ok(0));
    assert_eq!(windows.mapped_bytes(), 2 * WINDOW);
    domain.refuse(usize::MAX);
    let error = byte(&memory, 0).unwrap_err();
    assert!(error.to_string().ends_with("(dom0 has no pages left to stand for them)"), "{error}");
    assert_eq!(windows.mapped_bytes(), 0);
    domain.refuse(0);
    assert_eq!(byte(&memory, PAGE), Ok(1));
}

#[test]
fn a_domain_that_is_not_there_is_said_so_when_it_is_touched() {
    let calls = Arc::new(FakeDomain::new(1));
    let patience = Duration::ZERO;
    let request = AttachRequest { domain: DOMAIN + 1, writable: false, patience, limit: u64::MAX };
    let (windows, memory) = ForeignWindows::attach(calls, &[0..PAGE], &request).unwrap();
    let error = byte(&memory, 0).unwrap_err();
    assert!(error.to_string().ends_with("there is no such domain"), "{error}");
    assert!(matches!(memory.write(0, b"x"), Err(MemoryError::ReadOnly { .. })));
    assert_eq!(windows.mapped_bytes(), 0);
}

#[test]
fn frames_that_are_paged_out_are_waited_for() {
    let (domain, _, memory) = guest(1);
    domain.page_out(&[(3, 2), (200, 1)]);
    assert_eq!(byte(&memory, 3 * PAGE), Ok(3));
    assert_eq!(domain.batches(), [256, 1, 1, 1]);
}

#[test]
fn a_range_that_is_none_is_refused() {
    let domain = Arc::new(FakeDomain::new(1));
    let patience = Duration::ZERO;
    let request = AttachRequest { domain: DOMAIN, writable: false, patience, limit: u64::MAX };
    let backwards = Range { start: 2 * PAGE, end: PAGE };
    for ranges in
        [vec![0..0], vec![1..PAGE], vec![0..PAGE + 1], vec![backwards], vec![0..2 * PAGE, PAGE..3 * PAGE]]
    {
        let error = ForeignWindows::attach(Arc::clone(&domain) as _, &ranges, &request).unwrap_err();
        assert!(matches!(error, MemoryError::BadTable(_)), "{error}");
    }
    let huge = ForeignWindows::attach(domain, &[0..1 << 62], &request).unwrap_err();
    assert!(matches!(huge, MemoryError::Unreachable { .. }), "{huge}");
}

#[test]
fn many_threads_come_and_go_while_the_map_changes() {
    const THREADS: u64 = 4;
    let (domain, windows, memory) = guest(6);
    windows.set_limit(2 * WINDOW).unwrap();
    let start = Barrier::new(THREADS as usize);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (memory, windows, domain, start) = (&memory, &windows, &domain, &start);
            scope.spawn(move || {
                start.wait();
                let mut random = thread + 1;
                for turn in 0..400 {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let frame = (random >> 33) % (6 * WINDOW_FRAMES - 1);
                    // The last byte of a frame and the first of the next, which may be of another window.
                    let mut two = [0; 2];
                    memory.read((frame + 1) * PAGE - 1, &mut two).unwrap();
                    assert_eq!(two, [frame as u8, (frame + 1) as u8]);
                    match (turn % 50, thread) {
                        (0, 0) => windows.invalidate().unwrap(),
                        (25, 1) => domain.populate(frame, frame as u8),
                        _ => {}
                    }
                }
            });
        }
    });
    assert!(windows.mapped_bytes() <= 2 * WINDOW);
    windows.invalidate().unwrap();
    assert_eq!(windows.mapped_bytes(), 0);
}
