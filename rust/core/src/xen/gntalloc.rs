//! /dev/xen/gntalloc: pages of ours that are granted to another domain.
//!
//! # Safety
//! Each ioctl gets pointers to memory that lives across the call and is as long as the structure says. Ranges are
//! handed out with their length, and the caller makes a `Mapping` of them at once.
#![allow(unsafe_code)]

use std::{
    fmt,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
};

use rustix::{fs::OFlags, io::Errno};

use super::{
    abi::gnttab::{ALLOC_GREF, AllocGref, DEALLOC_GREF, SET_UNMAP_NOTIFY, SHARE_WRITABLE, UnmapGrantRef},
    gntdev::{UnmapNotify, ioctl, map_pages},
    open::{OpenError, open_device},
};

/// The calls by which pages are granted: the kernel's, or those of a simulated hypervisor.
pub trait ShareCalls: fmt::Debug + Send + Sync {
    /// Makes pages of zeroes, grants them to a domain, fills in their references, and gives the index by which the
    /// device knows them.
    fn share(&self, domain: u16, writable: bool, references: &mut [u32]) -> Result<u64, Errno>;

    /// Maps pages that were made together, for writing. A child after fork does not get the range.
    fn map(&self, index: u64, pages: usize) -> Result<NonNull<u8>, Errno>;

    /// Takes the pages back. They go when they are unmapped as well, and when the other domain lets go of them:
    /// nobody can take from it what it has mapped.
    fn unshare(&self, index: u64, pages: usize) -> Result<(), Errno>;

    /// Says what is to happen when the pages go.
    fn notify_on_unmap(&self, index: u64, notify: UnmapNotify) -> Result<(), Errno>;
}

/// The device.
#[derive(Debug)]
pub struct Gntalloc {
    device: OwnedFd,
}

impl Gntalloc {
    /// Opens /dev/xen/gntalloc.
    ///
    /// # Errors
    /// ENOENT outside of a Xen domain that has it (its module is xen_gntalloc), EACCES without the permission.
    pub fn open() -> Result<Self, OpenError> {
        let device = open_device("/dev/xen/gntalloc", OFlags::empty())?;
        Ok(Self { device })
    }
}

impl AsFd for Gntalloc {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl ShareCalls for Gntalloc {
    fn share(&self, domain: u16, writable: bool, references: &mut [u32]) -> Result<u64, Errno> {
        let count = u32::try_from(references.len()).map_err(|_| Errno::INVAL)?;
        let flags = if writable { SHARE_WRITABLE } else { 0 };
        let head = AllocGref { domain, flags, count, index: 0 };
        // In words, so that the structure is aligned; two references in each behind it.
        let mut request: Vec<u64> = vec![0; 2 + references.len().div_ceil(2).max(1)];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut request);
        let front = bytes.get_mut(..size_of::<AllocGref>()).ok_or(Errno::INVAL)?;
        front.copy_from_slice(bytemuck::bytes_of(&head));
        // SAFETY: the structure with room for the references, which the kernel fills.
        unsafe { ioctl(self.as_fd(), ALLOC_GREF, request.as_mut_ptr()) }?;
        let words: &[u32] = bytemuck::cast_slice(&request);
        for (reference, word) in references.iter_mut().zip(words.iter().skip(4)) {
            *reference = *word;
        }
        request.get(1).copied().ok_or(Errno::INVAL)
    }

    fn map(&self, index: u64, pages: usize) -> Result<NonNull<u8>, Errno> {
        map_pages(self.as_fd(), index, pages, true)
    }

    fn unshare(&self, index: u64, pages: usize) -> Result<(), Errno> {
        let count = u32::try_from(pages).map_err(|_| Errno::INVAL)?;
        let mut request = UnmapGrantRef { index, count, padding: 0 };
        // SAFETY: the structure, which lives across the call.
        unsafe { ioctl(self.as_fd(), DEALLOC_GREF, &raw mut request) }
    }

    fn notify_on_unmap(&self, index: u64, notify: UnmapNotify) -> Result<(), Errno> {
        let Some(mut request) = notify.raw(index)? else { return Ok(()) };
        // SAFETY: the structure, which lives across the call.
        unsafe { ioctl(self.as_fd(), SET_UNMAP_NOTIFY, &raw mut request) }
    }
}
