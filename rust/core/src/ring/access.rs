//! Loads and stores on ring memory, which a guest writes at the same time.
//!
//! # Safety
//! Each function takes a raw pointer to memory that is mapped, of the size of the value, and aligned for
//! it where it says so. Nothing is assumed of the bytes: any pattern is a value of these types. The two
//! index words and the event words are atomic cells, the one exception to "no reference into guest
//! memory": a `&AtomicU16` promises nothing about who else writes.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU16, Ordering};

/// A descriptor, as read (virtio 1.3, 2.7.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub address: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Descriptor {
    #[inline(always)]
    fn from_words(first: u64, second: u64) -> Self {
        let (first, second) = (u64::from_le(first), u64::from_le(second));
        Self { address: first, len: second as u32, flags: (second >> 32) as u16, next: (second >> 48) as u16 }
    }

    pub(super) fn to_words(self) -> (u64, u64) {
        let second = u64::from(self.len) | u64::from(self.flags) << 32 | u64::from(self.next) << 48;
        (self.address.to_le(), second.to_le())
    }
}

/// Reads a descriptor once.
///
/// # Safety
/// 16 mapped bytes at `at`, aligned to 8.
#[inline(always)]
pub(super) unsafe fn load_descriptor(at: *const u8) -> Descriptor {
    let words = at.cast::<u64>();
    // SAFETY: the caller's promise.
    unsafe { Descriptor::from_words(words.read_volatile(), words.add(1).read_volatile()) }
}

/// Writes a descriptor.
///
/// # Safety
/// 16 mapped, writable bytes at `at`, aligned to 8.
pub(super) unsafe fn store_descriptor(at: *mut u8, descriptor: Descriptor) {
    let (first, second) = descriptor.to_words();
    let words = at.cast::<u64>();
    // SAFETY: the caller's promise.
    unsafe {
        words.write_volatile(first);
        words.add(1).write_volatile(second);
    }
}

/// Loads a 16-bit word.
///
/// # Safety
/// Two mapped bytes at `at`, aligned to 2.
#[inline(always)]
pub(super) unsafe fn load_u16(at: *const u8, order: Ordering) -> u16 {
    // SAFETY: the caller's promise; see the module's words about atomic cells.
    u16::from_le(unsafe { AtomicU16::from_ptr(at.cast_mut().cast()) }.load(order))
}

/// Stores a 16-bit word.
///
/// # Safety
/// Two mapped, writable bytes at `at`, aligned to 2.
#[inline(always)]
pub(super) unsafe fn store_u16(at: *mut u8, value: u16, order: Ordering) {
    // SAFETY: the caller's promise; see the module's words about atomic cells.
    unsafe { AtomicU16::from_ptr(at.cast()) }.store(value.to_le(), order);
}

/// Writes an entry of the used ring (virtio 1.3, 2.7.8).
///
/// # Safety
/// Eight mapped, writable bytes at `at`, aligned to 4.
#[inline(always)]
pub(super) unsafe fn store_used(at: *mut u8, id: u32, len: u32) {
    let words = at.cast::<u32>();
    // SAFETY: the caller's promise.
    unsafe {
        words.write_volatile(id.to_le());
        words.add(1).write_volatile(len.to_le());
    }
}

/// Reads an entry of the used ring once.
///
/// # Safety
/// Eight mapped bytes at `at`, aligned to 4.
pub(super) unsafe fn load_used(at: *const u8) -> (u32, u32) {
    let words = at.cast::<u32>();
    // SAFETY: the caller's promise.
    unsafe { (u32::from_le(words.read_volatile()), u32::from_le(words.add(1).read_volatile())) }
}
