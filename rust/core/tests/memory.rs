//! Guest memory: what a range may be, what is read and written, and what happens to memory that goes away.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use proptest::prelude::*;
use rustix::fs::ftruncate;
use xenvirt_core::memory::{
    Access, Backing, GuestMemory, HugePage, MapError, MappedMemory, MemoryError, Region, SharedMemoryTable,
};

const PAGE: u64 = 4096;

fn memfd(len: u64) -> (OwnedFd, Arc<MappedMemory>) {
    let (fd, memory) = MappedMemory::memfd(len).expect("a memfd");
    (fd, Arc::new(memory))
}

/// A table with regions of these (address, length).
fn table(regions: &[(u64, u64)]) -> GuestMemory {
    let regions = regions.iter().map(|&(address, len)| Region::new(address, address, memfd(len).1));
    GuestMemory::new(regions.collect()).expect("a table")
}

fn outside(result: Result<(), MemoryError>) -> bool {
    matches!(result, Err(MemoryError::OutOfRange { .. }))
}

#[test]
fn a_range_across_adjacent_regions_is_read_and_written_as_one() {
    let memory = table(&[(0x1000, 0x1000), (0x2000, 0x800), (0x2800, 0x1000)]);
    let bytes: Vec<u8> = (0..0x1200_u32).map(|n| (n % 251) as u8).collect();
    memory.write(0x1f00, &bytes).expect("spans three regions");
    let mut back = vec![0; bytes.len()];
    memory.read(0x1f00, &mut back).expect("spans three regions");
    assert_eq!(back, bytes);
    let mut one = [0];
    memory.read(0x2800, &mut one).expect("first of the third");
    assert_eq!(one[0], bytes[0x900]);
}

#[test]
fn a_range_that_leaves_the_table_is_refused_before_a_byte_is_copied() {
    let memory = table(&[(0x1000, 0x1000), (0x3000, 0x1000)]);
    assert!(outside(memory.write(0x1ff0, &[7; 0x20])), "ends in a hole");
    assert!(outside(memory.write(0x1ff0, &[7; 0x1020])), "spans a hole");
    assert!(outside(memory.write(0x3ff0, &[7; 0x20])), "ends behind the last region");
    assert!(outside(memory.write(0xff0, &[7; 0x20])), "begins before the first region");
    let mut untouched = [1; 0x10];
    memory.read(0x1ff0, &mut untouched).expect("inside");
    assert_eq!(untouched, [0; 0x10]);
}

#[test]
fn a_range_that_wraps_is_refused_and_the_last_byte_of_all_is_reached() {
    let memory = table(&[(u64::MAX - 0xfff, 0x1000), (0, 0x1000)]);
    memory.write(u64::MAX, &[1]).expect("the last address");
    assert!(outside(memory.write(u64::MAX, &[1, 2])), "does not go on at 0");
    assert!(memory.translate(u64::MAX, 1).is_some());
    assert!(memory.translate(u64::MAX, 2).is_none());
    assert!(memory.translate(5, u64::MAX).is_none());
}

#[test]
fn an_empty_range_is_allowed_everywhere_and_touches_nothing() {
    for memory in [table(&[(0x1000, 0x1000)]), GuestMemory::default()] {
        for address in [0, 0x1000, 0x2000, u64::MAX] {
            memory.read(address, &mut []).expect("nothing to read");
            memory.write(address, &[]).expect("nothing to write");
            assert!(memory.lease(address, 0, Access::Write).expect("nothing to lease").is_empty());
        }
    }
}

#[test]
fn an_error_names_the_range_and_the_table() {
    let regions: Vec<_> = (0..10).map(|n| (n * 0x10000, 0x1000)).collect();
    let error = table(&regions).read(0x1800, &mut [0; 0x10]).expect_err("in a hole").to_string();
    assert!(
        error.starts_with("guest range 0x1800..+0x10 is not in the memory table (0x0..+0x1000, "),
        "{error}"
    );
    assert!(error.ends_with("0x70000..+0x1000 and 2 more)"), "{error}");
    let empty = GuestMemory::default().read(0, &mut [0]).expect_err("nothing there").to_string();
    assert!(empty.contains("which is empty"), "{empty}");
}

#[test]
fn a_table_with_regions_that_overlap_wrap_or_are_too_long_is_refused() {
    let region = |address, len| Region::new(address, 0, memfd(len).1);
    let too_long = Region { len: 0x2000, ..region(0, 0x1000) };
    let empty = Region { len: 0, ..region(0, 0x1000) };
    for regions in [
        vec![region(0x1000, 0x1000), region(0x1fff, 0x1000)],
        vec![region(u64::MAX - 0xffe, 0x1000)],
        vec![too_long],
        vec![empty],
    ] {
        assert!(matches!(GuestMemory::new(regions), Err(MemoryError::BadTable(_))));
    }
}

#[test]
fn a_read_only_region_is_read_and_never_written() {
    let (fd, writable) = memfd(PAGE);
    let read_only = Arc::new(MappedMemory::file(fd.as_fd(), 0, PAGE, false).expect("mapped"));
    let memory = GuestMemory::new(vec![Region::new(0, 0, writable), Region::new(PAGE, 0, read_only)])
        .expect("a table");
    memory.write(8, b"seen").expect("writable");
    let mut back = [0; 4];
    memory.read(PAGE + 8, &mut back).expect("readable");
    assert_eq!(&back, b"seen");
    let refused = Err(MemoryError::ReadOnly { address: PAGE - 2, len: 4 });
    assert_eq!(memory.write(PAGE - 2, b"half"), refused);
    memory.read(PAGE - 2, &mut back[..2]).expect("readable");
    assert_eq!(&back[..2], &[0, 0], "all or nothing");
    let mut translator = memory.translator();
    assert!(translator.translate(PAGE, 8, Access::Read).is_some());
    assert!(translator.translate(PAGE, 8, Access::Write).is_none());
    assert!(memory.lease(PAGE, 8, Access::Write).is_err());
}

#[test]
fn a_lease_needs_one_region_and_outlives_the_table() {
    let memory = table(&[(0, 0x1000), (0x1000, 0x1000)]);
    memory.write(0x10, b"stays").expect("inside");
    assert_eq!(
        memory.lease(0xfff, 2, Access::Read).expect_err("two regions"),
        MemoryError::Crossing { address: 0xfff, len: 2 }
    );
    let lease = memory.lease(0x10, 5, Access::Write).expect("one region");
    let base = memory.translate(0x10, 5).expect("resident");
    drop(memory);
    assert_eq!((lease.base(), lease.len()), (base, 5));
    let shared = SharedMemoryTable::default();
    assert!(shared.replace(table(&[(0, 0x1000)])).expect("open").regions().is_empty());
}

#[test]
fn a_translator_finds_what_the_table_finds_whatever_came_before() {
    let regions: Vec<_> = (0..20).map(|n| (n * 0x3000, 0x1000)).collect();
    let memory = table(&regions);
    let mut translator = memory.translator();
    for address in [0, 0x3000, 0x3fff, 0x9010, 0x4000, 0x39000, 0x8, u64::MAX, 0x3a000] {
        for len in [1, 2, 0x1000] {
            assert_eq!(translator.translate(address, len, Access::Read), memory.translate(address, len));
            let fits = address % 0x3000 + len <= 0x1000 && address < 20 * 0x3000;
            assert_eq!(memory.translate(address, len).is_some(), fits, "{address:#x} {len:#x}");
        }
    }
}

#[test]
fn user_addresses_are_translated_by_region() {
    let region = |guest, user| Region::new(guest, user, memfd(PAGE).1);
    let memory =
        GuestMemory::new(vec![region(0x8000, 0x7f00_0000), region(0, 0x7e00_0000)]).expect("a table");
    assert_eq!(memory.user_to_guest(0x7f00_0010), Some(0x8010));
    assert_eq!(memory.user_to_guest(0x7e00_0fff), Some(0xfff));
    assert_eq!(memory.user_to_guest(0x7e00_1000), None);
}

#[test]
fn a_file_is_mapped_from_an_offset_within_a_page() {
    let (fd, whole) = memfd(3 * PAGE);
    let whole = GuestMemory::new(vec![Region::new(0, 0, whole)]).expect("a table");
    whole.write(PAGE + 100, b"here").expect("inside");
    let part = Arc::new(MappedMemory::file(fd.as_fd(), PAGE + 90, 2 * PAGE - 90, true).expect("mapped"));
    let part = GuestMemory::new(vec![Region::new(0x4000, 0, part)]).expect("a table");
    let mut back = [0; 4];
    part.read(0x400a, &mut back).expect("inside");
    assert_eq!(&back, b"here");
    assert!(outside(part.read(0x4000 + 2 * PAGE - 91, &mut back[..2])));
}

#[test]
fn a_mapping_that_cannot_be_is_refused_in_words() {
    let (fd, _) = memfd(PAGE);
    let map = |offset, len| MappedMemory::file(fd.as_fd(), offset, len, true).expect_err("impossible");
    assert_eq!(map(0, 0), MapError::Length(0));
    assert_eq!(map(8, PAGE), MapError::BeyondEnd { len: PAGE, offset: 8, size: PAGE });
    assert!(matches!(map(u64::MAX, 2), MapError::BeyondEnd { .. }), "the sum wraps");
    let device = std::fs::File::open("/dev/null").expect("opened");
    let error = MappedMemory::file(device.as_fd(), 0, PAGE, false).expect_err("cannot be mapped");
    assert!(matches!(error, MapError::Refused { .. }) && error.errno().is_some());
    let huge = MappedMemory::file(device.as_fd(), 5, u64::MAX - 2, false).expect_err("too long");
    assert_eq!(huge, MapError::Length(u64::MAX - 2));
}

#[test]
fn memory_truncated_under_us_is_an_error_and_the_process_lives() {
    let (fd, mapped) = memfd(4 * PAGE);
    let other = memfd(PAGE).1;
    let memory = GuestMemory::new(vec![Region::new(0, 0, mapped), Region::new(4 * PAGE, 0, other)]);
    let memory = memory.expect("a table");
    memory.write(0, &[9; 4 * PAGE as usize]).expect("all there");
    let lease = memory.lease(2 * PAGE, 16, Access::Write).expect("all there");
    assert!(!memory.poisoned() && !lease.poisoned());
    ftruncate(&fd, PAGE).expect("truncated");

    let mut bytes = vec![1; 2 * PAGE as usize];
    let gone = Err(MemoryError::Fault { address: PAGE / 2, len: 2 * PAGE });
    assert_eq!(memory.read(PAGE / 2, &mut bytes), gone);
    assert!(memory.poisoned() && lease.poisoned());
    assert_eq!(memory.write(0, &[1]), Err(MemoryError::Fault { address: 0, len: 1 }), "the whole region");
    assert!(matches!(memory.lease(0, 1, Access::Read), Err(MemoryError::Fault { .. })));
    memory.write(4 * PAGE, &[1]).expect("the other region is not touched by it");
}

#[test]
fn many_threads_may_fault_at_once() {
    let (fd, mapped) = memfd(64 * PAGE);
    let memory = GuestMemory::new(vec![Region::new(0, 0, mapped)]).expect("a table");
    ftruncate(&fd, 0).expect("truncated");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for page in 0..64 {
                    let read = memory.read(page * PAGE, &mut [0; 16]);
                    assert!(matches!(read, Err(MemoryError::Fault { .. })));
                }
            });
        }
    });
}

/// A pool of huge pages may be empty here; then the refusal is what is tested.
#[test]
fn huge_pages_are_rounded_up_and_reserved_or_refused() {
    match MappedMemory::memfd_huge(5, HugePage::Mib2) {
        Ok((fd, memory)) => {
            assert_eq!(memory.len(), HugePage::Mib2.bytes());
            let part =
                MappedMemory::file(fd.as_fd(), 0x1234, 0x2000, true).expect("an offset in a huge page");
            assert_eq!(part.len(), 0x2000);
        }
        Err(error) => {
            assert!(matches!(error, MapError::NotMade { len: 5, page: 0x20_0000, .. }), "{error}");
        }
    }
}

#[test]
fn a_closed_table_refuses_and_does_not_close_under_a_lease() {
    let shared = SharedMemoryTable::new(table(&[(0, PAGE)]));
    let lease = shared.lease(0, 8, Access::Write).expect("open");
    assert_eq!(shared.close(), Err(1));
    let snapshot = shared.snapshot().expect("still open");
    drop(lease);
    assert_eq!(shared.close(), Ok(()));
    assert_eq!(shared.close(), Ok(()), "twice is allowed");
    assert!(shared.is_closed());
    assert_eq!(shared.snapshot().expect_err("closed"), MemoryError::Closed);
    assert_eq!(shared.lease(0, 8, Access::Read).expect_err("closed"), MemoryError::Closed);
    snapshot.write(0, b"still mapped").expect("who holds a snapshot may finish");
}

#[test]
fn a_table_is_replaced_whole_while_others_read() {
    // Two regions that always say the same: a reader that saw half a change would see them differ.
    let filled = |byte: u8| {
        let memory = table(&[(0, PAGE), (PAGE, PAGE)]);
        memory.write(0, &[byte; 2 * PAGE as usize]).expect("inside");
        memory
    };
    let shared = SharedMemoryTable::new(filled(0));
    let reads = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for byte in 1..=200 {
                shared.replace(filled(byte)).expect("open");
            }
            shared.abandon();
        });
        for _ in 0..2 {
            scope.spawn(|| {
                while let Ok(memory) = shared.snapshot() {
                    let mut bytes = [0; 2];
                    memory.read(PAGE - 1, &mut bytes).expect("mapped as long as we hold it");
                    assert_eq!(bytes[0], bytes[1]);
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
}

/// Where each address of the model's space lies: regions laid out by gaps and lengths.
fn layouts() -> impl Strategy<Value = Vec<(u64, u64)>> {
    proptest::collection::vec((0_u64..3, 1_u64..40), 1..7).prop_map(|shape| {
        let mut next = 0;
        let region = |(gap, len): (u64, u64)| {
            let start = next + gap * 7;
            next = start + len;
            (start, len)
        };
        shape.into_iter().map(region).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Any mix of reads and writes gives what a plain array gives, where all of a range is in the table.
    #[test]
    fn reads_and_writes_agree_with_an_array(
        regions in layouts(),
        base in prop_oneof![Just(0), Just(u64::MAX - 330), Just(1 << 40)],
        accesses in proptest::collection::vec((0_u64..300, proptest::collection::vec(any::<u8>(), 0..60), any::<bool>()), 1..60),
    ) {
        let placed: Vec<_> = regions.iter().map(|&(start, len)| (base + start, len)).collect();
        let memory = table(&placed);
        let mut model: Vec<Option<u8>> = vec![None; 400];
        for &(start, len) in &regions {
            model[start as usize..(start + len) as usize].fill(Some(0));
        }
        for (offset, bytes, write) in accesses {
            let cells = &mut model[offset as usize..offset as usize + bytes.len()];
            let inside = cells.iter().all(Option::is_some);
            let address = base.wrapping_add(offset);
            if write {
                let result = memory.write(address, &bytes);
                prop_assert_eq!(result.is_ok(), inside);
                if inside {
                    cells.iter_mut().zip(&bytes).for_each(|(cell, &byte)| *cell = Some(byte));
                }
            } else {
                let mut back = vec![0xa5; bytes.len()];
                let result = memory.read(address, &mut back);
                prop_assert_eq!(result.is_ok(), inside);
                let expected: Vec<_> = cells.iter().map(|cell| cell.unwrap_or(0xa5)).collect();
                prop_assert!(!inside || back == expected);
                prop_assert!(inside || back.iter().all(|&byte| byte == 0xa5), "nothing was copied");
            }
        }
    }
}
