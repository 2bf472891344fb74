//! An address range that is ours from `mmap` to `munmap`, whatever is mapped there.
//!
//! # Safety
//! Whoever keeps a pointer into the range keeps the [`Mapping`] too.
#![allow(unsafe_code)]

use std::ptr::{self, NonNull};

use rustix::{
    io::Errno,
    mm::{MapFlags, ProtFlags, mmap_anonymous, munmap},
    param::page_size,
};

use super::{fault, fork::Owner, ranges};

/// A mapped range. A fault in it does not end the process: see `fault`.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    range: &'static ranges::Slot,
    owner: Owner,
}

// SAFETY: the range belongs to this object until it is dropped, and nobody makes a reference into it.
unsafe impl Send for Mapping {}
// SAFETY: as above; all access is by raw pointers, to memory that is shared with others in any case.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Takes a range that was just mapped, in pages of `page` bytes.
    ///
    /// # Safety
    /// `mmap` gave exactly this range, and nobody else unmaps it.
    pub(crate) unsafe fn new(base: NonNull<u8>, len: usize, page: usize, writable: bool) -> Self {
        let owner = Owner::this_process();
        fault::install();
        let range = ranges::add(base.as_ptr() as usize, len, page, writable);
        Self { base, len, range, owner }
    }

    /// An address range in which nothing is mapped yet, nor can be by others.
    pub(crate) fn reserve(len: usize, writable: bool) -> Result<Self, Errno> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: the kernel chooses the address, so that no mapping of ours is replaced.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), len, ProtFlags::empty(), flags) }?;
        let base = NonNull::new(base.cast()).ok_or(Errno::FAULT)?;
        // SAFETY: this is what mmap gave.
        Ok(unsafe { Self::new(base, len, page_size(), writable) })
    }

    /// Takes out what is mapped in a part of a reserved range, and keeps the addresses.
    ///
    /// # Safety
    /// The part lies inside, begins at a page, and nobody holds a pointer into it.
    pub(crate) unsafe fn vacate(&self, offset: usize, len: usize) -> Result<(), Errno> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: a part of our range, which the caller gives up.
        unsafe { mmap_anonymous(self.base.add(offset).as_ptr().cast(), len, ProtFlags::empty(), flags) }
            .map(drop)
    }

    /// The first byte.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// The process that it belongs to.
    pub(crate) fn owner(&self) -> Owner {
        self.owner
    }

    /// True once an access to it faulted.
    pub(crate) fn poisoned(&self) -> bool {
        fault::faults() != 0 && self.range.poisoned()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // In a child the range was never there, and others may stand in its place, in the table of ranges too.
        if !self.owner.is_this_process() {
            return;
        }
        self.range.give_back();
        // SAFETY: exactly the range that mmap gave; who kept a pointer kept us as well.
        // An error can only mean that the range is gone already: nothing is left to do.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}
