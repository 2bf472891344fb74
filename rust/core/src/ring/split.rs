//! The device's side of a split ring (virtio 1.3, 2.7): taking chains, giving them back, notifications.
//!
//! # Safety
//! The three parts were leased once, when the ring was made, for their whole length; `parts` keeps the
//! leases. An offset is made of an index below `size`, by the offsets in `layout`. Each value that
//! the driver wrote is loaded once, checked, and used from the copy.
#![allow(unsafe_code)]

use std::sync::atomic::{Ordering, fence};

use super::{
    RingConfig, RingFeatures,
    access::{load_u16, store_u16, store_used},
    chain::{Extent, Segment},
    error::RingError,
    in_flight::InFlight,
    layout::{self, NO_INTERRUPT, NO_NOTIFY},
    parts::{Parts, locate},
    requests::Requests,
    walk::{Refusal, Walker, refuse},
};
use crate::memory::{GuestMemory, Lease};

/// A running split ring. What runs was checked: there is no way to make one but [`RingConfig::activate`].
#[derive(Debug)]
pub struct SplitRing {
    memory: GuestMemory,
    walker: Walker,
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
            walker: Walker::new(memory, config.features, parts.descriptors, size),
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
            in_flight: InFlight::new(size, next, config.features.in_order || config.in_turn),
        })
    }

    /// The memory table changed: translates everything again. What was taken stays as it is.
    pub(super) fn update_memory(&mut self, memory: &GuestMemory) -> Result<(), RingError> {
        self.parts = locate(&self.config, memory)?;
        self.walker.move_to(memory, self.parts.descriptors);
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
        self.walker.let_go(head);
    }

    /// What is mapped for this chain alone, to be kept longer.
    pub(super) fn leases(&self, head: u16) -> &[Lease] {
        self.walker.leases(head)
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
        if waiting > self.size || waiting < self.available_seen.wrapping_sub(self.next_available) {
            let limit = self.next_available.wrapping_add(self.size);
            return Err(RingError::AvailableIndex { index, seen: self.available_seen, limit });
        }
        if self.available_seen != index {
            self.available_seen = index;
            self.armed = None;
        }
        Ok(waiting)
    }

    /// True when no chain waits among those that we have seen.
    #[inline(always)]
    pub(super) fn is_drained(&self) -> bool {
        self.next_available == self.available_seen
    }

    /// Takes the next chain, of which there must be one, and appends its segments.
    #[inline(always)]
    pub(super) fn take(&mut self, segments: &mut Vec<Segment>) -> Result<Extent, Refusal> {
        let first = segments.len();
        let slot = usize::from(self.next_available) & self.mask();
        let at = self.parts.available.wrapping_add(layout::AVAILABLE_RING + slot * layout::AVAILABLE_ENTRY);
        // SAFETY: slot < size, aligned to 2.
        let head = unsafe { load_u16(at, Ordering::Relaxed) };
        if head >= self.size {
            return Err(refuse(RingError::HeadIndex { head, size: self.size }));
        }
        if self.in_flight.has(head) {
            return Err(refuse(RingError::HeadInFlight { head }));
        }
        match self.walker.walk(head, segments) {
            Ok(extent) => Ok(extent),
            Err(error) => {
                segments.truncate(first);
                self.walker.let_go(head);
                Err(error)
            }
        }
    }

    /// Takes up to `limit` chains of those that are there now. When there is none, notifications are
    /// armed; when one breaks a rule, those before it have been taken.
    pub(super) fn take_many(&mut self, limit: usize, requests: &mut Requests) -> Result<(), RingError> {
        let waiting = loop {
            match self.look()? {
                0 if self.arm()? => {}
                0 => return Ok(()),
                waiting => break waiting,
            }
        };
        let count = limit.min(waiting.into());
        requests.reserve(count);
        for _ in 0..count {
            let first = requests.segments.len();
            let extent = self.take(&mut requests.segments).map_err(|error| *error)?;
            if let Err(error) = requests.add(first, &extent) {
                self.walker.let_go(extent.head);
                return Err(*error);
            }
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

    /// Writes a used entry, or holds it back until its turn. False when the chain is not kept (any more). An error when what was
    /// written cannot be brought to the guest: then the driver does not get the chain.
    #[inline(always)]
    pub(super) fn put(&mut self, head: u16, written: u32) -> Result<bool, Refusal> {
        if self.in_flight.is_ordered() {
            return self.put_in_order(head, written);
        }
        if !self.in_flight.complete(head) {
            return Ok(false);
        }
        self.walker.finish(head)?;
        self.write_used(head, written);
        Ok(true)
    }

    #[cold]
    fn put_in_order(&mut self, head: u16, written: u32) -> Result<bool, Refusal> {
        if !self.in_flight.hold(head, written) {
            return Ok(false);
        }
        self.walker.finish(head)?;
        while let Some((head, written)) = self.in_flight.release() {
            self.write_used(head, written);
        }
        Ok(true)
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
        if self.features.notify_on_empty && self.is_empty() {
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
    fn is_empty(&self) -> bool {
        let at = self.parts.available.wrapping_add(layout::AVAILABLE_INDEX);
        // SAFETY: within the available ring, aligned to 2.
        let index = unsafe { load_u16(at, Ordering::Relaxed) };
        index == self.next_available && self.in_flight.is_empty()
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
        self.armed = None;
        if polled {
            self.disarm();
        }
    }

    /// Looks, and says whether the driver has added something since we looked before.
    #[inline(always)]
    pub(super) fn has_more(&mut self) -> Result<bool, RingError> {
        let seen = self.available_seen;
        self.look()?;
        Ok(self.available_seen != seen)
    }

    /// Asks the driver to notify us of whatever it adds after what we have seen. Returns true when it
    /// has added something in between, which nobody has looked at: then no notification may come.
    pub(super) fn arm(&mut self) -> Result<bool, RingError> {
        let seen = self.available_seen;
        if self.polled {
            return self.has_more();
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
