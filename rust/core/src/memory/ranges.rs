//! The ranges that are ours, as a signal handler may read them: no lock, no allocation, only atomics.
//!
//! A chain of chunks of slots. Slots are taken and given back; chunks are added when all are taken, and never
//! freed, so that a reader needs no leave to walk them. Each slot has a version, odd while it is written: a
//! reader that sees it change has read of a range that comes or goes, which nobody can be touching.
//!
//! # Safety
//! A chunk that was published through `next` lives as long as the process and is only read through `&`.
#![allow(unsafe_code)]

use std::{
    ptr,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering, fence},
};

/// One mapped range of ours.
#[derive(Debug)]
pub struct Slot {
    taken: AtomicBool,
    version: AtomicU32,
    start: AtomicUsize,
    /// 0 while no range stands here.
    len: AtomicUsize,
    /// The size of its pages: what a replacement is aligned to.
    page: AtomicUsize,
    writable: AtomicBool,
    poisoned: AtomicBool,
}

/// What the handler needs to know of a range.
pub struct Found {
    /// Where it stands, to be poisoned.
    pub slot: &'static Slot,
    /// Size of a page.
    pub page: usize,
    /// Is it mapped for writing?
    pub writable: bool,
}

impl Slot {
    const fn new() -> Self {
        Self {
            taken: AtomicBool::new(false),
            version: AtomicU32::new(0),
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            page: AtomicUsize::new(0),
            writable: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
        }
    }

    /// Did an access to this range fault?
    pub fn poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    /// Marks the range as gone.
    pub fn poison(&self) {
        self.poisoned.store(true, Ordering::Release);
    }

    /// Gives the slot back. To be called before the range is unmapped.
    pub fn give_back(&self) {
        self.publish(0, 0, 0, false);
        self.taken.store(false, Ordering::Release);
    }

    /// Only the taker of the slot writes it, so that versions go up one by one.
    fn publish(&self, start: usize, len: usize, page: usize, writable: bool) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        self.page.store(page, Ordering::Relaxed);
        self.writable.store(writable, Ordering::Relaxed);
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }

    fn find(&'static self, address: usize) -> Option<Found> {
        let version = self.version.load(Ordering::Acquire);
        let start = self.start.load(Ordering::Relaxed);
        let len = self.len.load(Ordering::Relaxed);
        let page = self.page.load(Ordering::Relaxed);
        let writable = self.writable.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let steady = version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version;
        (steady && address.wrapping_sub(start) < len).then_some(Found { slot: self, page, writable })
    }
}

const SLOTS: usize = 64;

struct Chunk {
    slots: [Slot; SLOTS],
    next: AtomicPtr<Chunk>,
}

impl Chunk {
    const fn new() -> Self {
        Self { slots: [const { Slot::new() }; SLOTS], next: AtomicPtr::new(ptr::null_mut()) }
    }

    fn next(&self) -> Option<&'static Chunk> {
        // SAFETY: null, or a leaked chunk (see the module).
        unsafe { self.next.load(Ordering::Acquire).as_ref() }
    }

    /// The next chunk, made if there is none.
    fn next_or_new(&self) -> &'static Chunk {
        if let Some(next) = self.next() {
            return next;
        }
        let made = Box::into_raw(Box::new(Chunk::new()));
        match self.next.compare_exchange(ptr::null_mut(), made, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: just leaked, and published.
            Ok(_) => unsafe { &*made },
            Err(other) => {
                // SAFETY: another thread was first: ours was never published, theirs lives for ever.
                unsafe {
                    drop(Box::from_raw(made));
                    &*other
                }
            }
        }
    }
}

static FIRST: Chunk = Chunk::new();

fn chunks() -> impl Iterator<Item = &'static Chunk> {
    std::iter::successors(Some(&FIRST), |chunk| chunk.next())
}

/// Writes a range down. To be called after it was mapped and before anybody touches it.
pub fn add(start: usize, len: usize, page: usize, writable: bool) -> &'static Slot {
    let mut chunk = &FIRST;
    loop {
        for slot in &chunk.slots {
            if !slot.taken.load(Ordering::Relaxed) && !slot.taken.swap(true, Ordering::AcqRel) {
                slot.poisoned.store(false, Ordering::Relaxed);
                slot.publish(start, len, page, writable);
                return slot;
            }
        }
        chunk = chunk.next_or_new();
    }
}

/// The range of ours that an address lies in. Safe in a signal handler.
pub fn find(address: usize) -> Option<Found> {
    chunks().flat_map(|chunk| &chunk.slots).find_map(|slot| slot.find(address))
}

/// Forgets all ranges, in a child in which none of them is mapped. Safe in a fresh child: it has one thread.
pub fn forget_all() {
    for slot in chunks().flat_map(|chunk| &chunk.slots) {
        slot.version.store(0, Ordering::Relaxed);
        slot.len.store(0, Ordering::Relaxed);
        slot.taken.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_ranges_are_all_found_and_none_after_it_was_given_back() {
        // Addresses that no mapping of this process has: the tests of the other modules run beside this one.
        let base = 0x7000_0000_0000_0000;
        let start = |n: usize| base + n * 0x10000;
        let count = 5 * SLOTS;
        let slots: Vec<_> = (0..count).map(|n| add(start(n), 0x8000, 4096, n % 2 == 0)).collect();
        for (n, slot) in slots.iter().enumerate() {
            let found = find(start(n) + 0x7fff).expect("inside");
            assert!(ptr::eq(found.slot, *slot));
            assert_eq!((found.page, found.writable), (4096, n % 2 == 0));
            assert!(find(start(n) + 0x8000).is_none(), "one past the end");
        }
        slots[3].poison();
        assert!(slots[3].poisoned() && !slots[4].poisoned());
        slots.iter().for_each(|slot| slot.give_back());
        assert!((0..count).all(|n| find(start(n)).is_none()));
    }

    #[test]
    fn a_range_is_found_while_others_come_and_go() {
        let base = 0x7100_0000_0000_0000;
        let steady = add(base, 0x1000, 4096, true);
        std::thread::scope(|scope| {
            for thread in 1..3 {
                scope.spawn(move || {
                    for _ in 0..20_000 {
                        add(base + thread * 0x10_0000, 0x1000, 4096, true).give_back();
                    }
                });
            }
            for _ in 0..20_000 {
                assert!(find(base + 0xfff).is_some_and(|found| ptr::eq(found.slot, steady)));
            }
        });
        steady.give_back();
    }
}
