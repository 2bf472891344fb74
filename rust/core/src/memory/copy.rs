//! Copies between guest memory and memory of this process.
//!
//! # Safety
//! The guest may write the same bytes at the same moment. The copies are made by one `memmove` over raw
//! pointers, in functions that are never inlined. For the language a write by another process in the midst
//! of it is a data race; what makes it sound in practice is that the bytes are only moved, never looked at,
//! and that the compiler, which cannot see into the call, cannot take a value from the guest a second time
//! instead of from the copy. Volatile accesses would say the same byte by byte, at a tenth of the speed.
#![allow(unsafe_code)]

use std::{marker::PhantomData, ptr, ptr::NonNull};

/// Bytes of this process to copy from. They need not stand still, and may even lie in guest memory (a
/// Python buffer can be anything), so they are a pointer and a length and no slice.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    base: NonNull<u8>,
    len: usize,
    borrowed: PhantomData<&'a [u8]>,
}

/// Room in this process to copy to; see [`Source`].
#[derive(Debug)]
pub struct Target<'a> {
    base: NonNull<u8>,
    len: usize,
    borrowed: PhantomData<&'a mut [u8]>,
}

// SAFETY: what the pointer points to stays borrowed for 'a, whichever thread copies.
unsafe impl Send for Source<'_> {}
// SAFETY: as above; nothing can be done through a shared one but copying from it.
unsafe impl Sync for Source<'_> {}
// SAFETY: as above.
unsafe impl Send for Target<'_> {}

impl<'a> Source<'a> {
    /// Bytes that need not stand still.
    ///
    /// # Safety
    /// `base` can be read for `len` bytes during `'a`. Others may write there meanwhile.
    pub unsafe fn from_raw(base: NonNull<u8>, len: usize) -> Self {
        Self { base, len, borrowed: PhantomData }
    }

    /// The first byte.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Is there nothing to copy?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes up to `count` bytes off the front.
    pub fn take(&mut self, count: usize) -> Source<'a> {
        let count = count.min(self.len);
        let front = Self { base: self.base, len: count, borrowed: PhantomData };
        // SAFETY: count <= len, so this is at most one past the end.
        self.base = unsafe { self.base.add(count) };
        self.len -= count;
        front
    }
}

impl<'a> Target<'a> {
    /// Room that others may look at meanwhile.
    ///
    /// # Safety
    /// `base` can be written for `len` bytes during `'a`, by whoever holds this value. Others may read and
    /// write there meanwhile.
    pub unsafe fn from_raw(base: NonNull<u8>, len: usize) -> Self {
        Self { base, len, borrowed: PhantomData }
    }

    /// The first byte.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Is there no room?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes up to `count` bytes of room off the front.
    pub fn take(&mut self, count: usize) -> Target<'a> {
        let count = count.min(self.len);
        let front = Self { base: self.base, len: count, borrowed: PhantomData };
        // SAFETY: count <= len, so this is at most one past the end.
        self.base = unsafe { self.base.add(count) };
        self.len -= count;
        front
    }
}

impl<'a> From<&'a [u8]> for Source<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self { base: NonNull::from(bytes).cast(), len: bytes.len(), borrowed: PhantomData }
    }
}

impl<'a> From<&'a mut [u8]> for Target<'a> {
    fn from(bytes: &'a mut [u8]) -> Self {
        Self { len: bytes.len(), base: NonNull::from(bytes).cast(), borrowed: PhantomData }
    }
}

/// Copies from guest memory until the target is full.
///
/// A fault on the way leaves zeroes and poisons the region: ask [`super::GuestMemory::poisoned`] afterwards.
///
/// # Safety
/// `guest` is mapped and readable for `target.len()` bytes, and stays so during the call.
#[inline(never)]
pub unsafe fn copy_from_guest(guest: NonNull<u8>, target: Target<'_>) {
    // SAFETY: the caller answers for the guest's side, whoever made the target for the other one. The two
    // may overlap, a target may lie in guest memory: `copy` is memmove.
    unsafe { ptr::copy(guest.as_ptr(), target.base.as_ptr(), target.len) }
}

/// Copies all of the source to guest memory. What is said of [`copy_from_guest`] holds here too.
///
/// # Safety
/// `guest` is mapped and writable for `source.len()` bytes, and stays so during the call.
#[inline(never)]
pub unsafe fn copy_to_guest(guest: NonNull<u8>, source: Source<'_>) {
    // SAFETY: as in `copy_from_guest`.
    unsafe { ptr::copy(source.base.as_ptr(), guest.as_ptr(), source.len) }
}
