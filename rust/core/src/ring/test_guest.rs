//! A guest for the unit tests: memory in a memfd, a ring in it, and a hand that writes anything.
#![allow(unsafe_code)]

use std::sync::{
    Arc,
    atomic::{AtomicU16, Ordering},
};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::{RingConfig, RingFeatures};
use crate::memory::{GuestMemory, MappedMemory, Region};

pub(super) use super::layout::{INDIRECT, NEXT, WRITE};

pub(super) const DESCRIPTORS: u64 = 0x1000;
pub(super) const AVAILABLE: u64 = 0x4000;
pub(super) const USED: u64 = 0x5000;
pub(super) const TABLE: u64 = 0x8000;
pub(super) const DATA: u64 = 0x10000;
/// Two regions that touch here.
pub(super) const SEAM: u64 = 0x20000;
/// A region that is read-only for us begins here, after a hole.
pub(super) const READ_ONLY: u64 = 0x40000;
/// Nothing is here.
pub(super) const HOLE: u64 = 0x30000;

pub(super) struct TestGuest {
    pub memory: GuestMemory,
    pub config: RingConfig,
    next: u16,
}

pub(super) fn region(address: u64, len: u64, writable: bool) -> Region {
    let fd = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, len).unwrap();
    let mapped = MappedMemory::file(std::os::fd::AsFd::as_fd(&fd), 0, len, writable).unwrap();
    Region::new(address, address, Arc::new(mapped))
}

impl TestGuest {
    pub fn new(size: u16, features: RingFeatures) -> Self {
        let memory = GuestMemory::new(vec![
            region(0, SEAM, true),
            region(SEAM, HOLE - SEAM, true),
            region(READ_ONLY, 0x10000, false),
        ])
        .unwrap();
        let (descriptors, available, used) = (DESCRIPTORS, AVAILABLE, USED);
        let config =
            RingConfig { size, descriptors, available, used, next_available: 0, features, in_turn: false };
        Self { memory, config, next: 0 }
    }

    fn host(&self, address: u64, len: usize) -> *mut u8 {
        self.memory.translate(address, len as u64).unwrap().as_ptr()
    }

    pub fn put(&self, address: u64, bytes: &[u8]) {
        // SAFETY: a range of our test memory.
        unsafe { std::ptr::copy(bytes.as_ptr(), self.host(address, bytes.len()), bytes.len()) }
    }

    pub fn get(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        // SAFETY: a range of our test memory.
        unsafe { std::ptr::copy(self.host(address, len), bytes.as_mut_ptr(), len) };
        bytes
    }

    pub fn word(&self, address: u64) -> &AtomicU16 {
        // SAFETY: a word of our test memory, which outlives the guest.
        unsafe { AtomicU16::from_ptr(self.host(address, 2).cast()) }
    }

    pub fn descriptor(&self, table: u64, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = table + u64::from(index) * 16;
        self.put(at, &address.to_le_bytes());
        self.put(at + 8, &len.to_le_bytes());
        self.put(at + 12, &flags.to_le_bytes());
        self.put(at + 14, &next.to_le_bytes());
    }

    /// The available index goes on from here.
    pub fn begin_at(&mut self, index: u16) {
        self.next = index;
        self.word(AVAILABLE + 2).store(index, Ordering::Release);
    }

    /// Makes a head available.
    pub fn publish(&mut self, head: u16) {
        let slot = u64::from(self.next % self.config.size);
        self.put(AVAILABLE + 4 + 2 * slot, &head.to_le_bytes());
        self.next = self.next.wrapping_add(1);
        self.word(AVAILABLE + 2).store(self.next, Ordering::Release);
    }

    /// A chain of direct descriptors from `head` on, one after the other; its buffers as (address, length, flags).
    pub fn chain(&mut self, head: u16, buffers: &[(u64, u32, u16)]) {
        self.table(DESCRIPTORS, head, buffers);
        self.publish(head);
    }

    /// Descriptors that follow each other, from `first` on.
    pub fn table(&self, table: u64, first: u16, buffers: &[(u64, u32, u16)]) {
        for (index, &(address, len, flags)) in (first..).zip(buffers) {
            let last = usize::from(index - first) + 1 == buffers.len();
            let (more, next) = if last { (0, 0) } else { (NEXT, (index + 1) % self.config.size) };
            self.descriptor(table, index, address, len, flags | more, next);
        }
    }

    pub fn used_index(&self) -> u16 {
        self.word(USED + 2).load(Ordering::Acquire)
    }

    /// The used entry at an index: (id, length).
    pub fn used(&self, index: u16) -> (u32, u32) {
        let bytes = self.get(USED + 4 + 8 * u64::from(index % self.config.size), 8);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        (word(0), word(4))
    }
}
