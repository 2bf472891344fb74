//! Pages of memfds: what frames, grants and the pages of IOREQ servers are made of.
//!
//! # Safety
//! What is mapped here lies in ranges that a caller reserved, or at addresses that the kernel chooses.
#![allow(unsafe_code)]

use std::{
    os::fd::OwnedFd,
    ptr::{self, NonNull},
    sync::Arc,
};

use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    io::{Errno, pread, pwrite},
    mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap},
};

use crate::xen::abi::FRAME;

/// A page, which lives as long as somebody holds its file or has it mapped.
#[derive(Clone, Debug)]
pub(super) struct Page {
    file: Arc<OwnedFd>,
    at: u64,
}

impl Page {
    /// The page of a file that begins at an offset.
    pub(super) fn of(file: &Arc<OwnedFd>, at: u64) -> Self {
        Self { file: Arc::clone(file), at }
    }

    /// A page of zeroes.
    pub(super) fn new() -> Result<Self, Errno> {
        Ok(Self::of(&file(FRAME as u64)?, 0))
    }

    /// Does the other one follow in the same file?
    fn is_followed_by(&self, pages: usize, next: &Self) -> bool {
        Arc::ptr_eq(&self.file, &next.file) && next.at == self.at + (pages * FRAME) as u64
    }

    /// Copies out of it, at most to its end.
    pub(super) fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), Errno> {
        let room = FRAME.saturating_sub(offset).min(bytes.len());
        bytes
            .get_mut(..room)
            .map_or(Ok(0), |part| pread(&*self.file, part, self.at + offset as u64))
            .map(drop)
    }

    /// Copies into it, at most to its end.
    pub(super) fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), Errno> {
        let room = FRAME.saturating_sub(offset).min(bytes.len());
        bytes.get(..room).map_or(Ok(0), |part| pwrite(&*self.file, part, self.at + offset as u64)).map(drop)
    }

    /// Copies to memory of this process, which may change meanwhile.
    ///
    /// # Safety
    /// `len` bytes at `to` may be written.
    pub(super) unsafe fn copy_out(&self, offset: u16, len: u16, to: *mut u8) -> Result<(), Errno> {
        // SAFETY: as the caller says; the kernel does the copying.
        let done = unsafe { libc::pread(self.raw(), to.cast(), len.into(), self.place(offset)) };
        if usize::try_from(done) == Ok(len.into()) { Ok(()) } else { Err(Errno::FAULT) }
    }

    /// Copies from memory of this process, which may change meanwhile.
    ///
    /// # Safety
    /// `len` bytes at `from` may be read.
    pub(super) unsafe fn copy_in(&self, offset: u16, len: u16, from: *const u8) -> Result<(), Errno> {
        // SAFETY: as the caller says; the kernel does the copying.
        let done = unsafe { libc::pwrite(self.raw(), from.cast(), len.into(), self.place(offset)) };
        if usize::try_from(done) == Ok(len.into()) { Ok(()) } else { Err(Errno::FAULT) }
    }

    fn raw(&self) -> libc::c_int {
        std::os::fd::AsRawFd::as_raw_fd(&*self.file)
    }

    fn place(&self, offset: u16) -> libc::off_t {
        // Files here are far below 2^63 bytes.
        (self.at + u64::from(offset)) as libc::off_t
    }
}

/// A file of so many bytes, all zeroes, none of which takes memory yet.
pub(super) fn file(len: u64) -> Result<Arc<OwnedFd>, Errno> {
    let file = memfd_create("xenvirt-simulated", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, len)?;
    Ok(Arc::new(file))
}

fn protection(writable: bool) -> ProtFlags {
    if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ }
}

/// A range at an address of the kernel's choice, where every touch is a SIGBUS.
pub(super) fn reserve(nothing: &OwnedFd, pages: usize, writable: bool) -> Result<NonNull<u8>, Errno> {
    let len = pages.checked_mul(FRAME).ok_or(Errno::NOMEM)?;
    // SAFETY: the kernel chooses the address, so that no mapping of ours is replaced.
    let base = unsafe { mmap(ptr::null_mut(), len, protection(writable), MapFlags::SHARED, nothing, 0) }?;
    let base = NonNull::new(base.cast()).ok_or(Errno::FAULT)?;
    // SAFETY: the range that was just made.
    if let Err(errno) = unsafe { keep_from_children(base, len) } {
        // SAFETY: nobody has seen it.
        let _ = unsafe { munmap(base.as_ptr().cast(), len) };
        return Err(errno);
    }
    Ok(base)
}

/// Makes such a range in the place of what is mapped there.
///
/// # Safety
/// The range is the caller's, begins at a page, and nobody holds a pointer into it.
pub(super) unsafe fn reserve_at(
    at: NonNull<u8>,
    nothing: &OwnedFd,
    pages: usize,
    writable: bool,
) -> Result<(), Errno> {
    let len = pages.checked_mul(FRAME).ok_or(Errno::NOMEM)?;
    let flags = MapFlags::SHARED | MapFlags::FIXED;
    // SAFETY: the caller gives the range up.
    unsafe {
        mmap(at.as_ptr().cast(), len, protection(writable), flags, nothing, 0)?;
        keep_from_children(at, len)
    }
}

/// Puts pages into a range, from `at` on.
///
/// # Safety
/// The range was reserved, and has room for them; nobody relies on what stood there.
pub(super) unsafe fn place(at: NonNull<u8>, pages: &[Page], writable: bool) -> Result<(), Errno> {
    let mut done = 0;
    while let Some((first, more)) = pages.get(done..).and_then(<[Page]>::split_first) {
        let followers =
            more.iter().enumerate().take_while(|(index, next)| first.is_followed_by(index + 1, next));
        let run = 1 + followers.count();
        let (len, flags) = (run * FRAME, MapFlags::SHARED | MapFlags::FIXED);
        // SAFETY: inside the range, as the caller says.
        unsafe {
            let to = at.add(done * FRAME);
            mmap(to.as_ptr().cast(), len, protection(writable), flags, &*first.file, first.at)?;
            keep_from_children(to, len)?;
        }
        done += run;
    }
    Ok(())
}

/// Puts a private copy of a page into a range, which keeps what is written to it to itself.
///
/// # Safety
/// As [`place`], for one page.
pub(super) unsafe fn place_copy(at: NonNull<u8>, page: &Page, writable: bool) -> Result<(), Errno> {
    let flags = MapFlags::PRIVATE | MapFlags::FIXED;
    // SAFETY: inside the range, as the caller says.
    unsafe {
        mmap(at.as_ptr().cast(), FRAME, protection(writable), flags, &*page.file, page.at)?;
        keep_from_children(at, FRAME)
    }
}

/// Maps pages at an address of the kernel's choice.
pub(super) fn map(pages: &[Page], writable: bool) -> Result<NonNull<u8>, Errno> {
    let nothing = file(0)?;
    let base = reserve(&nothing, pages.len(), writable)?;
    // SAFETY: the range that was just made, for as many pages.
    if let Err(errno) = unsafe { place(base, pages, writable) } {
        // SAFETY: nobody has seen it.
        let _ = unsafe { munmap(base.as_ptr().cast(), pages.len() * FRAME) };
        return Err(errno);
    }
    Ok(base)
}

/// As Xen's devices do: a child does not have the range, and it is in no core dump.
///
/// # Safety
/// The range is the caller's.
unsafe fn keep_from_children(base: NonNull<u8>, len: usize) -> Result<(), Errno> {
    // SAFETY: the advice changes nothing in this process.
    unsafe {
        madvise(base.as_ptr().cast(), len, Advice::LinuxDontFork)?;
        madvise(base.as_ptr().cast(), len, Advice::LinuxDontDump)
    }
}
