//! Moving bytes between segments and a buffer or a file.
//!
//! # Safety
//! Each function takes segments that are mapped (and writable, where it writes to them), and a buffer
//! that is as long as their sum. The guest may write to the segments meanwhile: nothing is assumed of
//! the bytes, and no reference is made.
#![allow(unsafe_code)]

use std::{
    os::fd::{AsRawFd, BorrowedFd},
    ptr::NonNull,
};

use rustix::io::Errno;

use super::chain::Segment;
use crate::memory::{Source, Target, copy_from_guest, copy_to_guest};

/// The most buffers that the kernel takes in one call.
const IOV_MAX: usize = 1024;

/// Copies a buffer to segments.
///
/// # Safety
/// See the module.
#[inline(always)]
pub(super) unsafe fn fill(segments: impl Iterator<Item = Segment>, mut source: Source<'_>) {
    for segment in segments {
        if let Some(base) = NonNull::new(segment.base) {
            // SAFETY: the caller's promise.
            unsafe { copy_to_guest(base, source.take(segment.len as usize)) };
        }
    }
}

/// Copies segments to a buffer.
///
/// # Safety
/// See the module.
#[inline(always)]
pub(super) unsafe fn drain(segments: impl Iterator<Item = Segment>, mut target: Target<'_>) {
    for segment in segments {
        if let Some(base) = NonNull::new(segment.base) {
            // SAFETY: the caller's promise.
            unsafe { copy_from_guest(base, target.take(segment.len as usize)) };
        }
    }
}

/// Fills segments with zeroes.
///
/// # Safety
/// See the module.
pub(super) unsafe fn zero(segments: impl Iterator<Item = Segment>) {
    for segment in segments {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::write_bytes(segment.base, 0, segment.len as usize) };
    }
}

/// What is left of segments after some bytes.
pub(super) fn skip(segments: impl Iterator<Item = Segment>, mut bytes: u64) -> impl Iterator<Item = Segment> {
    segments.filter_map(move |segment| {
        let over = bytes.min(segment.len.into());
        bytes -= over;
        let (base, len) = (segment.base.wrapping_add(over as usize), segment.len - over as u32);
        (len > 0).then_some(Segment { base, len, writable: segment.writable })
    })
}

/// Moves bytes of a file to segments; without an offset, of a stream. Returns how many.
///
/// # Safety
/// See the module.
pub(super) unsafe fn from_file(
    fd: BorrowedFd<'_>,
    segments: impl Iterator<Item = Segment>,
    offset: Option<u64>,
) -> Result<u64, Errno> {
    move_bytes(segments, offset, |pieces, offset| {
        let (fd, count) = (fd.as_raw_fd(), pieces.len() as libc::c_int);
        // SAFETY: the pieces are segments that are mapped and writable.
        unsafe {
            match offset {
                Some(at) => libc::preadv(fd, pieces.as_ptr(), count, at),
                None => libc::readv(fd, pieces.as_ptr(), count),
            }
        }
    })
}

/// Moves bytes of a file to segments, as many as are in memory already: it waits for no storage. Returns
/// how many; none is an error, of the end of the file too.
///
/// # Safety
/// See the module.
pub(super) unsafe fn from_cache(
    fd: BorrowedFd<'_>,
    segments: impl Iterator<Item = Segment>,
    offset: u64,
) -> Result<u64, Errno> {
    let moved = move_bytes(segments, Some(offset), |pieces, offset| {
        let (count, offset) = (pieces.len() as libc::c_int, offset.unwrap_or(0));
        // SAFETY: the pieces are segments that are mapped and writable.
        unsafe { libc::preadv2(fd.as_raw_fd(), pieces.as_ptr(), count, offset, libc::RWF_NOWAIT) }
    });
    moved.and_then(|moved| if moved > 0 { Ok(moved) } else { Err(Errno::AGAIN) })
}

/// Moves bytes of segments to a file; without an offset, to a stream. Returns how many.
///
/// # Safety
/// See the module.
pub(super) unsafe fn to_file(
    fd: BorrowedFd<'_>,
    segments: impl Iterator<Item = Segment>,
    offset: Option<u64>,
) -> Result<u64, Errno> {
    move_bytes(segments, offset, |pieces, offset| {
        let (fd, count) = (fd.as_raw_fd(), pieces.len() as libc::c_int);
        // SAFETY: the pieces are segments that are mapped.
        unsafe {
            match offset {
                Some(at) => libc::pwritev(fd, pieces.as_ptr(), count, at),
                None => libc::writev(fd, pieces.as_ptr(), count),
            }
        }
    })
}

/// Calls `transfer` with lists of at most [`IOV_MAX`] pieces until one of them comes to its end. A file
/// may give less than was asked for: then it is asked again, a stream is not. An error after some
/// bytes were moved is told by the next call.
fn move_bytes(
    mut segments: impl Iterator<Item = Segment>,
    offset: Option<u64>,
    transfer: impl Fn(&[libc::iovec], Option<libc::off_t>) -> isize,
) -> Result<u64, Errno> {
    let mut total = 0u64;
    loop {
        let mut pieces = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 16];
        let mut more = Vec::new();
        let mut count = 0;
        for segment in segments.by_ref().take(IOV_MAX) {
            let piece = libc::iovec { iov_base: segment.base.cast(), iov_len: segment.len as usize };
            // Up to 16 pieces need no allocation.
            match pieces.get_mut(count) {
                Some(place) => *place = piece,
                None => {
                    if more.is_empty() {
                        more.extend_from_slice(&pieces);
                    }
                    more.push(piece);
                }
            }
            count += 1;
        }
        let mut left =
            if more.is_empty() { pieces.get_mut(..count) } else { Some(&mut more[..]) }.unwrap_or_default();
        if left.is_empty() {
            return Ok(total);
        }
        while !left.is_empty() {
            let at = match offset {
                Some(start) => {
                    let at = start.checked_add(total).and_then(|at| libc::off_t::try_from(at).ok());
                    Some(at.ok_or(Errno::OVERFLOW)?)
                }
                None => None,
            };
            match retry(|| transfer(left, at)) {
                Ok(0) => return Ok(total),
                Ok(moved) => {
                    total += moved;
                    left = rest(left, moved as usize);
                    if offset.is_none() && !left.is_empty() {
                        return Ok(total);
                    }
                }
                Err(errno) if total == 0 => return Err(errno),
                Err(_) => return Ok(total),
            }
        }
    }
}

/// What is left of a list of pieces after some bytes were moved.
fn rest(mut pieces: &mut [libc::iovec], mut moved: usize) -> &mut [libc::iovec] {
    while let Some(piece) = pieces.first_mut() {
        if moved < piece.iov_len {
            piece.iov_base = piece.iov_base.wrapping_byte_add(moved);
            piece.iov_len -= moved;
            break;
        }
        moved -= piece.iov_len;
        pieces = &mut pieces[1..];
    }
    pieces
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
