//! Guest physical addresses to host pointers, as plain loads: what the walk over descriptors asks for each.
//!
//! # Safety
//! Pointers are made only for ranges inside a backing that is mapped whole, and hold while its table lives.
#![allow(unsafe_code)]

use std::{ptr, ptr::NonNull};

use super::{
    backing::Access,
    guest::{GuestMemory, Region},
};

/// A region, as a translation looks at it: numbers, side by side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    start: u64,
    /// How much of the region may be reached by a plain pointer for reading and for writing: all of it or
    /// nothing. Indexed by [`Access`].
    limits: [u64; 2],
    /// Null where the limits are 0.
    base: *mut u8,
}

// SAFETY: the pointer belongs to a backing, which is Send and Sync; who uses it keeps the table.
unsafe impl Send for Span {}
// SAFETY: as above.
unsafe impl Sync for Span {}

impl Span {
    pub(super) fn of(region: &Region) -> Self {
        let base = region.backing.resident();
        let readable = if base.is_some() { region.len } else { 0 };
        let writable = if region.backing.writable() { readable } else { 0 };
        let base = base.map_or(ptr::null_mut(), NonNull::as_ptr);
        Self { start: region.guest_address, limits: [readable, writable], base }
    }

    pub(super) fn start(&self) -> u64 {
        self.start
    }

    #[inline(always)]
    pub(super) fn translate(&self, address: u64, len: u64, access: Access) -> Option<NonNull<u8>> {
        let offset = address.wrapping_sub(self.start);
        let limit = self.limits[access as usize];
        if offset < limit && len <= limit - offset {
            // SAFETY: inside the backing, which is mapped whole while the table lives.
            return NonNull::new(unsafe { self.base.add(offset as usize) });
        }
        None
    }
}

/// Translates ranges of one table, the region that was hit last first.
#[derive(Clone, Debug)]
pub struct Translator {
    last: Span,
    memory: GuestMemory,
}

impl Translator {
    pub(super) fn new(memory: GuestMemory) -> Self {
        let nowhere = Span { start: 0, limits: [0; 2], base: ptr::null_mut() };
        Self { last: memory.regions().first().map_or(nowhere, Span::of), memory }
    }

    /// The table, which keeps mapped what was translated.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The host pointer of a guest range that lies in one always-mapped region and allows the access.
    ///
    /// None for anything else: [`GuestMemory::reach`] then goes another way, or says what is wrong.
    #[inline(always)]
    pub fn translate(&mut self, address: u64, len: u64, access: Access) -> Option<NonNull<u8>> {
        match self.last.translate(address, len, access) {
            None => self.search(address, len, access),
            found => found,
        }
    }

    #[cold]
    fn search(&mut self, address: u64, len: u64, access: Access) -> Option<NonNull<u8>> {
        let span = *self.memory.span(address)?;
        let found = span.translate(address, len, access)?;
        self.last = span;
        Some(found)
    }
}
