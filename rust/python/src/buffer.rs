//! What Python and we lend each other: buffers, and file descriptors by their numbers.
//!
//! Inwards, [`BorrowedBuffer`] holds a buffer of Python's for one call. Outwards, [`MemoryView`] lends guest memory,
//! for as long as its lease lives. Every object of this module that has the buffer protocol stands here.
//!
//! # Safety
//! A borrowed buffer is neither resized nor freed by Python while it is held; others may read and write its bytes,
//! so that no reference is ever made to them. A lent range stays mapped while anybody has a buffer on it: the
//! buffer holds the object, and the object does not let go of its lease before the last buffer is gone.
//! A number from Python says nothing about who owns the descriptor, so it is borrowed only for the one call that
//! duplicates it.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, c_int},
    os::fd::{BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::{Mutex, MutexGuard, PoisonError},
};

use pyo3::{
    exceptions::{PyBufferError, PyOSError, PyTypeError, PyValueError},
    ffi,
    prelude::*,
    types::{PyBytes, PyType},
};
use rustix::io::Errno;
use xenvirt_core::memory::{Leased, MemoryError, Owner, Source, Target};

use crate::errors::Error;

/// Copies of more than this let other Python threads run meanwhile. Below it, letting go of the interpreter and
/// taking it again costs as much as the copy.
const DETACH_ABOVE: usize = 16 * 1024;

/// Runs a copy of `len` bytes, detached from the interpreter if it is a long one.
pub fn copying<R: Send>(py: Python<'_>, len: usize, copy: impl FnOnce() -> R + Send) -> R {
    if len > DETACH_ABOVE { py.detach(copy) } else { copy() }
}

/// A buffer that Python lends for one call: bytes, bytearray, memoryview, array, a NumPy array of any type that has
/// no Python objects in it. Its bytes are taken as they lie in memory.
pub struct BorrowedBuffer<'py> {
    base: NonNull<u8>,
    len: usize,
    held: Held<'py>,
}

/// What keeps the bytes where they are.
enum Held<'py> {
    /// Immutable, and kept by a reference.
    #[allow(dead_code)] // held, not looked at
    Bytes(Bound<'py, PyBytes>),
    Buffer(Lending),
}

/// A filled `Py_buffer`: boxed, because it may point into itself. It cannot leave the thread, which is attached.
struct Lending(Box<ffi::Py_buffer>);

impl Lending {
    fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let mut buffer = Box::new(ffi::Py_buffer::new());
        // Read-only as far as we ask: the exporter's refusal would not say what of whose. `readonly` tells.
        let flags = ffi::PyBUF_FULL_RO;
        // SAFETY: a live object, and a buffer to be filled, which is given back when this is dropped.
        match unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), &mut *buffer, flags) } {
            0 => Ok(Self(buffer)),
            _ => Err(PyErr::fetch(object.py())),
        }
    }

    fn readonly(&self) -> bool {
        self.0.readonly != 0
    }

    fn format(&self) -> &CStr {
        if self.0.format.is_null() {
            return c"B";
        }
        // SAFETY: the exporter's string, which lives as long as the buffer is held.
        unsafe { CStr::from_ptr(self.0.format) }
    }

    fn is_c_contiguous(&self) -> bool {
        // SAFETY: a filled buffer.
        unsafe { ffi::PyBuffer_IsContiguous(&*self.0, b'C' as std::ffi::c_char) != 0 }
    }
}

impl Drop for Lending {
    fn drop(&mut self) {
        // SAFETY: filled by PyObject_GetBuffer, given back once.
        unsafe { ffi::PyBuffer_Release(&mut *self.0) };
    }
}

impl<'py> BorrowedBuffer<'py> {
    /// A buffer to read from.
    ///
    /// # Errors
    /// `TypeError` if it is no buffer, or one of Python objects; `BufferError` if its bytes do not lie side by side.
    pub fn readable(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        if let Ok(bytes) = object.cast::<PyBytes>() {
            let slice = bytes.as_bytes();
            let held = Held::Bytes(bytes.clone());
            return Ok(Self { base: NonNull::from(slice).cast(), len: slice.len(), held });
        }
        Self::contiguous(object, "a bytes-like object")
    }

    /// A buffer to write to.
    ///
    /// # Errors
    /// Those of `readable`; `TypeError` if it is read-only.
    pub fn writable(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let wanted = "a writable bytes-like object (bytearray, memoryview, array)";
        let buffer = Self::contiguous(object, wanted)?;
        match &buffer.held {
            Held::Buffer(held) if !held.readonly() => Ok(buffer),
            _ => Err(wrong_type(object, wanted, "which is read-only")),
        }
    }

    fn contiguous(object: &Bound<'py, PyAny>, wanted: &str) -> PyResult<Self> {
        // SAFETY: only asks.
        if unsafe { ffi::PyObject_CheckBuffer(object.as_ptr()) } == 0 {
            return Err(wrong_type(object, wanted, "which is none"));
        }
        let buffer = Lending::of(object)?;
        if holds_objects(buffer.format()) {
            return Err(wrong_type(object, wanted, "which holds Python objects"));
        }
        if !buffer.is_c_contiguous() {
            return Err(PyBufferError::new_err("the buffer's bytes must lie side by side, in C order"));
        }
        // An empty buffer may have no address.
        let base = NonNull::new(buffer.0.buf.cast::<u8>()).unwrap_or(NonNull::dangling());
        let len = usize::try_from(buffer.0.len).map_err(|_| PyBufferError::new_err("a negative length"))?;
        Ok(Self { base, len, held: Held::Buffer(buffer) })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The bytes, to copy from. A copy may run detached from the interpreter: who changes them meanwhile gets a
    /// mixture, as with any file write of Python's.
    pub fn source(&self) -> Source<'_> {
        // SAFETY: the exporter neither frees nor moves the bytes while we hold the buffer, or the bytes object.
        unsafe { Source::from_raw(self.base, self.len) }
    }

    /// The bytes, to copy to.
    ///
    /// # Errors
    /// `TypeError` for a buffer that was not asked for by `writable`.
    pub fn target(&mut self) -> PyResult<Target<'_>> {
        match &self.held {
            // SAFETY: as for the source, and the exporter said that its bytes may be written.
            Held::Buffer(held) if !held.readonly() => Ok(unsafe { Target::from_raw(self.base, self.len) }),
            _ => Err(PyTypeError::new_err("the buffer is read-only")),
        }
    }
}

fn wrong_type(object: &Bound<'_, PyAny>, wanted: &str, reason: &str) -> PyErr {
    match object.get_type().name() {
        Ok(name) => PyTypeError::new_err(format!("{wanted} is required, not '{name}', {reason}")),
        Err(error) => error,
    }
}

/// Does a buffer of this format (PEP 3118) hold references? Bytes of a guest's must never become one. The names of
/// fields stand between colons.
fn holds_objects(format: &CStr) -> bool {
    format.to_bytes().split(|&byte| byte == b':').step_by(2).any(|types| types.contains(&b'O'))
}

/// A new bytes object that `fill` fills.
///
/// # Errors
/// `MemoryError` if there is no room; what `fill` says.
pub fn new_bytes<'py, E>(
    py: Python<'py>,
    len: usize,
    fill: impl FnOnce(Target<'_>) -> Result<(), E>,
) -> Result<Bound<'py, PyBytes>, Error>
where
    Error: From<E>,
{
    let size =
        ffi::Py_ssize_t::try_from(len).map_err(|_| PyValueError::new_err("longer than bytes can be"))?;
    // SAFETY: with no bytes given it makes an object of that size with undefined contents, to be filled before
    // anybody else sees it. Target is a pointer, not a reference to bytes that have no value yet. A `fill` that
    // fails has its object dropped.
    unsafe {
        let object =
            Bound::from_owned_ptr_or_err(py, ffi::PyBytes_FromStringAndSize(std::ptr::null(), size))?;
        let base = NonNull::new(ffi::PyBytes_AsString(object.as_ptr()).cast::<u8>());
        let base = base.ok_or_else(|| PyErr::fetch(py))?;
        fill(Target::from_raw(base, len))?;
        Ok(object.cast_into_unchecked())
    }
}

/// Guest memory as a buffer. Its lease keeps the range mapped, whatever happens to the memory table.
///
/// `memoryview(view)` gives the bytes without a copy.
#[pyclass(frozen, module = "xenvirt._native")]
pub struct MemoryView {
    state: Mutex<Lent>,
    writable: bool,
    owner: Owner,
}

struct Lent {
    /// None once it was released.
    lease: Option<Box<dyn Leased>>,
    /// Buffers that Python has of it.
    buffers: usize,
}

impl MemoryView {
    /// Lends what is leased.
    pub fn new(lease: impl Leased + 'static, writable: bool) -> Self {
        let state = Mutex::new(Lent { lease: Some(Box::new(lease)), buffers: 0 });
        Self { state, writable, owner: Owner::this_process() }
    }

    /// In a child the lock may have been held by a thread of the parent.
    fn state(&self) -> Result<MutexGuard<'_, Lent>, Error> {
        self.owner.check()?;
        Ok(self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn released() -> PyErr {
    PyValueError::new_err("the view was released")
}

#[pymethods]
impl MemoryView {
    fn __len__(&self) -> Result<usize, Error> {
        let state = self.state()?;
        let lease = state.lease.as_ref().ok_or_else(released)?;
        Ok(lease.lease().len() as usize)
    }

    /// Are its buffers read-only?
    #[getter]
    fn readonly(&self) -> bool {
        !self.writable
    }

    /// Gives the memory back.
    pub fn release(&self) -> Result<(), Error> {
        let mut state = self.state()?;
        if state.buffers > 0 {
            let text = format!("{} buffers of the view are still in use", state.buffers);
            return Err(PyBufferError::new_err(text).into());
        }
        let lease = state.lease.take();
        drop(state);
        match lease {
            Some(lease) if lease.lease().poisoned() => Err(MemoryError::Gone.into()),
            _ => Ok(()),
        }
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (exception_type, _exception, _traceback, /))]
    fn __exit__(
        &self,
        exception_type: Option<&Bound<'_, PyType>>,
        _exception: Option<&Bound<'_, PyAny>>,
        _traceback: Option<&Bound<'_, PyAny>>,
    ) -> Result<(), Error> {
        match (self.release(), exception_type) {
            // The first error is the one to be seen; the lease goes with the last buffer.
            (Err(_), Some(_)) => Ok(()),
            (result, _) => result,
        }
    }

    /// # Safety
    /// `view` is the interpreter's, to be filled.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> Result<(), Error> {
        let this = slf.get();
        let mut state = this.state()?;
        let lease = state.lease.as_ref().ok_or_else(released)?.lease();
        if lease.poisoned() {
            return Err(MemoryError::Gone.into());
        }
        let (base, readonly) = (lease.base().as_ptr().cast(), c_int::from(!this.writable));
        // A lease is a range of the address space.
        let len = lease.len() as ffi::Py_ssize_t;
        // SAFETY: the interpreter's view; it gets a reference to us, and we keep the range until it is given back.
        let filled = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), base, len, readonly, flags) };
        if filled != 0 {
            return Err(PyErr::fetch(slf.py()).into());
        }
        state.buffers += 1;
        Ok(())
    }

    /// # Safety
    /// `view` was filled by `__getbuffer__`.
    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        // In a child nothing is there to be given back.
        if let Ok(mut state) = self.state() {
            state.buffers = state.buffers.saturating_sub(1);
        }
    }

    fn __repr__(&self) -> Result<String, Error> {
        Ok(match &self.state()?.lease {
            Some(lease) => format!("<MemoryView of {} bytes of guest memory>", lease.lease().len()),
            None => "<MemoryView, released>".to_owned(),
        })
    }
}

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
