//! One chain of buffers: its segments in our memory, and two cursors through them.
//!
//! # Safety
//! A [`Segment`] is made by the walk, which translated and checked the range. A [`QueueChain`] keeps the
//! memory table from which it was translated, so that the range stays mapped. No reference is made into
//! a segment: bytes are copied by pointer, or by the kernel.
#![allow(unsafe_code)]

use std::{
    os::fd::{AsRawFd, BorrowedFd},
    sync::Arc,
};

use rustix::io::Errno;

use super::{error::ChainError, queue::VirtQueue};
use crate::memory::GuestMemory;

/// The most buffers that the kernel takes in one call.
const IOV_MAX: usize = 1024;

/// A piece of a buffer: a range of our memory that was checked.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Where it begins. The guest may write to it at any time: make no reference to it.
    pub base: *mut u8,
    /// Length in bytes, at least one.
    pub len: u32,
    /// May the device write to it? If not, it must not: the region may be mapped read-only.
    pub writable: bool,
}

// SAFETY: the pointer leads to shared memory; whoever holds the segment keeps the mapping.
unsafe impl Send for Segment {}
// SAFETY: as above; nothing is read or written through a `&Segment` but by raw copies.
unsafe impl Sync for Segment {}

/// How much of a list of segments a chain has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extent {
    pub head: u16,
    /// How many segments are readable: these come first.
    pub readable_segments: u32,
    pub segments: u32,
    /// Bytes.
    pub readable: u64,
    pub writable: u64,
}

/// A chain as it was taken from the ring: validated and translated.
#[derive(Debug, Default)]
pub struct Chain {
    /// Index of its first descriptor: how driver and device call it.
    pub head: u16,
    /// The pieces of its buffers; the readable ones come first.
    pub segments: Vec<Segment>,
    /// How many of the segments are readable.
    pub readable_segments: usize,
    /// Device-readable bytes.
    pub readable: u64,
    /// Device-writable bytes.
    pub writable: u64,
}

/// A place in a list of segments.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    segment: usize,
    offset: u32,
}

impl Cursor {
    /// The pieces of the next `len` bytes.
    fn pieces(self, segments: &[Segment], len: u64) -> impl Iterator<Item = Segment> {
        let mut offset = self.offset;
        let mut left = len;
        segments.iter().skip(self.segment).map_while(move |segment| {
            let rest = segment.len - offset;
            let len = u64::from(rest).min(left) as u32;
            let base = segment.base.wrapping_add(offset as usize);
            offset = 0;
            left -= u64::from(len);
            (len > 0).then_some(Segment { base, len, writable: segment.writable })
        })
    }

    fn advance(&mut self, segments: &[Segment], mut len: u64) {
        while let Some(segment) = segments.get(self.segment) {
            let rest = u64::from(segment.len - self.offset);
            if len < rest {
                self.offset += len as u32;
                return;
            }
            len -= rest;
            self.segment += 1;
            self.offset = 0;
        }
    }
}

/// A chain that the device has. It is read and written from front to back.
///
/// Dropped without having been completed, it stays with the device for ever (until the queue is reset).
#[derive(Debug)]
pub struct QueueChain {
    queue: Arc<VirtQueue>,
    generation: u64,
    /// Keeps the segments mapped.
    _memory: GuestMemory,
    chain: Chain,
    read_at: Cursor,
    write_at: Cursor,
    read: u64,
    written: u64,
    completed: bool,
}

impl QueueChain {
    pub(super) fn new(queue: Arc<VirtQueue>, generation: u64, memory: GuestMemory, chain: Chain) -> Self {
        let write_at = Cursor { segment: chain.readable_segments, offset: 0 };
        Self {
            queue,
            generation,
            _memory: memory,
            chain,
            read_at: Cursor::default(),
            write_at,
            read: 0,
            written: 0,
            completed: false,
        }
    }

    /// Index of the first descriptor: how driver and device call the chain.
    pub fn head(&self) -> u16 {
        self.chain.head
    }

    /// The queue it came from.
    pub fn queue(&self) -> &Arc<VirtQueue> {
        &self.queue
    }

    /// Device-readable bytes that were not read yet.
    pub fn readable(&self) -> u64 {
        self.chain.readable - self.read
    }

    /// Device-writable bytes that were not written yet.
    pub fn writable(&self) -> u64 {
        self.chain.writable - self.written
    }

    /// Bytes written so far: the used length, unless [`Self::complete`] is told another.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Was it completed?
    pub fn completed(&self) -> bool {
        self.completed
    }

    /// Is the chain still the device's: neither completed nor stale?
    pub fn check(&self) -> Result<(), ChainError> {
        if self.completed {
            return Err(ChainError::Completed { head: self.head() });
        }
        self.queue.while_current(self.generation, || ()).ok_or(ChainError::Stale { head: self.head() })
    }

    fn readable_part(&self) -> &[Segment] {
        self.chain.segments.get(..self.chain.readable_segments).unwrap_or_default()
    }

    /// Reads the next bytes into `target`, and returns how many: fewer than asked only at the end.
    pub fn read(&mut self, target: &mut [u8]) -> Result<usize, ChainError> {
        // SAFETY: a slice is valid for its length.
        unsafe { self.read_raw(target.as_mut_ptr(), target.len()) }
    }

    /// Reads the next bytes to where `target` points, and returns how many.
    ///
    /// # Safety
    /// `target` is valid for writes of `len` bytes.
    pub unsafe fn read_raw(&mut self, target: *mut u8, len: usize) -> Result<usize, ChainError> {
        let len = self.readable().min(len as u64);
        self.access(|chain| {
            let mut target = target;
            for piece in chain.read_at.pieces(chain.readable_part(), len) {
                // SAFETY: the piece is mapped; the pieces sum up to at most the target's length.
                unsafe { std::ptr::copy(piece.base, target, piece.len as usize) };
                target = target.wrapping_add(piece.len as usize);
            }
        })?;
        self.skip_read(len);
        Ok(len as usize)
    }

    fn skip_read(&mut self, len: u64) {
        let readable = self.chain.segments.get(..self.chain.readable_segments).unwrap_or_default();
        self.read_at.advance(readable, len);
        self.read += len;
    }

    /// Writes all of `source` to the next bytes, or nothing when it does not fit.
    pub fn write(&mut self, source: &[u8]) -> Result<(), ChainError> {
        // SAFETY: a slice is valid for its length.
        unsafe { self.write_raw(source.as_ptr(), source.len()) }
    }

    /// Writes all of the bytes at `source`, or nothing when they do not fit.
    ///
    /// # Safety
    /// `source` is valid for reads of `len` bytes.
    pub unsafe fn write_raw(&mut self, source: *const u8, len: usize) -> Result<(), ChainError> {
        let (len, room) = (len as u64, self.writable());
        if len > room {
            return Err(ChainError::DoesNotFit { head: self.head(), len, room });
        }
        self.access(|chain| {
            let mut source = source;
            for piece in chain.write_at.pieces(&chain.chain.segments, len) {
                // SAFETY: the piece is mapped writable; the pieces sum up to the source's length.
                unsafe { std::ptr::copy(source, piece.base, piece.len as usize) };
                source = source.wrapping_add(piece.len as usize);
            }
        })?;
        self.write_at.advance(&self.chain.segments, len);
        self.written += len;
        Ok(())
    }

    /// Runs a copy while the chain cannot become stale.
    fn access<T>(&self, copy: impl FnOnce(&Self) -> T) -> Result<T, ChainError> {
        let head = self.head();
        if self.completed {
            return Err(ChainError::Completed { head });
        }
        self.queue.while_current(self.generation, || copy(self)).ok_or(ChainError::Stale { head })
    }

    /// Moves up to `len` bytes of a file to the next writable bytes, straight into guest memory, and
    /// returns how many: fewer at the end of the file. `offset` is a place in the file; without one the
    /// descriptor is read as a stream, which should not block: stopping the queue waits for it.
    pub fn write_from_fd(
        &mut self,
        fd: BorrowedFd<'_>,
        offset: Option<u64>,
        len: u64,
    ) -> Result<u64, ChainError> {
        let len = len.min(self.writable());
        let moved = self.access(|chain| {
            move_bytes(chain.write_at.pieces(&chain.chain.segments, len), offset, |iov, offset| {
                let count = iov.len() as libc::c_int;
                // SAFETY: each iovec is a checked, mapped, writable range.
                unsafe {
                    match offset {
                        Some(at) => libc::preadv(fd.as_raw_fd(), iov.as_ptr(), count, at),
                        None => libc::readv(fd.as_raw_fd(), iov.as_ptr(), count),
                    }
                }
            })
        })?;
        let moved = moved.map_err(|errno| ChainError::Io { head: self.head(), errno })?;
        self.write_at.advance(&self.chain.segments, moved);
        self.written += moved;
        Ok(moved)
    }

    /// Moves up to `len` of the next readable bytes to a file, straight from guest memory, and returns
    /// how many; see [`Self::write_from_fd`].
    pub fn read_to_fd(
        &mut self,
        fd: BorrowedFd<'_>,
        offset: Option<u64>,
        len: u64,
    ) -> Result<u64, ChainError> {
        let len = len.min(self.readable());
        let moved = self.access(|chain| {
            move_bytes(chain.read_at.pieces(chain.readable_part(), len), offset, |iov, offset| {
                let count = iov.len() as libc::c_int;
                // SAFETY: each iovec is a checked, mapped range.
                unsafe {
                    match offset {
                        Some(at) => libc::pwritev(fd.as_raw_fd(), iov.as_ptr(), count, at),
                        None => libc::writev(fd.as_raw_fd(), iov.as_ptr(), count),
                    }
                }
            })
        })?;
        let moved = moved.map_err(|errno| ChainError::Io { head: self.head(), errno })?;
        self.skip_read(moved);
        Ok(moved)
    }

    /// What was not read yet, a piece for each range of memory. Valid while the chain lives.
    pub fn readable_segments(&self) -> impl Iterator<Item = Segment> {
        self.read_at.pieces(self.readable_part(), self.readable())
    }

    /// What was not written yet, a piece for each range of memory. Valid while the chain lives.
    pub fn writable_segments(&self) -> impl Iterator<Item = Segment> {
        self.write_at.pieces(&self.chain.segments, self.writable())
    }

    /// Puts the chain in the used ring and calls the driver if it wants. The used length is what was
    /// written, or `written`: for who wrote through views.
    pub fn complete(&mut self, written: Option<u64>) -> Result<(), ChainError> {
        let head = self.head();
        if self.completed {
            return Err(ChainError::Completed { head });
        }
        let len = written.unwrap_or(self.written);
        if len > self.chain.writable {
            return Err(ChainError::DoesNotFit { head, len, room: self.chain.writable });
        }
        self.queue.complete(self.generation, head, len, self.read)?;
        self.completed = true;
        Ok(())
    }
}

impl Drop for QueueChain {
    fn drop(&mut self) {
        let segments = std::mem::take(&mut self.chain.segments);
        let abandoned = (!self.completed).then_some(self.chain.head);
        self.queue.give_back(self.generation, abandoned, segments);
    }
}

/// Calls `transfer` with lists of at most [`IOV_MAX`] pieces until one of them comes back short. An
/// error after some bytes were moved is told by the next call.
fn move_bytes(
    pieces: impl Iterator<Item = Segment>,
    offset: Option<u64>,
    transfer: impl Fn(&[libc::iovec], Option<libc::off_t>) -> isize,
) -> Result<u64, Errno> {
    let mut pieces = pieces.peekable();
    let mut iov = Vec::with_capacity(pieces.size_hint().0.min(IOV_MAX));
    let mut total = 0u64;
    while pieces.peek().is_some() {
        iov.clear();
        let part = pieces.by_ref().take(IOV_MAX);
        iov.extend(part.map(|p| libc::iovec { iov_base: p.base.cast(), iov_len: p.len as usize }));
        let wanted: u64 = iov.iter().map(|piece| piece.iov_len as u64).sum();
        let at = match offset.map(|start| start.checked_add(total).and_then(|at| at.try_into().ok())) {
            Some(None) => return Err(Errno::OVERFLOW),
            Some(at) => at,
            None => None,
        };
        match retry(|| transfer(&iov, at)) {
            Ok(moved) => {
                total += moved;
                if moved < wanted {
                    break;
                }
            }
            Err(errno) if total == 0 => return Err(errno),
            Err(_) => break,
        }
    }
    Ok(total)
}

/// A system call, again when a signal interrupted it before it did anything.
fn retry(call: impl Fn() -> isize) -> Result<u64, Errno> {
    loop {
        if let Ok(moved) = u64::try_from(call()) {
            return Ok(moved);
        }
        let errno = std::io::Error::last_os_error();
        let errno = errno.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
        if errno != Errno::INTR {
            return Err(errno);
        }
    }
}
