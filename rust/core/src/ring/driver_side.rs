//! The driver's side of a split ring (virtio 1.3, 2.7.13 and 2.7.14): making chains available, and taking
//! back what the device used. A device that breaks a rule gets a [`RingError`] too.
//!
//! # Safety
//! As in `split`: the three parts were located once, for their whole length, and `parts` keeps them
//! mapped. Each value that the device wrote is loaded once, checked, and used from the copy.
#![allow(unsafe_code)]

use std::{
    collections::VecDeque,
    sync::atomic::{Ordering, fence},
};

use super::{
    RingConfig, RingFeatures,
    access::{Descriptor, load_u16, load_used, store_descriptor, store_u16},
    error::RingError,
    layout::{self, INDIRECT, NEXT, NO_INTERRUPT, NO_NOTIFY, WRITE},
    parts::{Parts, locate},
};
use crate::memory::{Access, GuestMemory, Translator};

/// A range of guest memory that is lent to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest physical address.
    pub address: u64,
    /// Length in bytes.
    pub len: u32,
}

/// A chain that the device gave back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsedChain {
    /// Index of its first descriptor.
    pub head: u16,
    /// Bytes that the device says it wrote, from the beginning of the writable part. It may be more than
    /// there are: some devices count what they read too (2.7.8.2 forbids it, and drivers live with it).
    pub written: u32,
}

/// A chain that the device has.
#[derive(Clone, Copy, Debug)]
struct Lent {
    /// Descriptors of the table that it takes.
    descriptors: u16,
    writable: u64,
}

/// A split ring, from the driver's end.
#[derive(Debug)]
pub struct DriverRing {
    memory: GuestMemory,
    translator: Translator,
    features: RingFeatures,
    parts: Parts,
    size: u16,
    /// Descriptors that are free, the next one last. With IN_ORDER they come back in the order of the
    /// table, so that the front of the queue is the next one in any case.
    free: VecDeque<u16>,
    /// What the device has, by head.
    lent: Box<[Option<Lent>]>,
    /// Where a direct chain goes on: `next` of each descriptor in use.
    links: Box<[u16]>,
    /// The heads in the order in which they were made available.
    order: VecDeque<u16>,
    /// The available index: with what was added, and as published.
    next_available: u16,
    published: u16,
    /// The available index at which we last decided whether to kick.
    kicked: u16,
    next_used: u16,
    outstanding: u16,
    failed: Option<RingError>,
}

// SAFETY: the pointers lead to shared memory that `parts` keeps mapped, and only `&mut self` stores.
unsafe impl Send for DriverRing {}

impl DriverRing {
    /// Lays an empty ring into the memory. `next_available` must be 0: a driver begins afresh.
    pub fn new(config: &RingConfig, memory: &GuestMemory) -> Result<Self, RingError> {
        let parts = locate(config, memory)?;
        let size = config.size;
        // SAFETY: located for their whole length. They are ours, so they must be writable; the used ring
        // was asked, and the two others lie in memory that the same owner made.
        unsafe {
            std::ptr::write_bytes(parts.descriptors, 0, layout::descriptors_len(size));
            std::ptr::write_bytes(parts.available, 0, layout::available_len(size, config.features.event_idx));
            std::ptr::write_bytes(parts.used, 0, layout::used_len(size, config.features.event_idx));
        }
        Ok(Self {
            memory: memory.clone(),
            translator: memory.translator(),
            features: config.features,
            parts,
            size,
            free: (0..size).collect(),
            lent: vec![None; size.into()].into(),
            links: vec![0; size.into()].into(),
            order: VecDeque::new(),
            next_available: 0,
            published: 0,
            kicked: 0,
            next_used: 0,
            outstanding: 0,
            failed: None,
        })
    }

    /// The memory that the ring lies in.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Queue size in descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Chains that the device has.
    pub fn outstanding(&self) -> u16 {
        self.outstanding
    }

    /// Descriptors that are free: a chain takes one a buffer, or one in all with an indirect table.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Writes an indirect table: 16 bytes a buffer, to memory aligned to 16 that is ours.
    fn write_table(&self, at: *mut u8, readable: &[Buffer], writable: &[Buffer]) {
        let count = readable.len() + writable.len();
        for (index, (buffer, flags)) in buffers(readable, writable).enumerate() {
            let more = if index + 1 < count { NEXT } else { 0 };
            let descriptor = Descriptor {
                address: buffer.address,
                len: buffer.len,
                flags: flags | more,
                next: if more == 0 { 0 } else { index as u16 + 1 },
            };
            // SAFETY: the caller located the table for all of its entries, aligned to 16.
            unsafe { store_descriptor(at.wrapping_add(index * layout::DESCRIPTOR), descriptor) };
        }
    }

    /// Adds a chain, by an indirect table at the given address where there is one. Returns its head, or
    /// `None` when the ring has not enough free descriptors. The device sees it after [`Self::publish`].
    pub fn add(
        &mut self,
        readable: &[Buffer],
        writable: &[Buffer],
        table: Option<u64>,
    ) -> Result<Option<u16>, RingError> {
        self.check()?;
        let count = readable.len() + writable.len();
        let needed = if table.is_some() { 1 } else { count };
        if count == 0 || needed > self.free.len() || count > usize::from(u16::MAX) {
            return Ok(None);
        }
        let Some(&head) = self.free.front() else { return Ok(None) };
        if let Some(address) = table {
            let len = (count * layout::DESCRIPTOR) as u32;
            let base = self
                .translator
                .translate(address, len.into(), Access::Write)
                .filter(|base| (base.as_ptr() as u64).is_multiple_of(8))
                .ok_or(RingError::IndirectAddress { head, address, len })?;
            self.write_table(base.as_ptr(), readable, writable);
            self.free.pop_front();
            self.store(head, Descriptor { address, len, flags: INDIRECT, next: 0 });
        } else {
            for (index, (buffer, flags)) in buffers(readable, writable).enumerate() {
                let Some(at) = self.free.pop_front() else { break };
                let next = if index + 1 < count { self.free.front().copied() } else { None };
                self.links[usize::from(at)] = next.unwrap_or(0);
                self.store(
                    at,
                    Descriptor {
                        address: buffer.address,
                        len: buffer.len,
                        flags: flags | if next.is_some() { NEXT } else { 0 },
                        next: next.unwrap_or(0),
                    },
                );
            }
        }
        let bytes = writable.iter().map(|buffer| u64::from(buffer.len)).sum();
        self.lent[usize::from(head)] = Some(Lent { descriptors: needed as u16, writable: bytes });
        self.order.push_back(head);
        let slot = usize::from(self.next_available & (self.size - 1));
        let at = layout::AVAILABLE_RING + slot * layout::AVAILABLE_ENTRY;
        // SAFETY: slot < size, aligned to 2.
        unsafe { store_u16(self.parts.available.wrapping_add(at), head, Ordering::Relaxed) };
        self.next_available = self.next_available.wrapping_add(1);
        self.outstanding += 1;
        Ok(Some(head))
    }

    fn store(&mut self, index: u16, descriptor: Descriptor) {
        let at = self.parts.descriptors.wrapping_add(usize::from(index) * layout::DESCRIPTOR);
        // SAFETY: index < size, aligned to 16.
        unsafe { store_descriptor(at, descriptor) };
    }

    /// Shows the device what was added. Returns true when it wants a kick for it.
    pub fn publish(&mut self) -> bool {
        let new = self.next_available;
        if new == self.published {
            return false;
        }
        self.published = new;
        let at = self.parts.available.wrapping_add(layout::AVAILABLE_INDEX);
        // Release: the entries and the descriptors come before the index.
        // SAFETY: within the available ring, aligned to 2.
        unsafe { store_u16(at, new, Ordering::Release) };
        // The index is out before the device's wish is read: it sees the index, or we see its wish.
        fence(Ordering::SeqCst);
        let old = std::mem::replace(&mut self.kicked, new);
        if self.features.event_idx {
            let at = self.parts.used.wrapping_add(layout::available_event(self.size));
            // SAFETY: the used ring was located with its event word; aligned to 2.
            let event = unsafe { load_u16(at, Ordering::Relaxed) };
            layout::passed_event(event, new, old)
        } else {
            // SAFETY: the first word of the used ring.
            let flags = unsafe { load_u16(self.parts.used, Ordering::Relaxed) };
            flags & NO_NOTIFY == 0
        }
    }

    fn check(&self) -> Result<(), RingError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Takes back what the device has used, and appends it to `done`. After an error nothing more
    /// comes out of the ring.
    pub fn poll(&mut self, done: &mut Vec<UsedChain>) -> Result<(), RingError> {
        self.check()?;
        self.collect(done).inspect_err(|error| self.failed = Some(error.clone()))
    }

    fn used_index(&self) -> u16 {
        let at = self.parts.used.wrapping_add(layout::USED_INDEX);
        // Acquire: the entries and the buffers are seen after the index.
        // SAFETY: within the used ring, aligned to 2.
        unsafe { load_u16(at, Ordering::Acquire) }
    }

    fn collect(&mut self, done: &mut Vec<UsedChain>) -> Result<(), RingError> {
        let index = self.used_index();
        let mut waiting = index.wrapping_sub(self.next_used);
        let (next, outstanding) = (self.next_used, self.outstanding);
        if waiting > outstanding {
            return Err(RingError::UsedIndex { index, next, outstanding });
        }
        while waiting > 0 {
            let slot = usize::from(self.next_used & (self.size - 1));
            let at = self.parts.used.wrapping_add(layout::USED_RING + slot * layout::USED_ENTRY);
            // SAFETY: slot < size, aligned to 4.
            let (id, len) = unsafe { load_used(at) };
            let head = u16::try_from(id).map_err(|_| RingError::UsedId { id })?;
            if self.lent.get(usize::from(head)).is_none_or(Option::is_none) {
                return Err(RingError::UsedId { id });
            }
            let mut count = 1;
            if self.features.in_order {
                // 2.7.9: one entry may stand for several chains, with the head of the last of them. The
                // others were used completely.
                let place = self.order.iter().position(|&other| other == head);
                count = place.map_or(1, |place| place + 1);
                if count > usize::from(waiting) {
                    return Err(RingError::UsedId { id });
                }
                for _ in 1..count {
                    self.take_oldest(done);
                }
            }
            let written = self.take_back(head, Some(len))?;
            done.push(UsedChain { head, written });
            waiting -= count as u16;
            self.next_used = self.next_used.wrapping_add(count as u16);
        }
        Ok(())
    }

    fn take_oldest(&mut self, done: &mut Vec<UsedChain>) {
        if let Some(&head) = self.order.front()
            && let Ok(written) = self.take_back(head, None)
        {
            done.push(UsedChain { head, written });
        }
    }

    /// Frees the descriptors of a chain. Without a length the chain was written completely.
    fn take_back(&mut self, head: u16, len: Option<u32>) -> Result<u32, RingError> {
        let id = u32::from(head);
        let lent = self.lent.get_mut(usize::from(head)).and_then(Option::take);
        let Lent { descriptors, writable } = lent.ok_or(RingError::UsedId { id })?;
        let written = len.unwrap_or(u32::try_from(writable).unwrap_or(u32::MAX));
        let mut index = head;
        for _ in 0..descriptors {
            self.free.push_back(index);
            index = self.links.get(usize::from(index)).copied().unwrap_or(0);
        }
        if self.order.front() == Some(&head) {
            self.order.pop_front();
        } else if let Some(place) = self.order.iter().position(|&other| other == head) {
            self.order.remove(place);
        }
        self.outstanding -= 1;
        Ok(written)
    }

    /// Asks for a call for whatever the device uses next. Returns true when it has used something that
    /// was not taken back yet: then no call may come.
    pub fn arm(&mut self) -> bool {
        // SAFETY: the available ring was located with its event word; aligned to 2; ours.
        unsafe {
            if self.features.event_idx {
                let at = self.parts.available.wrapping_add(layout::used_event(self.size));
                store_u16(at, self.next_used, Ordering::Relaxed);
            } else {
                store_u16(self.parts.available, 0, Ordering::Relaxed);
            }
        }
        // Our wish is out before the device's index is read: we see the index, or it sees our wish.
        fence(Ordering::SeqCst);
        self.failed.is_none() && self.used_index() != self.next_used
    }

    /// Asks for no calls: somebody polls. With EVENT_IDX a stray one may still come.
    pub fn disarm(&mut self) {
        // SAFETY: the available ring was located with its event word; aligned to 2; ours.
        unsafe {
            if self.features.event_idx {
                // Just behind us: it is met again after a whole round of the index.
                let at = self.parts.available.wrapping_add(layout::used_event(self.size));
                store_u16(at, self.next_used.wrapping_sub(1), Ordering::Relaxed);
            } else {
                store_u16(self.parts.available, NO_INTERRUPT, Ordering::Relaxed);
            }
        }
    }
}

/// Readable buffers first, each with its flags.
fn buffers<'a>(readable: &'a [Buffer], writable: &'a [Buffer]) -> impl Iterator<Item = (&'a Buffer, u16)> {
    readable.iter().map(|buffer| (buffer, 0)).chain(writable.iter().map(|buffer| (buffer, WRITE)))
}
