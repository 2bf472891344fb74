//! What Python lends us: buffers, and file descriptors by their numbers.
//!
//! # Safety
//! A number from Python says nothing about who owns the descriptor, so it is borrowed only for the one call that
//! duplicates it.
#![allow(unsafe_code)]

use std::os::fd::{BorrowedFd, OwnedFd};

use pyo3::{exceptions::PyOSError, prelude::*};
use rustix::io::Errno;

/// A descriptor of our own for the same open file, closed on exec.
///
/// # Errors
/// `OSError` (EBADF) where `fd` is not open.
pub fn duplicate_fd(fd: i32) -> PyResult<OwnedFd> {
    if fd < 0 {
        return Err(PyOSError::new_err((
            Errno::BADF.raw_os_error(),
            format!("{fd} is not a file descriptor"),
        )));
    }
    // SAFETY: not negative, so not the forbidden -1; the borrow ends with this call. If the number is not open, or
    // becomes another file in this very moment, the caller gets an error or the other file: no memory is at stake.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(borrowed.try_clone_to_owned()?)
}
