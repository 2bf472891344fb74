//! One mapped range and its kind.
//!
//! # Safety
//! A [`MappedMemory`] owns its address range from `mmap` to `munmap`; the base pointer is handed out
//! together with the length, and whoever keeps it keeps the `Arc` too.
#![allow(unsafe_code)]

use std::{fmt, os::fd::BorrowedFd, ptr::NonNull};

use rustix::{
    io::Errno,
    mm::{MapFlags, ProtFlags, mmap, munmap},
    param::page_size,
};

/// How the bytes of a mapping are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryKind {
    /// A shared file: memfd, hugetlbfs, a plain file.
    File,
}

/// What backs a region of guest memory: the seam for further kinds (Xen foreign mappings in windows,
/// grants mapped for a request).
pub trait Backing: fmt::Debug + Send + Sync {
    /// The kind of memory.
    fn kind(&self) -> MemoryKind;
    /// Length in bytes.
    fn len(&self) -> u64;
    /// True for a range without a byte; none is ever made.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// May we write to it?
    fn writable(&self) -> bool;
    /// The base, where the whole range is mapped at one address for as long as this object lives.
    fn resident(&self) -> Option<NonNull<u8>>;
    /// True once an access faulted and a zero page was put in the place of what is gone.
    fn poisoned(&self) -> bool;
}

/// Why a range could not be mapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// The length is 0, or does not fit the address space.
    #[error("cannot map {0} bytes: the length must be between 1 and 2^63 - 1")]
    Length(u64),
    /// The kernel refused.
    #[error("cannot map {len} bytes at offset {offset:#x} of the file: {errno}")]
    Refused {
        /// Length in bytes.
        len: u64,
        /// Offset in the file.
        offset: u64,
        /// What mmap said.
        errno: Errno,
    },
}

/// One mmapped range of a shared file.
#[derive(Debug)]
pub struct MappedMemory {
    /// What mmap returned: page aligned.
    mapping: NonNull<u8>,
    mapped_len: usize,
    /// Where the range begins within the first page.
    delta: usize,
    len: usize,
    writable: bool,
}

// SAFETY: the range belongs to this object until it is dropped, and nobody makes a reference into it.
unsafe impl Send for MappedMemory {}
// SAFETY: as above; all access is by raw pointers, to memory that is shared with others in any case.
unsafe impl Sync for MappedMemory {}

impl MappedMemory {
    /// Maps `len` bytes of a shared file from `offset` on, which may lie within a page.
    pub fn file(fd: BorrowedFd<'_>, offset: u64, len: u64, writable: bool) -> Result<Self, MapError> {
        let delta = (offset % page_size() as u64) as usize;
        let length = usize::try_from(len).ok().filter(|&n| n > 0 && n <= isize::MAX as usize - delta);
        let length = length.ok_or(MapError::Length(len))?;
        let prot = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        let mapped_len = length + delta;
        // SAFETY: the kernel chooses the address, so that no mapping of ours is replaced.
        let mapping = unsafe {
            mmap(
                std::ptr::null_mut(),
                mapped_len,
                prot,
                MapFlags::SHARED | MapFlags::NORESERVE,
                fd,
                offset - delta as u64,
            )
        }
        .map_err(|errno| MapError::Refused { len, offset, errno })?;
        let mapping = NonNull::new(mapping.cast::<u8>()).ok_or(MapError::Refused {
            len,
            offset,
            errno: Errno::FAULT,
        })?;
        Ok(Self { mapping, mapped_len, delta, len: length, writable })
    }
}

impl Backing for MappedMemory {
    fn kind(&self) -> MemoryKind {
        MemoryKind::File
    }
    fn len(&self) -> u64 {
        self.len as u64
    }
    fn writable(&self) -> bool {
        self.writable
    }
    fn resident(&self) -> Option<NonNull<u8>> {
        // SAFETY: delta + len == mapped_len, so this stays inside the mapping.
        Some(unsafe { self.mapping.add(self.delta) })
    }
    fn poisoned(&self) -> bool {
        false
    }
}

impl Drop for MappedMemory {
    fn drop(&mut self) {
        // SAFETY: exactly the range that mmap gave us; who kept a pointer kept an Arc of us as well.
        // An error can only mean that the range is gone already: nothing is left to do.
        let _ = unsafe { munmap(self.mapping.as_ptr().cast(), self.mapped_len) };
    }
}
