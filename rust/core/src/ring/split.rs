//! The device's side of a split ring (virtio 1.3, 2.7): taking chains, giving them back, notifications.
//!
//! # Safety
//! The three parts were leased once, when the ring was made, for their whole length; `parts` keeps the
//! leases. An offset is made of an index below `size`, by the offsets in `layout`. Each value that
//! the driver wrote is loaded once, checked, and used from the copy.
#![allow(unsafe_code)]

use std::{
    collections::HashMap,
    sync::atomic::{Ordering, fence},
};

use super::{
    access::{load_descriptor, load_u16, store_u16, store_used},
    chain::{Extent, Segment},
    error::RingError,
    in_flight::InFlight,
    layout::{self, INDIRECT, NEXT, NO_INTERRUPT, NO_NOTIFY, WRITE},
    parts::{Parts, locate},
    requests::Requests,
    {RingConfig, RingFeatures},
};
use crate::memory::{Access, GuestMemory, Lease, MemoryError, Translator};

/// The most descriptors of an indirect chain, where the queue itself is smaller.
const INDIRECT_LIMIT: u32 = 1024;

/// A running split ring. What runs was checked: there is no way to make one but [`RingConfig::activate`].
#[derive(Debug)]
pub struct SplitRing {
    memory: GuestMemory,
    translator: Translator,
    config: RingConfig,
    features: RingFeatures,
    parts: Parts,
    size: u16,
    /// The available index that is taken next.
    next_available: u16,
    /// The driver's available index, when we last looked: checked to be at most `size` ahead.
    available_seen: u16,
    /// The used index that is written next; and as published.
    next_used: u16,
    published: u16,
    /// The used index at which we last decided whether to call; nothing is known of a ring that was
    /// served before.
    signalled: Option<u16>,
    /// The available index for which notifications are armed; a kick comes for what is added after it.
    armed: Option<u16>,
    /// Somebody looks again and again: arming asks for nothing.
    polled: bool,
    in_flight: InFlight,
    /// What is mapped for single chains only, by head: given back before the driver gets the chain. None
    /// for memory that is always mapped.
    leases: HashMap<u16, Vec<Lease>>,
}

// SAFETY: the pointers lead to shared memory that `parts` keeps mapped, and only `&mut self` stores.
unsafe impl Send for SplitRing {}

impl SplitRing {
    /// Checks everything about the ring and takes it up at `config.next_available`.
    pub(super) fn new(config: &RingConfig, memory: &GuestMemory) -> Result<Self, RingError> {
        let size = config.size;
        let parts = locate(config, memory)?;
        // SAFETY: located for its whole length, aligned to 4.
        let used_index = unsafe { load_u16(parts.used.wrapping_add(layout::USED_INDEX), Ordering::Relaxed) };
        let next = config.next_available;
        if next.wrapping_sub(used_index) > size {
            return Err(RingError::ResumeIndex { next, used: used_index, size });
        }
        let fresh = next == 0 && used_index == 0;
        Ok(Self {
            memory: memory.clone(),
            translator: memory.translator(),
            config: *config,
            features: config.features,
            parts,
            size,
            next_available: next,
            available_seen: next,
            next_used: used_index,
            published: used_index,
            signalled: fresh.then_some(0),
            armed: None,
            polled: false,
            in_flight: InFlight::new(size, next),
            leases: HashMap::new(),
        })
    }

    /// The memory table changed: translates everything again. What was taken stays as it is.
    pub(super) fn update_memory(&mut self, memory: &GuestMemory) -> Result<(), RingError> {
        self.parts = locate(&self.config, memory)?;
        self.translator = memory.translator();
        self.memory = memory.clone();
        Ok(())
    }

    /// Queue size in descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    pub(super) fn in_flight(&self) -> &InFlight {
        &self.in_flight
    }

    pub(super) fn kept_heads(&self) -> Vec<u16> {
        self.in_flight.kept_heads(self.next_available)
    }

    pub(super) fn abandon(&mut self, head: u16) {
        self.in_flight.abandon(head);
        self.let_go(head);
    }

    /// What is mapped for this chain alone, to be kept longer.
    pub(super) fn leases(&self, head: u16) -> &[Lease] {
        self.leases.get(&head).map_or(&[], Vec::as_slice)
    }

    /// Unmaps what was mapped for this chain alone, unless somebody keeps it longer.
    #[inline(always)]
    fn let_go(&mut self, head: u16) {
        if !self.leases.is_empty() {
            self.leases.remove(&head);
        }
    }

    /// Where another device would have to go on; see [`InFlight::rewind`].
    pub(super) fn resume_index(&self) -> u16 {
        self.in_flight.rewind(self.next_available)
    }

    /// True when something came back to this ring before we had it.
    pub(super) fn resumed(&self) -> bool {
        self.signalled.is_none()
    }

    #[inline(always)]
    fn mask(&self) -> usize {
        usize::from(self.size - 1)
    }

    /// Loads the driver's index and returns how many chains wait.
    #[inline(always)]
    pub(super) fn look(&mut self) -> Result<u16, RingError> {
        // Acquire: what the driver wrote before the index (the entries, the descriptors) is seen after it.
        // SAFETY: within the available ring, aligned to 2.
        let index = unsafe {
            load_u16(self.parts.available.wrapping_add(layout::AVAILABLE_INDEX), Ordering::Acquire)
        };
        if self.memory.poisoned() {
            return Err(RingError::MemoryFault);
        }
        let waiting = index.wrapping_sub(self.next_available);
        if waiting > self.size {
            return Err(RingError::AvailableIndex { index, next: self.next_available, size: self.size });
        }
        if self.available_seen != index {
            self.available_seen = index;
            self.armed = None;
        }
        Ok(waiting)
    }

    /// Takes a chain and appends its segments. `None` when there is none among those that we have seen.
    #[inline(always)]
    pub(super) fn take(&mut self, segments: &mut Vec<Segment>) -> Result<Option<Extent>, RingError> {
        if self.next_available == self.available_seen {
            return Ok(None);
        }
        let first = segments.len();
        let slot = usize::from(self.next_available) & self.mask();
        let at = self.parts.available.wrapping_add(layout::AVAILABLE_RING + slot * layout::AVAILABLE_ENTRY);
        // SAFETY: slot < size, aligned to 2.
        let head = unsafe { load_u16(at, Ordering::Relaxed) };
        if head >= self.size {
            return Err(RingError::HeadIndex { head, size: self.size });
        }
        if self.in_flight.has(head) {
            return Err(RingError::HeadInFlight { head });
        }
        match self.walk(head, segments) {
            Ok(_) if self.memory.poisoned() => {
                segments.truncate(first);
                self.let_go(head);
                Err(RingError::MemoryFault)
            }
            Ok(extent) => Ok(Some(extent)),
            Err(error) => {
                segments.truncate(first);
                self.let_go(head);
                Err(error)
            }
        }
    }

    /// Takes up to `limit` chains of those that are there now. When there is none, notifications are
    /// armed; when one breaks a rule, those before it have been taken.
    pub(super) fn take_many(&mut self, limit: usize, requests: &mut Requests) -> Result<(), RingError> {
        while self.look()? == 0 {
            if !self.arm()? {
                return Ok(());
            }
        }
        for _ in 0..limit {
            let Some(extent) = self.take(requests.segments())? else { break };
            requests.add(&extent)?;
            self.accept(extent.head);
        }
        if self.memory.poisoned() {
            // What was read may be the zeroes that stand in for it.
            requests.list.iter().for_each(|request| self.abandon(request.head));
            requests.list.clear();
            return Err(RingError::MemoryFault);
        }
        Ok(())
    }

    /// What [`Self::take`] returned is accepted: it is with the device now.
    #[inline(always)]
    pub(super) fn accept(&mut self, head: u16) {
        self.in_flight.take(head, self.next_available);
        self.next_available = self.next_available.wrapping_add(1);
    }

    /// Follows the descriptors of a chain, checks and translates each.
    #[inline(always)]
    fn walk(&mut self, head: u16, segments: &mut Vec<Segment>) -> Result<Extent, RingError> {
        let first = segments.len();
        let mut table = self.parts.descriptors.cast_const();
        let mut entries = u32::from(self.size);
        let mut limit = entries;
        let mut left = entries;
        let mut indirect = false;
        let mut index = head;
        let mut bytes = 0u64;
        let (mut readable, mut readable_segments) = (0u64, 0);
        let mut writable_seen = false;
        loop {
            if left == 0 || bytes > 1 << 32 {
                return Err(too_long(head, limit, bytes));
            }
            left -= 1;
            // SAFETY: index < entries, and the table was translated for all of them.
            let descriptor =
                unsafe { load_descriptor(table.wrapping_add(usize::from(index) * layout::DESCRIPTOR)) };
            let flags = descriptor.flags;
            if flags & INDIRECT != 0 {
                if indirect || flags & NEXT != 0 || !self.features.indirect {
                    return Err(self.bad_indirect(head, index, indirect));
                }
                let len = descriptor.len;
                if len == 0 || !len.is_multiple_of(layout::DESCRIPTOR as u32) {
                    return Err(RingError::IndirectLength { head, len });
                }
                let address = descriptor.address;
                table = match self.translator.translate(address, len.into(), Access::Read) {
                    Some(base) => base.as_ptr(),
                    None => self.lease_table(head, address, len)?,
                };
                entries = len / layout::DESCRIPTOR as u32;
                limit = entries.min(INDIRECT_LIMIT.max(self.size.into()));
                left = limit;
                indirect = true;
                index = 0;
                continue;
            }
            let (address, len) = (descriptor.address, descriptor.len);
            bytes += u64::from(len);
            let writable = flags & WRITE != 0;
            if !writable && writable_seen {
                return Err(RingError::ReadableAfterWritable { head, descriptor: index });
            }
            if len != 0 {
                let access = if writable { Access::Write } else { Access::Read };
                match self.translator.translate(address, len.into(), access) {
                    Some(base) => segments.push(Segment { base: base.as_ptr(), len, writable }),
                    None => self.pieces(head, address, len, writable, segments)?,
                }
            }
            if writable {
                writable_seen = true;
            } else {
                readable = bytes;
                readable_segments = segments.len() - first;
            }
            if flags & NEXT == 0 {
                break;
            }
            let next = descriptor.next;
            if u32::from(next) >= entries {
                return Err(RingError::NextIndex { head, next, entries });
            }
            if self.features.in_order && !indirect {
                let expected = index.wrapping_add(1) & (self.size - 1);
                if next != expected {
                    return Err(RingError::InOrderNext { descriptor: index, next, expected });
                }
            }
            index = next;
        }
        if bytes > 1 << 32 {
            return Err(too_long(head, limit, bytes));
        }
        Ok(Extent {
            head,
            readable_segments: readable_segments as u32,
            segments: (segments.len() - first) as u32,
            readable,
            writable: bytes - readable,
        })
    }

    #[cold]
    fn bad_indirect(&self, head: u16, descriptor: u16, indirect: bool) -> RingError {
        if !self.features.indirect {
            RingError::IndirectNotNegotiated { head, descriptor }
        } else if indirect {
            RingError::IndirectNested { head, descriptor }
        } else {
            RingError::IndirectWithNext { head, descriptor }
        }
    }

    /// A buffer that does not lie in one region, or in one that is mapped only on demand.
    #[cold]
    fn pieces(
        &mut self,
        head: u16,
        address: u64,
        len: u32,
        writable: bool,
        segments: &mut Vec<Segment>,
    ) -> Result<(), RingError> {
        let access = if writable { Access::Write } else { Access::Read };
        let mut leases = Vec::new();
        let reached = self.memory.reach(address, len.into(), access, &mut leases, |base, len| {
            // A piece is not longer than the buffer.
            segments.push(Segment { base: base.as_ptr(), len: len as u32, writable });
        });
        reached.map_err(|error| match error {
            MemoryError::ReadOnly { .. } => RingError::BufferReadOnly { head, address, len },
            _ => RingError::BufferAddress { head, address, len },
        })?;
        self.keep(head, leases);
        Ok(())
    }

    /// An indirect table in memory that is mapped only on demand. Like the ring's own parts it lies in one
    /// region.
    #[cold]
    fn lease_table(&mut self, head: u16, address: u64, len: u32) -> Result<*mut u8, RingError> {
        let lease = self.memory.lease(address, len.into(), Access::Read).map_err(|error| match error {
            MemoryError::Fault { .. } => RingError::MemoryFault,
            _ => RingError::IndirectAddress { head, address, len },
        })?;
        let base = lease.base().as_ptr();
        self.keep(head, vec![lease]);
        Ok(base)
    }

    fn keep(&mut self, head: u16, mut leases: Vec<Lease>) {
        if !leases.is_empty() {
            self.leases.entry(head).or_default().append(&mut leases);
        }
    }

    /// Writes a used entry, or holds it back until its turn. False when the chain is not kept (any more).
    #[inline(always)]
    pub(super) fn put(&mut self, head: u16, written: u32) -> bool {
        if self.features.in_order {
            return self.put_in_order(head, written);
        }
        if !self.in_flight.complete(head) {
            return false;
        }
        self.let_go(head);
        self.write_used(head, written);
        true
    }

    #[cold]
    fn put_in_order(&mut self, head: u16, written: u32) -> bool {
        if !self.in_flight.hold(head, written) {
            return false;
        }
        self.let_go(head);
        while let Some((head, written)) = self.in_flight.release() {
            self.write_used(head, written);
        }
        true
    }

    #[inline(always)]
    fn write_used(&mut self, head: u16, written: u32) {
        let slot = usize::from(self.next_used) & self.mask();
        let at = self.parts.used.wrapping_add(layout::USED_RING + slot * layout::USED_ENTRY);
        // SAFETY: slot < size; aligned to 4; writable, as was asked at the start.
        unsafe { store_used(at, head.into(), written) };
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Publishes what was put. True when the driver wants a call for it.
    #[inline(always)]
    pub(super) fn publish(&mut self) -> bool {
        let new = self.next_used;
        if new == self.published {
            return false;
        }
        self.published = new;
        // Release: the used entries, and what was written to the buffers, come before the index.
        // SAFETY: within the used ring, aligned to 2.
        unsafe { store_u16(self.parts.used.wrapping_add(layout::USED_INDEX), new, Ordering::Release) };
        // The index is out before the driver's wish is read; the driver writes its wish, fences, and
        // reads the index. So one of the two sees the other's store, and no call is lost.
        fence(Ordering::SeqCst);
        let old = self.signalled.replace(new);
        if self.features.notify_on_empty && self.is_drained() {
            return true;
        }
        if self.features.event_idx {
            let at = self.parts.available.wrapping_add(layout::used_event(self.size));
            // SAFETY: the available ring was located with its event word; aligned to 2.
            let event = unsafe { load_u16(at, Ordering::Relaxed) };
            old.is_none_or(|old| layout::passed_event(event, new, old))
        } else {
            // SAFETY: the first word of the available ring.
            let flags = unsafe { load_u16(self.parts.available, Ordering::Relaxed) };
            flags & NO_INTERRUPT == 0
        }
    }

    /// NOTIFY_ON_EMPTY: everything that was made available was used.
    fn is_drained(&self) -> bool {
        let at = self.parts.available.wrapping_add(layout::AVAILABLE_INDEX);
        // SAFETY: within the available ring, aligned to 2.
        let index = unsafe { load_u16(at, Ordering::Relaxed) };
        self.in_flight.outstanding() == 0 && index == self.next_available
    }

    /// Asks the driver for no notifications: somebody is about to look in any case.
    pub(super) fn disarm(&mut self) {
        self.armed = None;
        if !self.features.event_idx {
            // SAFETY: the first word of the used ring.
            unsafe { store_u16(self.parts.used, NO_NOTIFY, Ordering::Relaxed) };
        }
        // With EVENT_IDX the event word lies behind already, and is only met again after a whole round.
    }

    /// See [`VirtQueue::set_polled`](super::VirtQueue::set_polled).
    pub(super) fn set_polled(&mut self, polled: bool) {
        self.polled = polled;
        self.disarm();
    }

    /// Asks the driver to notify us of whatever it adds after what we have seen. Returns true when it
    /// has added something in between, which nobody has looked at: then no notification may come.
    pub(super) fn arm(&mut self) -> Result<bool, RingError> {
        let seen = self.available_seen;
        if self.polled {
            self.look()?;
            return Ok(self.available_seen != seen);
        }
        if self.armed == Some(seen) {
            return Ok(false);
        }
        // SAFETY: the used ring was located with its event word; aligned to 2; writable.
        unsafe {
            if self.features.event_idx {
                let at = self.parts.used.wrapping_add(layout::available_event(self.size));
                store_u16(at, seen, Ordering::Relaxed);
            } else {
                store_u16(self.parts.used, 0, Ordering::Relaxed);
            }
        }
        // Our wish is out before the driver's index is read: either we see what it adds, or it sees our wish.
        fence(Ordering::SeqCst);
        self.look()?;
        if self.available_seen == seen {
            self.armed = Some(seen);
        }
        Ok(self.available_seen != seen)
    }
}

#[cold]
fn too_long(head: u16, limit: u32, bytes: u64) -> RingError {
    if bytes > 1 << 32 {
        RingError::ChainBytes { head, bytes }
    } else {
        RingError::ChainLength { head, limit }
    }
}
